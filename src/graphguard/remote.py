"""Graphs on another server: what their calls cost is read from the messages that come back, or declared.

Callbacks don't cross the wire, so nothing sees the calls that a `RemoteGraph` makes. The run as a whole is held before
it is sent, as one call, and charged when its answer is there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langgraph.errors import GraphInterrupt
from langgraph.pregel.remote import RemoteGraph

from graphguard.budget import Call
from graphguard.errors import BudgetExceeded, UnknownPrice
from graphguard.ids import new_id
from graphguard.ledger.protocol import Refusal
from graphguard.metering import current_scope
from graphguard.spend import Charge, Spend
from graphguard.usage import Usage, model_of, nanousd_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphguard.scope import Scope

__all__ = ["counted"]


def counted(remote: RemoteGraph, /, *, usd: str | float | Decimal | None = None) -> RemoteGraph:
    """The same remote graph, whose `invoke` and `ainvoke` count in the budgets of the guarded node that calls them.

    A `RemoteGraph` that is itself a node of a guarded graph is counted anyway; this is for those that a node's code
    calls, and to declare a cost.

    Args:
        remote: A graph on another server. It is not changed.
        usd: What one run of it costs, charged whatever comes back; None charges the usage of each AI message that
            comes back and was not sent, once.

    Returns:
        A `RemoteGraph`. Outside a guarded node it does what `remote` does. A run that the budgets have no room for is
        refused like any call; the calls inside a run can't be stopped from here, so guard the graph there as well.

    Raises:
        ValueError: `usd` is not an amount.
        UnknownPrice: By a run under a USD budget, when no model with a known price is named in its answer; declare
            a cost then.

    ```python
    research = counted(RemoteGraph("agent", url="https://research.example.com"), usd="0.02")
    ```
    """
    if usd is None and isinstance(remote, _Counted):
        return remote
    new = copy.copy(remote)
    new.__class__ = _Counted
    new.__dict__["_declared"] = None if usd is None else _nanousd(usd)
    return new


def _nanousd(usd: str | float | Decimal) -> int:
    try:
        amount = Decimal(str(usd))
    except ArithmeticError:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        msg = f"usd must be an amount of at least 0, got {usd!r}"
        raise ValueError(msg)
    return nanousd_of(amount)


class _Counted(RemoteGraph):
    """A remote graph whose runs are held and charged."""

    _declared: int | None

    def copy(self, update: dict[str, Any]) -> Self:
        attrs = {name: value for name, value in vars(self).items() if name != "_declared"} | update
        new = type(self)(attrs.pop("assistant_id"), **attrs)
        new._declared = self._declared  # noqa: SLF001 - another object of the same class
        return new

    def invoke(self, input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002, ANN401 - as in RemoteGraph
        scope = current_scope()
        if scope is None:
            return super().invoke(input, *args, **kwargs)
        run = _Run.of(scope, self, input)
        ledger = scope.meter.settings.ledger
        run.admit(ledger.hold(run.call))
        try:
            answer = super().invoke(input, *args, **kwargs)
        except BaseException as error:
            if run.is_over(error):
                scope.settle(run.call, run.lost())
            ledger.release(run.call.id)
            raise
        for call, charge in run.charges(answer):
            scope.settle(call, charge)
        ledger.release(run.call.id)
        run.check()
        return answer

    async def ainvoke(self, input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002, ANN401 - as in RemoteGraph
        scope = current_scope()
        if scope is None:
            return await super().ainvoke(input, *args, **kwargs)
        run = _Run.of(scope, self, input)
        ledger = scope.meter.settings.ledger
        run.admit(await ledger.ahold(run.call))
        try:
            answer = await super().ainvoke(input, *args, **kwargs)
        except BaseException as error:
            if run.is_over(error):
                await scope.asettle(run.call, run.lost())
            await ledger.arelease(run.call.id)
            raise
        for call, charge in run.charges(answer):
            await scope.asettle(call, charge)
        await ledger.arelease(run.call.id)
        run.check()
        return answer


@dataclass(slots=True)
class _Run:
    """One run of a remote graph, from the side that waits for it."""

    scope: Scope
    call: Call
    remote: str
    declared: int | None
    sent: list[BaseMessage]
    unpriced: str | None = None

    @classmethod
    def of(cls, scope: Scope, remote: _Counted, given: object) -> _Run:
        declared, task = remote._declared, scope.task  # noqa: SLF001 - our own class
        call = Call(
            id=new_id(),
            node=task.node,
            worst=Spend(nanousd=declared or 0, calls=1),
            capped=declared is not None,
            claims=scope.claims(),
            run=scope.tops()[-1].run or None,
            thread=task.thread,
            user=task.user,
            task=task.id,
            attempt=task.attempt,
            path=scope.path,
        )
        return cls(scope, call, str(remote.assistant_id), declared, _messages(given))

    def admit(self, answer: object) -> None:
        if isinstance(answer, Refusal):
            raise BudgetExceeded(self.scope.refuse(answer, self.call))

    def is_over(self, error: BaseException) -> bool:
        """Whether what it cost won't be told later, as it is when the run waits for a person and then goes on."""
        return self.declared is not None or not isinstance(error, GraphInterrupt)

    def lost(self) -> Charge:
        """What is charged for a run that failed or was cut off."""
        return Charge(id=self.call.id, nanousd=self.declared or 0, calls=1, estimated=True)

    def charges(self, answer: object) -> Iterator[tuple[Call, Charge]]:
        """What is charged for an answer, each with the call that it is charged as."""
        for charge in self._charges(answer):
            claims = self.scope.claims(model=charge.model)
            yield replace(self.call, id=charge.id, model=charge.model, claims=claims), charge

    def _charges(self, answer: object) -> Iterator[Charge]:
        if self.declared is not None:
            yield Charge(id=new_id(), nanousd=self.declared, calls=1)
            return
        known = {message.id for message in self.sent}
        answers = [message for message in _messages(answer) if isinstance(message, AIMessage)]
        for message in answers:
            if message.id is None or message.id not in known:
                yield self._of_message(message)
        if not answers:
            self.unpriced = f"behind {self.remote}"
            yield Charge(id=new_id(), calls=1, estimated=True, unpriced=True)

    def _of_message(self, message: AIMessage) -> Charge:
        usage = Usage.from_message(message)
        if usage is None:
            usage = Usage.estimate(sum(map(_size, self.sent)), _size(message))
        model, provider = model_of(message)
        nanousd, priced = 0, True
        try:
            nanousd = self.scope.meter.settings.prices.cost(usage, model, provider)
        except UnknownPrice:
            self.unpriced, priced = model or f"behind {self.remote}", False
        # A thread on the server gives its earlier messages again, and they are charged once.
        whose = self.call.thread or self.call.run
        return Charge(
            id=f"{whose}/{self.remote}/{message.id}" if message.id and whose else new_id(),
            nanousd=nanousd,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            calls=1,
            model=model,
            provider=provider,
            estimated=usage.estimated,
            unpriced=not priced,
        )

    def check(self) -> None:
        """Stop where a USD budget can't be kept: an answer without a price is never free."""
        if self.unpriced is not None and any("usd" in claim.limits for claim in self.call.claims):
            raise UnknownPrice(self.unpriced)


def _messages(state: object) -> list[BaseMessage]:
    found = state.get("messages") if isinstance(state, Mapping) else getattr(state, "messages", None)
    return [_message(one) for one in (found if isinstance(found, (list, tuple)) else [found] if found else [])]


def _message(told: Any) -> BaseMessage:  # noqa: ANN401 - whatever LangChain takes for a message
    if isinstance(told, Mapping) and told.get("type") in {"ai", "AIMessageChunk"}:
        return AIMessage.model_validate({**told, "type": "ai"})  # with its usage, which convert_to_messages leaves out
    return convert_to_messages([told])[0]


def _size(message: BaseMessage) -> int:
    return len(str(message.content).encode())
