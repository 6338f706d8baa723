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
from typing import TYPE_CHECKING, Final, cast

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
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
    from uuid import UUID

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult
    from langchain_core.runnables import RunnableConfig
    from langgraph._internal._scratchpad import PregelScratchpad

__all__ = ["Task", "current_scope", "metered"]

_PROMPTS: Final = 2_000
_ANSWER_FRAME: Final = 16  # tokens that frame an answer when it is sent back


_MARK: Final = "__graphguard__"
_LOOK, _TAKE = False, True  # LangGraph's null resume value is looked at, or taken
_AS_IT_BEGAN = False  # channels are read without the task's own writes


@dataclass(frozen=True, slots=True)
class Question:
    """What inline gates asked in a task, or in a task beside it.

    Attributes:
        asked: The trip asked about last, or None when all was answered.
        limits: Limits raised by answers so far, in the state's form.
        users: Answers that belong to the node's own interrupts.
        fresh: The answer to what was asked; None when there is none yet.
    """

    asked: dict[str, object] | None
    limits: dict[str, dict[str, object]]
    users: tuple[object, ...] = ()
    fresh: object = None


def _marked(users: Sequence[object], limits: object) -> list[object]:
    # Around the last value rather than beside it: the count of values is what numbers the next interrupt.
    if not users:
        return [{_MARK: limits}]
    return [*users[:-1], {_MARK: limits, "answer": users[-1]}]


@dataclass(frozen=True, slots=True)
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

    @property
    def answers_waiting(self) -> bool:
        """Whether answers are there that belong to the interrupts of the node's own code."""
        pad = self.config.get(keys.CONF, {}).get(keys.CONFIG_KEY_SCRATCHPAD)
        return pad is not None and (bool(pad.resume) or pad.get_null_resume(_LOOK) is not None)

    def question(self) -> Question | None:
        """What an inline gate asked in this task before, and its answer; None if it never asked.

        The interrupt itself, saved with the checkpoint, says that the gate asked. Once answered, the answer
        is replaced among the task's resume values by a mark, so that any later attempt in any process can
        tell it from the answers to the node's own interrupts.
        """
        pad = self.config.get(keys.CONF, {}).get(keys.CONFIG_KEY_SCRATCHPAD)
        if pad is None:
            return None
        mine = [payload for task, _, payload in self._questions(pad) if task == self.id]
        resume, fresh = list(pad.resume), None
        if mine:
            before = int(str(mine[-1]["answers_before"]))
            fresh = resume[before] if len(resume) > before else pad.get_null_resume(_TAKE)
            resume = resume[:before]
        marks = [value[_MARK] for value in resume if isinstance(value, dict) and _MARK in value]
        if not mine and not marks:
            return None
        users = [
            value["answer"] if isinstance(value, dict) and _MARK in value else value
            for value in resume
            if not (isinstance(value, dict) and _MARK in value and "answer" not in value)
        ]
        asked = cast("dict[str, object]", mine[-1]["trip"]) if mine else None
        return Question(asked, marks[-1] if marks else {}, tuple(users), fresh)

    def beside(self) -> list[Question]:
        """What inline gates asked in other tasks of this superstep, with the answers of this resume."""
        pad = self.config.get(keys.CONF, {}).get(keys.CONFIG_KEY_SCRATCHPAD)
        if pad is None:
            return []
        found: list[Question] = []
        answers = self.config[keys.CONF].get(keys.CONFIG_KEY_RESUME_MAP) or {}
        for task, interrupt_id, payload in self._questions(pad):
            if task != self.id:
                fresh = answers.get(interrupt_id, pad.get_null_resume(_LOOK))
                found.append(Question(cast("dict[str, object]", payload["trip"]), {}, fresh=fresh))
        return found

    @staticmethod
    def _questions(pad: PregelScratchpad) -> list[tuple[str, str, Mapping[str, object]]]:
        # The scratchpad doesn't show the checkpoint's pending writes, but the function that looks for the
        # resume value there closes over them.
        look = pad.get_null_resume
        cells = dict(zip(look.__code__.co_freevars, look.__closure__ or (), strict=False))
        if "pending_writes" not in cells:
            return []
        return [
            (task, interrupt.id, interrupt.value)
            for task, channel, value in cells["pending_writes"].cell_contents
            if channel == keys.INTERRUPT
            for interrupt in value
            if isinstance(interrupt.value, dict) and "answers_before" in interrupt.value
        ]

    def ask(self, payload: dict[str, object]) -> None:
        """Interrupt the task with a question of the gate's own.

        Raises:
            GraphInterrupt: Always.
        """
        told = [value for channel, value in self.writes if channel == keys.RESUME]
        pad = self.config[keys.CONF][keys.CONFIG_KEY_SCRATCHPAD]
        values = cast("list[object]", told[-1]) if told else list(pad.resume)
        self.send([(keys.RESUME, values)] if values and not told else [])
        ns = self.config[keys.CONF][keys.CONFIG_KEY_CHECKPOINT_NS]
        raise GraphInterrupt((Interrupt.from_ns({**payload, "answers_before": len(values)}, ns=ns),))

    def pause(self) -> None:
        """Leave the task undone without a question of its own; it runs again when the run is resumed.

        Raises:
            GraphInterrupt: Always.
        """
        raise GraphInterrupt(())

    def with_answers(self, users: Sequence[object], limits: object) -> RunnableConfig:
        """A config in which the node's own interrupts see only the answers meant for them."""
        conf = self.config[keys.CONF]
        send = conf[keys.CONFIG_KEY_SEND]

        def sending(writes: Sequence[tuple[str, object]]) -> None:
            send([(c, _marked(cast("list[object]", v), limits) if c == keys.RESUME else v) for c, v in writes])

        sending([(keys.RESUME, list(users))])
        pad = replace(conf[keys.CONFIG_KEY_SCRATCHPAD], resume=list(users))
        changed = {**conf, keys.CONFIG_KEY_SCRATCHPAD: pad, keys.CONFIG_KEY_SEND: sending}
        return cast("RunnableConfig", {**self.config, keys.CONF: changed})

    def forget_cache(self) -> None:
        """Keep this task's result out of the node cache: a stop must not be replayed as an answer."""
        call = self.config[keys.CONF].get(keys.CONFIG_KEY_CALL)
        for cell in getattr(call, "__closure__", None) or ():  # wrapped for nodes with a timeout
            call = cell.cell_contents if getattr(cell.cell_contents, "args", None) else call
        args = getattr(call, "args", None)
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
    streamed_bytes: int = 0
    streamed: Usage | None = None


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

    def __init__(self, scope: Scope) -> None:
        """Meter the calls of one task attempt."""
        self.scope = scope
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
        call = Call(id=new_id(), node=self.scope.task.node, model=model, provider=provider)
        claims = self.scope.claims(model=model)
        prompt = _prompt(messages)
        tools = tools_bound(cast("Sequence[object]", params.get("tools") or params.get("functions") or ()))
        bound = self._input_bound(model, prompt, tools)
        opened = _Open(call, 0.0, tuple(fp for fp, _, _ in prompt), tools, bound)
        if not claims and not self._policies:
            return opened
        cap = output_cap(metadata, params) or self.scope.meter.caps.get(model or "")
        worst = Spend(nanousd=0, input_tokens=bound, output_tokens=cap or 0, calls=1)
        if any("usd" in claim.limits for claim in claims) and model is not None:
            worst = replace(worst, nanousd=self._worst_usd(call, worst))
        opened.call = replace(call, worst=worst, capped=cap is not None and model is not None, claims=claims)
        self._ask_policies(opened.call)
        return opened

    @property
    def _policies(self) -> bool:
        return any(top.meter.settings.policies for top in self.scope.tops())

    def _ask_policies(self, call: Call) -> None:
        for top in self.scope.tops():
            for policy in top.meter.settings.policies:
                spent = Spend.of({"spend": top.field}) + top.meter.unfolded.spent(top.task)
                if breach := policy(spent, call):
                    raise BudgetExceeded(self.scope.refuse(replace(breach, kind="policy"), call, top))

    def _worst_usd(self, call: Call, worst: Spend) -> int:
        prices = self.scope.meter.settings.prices
        try:
            return prices.worst_case(
                call.model, call.provider, input_tokens=worst.input_tokens, output_tokens=worst.output_tokens
            )
        except UnknownPrice:
            claim = next(claim for claim in self.scope.claims(model=call.model) if "usd" in claim.limits)
            breach = Breach(budget=claim.budget, limit=claim.limits["usd"], kind="unpriced", note=_ADD_PRICE)
            raise BudgetExceeded(self.scope.refuse(breach, call)) from None

    def _input_bound(self, model: str | None, prompt: Sequence[tuple[int, int, bool]], tools: int) -> int:
        """An upper bound of the prompt's tokens: what the last call said, plus the bytes added since."""
        known = self.scope.meter.prompts.get((self.scope.task.thread or self.scope.run, self.scope.nodes, model))
        if known is not None:
            fingerprints, told, old_tools = known
            count = len(fingerprints)
            if tools == old_tools and tuple(fp for fp, _, _ in prompt[:count]) == fingerprints:
                added = prompt[count:]
                if added and added[0][2]:  # the answer itself, whose tokens the last call told too
                    return told + _ANSWER_FRAME + sum(size for _, size, _ in added[1:])
                return told + sum(size for _, size, _ in added)
        return tools + sum(size for _, size, _ in prompt)

    def _remember(self, opened: _Open, usage: Usage) -> None:
        if usage.estimated or not usage.input_tokens:
            return
        prompts = self.scope.meter.prompts
        place = (self.scope.task.thread or self.scope.run, self.scope.nodes, opened.call.model)
        prompts[place] = (opened.prompt, usage.tokens, opened.tools)
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
        self._remember(opened, usage)
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

    def close(self) -> None:
        """Charge what the task still holds: its calls will never report back."""
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


@contextlib.contextmanager
def metered(scope: Scope) -> Iterator[None]:
    """Meter every model call made inside, and charge those that never report back."""
    handler = Handler(scope)
    token = _active.set(handler)
    try:
        yield
    finally:
        _active.reset(token)
        handler.close()


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _prompt(messages: Sequence[Sequence[BaseMessage]] | Sequence[str]) -> list[tuple[int, int, bool]]:
    """Per message: a fingerprint, an upper bound of its tokens, and whether a model wrote it."""
    found: list[tuple[int, int, bool]] = []
    for part in messages:
        if isinstance(part, str):
            found.append((hash(part), len(part.encode()), False))
            continue
        sizes = input_bytes(part)
        for message, size in zip(part, sizes, strict=True):
            content = message.content
            text = content if isinstance(content, str) else repr(content)
            found.append((hash((message.type, text, size)), size, message.type == "ai"))
    return found


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
