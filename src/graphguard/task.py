"""A task of a graph, as LangGraph describes it in the task's config: the only reader of that config.

LangGraph keeps what a guard needs under private keys: the task's writes, its resume values, the checkpoint it
runs from. Each use has a test of the upstream fact it relies on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final, cast

from langgraph._internal import _constants as keys
from langgraph.errors import GraphInterrupt
from langgraph.types import Interrupt

from graphguard.accounts import limit_key
from graphguard.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from langchain_core.runnables import RunnableConfig
    from langgraph._internal._scratchpad import PregelScratchpad

__all__ = ["Question", "Task"]

_MARK: Final = "__graphguard__"
_LOOK, _TAKE = False, True  # LangGraph's null resume value is looked at, or taken
# The last one is newer than LangGraph 1.0, and so written out.
_UNFINISHED: Final = frozenset({keys.INTERRUPT, keys.RESUME, keys.ERROR, "__error_source_node__"})
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
    account = trip.get("account")
    key = limit_key(str(trip["budget"]), None if account is None else str(account))
    raised = limits.get(key, {}).get(str(trip["metric"]))
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
    def user(self) -> str | None:
        """Who the run is for: the server's authenticated user, else `configurable["user_id"]`, else None."""
        conf = self.config.get(keys.CONF, {})
        user = conf.get("user_id")
        if (known := conf.get("langgraph_auth_user")) is not None:
            identity = known.get("identity") if isinstance(known, Mapping) else getattr(known, "identity", None)
            user = user if identity is None else identity
        return None if user is None else str(user)

    @property
    def configurable(self) -> Mapping[str, object]:
        """What whoever started the run put into `config["configurable"]`, beside LangGraph's own."""
        return self.config.get(keys.CONF, {})

    @property
    def context(self) -> object:
        """The run's context, or None."""
        return getattr(self.config.get(keys.CONF, {}).get(keys.CONFIG_KEY_RUNTIME), "context", None)

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

    def channel(self, name: str) -> object:
        """What keeps a state field of the task's graph; None if there is no such field."""
        read = self.config.get(keys.CONF, {}).get(keys.CONFIG_KEY_READ)
        return next((part[name] for part in getattr(read, "args", ()) if isinstance(part, dict) and name in part), None)

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

    def rewrite(self, writes: Sequence[tuple[str, object]]) -> None:
        """Put these in the place of the task's writes so far."""
        made = self.writes
        made.clear()
        made.extend(writes)

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
        return self._call_in(self.config)

    @staticmethod
    def _call_in(config: RunnableConfig) -> object:
        """LangGraph's function that runs a task, with what it is bound to."""
        call: object = config.get(keys.CONF, {}).get(keys.CONFIG_KEY_CALL)
        for cell in getattr(call, "__closure__", None) or ():  # wrapped for nodes with a timeout
            call = cell.cell_contents if getattr(cell.cell_contents, "args", None) else call
        return call

    @property
    def superstep(self) -> object:
        """What LangGraph makes anew for each attempt to run a superstep, and its tasks share; None if unknown."""
        futures = getattr(self._call, "keywords", {}).get("futures")
        return futures() if futures is not None else None

    @property
    def place(self) -> str:
        """Which run of the task it is, in all runs of all graphs: the checkpoint, the graph's namespace, the id."""
        return f"{self.checkpoint}|{self.graph_ns}|{self.id}"

    @staticmethod
    def parts_of(place: str) -> tuple[str, str, str]:
        """The parts of a `place`.

        >>> Task.parts_of("1ef0|outer:a|inner:b|77")
        ('1ef0', 'outer:a|inner:b', '77')
        """
        checkpoint, _, rest = place.partition("|")
        graph_ns, _, id_ = rest.rpartition("|")
        return checkpoint, graph_ns, id_

    @property
    def loop(self) -> object:
        """LangGraph's loop that runs the task; None if somebody called the node by hand."""
        return self._loop_in(self.config)

    @property
    def went_on(self) -> bool:
        """Whether the loop began with the task's superstep, so that the task may have run before."""
        loop = self.loop
        limit = getattr(loop, "config", {}).get("recursion_limit")
        # A loop that begins with an input takes a step for that before any task runs.
        return limit is not None and getattr(loop, "stop", 0) - getattr(loop, "step", 0) > limit

    @property
    def loaded(self) -> str:
        """Id of the checkpoint that the loop went on from, for a task of the first superstep that runs any."""
        # A superstep whose tasks had all finished is only written down, which makes the next checkpoint.
        loop = self.loop
        before = getattr(loop, "prev_checkpoint_config", None) or {}
        if self.travels:  # which makes a checkpoint for the new line
            before = getattr(loop, "config", {})
        id_ = before.get(keys.CONF, {}).get(keys.CONFIG_KEY_CHECKPOINT_ID)
        return self.checkpoint if (self.went_on and not self.travels) or not id_ else str(id_)

    @property
    def travels(self) -> bool:
        """Whether the run goes on from an earlier checkpoint, on a line of its own."""
        loop = self.loop
        asked_for = getattr(loop, "config", {}).get(keys.CONF, {}).get(keys.CONFIG_KEY_CHECKPOINT_ID)
        return bool(getattr(loop, "is_replaying", asked_for))

    @classmethod
    def _loop_in(cls, config: RunnableConfig) -> object:
        """LangGraph's loop that runs a task's superstep; None if there is none."""
        # What starts further tasks for a task is bound to it.
        return getattr(getattr(cls._call_in(config), "keywords", {}).get("schedule_task"), "__self__", None)

    @property
    def accompanied(self) -> bool:
        """Whether another node's task runs in the same superstep."""
        tasks = list(getattr(self._loop_in(self.config), "tasks", {}).values())
        # A function called as a task of its own has the path of its caller in its path.
        return any(task.name != self.node and not isinstance(task.path[1], tuple) for task in tasks)

    def spare_step(self, nodes: Container[str]) -> None:
        """Leave the superstep out of the run's recursion limit if only these nodes run in it: bare graphs don't."""
        loop = self.loop
        tasks = list(getattr(loop, "tasks", {}).values())
        # The loop stops at this step; what nodes see as their remaining steps is reckoned from it too. Of several
        # tasks one says so.
        if tasks and all(task.name in nodes for task in tasks) and self.id == min(task.id for task in tasks):
            loop.stop += 1  # type: ignore[attr-defined] # a loop with tasks

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

    @classmethod
    def began_in(cls, config: RunnableConfig, loops: Mapping[object, object]) -> bool:
        """Whether the run of the task of a config is known to have begun in this process."""
        return loops.get(cls._loop_in(config), loops) is None

    @property
    def key(self) -> str:
        """What tells the task from all others; copies of a thread have tasks of the same ids."""
        return f"{self.thread or ''}|{self.id}"

    @classmethod
    def key_in(cls, config: RunnableConfig) -> str:
        """The `key` alone of the task of a config."""
        return f"{config.get(keys.CONF, {}).get(keys.CONFIG_KEY_THREAD_ID) or ''}|{cls.id_in(config)}"

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
        if self.travels:  # what was answered on the line that the run left doesn't count on its own
            return []
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

    def saved(self, channel: str) -> list[Mapping[str, object]]:
        """What finished tasks of this superstep wrote to one of graphguard's state fields before it was interrupted."""
        pad = self.config.get(keys.CONF, {}).get(keys.CONFIG_KEY_SCRATCHPAD)
        pending = self._pending(pad) if pad is not None else []
        found: list[Mapping[str, object]] = [v for _, name, v in pending if name == channel and isinstance(v, dict)]
        # On a line of its own, all tasks of the superstep run again.
        return [] if found and self.travels else found

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
        if self.is_cached:
            object.__setattr__(self._running, "cache_key", None)

    @property
    def is_cached(self) -> bool:
        """Whether this task's writes are kept in a cache, to be given out later without running it."""
        return getattr(self._running, "cache_key", None) is not None

    @property
    def _running(self) -> object:
        """What LangGraph runs, of which the config is made; None if unknown."""
        args = getattr(self._call, "args", None)
        return args[0]() if args else None
