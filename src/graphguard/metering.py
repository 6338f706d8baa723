"""The meter: every model call under a guarded graph, held before it is sent and settled after.

The only module that knows LangChain's callbacks, and what LangGraph keeps in a task's config. A handler is
attached through `register_configure_hook` to each run started in a guarded task's context, so it sees calls
that were made without any config, in tools, threads and subgraphs too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass, replace
from decimal import Decimal
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Protocol, cast

from langchain_core.callbacks import BaseCallbackHandler

# The coroutine that awaits async handlers; a handler method must know whether it is called from there.
from langchain_core.callbacks.manager import _ahandle_event_for_handler
from langchain_core.tracers.context import register_configure_hook
from langgraph._internal import _constants as keys
from langgraph.errors import GraphInterrupt
from langgraph.types import Interrupt

from graphguard.budget import Breach, Call
from graphguard.errors import BudgetExceeded, UnknownPrice
from graphguard.ledger.protocol import Refusal
from graphguard.scope import Scope, new_id
from graphguard.spend import Charge, Spend
from graphguard.usage import Usage, input_bytes, output_cap, tools_bound

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from uuid import UUID

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult
    from langchain_core.runnables import RunnableConfig
    from langgraph._internal._scratchpad import PregelScratchpad

__all__ = ["Handler", "Question", "Task", "current_scope"]

_PROMPTS: Final = 2_000
_ANSWER_FRAME: Final = 16  # tokens that frame an answer when it is sent back


_MARK: Final = "__graphguard__"
_LOOK, _TAKE = False, True  # LangGraph's null resume value is looked at, or taken
_UNFINISHED: Final = frozenset({keys.INTERRUPT, keys.RESUME, keys.ERROR, keys.ERROR_SOURCE_NODE})
_AS_IT_BEGAN = False  # channels are read without the task's own writes


@dataclass(frozen=True, slots=True)
class Question:
    """What inline gates asked in a task, or in a task beside it.

    Attributes:
        asked: The trip asked about last, or None when all was answered.
        limits: Limits raised by answers so far, in the state's form.
        users: Answers that belong to the node's own interrupts.
        fresh: The answer to what was asked; None when there is none yet.
        kept: The task's resume values as they were when it asked.
        interrupt: The interrupt that asks, if another task asked.
    """

    asked: dict[str, object] | None
    limits: dict[str, dict[str, object]]
    users: tuple[object, ...] = ()
    fresh: object = None
    kept: tuple[object, ...] = ()
    interrupt: Interrupt | None = None


def _is_raised(asked: object, limits: Mapping[str, Mapping[str, object]]) -> bool:
    """Whether the limit that a question was about has been raised since, both in the state's form."""
    trip = cast("Mapping[str, object]", asked)
    raised = limits.get(str(trip["budget"]), {}).get(str(trip["metric"]))
    return raised is not None and Decimal(str(raised)) > Decimal(str(trip["limit"]))


def _is_of_gate(interrupt: Interrupt) -> bool:
    return isinstance(interrupt.value, dict) and "answers_before" in interrupt.value


def _is_ours(interrupt: Interrupt) -> bool:
    return isinstance(interrupt.value, dict) and interrupt.value.get("kind") == "graphguard.budget"


def _is_mark(value: object) -> bool:
    return isinstance(value, dict) and _MARK in value


def _no_answer(consume: bool = False) -> None:  # noqa: FBT001, FBT002 - LangGraph's signature
    """Stand in for LangGraph's look at the answer without an address, where that is not for the node's code."""


def _marked(users: Sequence[object], limits: object) -> list[object]:
    # Around the last value rather than beside it: the count of values is what numbers the next interrupt.
    if not users:
        return [{_MARK: limits}]
    return [*users[:-1], {_MARK: limits, "answer": users[-1]}]


# Not frozen, though nothing changes it: each model call makes five, and a frozen one takes three times as long.
@dataclass(slots=True)
class Task:
    """What LangGraph says of the task that is running, read from its config.

    Attributes:
        config: The task's config.
        node: The node's name.
        id: The task's id; attempts and resumes of a task share it.
        graph_ns: The checkpoint namespace of the graph that the task belongs to; empty at the top.
        checkpoint: Id of the checkpoint that the task runs from.
        thread: The thread's id, or None.
        attempt: LangGraph's count of attempts, from 1.
    """

    config: RunnableConfig
    node: str
    id: str
    graph_ns: str
    checkpoint: str
    thread: str | None
    attempt: int

    @classmethod
    def of(cls, config: RunnableConfig) -> Task:
        """The task of a config that LangGraph made for it."""
        conf = config.get(keys.CONF, {})
        ns = str(conf.get(keys.CONFIG_KEY_CHECKPOINT_NS, ""))
        graph_ns, _, own = ns.rpartition(keys.NS_SEP)
        thread = conf.get(keys.CONFIG_KEY_THREAD_ID)
        info = getattr(conf.get(keys.CONFIG_KEY_RUNTIME), "execution_info", None)
        return cls(
            config=config,
            node=str(config.get("metadata", {}).get("langgraph_node") or own.partition(keys.NS_END)[0]),
            id=str(conf.get(keys.CONFIG_KEY_TASK_ID, "")),
            graph_ns=graph_ns,
            # A node that somebody calls by hand runs from no checkpoint; each such call is a line of its own.
            checkpoint=str((conf.get(keys.CONFIG_KEY_CHECKPOINT_MAP) or {}).get(graph_ns) or new_id()),
            thread=None if thread is None else str(thread),
            attempt=getattr(info, "node_attempt", None) or 1,
        )

    @property
    def has_checkpointer(self) -> bool:
        """Whether the run can be resumed."""
        return bool(self.config[keys.CONF].get(keys.CONFIG_KEY_CHECKPOINTER))

    def read(self, channel: str) -> dict[str, object]:
        """One of graphguard's own state fields as the superstep began with it."""
        read = self.config.get(keys.CONF, {}).get(keys.CONFIG_KEY_READ)
        return (read(channel, _AS_IT_BEGAN) or {}) if read else {}

    def read_state(self, channel: str) -> object:
        """Any state field as the superstep began with it."""
        return self.config[keys.CONF][keys.CONFIG_KEY_READ](channel, _AS_IT_BEGAN)

    @property
    def writes(self) -> deque[tuple[str, object]]:
        """The task's writes so far; changing them changes what the task does."""
        # CONFIG_KEY_SEND is the bound `extend` of this deque, but wrapped for nodes with a timeout;
        # CONFIG_KEY_READ is a partial that holds the task's writes, so that branches can see them.
        read = self.config[keys.CONF].get(keys.CONFIG_KEY_READ)
        for part in getattr(read, "args", ()):
            if isinstance(getattr(part, "writes", None), deque):
                return cast("deque[tuple[str, object]]", part.writes)
        send = self.config[keys.CONF][keys.CONFIG_KEY_SEND]
        return cast("deque[tuple[str, object]]", getattr(send, "__self__", deque()))

    def send(self, writes: Sequence[tuple[str, object]]) -> None:
        """Write to channels from this task."""
        self.config[keys.CONF][keys.CONFIG_KEY_SEND](writes)

    def emit(self, event: dict[str, object]) -> None:
        """Put an event on the graph's custom stream, if anybody listens."""
        runtime = self.config.get(keys.CONF, {}).get(keys.CONFIG_KEY_RUNTIME)
        if runtime is not None:
            runtime.stream_writer(event)

    @property
    def pushed(self) -> bool:
        """Whether a `Send` started the task, with a payload of its own."""
        path = self.config.get("metadata", {}).get("langgraph_path") or ("",)
        return path[0] == keys.PUSH

    @property
    def is_run(self) -> bool:
        """Whether a graph really runs the task, rather than being drawn or updated by hand."""
        return keys.CONFIG_KEY_CALL in self.config.get(keys.CONF, {})

    @property
    def routable(self) -> bool:
        """Whether a graph runs the task, rather than somebody who called the node by hand."""
        return keys.CONFIG_KEY_SEND in self.config.get(keys.CONF, {})

    def has_answers(self, beside: Sequence[Question]) -> bool:
        """Whether answers are there that belong to the interrupts of the node's own code.

        Args:
            beside: What was asked in other tasks; an answer without an address belongs to that.
        """
        pad = self.config.get(keys.CONF, {}).get(keys.CONFIG_KEY_SCRATCHPAD)
        return pad is not None and (bool(pad.resume) or (not beside and pad.get_null_resume(_LOOK) is not None))

    @property
    def _call(self) -> object:
        """LangGraph's function that runs this task, with what it is bound to."""
        call: object = self.config[keys.CONF].get(keys.CONFIG_KEY_CALL)
        for cell in getattr(call, "__closure__", None) or ():  # wrapped for nodes with a timeout
            call = cell.cell_contents if getattr(cell.cell_contents, "args", None) else call
        return call

    @property
    def superstep(self) -> object:
        """What LangGraph makes anew for each attempt to run a superstep, and its tasks share; None if unknown."""
        futures = getattr(self._call, "keywords", {}).get("futures")
        return futures() if futures is not None else None

    @property
    def accompanied(self) -> bool:
        """Whether another node's task runs in the same superstep."""
        # What starts further tasks for a task is bound to the loop, which knows all tasks of its superstep.
        loop = getattr(getattr(self._call, "keywords", {}).get("schedule_task"), "__self__", None)
        tasks = list(getattr(loop, "tasks", {}).values())
        # A function called as a task of its own has the path of its caller in its path.
        return any(task.name != self.node and not isinstance(task.path[1], tuple) for task in tasks)

    @property
    def answered(self) -> bool:
        """Whether anybody answered a question in this task before; asking from elsewhere would lose that."""
        pad = self.config.get(keys.CONF, {}).get(keys.CONFIG_KEY_SCRATCHPAD)
        return pad is not None and bool(pad.resume)

    @classmethod
    def undisturbed(cls, config: RunnableConfig) -> bool:
        """Whether nothing was written in this superstep yet: then nobody asked or answered anything here."""
        pad = config.get(keys.CONF, {}).get(keys.CONFIG_KEY_SCRATCHPAD)
        return pad is None or not (pad.resume or cls._pending(pad))

    @staticmethod
    def id_in(config: RunnableConfig) -> str:
        """The id alone of the task of a config."""
        return str(config.get(keys.CONF, {}).get(keys.CONFIG_KEY_TASK_ID, ""))

    def question(self) -> Question | None:
        """What an inline gate asked in this task before, and its answer; None if it never asked.

        The interrupt itself, saved with the checkpoint, says that the gate asked. Once answered, the answer
        is replaced among the task's resume values by a mark, so that any later attempt in any process can
        tell it from the answers to the node's own interrupts.
        """
        pad = self.config.get(keys.CONF, {}).get(keys.CONFIG_KEY_SCRATCHPAD)
        if pad is None:
            return None
        # A question of a graph inside this task is saved with this task too, but under an id of its own.
        of_task = [asked for task, asked in self._questions(pad) if task == self.id]
        mine = [asked.value for asked in of_task if asked.id == self._asking(None).id]
        resume, fresh = list(pad.resume), None
        marks = [value[_MARK] for value in resume if isinstance(value, dict) and _MARK in value]
        if mine and marks and _is_raised(mine[-1]["trip"], marks[-1]):
            mine = []  # answered before, in an attempt that failed afterwards
        if mine:
            before = int(str(mine[-1]["answers_before"]))
            if len(resume) == before and (taken := pad.get_null_resume(_TAKE)) is not None:
                pad.resume.append(taken)  # as LangGraph does, for the next attempt of the same task
                resume.append(taken)
            fresh = resume[before] if len(resume) > before else None
            resume = resume[:before]
        if not mine and not marks:
            return None
        users = [
            value["answer"] if isinstance(value, dict) and _MARK in value else value
            for value in resume
            if not (isinstance(value, dict) and _MARK in value and "answer" not in value)
        ]
        asked = cast("dict[str, object]", mine[-1]["trip"]) if mine else None
        return Question(asked, marks[-1] if marks else {}, tuple(users), fresh, tuple(resume))

    def beside(self) -> list[Question]:
        """What inline gates asked in other tasks of this superstep, with the answers of this resume.

        Only what waited for an answer: a question of a task that has finished since stays among the writes,
        and this resume's value is not meant for it.
        """
        pad = self.config.get(keys.CONF, {}).get(keys.CONFIG_KEY_SCRATCHPAD)
        if pad is None:
            return []
        found: list[Question] = []
        answers = self.config[keys.CONF].get(keys.CONFIG_KEY_RESUME_MAP) or {}
        for task, asked in self._questions(pad):
            if task != self.id:
                fresh = answers.get(asked.id) if answers else pad.get_null_resume(_LOOK)
                found.append(Question(asked.value["trip"], {}, fresh=fresh, interrupt=asked))
        return found

    def raised_beside(self) -> list[Mapping[str, Mapping[str, object]]]:
        """Limits that people raised in this superstep, in the state's form, as the tasks beside know them."""
        pad = self.config.get(keys.CONF, {}).get(keys.CONFIG_KEY_SCRATCHPAD)
        found: list[Mapping[str, Mapping[str, object]]] = []
        for task, channel, value in self._pending(pad) if pad is not None else ():
            if task in (self.id, keys.NULL_TASK_ID):
                continue
            if channel == keys.RESUME and isinstance(value, list):
                found += [answer[_MARK] for answer in value if isinstance(answer, dict) and _MARK in answer]
            elif channel == "spend" and isinstance(value, dict):
                found += [value[name] for name in ("limits", "run_limits") if name in value]
        return found

    @staticmethod
    def _pending(pad: PregelScratchpad) -> list[tuple[str, str, object]]:
        # The scratchpad doesn't show the checkpoint's pending writes, but the function that looks for the
        # resume value there closes over them.
        look = pad.get_null_resume
        for name, cell in zip(look.__code__.co_freevars, look.__closure__ or (), strict=False):
            if name == "pending_writes":
                return list(cell.cell_contents)
        return []

    @classmethod
    def _questions(cls, pad: PregelScratchpad) -> list[tuple[str, Interrupt]]:
        """Each question that inline gates asked and nobody has answered, with the id of the task that waits."""
        pending = cls._pending(pad)
        finished = {task for task, channel, _ in pending if channel not in _UNFINISHED}
        return [
            (task, interrupt)
            for task, channel, value in pending
            if channel == keys.INTERRUPT and task not in finished
            for interrupt in cast("Sequence[Interrupt]", value)
            if _is_of_gate(interrupt)
        ]

    def ask(
        self,
        payload: dict[str, object],
        kept: Sequence[object] | None = None,
        *,
        instead: Interrupt | Callable[[Task, Interrupt], Interrupt] | None = None,
    ) -> None:
        """Interrupt the task with a question of the gate's own, or leave the asking to a task beside it.

        Args:
            payload: The question.
            kept: When asking again, the resume values as they were before the answer; None takes them as
                they are now.
            instead: The question of another task, if that one asks; or what finds out who asks.

        Raises:
            GraphInterrupt: Always.
        """
        told = [value for channel, value in self.writes if channel == keys.RESUME]
        pad = self.config[keys.CONF][keys.CONFIG_KEY_SCRATCHPAD]
        values = list(kept) if kept is not None else cast("list[object]", told[-1]) if told else list(pad.resume)
        waiting = self._waiting(pad)
        users = () if told else self._unanswered(pad, waiting, values)
        mine = self._asking({**payload, "answers_before": len(values)})
        asked = instead(self, mine) if callable(instead) else instead or mine
        self.writes.clear()  # an edge asks after its node wrote, and the node runs again
        self.send([(keys.RESUME, values)] if values else [])
        if asked is not mine and not told and (users or not waiting):
            # Left undone, to run again on resume; a question of the node's own that waits is shown again.
            raise GraphInterrupt(users)
        # With another's question, of one id, in place of its own: that one is answered, and must not wait.
        raise GraphInterrupt((asked,))

    def _unanswered(
        self, pad: PregelScratchpad, waiting: Sequence[Interrupt], values: list[object]
    ) -> tuple[Interrupt, ...]:
        """The node's own questions that still wait; an answer that its code did not come to goes to `values`."""
        users = tuple(interrupt for interrupt in waiting if not _is_of_gate(interrupt))
        by_id = self.config[keys.CONF].get(keys.CONFIG_KEY_RESUME_MAP) or {}
        if users and not by_id and not self._is_plain_answer_ours():
            plain = pad.get_null_resume(_TAKE)
            if plain is not None:
                values.append(plain)
                return ()
        return tuple(interrupt for interrupt in users if interrupt.id not in by_id)

    def _waiting(self, pad: PregelScratchpad) -> list[Interrupt]:
        """What this task asked in an earlier attempt, the gate's questions included."""
        return [
            interrupt
            for task, channel, value in self._pending(pad)
            if task == self.id and channel == keys.INTERRUPT
            for interrupt in cast("Sequence[Interrupt]", value)
        ]

    def _asking(self, payload: object) -> Interrupt:
        return Interrupt.from_ns(payload, ns=self.config[keys.CONF][keys.CONFIG_KEY_CHECKPOINT_NS])

    def with_answers(self, users: Sequence[object], limits: object) -> RunnableConfig:
        """A config in which the node's own interrupts see only the answers meant for them."""
        conf = self.config[keys.CONF]
        send = conf[keys.CONFIG_KEY_SEND]

        def sending(writes: Sequence[tuple[str, object]]) -> None:
            send([(c, _marked(cast("list[object]", v), limits) if c == keys.RESUME else v) for c, v in writes])

        sending([(keys.RESUME, list(users))])
        pad = replace(conf[keys.CONFIG_KEY_SCRATCHPAD], resume=list(users))
        if self._is_plain_answer_ours():
            pad = replace(pad, get_null_resume=_no_answer)
        changed = {**conf, keys.CONFIG_KEY_SCRATCHPAD: pad, keys.CONFIG_KEY_SEND: sending}
        return cast("RunnableConfig", {**self.config, keys.CONF: changed})

    def without_ours(self) -> RunnableConfig | None:
        """A config in which the node's own interrupts don't see the answer to a gate; None if this one will do."""
        if not self._is_plain_answer_ours():
            return None
        conf = self.config[keys.CONF]
        pad = replace(conf[keys.CONFIG_KEY_SCRATCHPAD], get_null_resume=_no_answer)
        return cast("RunnableConfig", {**self.config, keys.CONF: {**conf, keys.CONFIG_KEY_SCRATCHPAD: pad}})

    def _is_plain_answer_ours(self) -> bool:
        """Whether an answer without an interrupt's id is for a gate of this superstep, in this task or beside it."""
        pad = self.config.get(keys.CONF, {}).get(keys.CONFIG_KEY_SCRATCHPAD)
        if pad is None or pad.get_null_resume(_LOOK) is None:
            return False
        if self.config[keys.CONF].get(keys.CONFIG_KEY_RESUME_MAP):
            # Left over from an earlier resume: LangGraph would give it to whoever asks next.
            return self._gates_asked(pad)
        own = self._asking(None).id
        # The question of a graph inside this task is answered in there.
        return any(task != self.id or asked.id == own for task, asked in self._questions(pad))

    def _gates_asked(self, pad: PregelScratchpad) -> bool:
        """Whether anything of ours was asked in this run of the graph or in this superstep, answered or not."""
        return bool(self.read("trip")) or any(
            (channel == keys.INTERRUPT and any(map(_is_ours, cast("Sequence[Interrupt]", value))))
            or (channel == keys.RESUME and isinstance(value, list) and any(map(_is_mark, value)))
            for _, channel, value in self._pending(pad)
        )

    def forget_cache(self) -> None:
        """Keep this task's result out of the node cache: a stop must not be replayed as an answer."""
        args = getattr(self._call, "args", None)
        task = args[0]() if args else None
        if task is not None and getattr(task, "cache_key", None) is not None:
            object.__setattr__(task, "cache_key", None)


@dataclass(slots=True)
class _Open:
    """A model call between its start and its end."""

    call: Call
    waited: float
    prompt: tuple[int, ...]
    tools: int
    input_bound: int
    request: tuple[Sequence[BaseMessage | str], Mapping[str, object]]
    streamed_bytes: int = 0
    streamed: Usage | None = None


class _Scoped(Protocol):
    @property
    def scope(self) -> Scope: ...


class _Either:
    """A handler method that is a coroutine for LangChain's async dispatcher, and plain for everything else.

    LangChain awaits a handler method only if it is a coroutine function, and loses what a coroutine raises
    in sync calls. One object can serve both only if it is asked which one to be.
    """

    def __init__(self, plain: Callable[..., None], coroutine: Callable[..., Coroutine[None, None, None]]) -> None:
        self._plain = plain
        self._coroutine = coroutine

    def __get__(self, handler: object, owner: type | None = None) -> Callable[..., object]:
        dispatcher = sys._getframe(1).f_code  # noqa: SLF001 - CPython's documented way to the caller
        chosen = self._coroutine if dispatcher is _ahandle_event_for_handler.__code__ else self._plain
        return cast("Callable[..., object]", chosen.__get__(handler, owner))


class Handler(BaseCallbackHandler):
    """The callback handler of one scope."""

    raise_error = True  # a refusal must stop the call
    run_inline = True  # before any other handler, and never lost in an executor
    ignore_chain = True  # a property in the base class; fixed here, so there is no call per run
    ignore_agent = True
    ignore_retriever = True
    ignore_retry = True
    ignore_custom_event = True

    def __init__(self, visit: _Scoped) -> None:
        """Meter the calls of one task attempt."""
        self._visit = visit
        self.open: dict[UUID, _Open] = {}

    def _start(
        self,
        serialized: Mapping[str, object] | None,  # noqa: ARG002 - LangChain's signature
        messages: Sequence[Sequence[BaseMessage]] | Sequence[str],
        *,
        run_id: UUID,
        metadata: Mapping[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        opened = self._prepare(messages, metadata, kwargs)
        if opened.call.claims:
            # A sync call on an event loop's own thread must not wait: whoever would settle waits behind it.
            hold = self._ledger.hold(opened.call, wait=0 if _on_event_loop() else None)
            self._admit(hold, opened)
        self.open[run_id] = opened

    async def _astart(
        self,
        serialized: Mapping[str, object] | None,  # noqa: ARG002 - LangChain's signature
        messages: Sequence[Sequence[BaseMessage]] | Sequence[str],
        *,
        run_id: UUID,
        metadata: Mapping[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        opened = self._prepare(messages, metadata, kwargs)
        if opened.call.claims:
            self._admit(await self._ledger.ahold(opened.call), opened)
        self.open[run_id] = opened

    on_chat_model_start = _Either(_start, _astart)
    on_llm_start = _Either(_start, _astart)

    @property
    def _ledger(self):  # type: ignore[no-untyped-def] # noqa: ANN202 - private, the protocol says it
        return self.scope.meter.settings.ledger

    def _admit(self, answer: object, opened: _Open) -> None:
        if isinstance(answer, Refusal):
            raise BudgetExceeded(self.scope.refuse(answer, opened.call))
        opened.waited = getattr(answer, "waited", 0.0)

    def _prepare(
        self,
        messages: Sequence[Sequence[BaseMessage]] | Sequence[str],
        metadata: Mapping[str, object] | None,
        kwargs: Mapping[str, object],
    ) -> _Open:
        metadata = metadata or {}
        params = cast("Mapping[str, object]", kwargs.get("invocation_params") or {})
        named = metadata.get("ls_model_name") or params.get("model") or params.get("model_name")
        model = str(named) if named else None
        provider = str(metadata["ls_provider"]) if metadata.get("ls_provider") else None
        claims = self.scope.claims(model=model)
        prompt: list[BaseMessage | str] = []
        for part in messages:
            prompt += [part] if isinstance(part, str) else part
        marks = tuple(map(_fingerprint, prompt))
        tools = tools_bound(cast("Sequence[object]", params.get("tools") or params.get("functions") or ()))
        bound = self._input_bound(model, prompt, marks, tools)
        if not claims and not self._policies:
            call = Call(id=new_id(), node=self.scope.task.node, model=model, provider=provider)
            return _Open(call, 0.0, marks, tools, bound, (prompt, params))
        cap = output_cap(metadata, params) or self.scope.meter.caps.get(model or "")
        nanousd = 0
        if model is not None and any("usd" in claim.limits for claim in claims):
            nanousd = self._worst_usd(model, provider, bound, cap or 0)
        call = Call(
            id=new_id(),
            node=self.scope.task.node,
            model=model,
            provider=provider,
            worst=Spend(nanousd=nanousd, input_tokens=bound, output_tokens=cap or 0, calls=1),
            capped=cap is not None and model is not None,
            claims=claims,
        )
        self._ask_policies(call)
        return _Open(call, 0.0, marks, tools, bound, (prompt, params))

    @property
    def _policies(self) -> bool:
        return any(top.meter.settings.policies for top in self.scope.tops())

    def _ask_policies(self, call: Call) -> None:
        for top in self.scope.tops():
            for policy in top.meter.settings.policies:
                spent = Spend.of({"spend": top.field}) + top.meter.unfolded.spent(top.task)
                if breach := policy(spent, call):
                    raise BudgetExceeded(self.scope.refuse(replace(breach, kind="policy"), call, top))

    def _worst_usd(self, model: str, provider: str | None, input_tokens: int, output_tokens: int) -> int:
        prices = self.scope.meter.settings.prices
        try:
            return prices.worst_case(model, provider, input_tokens=input_tokens, output_tokens=output_tokens)
        except UnknownPrice:
            call = Call(id=new_id(), node=self.scope.task.node, model=model, provider=provider)
            claim = next(claim for claim in self.scope.claims(model=model) if "usd" in claim.limits)
            breach = Breach(budget=claim.budget, limit=claim.limits["usd"], kind="unpriced", note=_ADD_PRICE)
            raise BudgetExceeded(self.scope.refuse(breach, call)) from None

    def _input_bound(
        self, model: str | None, prompt: Sequence[BaseMessage | str], marks: tuple[int, ...], tools: int
    ) -> int:
        """An upper bound of the prompt's tokens: what the last call said, plus the bytes added since."""
        known = self.scope.meter.prompts.get((self.scope.task.thread or self.scope.run, self.scope.nodes, model))
        if known is not None:
            fingerprints, told, old_tools, answers = known
            count = len(fingerprints)
            if tools == old_tools and marks[:count] == fingerprints:
                added = prompt[count:]
                # The answer itself, whose tokens the last call told too, unless somebody edited it since.
                if added and marks[count] in answers:
                    return told + _ANSWER_FRAME + _bytes(added[1:])
                return told + _bytes(added)
        return tools + _bytes(prompt)

    def _remember(self, opened: _Open, usage: Usage, response: LLMResult) -> None:
        if usage.estimated or not usage.input_tokens:
            return
        prompts = self.scope.meter.prompts
        place = (self.scope.task.thread or self.scope.run, self.scope.nodes, opened.call.model)
        choices = [choice for choices in response.generations for choice in choices]
        messages = [message for choice in choices if (message := getattr(choice, "message", None)) is not None]
        prompts[place] = (opened.prompt, usage.tokens, opened.tools, tuple(map(_fingerprint, messages)))
        while len(prompts) > _PROMPTS:
            prompts.popitem(last=False)

    def on_llm_new_token(
        self,
        token: str | list[str | dict[str, object]],
        *,
        chunk: object = None,
        run_id: UUID,
        **_: object,
    ) -> None:
        """Count what a stream has sent so far, in case it is cut off."""
        opened = self.open.get(run_id)
        if opened is not None:
            message = getattr(chunk, "message", None)
            opened.streamed_bytes += len((token if isinstance(token, str) else repr(token)).encode())
            if message is not None:
                opened.streamed_bytes += sum(len(repr(c)) for c in getattr(message, "tool_call_chunks", ()))
                opened.streamed = Usage.from_message(message) or opened.streamed

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: object) -> None:
        """Replace the hold by what the call really used."""
        opened = self.open.pop(run_id, None)
        if opened is None:
            return
        usage, model, provider = _answer(response)
        if usage is None:
            usage = Usage.estimate(opened.input_bound, max(opened.streamed_bytes, _output_bytes(response)))
        if usage.cached_answer:
            self._ledger.release(opened.call.id)
            return
        usage = _completed(usage, opened)
        self._remember(opened, usage, response)
        self._charge(opened, usage, model, provider)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: object) -> None:
        """Charge a call that failed or was cut off, unless it surely was not billed."""
        opened = self.open.pop(run_id, None)
        if opened is None:
            return
        if not opened.streamed_bytes and opened.streamed is None and _surely_not_billed(error):
            self._ledger.release(opened.call.id)
            return
        self._cut_off(opened)

    @property
    def scope(self) -> Scope:
        """The scope of the attempt, made when it is first asked for."""
        return self._visit.scope

    def begin(self) -> None:
        """Meter every model call made from here on in this context."""
        self._token = _active.set(self)

    def end(self) -> None:
        """Meter no more, and charge what the task still holds: its calls will never report back."""
        _active.reset(self._token)
        for run_id in list(self.open):
            opened = self.open.pop(run_id, None)
            if opened is not None:
                self._cut_off(opened)

    def _cut_off(self, opened: _Open) -> None:
        if opened.streamed_bytes or opened.streamed is not None:
            told = opened.streamed
            estimate = Usage.estimate(opened.input_bound, opened.streamed_bytes)
            whole = told is not None and told.input_tokens and told.output_tokens
            self._charge(opened, cast("Usage", told) if whole else estimate, None, None)
            return
        worst = opened.call.worst
        usage = Usage.estimate(worst.input_tokens or opened.input_bound, worst.output_tokens)
        self._charge(opened, usage, None, None, assumed=worst)

    def _charge(
        self, opened: _Open, usage: Usage, model: str | None, provider: str | None, *, assumed: Spend | None = None
    ) -> None:
        nanousd, priced = self._price(opened.call, usage, model, provider)
        charge = Charge(
            id=opened.call.id,
            nanousd=max(nanousd, assumed.nanousd) if assumed else nanousd,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            estimated=usage.estimated,
            assumed=assumed is not None,
            unpriced=not priced,
            model=model or opened.call.model,
            provider=provider or opened.call.provider,
            waited=opened.waited,
            **self.scope.place_of(opened.call),
        )
        self.scope.settle(opened.call, charge)

    def _price(self, call: Call, usage: Usage, model: str | None, provider: str | None) -> tuple[int, bool]:
        prices = self.scope.meter.settings.prices
        for name, vendor in ((model, provider or call.provider), (call.model, call.provider)):
            if name or usage.reported_nanousd is not None:
                with contextlib.suppress(UnknownPrice):
                    return prices.cost(usage, name, vendor), True
        return 0, False


_ADD_PRICE: Final = "add one with PriceBook.add() and pass prices=, or budget in tokens"
_active: ContextVar[Handler | None] = ContextVar("graphguard_handler", default=None)
register_configure_hook(_active, inheritable=False)


class _NotOurs(logging.Filter):
    """Keeps LangChain from logging each refusal as an error of a callback; the refusal itself is raised."""

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args
        return not (
            isinstance(args, tuple) and args and args[0] == Handler.__name__ and "BudgetExceeded" in str(args[-1])
        )


logging.getLogger("langchain_core.callbacks.manager").addFilter(_NotOurs())


def current_scope() -> Scope | None:
    """The scope of the guarded task that this code runs in, or None."""
    handler = _active.get()
    return handler.scope if handler else None


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_MESSAGE: Final = attrgetter("type", "content", "name", "additional_kwargs")
_CALLS: Final = attrgetter("tool_calls", "invalid_tool_calls")
_TOLD_BY_MODELS: Final = frozenset({"ai", "AIMessageChunk"})


def _fingerprint(message: BaseMessage | str) -> int:
    """What tells a message of a prompt from another; each call asks for those of the whole conversation."""
    if type(message) is str:
        return hash(message)
    kind, content, name, extra = _MESSAGE(message)
    rest: object = None
    # By name: isinstance() takes longer than all the rest here, as messages have an abstract base class.
    if kind in _TOLD_BY_MODELS:
        kind = "ai"  # a streamed answer is put into the state as a whole one
        calls, wrong = _CALLS(message)
        if calls or wrong:
            rest = repr(([(call["id"], call["name"], call["args"]) for call in calls], wrong))
    elif kind == "tool":
        rest = getattr(message, "tool_call_id", None)
    text = content if isinstance(content, str) else repr(content)
    return hash((kind, text, name, rest, repr(extra) if extra else None))


def _bytes(prompt: Sequence[BaseMessage | str]) -> int:
    """An upper bound of the tokens of some messages."""
    texts = sum(len(part.encode()) for part in prompt if isinstance(part, str))
    return texts + sum(input_bytes([part for part in prompt if not isinstance(part, str)]))


def _answer(response: LLMResult) -> tuple[Usage | None, str | None, str | None]:
    """Usage, model and provider of an answer; several choices of one answer report the same usage."""
    best: Usage | None = None
    model = provider = None
    for choices in response.generations:
        for choice in choices:
            message = getattr(choice, "message", None)
            if message is None:
                continue
            usage = Usage.from_message(message)
            if usage is not None and (best is None or usage.tokens > best.tokens):
                best = usage
            told = message.response_metadata
            model = model or told.get("model_name") or told.get("model")
            provider = provider or told.get("model_provider")
    output = response.llm_output or {}
    if best is None:
        counts = output.get("token_usage") or output.get("usage")
        best = Usage.from_response({"usage": counts}) if isinstance(counts, dict) and counts else None
        model = model or output.get("model_name") or output.get("model")
    return best, str(model) if model else None, str(provider) if provider else None


def _completed(usage: Usage, opened: _Open) -> Usage:
    """The usage with what LangChain drops of Anthropic's streams, filled in from the request."""
    if usage.output_tokens and not usage.input_tokens and usage.reported_nanousd is None:
        # Input is counted in the stream's first event, and lost when the last one doesn't repeat it.
        usage = replace(usage, input_tokens=opened.input_bound, estimated=True)
    split = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    if usage.cache_write_tokens > split and _caches_an_hour(*opened.request):
        # The stream's usage doesn't say for how long; the request asked for the dearer hour.
        usage = replace(usage, cache_write_1h_tokens=usage.cache_write_tokens - usage.cache_write_5m_tokens)
    return usage


def _caches_an_hour(prompt: Sequence[BaseMessage | str], params: Mapping[str, object]) -> bool:
    """Whether the request asks Anthropic to cache anything for an hour."""
    blocks: list[object] = [params, *cast("Sequence[object]", params.get("tools") or ())]
    for message in prompt:
        if not isinstance(message, str) and isinstance(message.content, list):
            blocks += message.content
    asked = (block.get("cache_control") for block in blocks if isinstance(block, dict))
    return any(isinstance(control, dict) and control.get("ttl") == "1h" for control in asked)


def _output_bytes(response: LLMResult) -> int:
    return sum(
        sum(input_bytes([message])) if (message := getattr(choice, "message", None)) else len(choice.text.encode())
        for choices in response.generations
        for choice in choices
    )


_NEVER_SENT: Final = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"})
_REJECTED: Final = range(400, 600)


def _surely_not_billed(error: BaseException) -> bool:
    """Whether a provider rejected the request, or never got it; anything else may have been billed."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        status = getattr(seen, "status_code", None) or getattr(response, "status_code", None)
        if isinstance(status, int) and status in _REJECTED:
            return True
        if isinstance(seen, ConnectionRefusedError) or type(seen).__name__ in _NEVER_SENT:
            return True
        seen = seen.__cause__ or seen.__context__
    return False
