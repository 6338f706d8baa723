"""The meter: every model call under a guarded graph, held before it is sent and settled after.

The only module that knows LangChain's callbacks. A handler is attached through `register_configure_hook` to each
run started in a guarded task's context, so it sees calls that were made without any config, in tools, threads and
subgraphs too.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import sys
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager

# The coroutine that awaits async handlers; a handler method must know whether it is called from there.
from langchain_core.callbacks.manager import _ahandle_event_for_handler
from langchain_core.tracers.context import register_configure_hook
from langchain_core.tracers.langchain import LangChainTracer

from graphguard.answers import Prompt, answer, caches_an_hour, output_bytes, surely_not_billed
from graphguard.bounds import answer_schemas, output_cap
from graphguard.budget import Breach, Call
from graphguard.errors import BudgetExceeded, UnknownPrice
from graphguard.ids import new_id
from graphguard.ledger.protocol import Refusal
from graphguard.spend import Charge, Spend
from graphguard.traced import end_refused, tell_cost
from graphguard.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from contextvars import Token
    from types import FrameType
    from uuid import UUID

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult
    from langchain_core.tracers.base import BaseTracer

    from graphguard.scope import Scope

__all__ = ["Either", "Handler", "current_scope", "is_metered"]

_PROMPTS: Final = 2_000
_DISPATCHERS: Final = 6  # frames from a handler method up to LangChain's callback manager, at most


@dataclass(slots=True)
class _Open:
    """A model call between its start and its end."""

    call: Call
    prompt: Prompt
    params: Mapping[str, object]
    waited: float = 0.0
    streamed_bytes: int = 0
    streamed: Usage | None = None
    traced: tuple[BaseTracer, UUID] | None = None
    amid: BaseException | None = field(default_factory=lambda: sys.exc_info()[1])  # what the caller is handling


class Either:
    """A handler method that is a coroutine for LangChain's async dispatcher, and plain for everything else.

    LangChain awaits a handler method only if it is a coroutine function, and loses what a coroutine raises
    in sync calls. One object can serve both only if it is asked which one to be.
    """

    def __init__(self, plain: Callable[..., None], coroutine: Callable[..., Coroutine[None, None, None]]) -> None:
        """Be one of these."""
        self._plain = plain
        self._coroutine = coroutine

    def __get__(self, handler: object, owner: type | None = None) -> Callable[..., object]:
        """The one that whoever calls can use."""
        dispatcher = sys._getframe(1).f_code  # noqa: SLF001 - CPython's documented way to the caller
        chosen = self._coroutine if dispatcher is _ahandle_event_for_handler.__code__ else self._plain
        bound: Callable[..., object] = chosen.__get__(handler, owner)
        return bound


class Handler(BaseCallbackHandler):
    """The callback handler of one scope, which whoever begins and ends the attempt supplies."""

    raise_error = True  # a refusal must stop the call
    run_inline = True  # before any other handler, and never lost in an executor
    ignore_chain = True  # a property in the base class; fixed here, so there is no call per run
    ignore_agent = True
    ignore_retriever = True
    ignore_retry = True
    ignore_custom_event = True

    def __init__(self) -> None:
        """Meter the calls of one task attempt."""
        self.open: dict[UUID, _Open] = {}
        self._token: Token[Handler | None] | None = None

    def _llm_start(
        self,
        serialized: Mapping[str, object] | None,  # noqa: ARG002 - LangChain's signature
        messages: Sequence[Sequence[BaseMessage]] | Sequence[str],
        *,
        run_id: UUID,
        metadata: Mapping[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        tracer = _overtaken(self)
        try:
            opened = self._prepare(messages, metadata, kwargs)
            if opened.call.claims:
                # A sync call on an event loop's own thread must not wait: whoever would settle waits behind it.
                hold = self._ledger.hold(opened.call, wait=0 if _on_event_loop() else None)
                self._admit(hold, opened)
        except BudgetExceeded as refused:
            if tracer is not None:
                end_refused(tracer, run_id, refused)
            raise
        opened.traced = (tracer, run_id) if tracer is not None else None
        self.open[run_id] = opened

    async def _allm_start(
        self,
        serialized: Mapping[str, object] | None,  # noqa: ARG002 - LangChain's signature
        messages: Sequence[Sequence[BaseMessage]] | Sequence[str],
        *,
        run_id: UUID,
        metadata: Mapping[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        tracer = _overtaken(self)
        try:
            opened = self._prepare(messages, metadata, kwargs)
            if opened.call.claims:
                self._admit(await self._ledger.ahold(opened.call), opened)
        except BudgetExceeded as refused:
            _drop_unheard()
            if tracer is not None:
                end_refused(tracer, run_id, refused)
            raise
        opened.traced = (tracer, run_id) if tracer is not None else None
        self.open[run_id] = opened

    on_chat_model_start = Either(_llm_start, _allm_start)
    on_llm_start = Either(_llm_start, _allm_start)

    @property
    def _ledger(self):  # type: ignore[no-untyped-def] # noqa: ANN202 - private, the protocol says it
        return self.scope.ledger

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
        params: Mapping[str, Any] = kwargs.get("invocation_params") or {}  # type: ignore[assignment] # LangChain's
        named = metadata.get("ls_model_name") or params.get("model") or params.get("model_name")
        model = str(named) if named else None
        provider = str(metadata["ls_provider"]) if metadata.get("ls_provider") else None
        scope = self.scope
        claims = scope.claims(model=model)
        tools: Sequence[object] = params.get("tools") or params.get("functions") or ()
        tools = [*tools, *schemas] if (schemas := answer_schemas(params)) else tools
        prompt = Prompt.of(messages, tools, scope.meter.prompts.get(self._place(model)))
        policies = any(top.meter.settings.policies for top in scope.tops())
        if not claims and not policies:
            return _Open(Call(id=new_id(), node=scope.task.node, model=model, provider=provider), prompt, params)
        cap = output_cap(metadata, params) or scope.meter.caps.get(model or "")
        nanousd = 0
        if model is not None and any("usd" in claim.limits for claim in claims):
            nanousd = self._worst_usd(model, provider, prompt.bound, cap or 0)
        call = Call(
            id=new_id(),
            node=scope.task.node,
            model=model,
            provider=provider,
            worst=Spend(nanousd=nanousd, input_tokens=prompt.bound, output_tokens=cap or 0, calls=1),
            capped=cap is not None and model is not None,
            claims=claims,
            run=scope.tops()[-1].run or None,
            thread=scope.task.thread,
            user=scope.task.user,
            task=scope.task.id,
            attempt=scope.task.attempt,
            path=scope.path,
        )
        if policies:
            self._ask_policies(call)
        return _Open(call, prompt, params)

    def _place(self, model: str | None) -> tuple[object, ...]:
        scope = self.scope
        return scope.task.thread or scope.run, scope.nodes, model

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

    def _remember(self, opened: _Open, usage: Usage, response: LLMResult) -> None:
        if usage.estimated or not usage.input_tokens:
            return
        prompts = self.scope.meter.prompts
        prompts[self._place(opened.call.model)] = opened.prompt.answered(response, usage.tokens)
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

    def _llm_end(self, response: LLMResult, *, run_id: UUID, **_: object) -> None:
        """Replace the hold by what the call really used."""
        opened = self.open.pop(run_id, None)
        if opened is not None:
            self._settle(opened.call, self._ended(opened, response))

    async def _allm_end(self, response: LLMResult, *, run_id: UUID, **_: object) -> None:
        """The same on an event loop."""
        opened = self.open.pop(run_id, None)
        if opened is not None:
            await self._asettle(opened.call, self._ended(opened, response))

    on_llm_end = Either(_llm_end, _allm_end)

    def _ended(self, opened: _Open, response: LLMResult) -> Charge | None:
        usage, model, provider = answer(response)
        if usage is None:
            usage = Usage.estimate(opened.prompt.bound, max(opened.streamed_bytes, output_bytes(response)))
        if usage.cached_answer:
            self._tell_cost(opened, None, 0)
            return None
        usage = _completed(usage, opened)
        self._remember(opened, usage, response)
        return self._charge(opened, usage, model, provider)

    def _llm_error(self, error: BaseException, *, run_id: UUID, **_: object) -> None:
        """Charge a call that failed or was cut off, unless it surely was not billed."""
        opened = self.open.pop(run_id, None)
        if opened is not None:
            self._settle(opened.call, self._failed(opened, error))

    async def _allm_error(self, error: BaseException, *, run_id: UUID, **_: object) -> None:
        """The same on an event loop."""
        opened = self.open.pop(run_id, None)
        if opened is not None:
            await self._asettle(opened.call, self._failed(opened, error))

    on_llm_error = Either(_llm_error, _allm_error)

    def _failed(self, opened: _Open, error: BaseException) -> Charge | None:
        if not opened.streamed_bytes and opened.streamed is None and surely_not_billed(error, opened.amid):
            return None
        return self._cut_off(opened)

    def _settle(self, call: Call, charge: Charge | None) -> None:
        if charge is not None:
            self.scope.settle(call, charge)
        elif call.claims:
            self._ledger.release(call.id)

    async def _asettle(self, call: Call, charge: Charge | None) -> None:
        if charge is not None:
            await self.scope.asettle(call, charge)
        elif call.claims:
            await self._ledger.arelease(call.id)

    @property
    def scope(self) -> Scope:
        """The scope of the attempt."""
        raise NotImplementedError

    def begin(self) -> None:
        """Meter every model call made from here on in this context."""
        self._token = _active.set(self)

    @property
    def began(self) -> bool:
        """Whether calls were metered."""
        return self._token is not None

    def end(self) -> None:
        """Meter no more, and charge what the task still holds: its calls will never report back."""
        if self._token is not None:
            _active.reset(self._token)
        if self.open:
            for opened in self._leftover():
                self.scope.settle(opened.call, self._cut_off(opened))

    async def aend(self) -> None:
        """The same as `end`, on an event loop."""
        if self._token is not None:
            _active.reset(self._token)
        if self.open:
            for opened in self._leftover():
                await self.scope.asettle(opened.call, self._cut_off(opened))

    def _leftover(self) -> list[_Open]:
        return [opened for run_id in list(self.open) if (opened := self.open.pop(run_id, None)) is not None]

    def _cut_off(self, opened: _Open) -> Charge:
        if opened.streamed_bytes or opened.streamed is not None:
            told = opened.streamed
            estimate = Usage.estimate(opened.prompt.bound, opened.streamed_bytes)
            whole = told is not None and told.input_tokens and told.output_tokens
            return self._charge(opened, cast("Usage", told) if whole else estimate, None, None)
        worst = opened.call.worst
        usage = Usage.estimate(worst.input_tokens or opened.prompt.bound, worst.output_tokens)
        return self._charge(opened, usage, None, None, assumed=worst)

    def _charge(
        self, opened: _Open, usage: Usage, model: str | None, provider: str | None, *, assumed: Spend | None = None
    ) -> Charge:
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
        if opened.traced is not None:
            output, _ = self._price(opened.call, Usage(output_tokens=usage.output_tokens), model, provider)
            self._tell_cost(opened, charge, output)
        return charge

    @staticmethod
    def _tell_cost(opened: _Open, charge: Charge | None, output_nanousd: int) -> None:
        if opened.traced is not None:
            tracer, run_id = opened.traced
            run = tracer.run_map.get(str(run_id))
            if run is not None:
                tell_cost(run, charge, output_nanousd)

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
        return not (isinstance(args, tuple) and args and "BudgetExceeded" in str(args[-1]))


logging.getLogger("langchain_core.callbacks.manager").addFilter(_NotOurs())


def current_scope() -> Scope | None:
    """The scope of the guarded task that this code runs in, or None."""
    handler = _active.get()
    return handler.scope if handler else None


def is_metered() -> bool:
    """Whether a handler is in force here, whose scope then may or may not have been made yet."""
    return _active.get() is not None


def _overtaken(handler: Handler) -> LangChainTracer | None:
    """LangSmith's tracer among the handlers of the call that is starting; the meter hears of its end before it.

    The tracer writes the run when the call ends, and what the call cost must be in that write. Only LangChain's
    callback manager knows the list of handlers that will be told of the end, and it is found among the callers.
    """
    frame = _frame_of_manager()
    return None if frame is None else _first(handler, frame.f_locals["self"].handlers)


def _drop_unheard() -> None:
    """Close what LangChain made to tell others of a call that was refused, for Python warns of what nobody awaited."""
    told = {} if (frame := _frame_of_manager()) is None else frame.f_locals
    for task in (*told.get("inline_tasks", ()), *told.get("non_inline_tasks", ())):
        if inspect.getcoroutinestate(task) == inspect.CORO_CREATED:
            task.close()


def _frame_of_manager() -> FrameType | None:
    """Where LangChain's callback manager runs the handler method that called the function which asks."""
    frame: FrameType | None = sys._getframe(3)  # noqa: SLF001 - CPython's documented way to the callers
    for _ in range(_DISPATCHERS):
        if frame is None or isinstance(frame.f_locals.get("self"), BaseCallbackManager):
            return frame
        frame = frame.f_back
    return None


def _first(handler: Handler, handlers: list[BaseCallbackHandler]) -> LangChainTracer | None:
    for at, other in enumerate(handlers):
        if isinstance(other, LangChainTracer):
            if handler in handlers[at:]:
                handlers.remove(handler)
                handlers.insert(at, handler)
            return other
    return None


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _completed(usage: Usage, opened: _Open) -> Usage:
    """The usage with what LangChain drops of Anthropic's streams, filled in from the request."""
    if usage.output_tokens and not usage.input_tokens and usage.reported_nanousd is None:
        # Input is counted in the stream's first event, and lost when the last one doesn't repeat it.
        usage = replace(usage, input_tokens=opened.prompt.bound, estimated=True)
    split = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    if usage.cache_write_tokens > split and caches_an_hour(opened.prompt.messages, opened.params):
        # The stream's usage doesn't say for how long; the request asked for the dearer hour.
        usage = replace(usage, cache_write_1h_tokens=usage.cache_write_tokens - usage.cache_write_5m_tokens)
    return usage
