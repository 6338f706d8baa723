"""`BudgetMiddleware`: budgets for `create_agent` as middleware, with the trips and totals of `guard`.

A guard puts a door around every node of a graph; middleware can't, so its hooks open the same doors: before the
model node, around each call of the model, and around each tool. Other middleware's own calls are seen by callbacks.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final, NotRequired, TypedDict, cast

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ContextT,
        ModelResponse,
        PrivateStateAttr,
        ResponseT,
        hook_config,
    )
except ImportError as error:
    msg = "graphguard.middleware needs langchain: pip install 'graphguard[langchain]'"
    raise ImportError(msg) from error

from langchain_core.messages import ToolMessage
from langgraph.channels import BinaryOperatorAggregate
from langgraph.config import get_config

from graphguard.choices import caps_of, check_kept, check_prices, make_settings
from graphguard.door import Door
from graphguard.doorless import MeteredSpend, check_fields, guard_around, told_by, watch
from graphguard.errors import InvalidBudget
from graphguard.fitting import Fitting
from graphguard.gate import CLOSING, closing
from graphguard.meter import Meter
from graphguard.metering import current_scope
from graphguard.task import Task
from graphguard.trip import Trip, merge_trip

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from langchain.agents.middleware.types import ModelRequest
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig
    from langgraph.prebuilt.tool_node import ToolCallRequest
    from langgraph.runtime import Runtime
    from langgraph.types import Command

    from graphguard.budget import Budget, Policy
    from graphguard.door import Stop, Visit
    from graphguard.ledger.protocol import Ledger
    from graphguard.prices import PriceBook
    from graphguard.scope import Scope

__all__ = ["BudgetMiddleware"]

_MODEL_NODE: Final = "model"


class BudgetMiddleware(AgentMiddleware[AgentState[ResponseT], ContextT]):
    """Middleware for `create_agent` that lets no model call start that the budgets can't pay for.

    Put it first in the list: its end then comes after everything else's, and nothing is called outside of it.

    Args:
        budgets: `Budget`s, or functions `(Spend, Call) -> Breach | None`. Without any, calls are only metered.
        on_trip: What happens when a budget has no room: `"end"` the agent, through its `after_agent` hooks;
            `"interrupt"` and ask a person; or `"raise"` `BudgetExceeded`.
        ledger: Where real money is held; None is a `MemoryLedger` that all guards of the process share.
        prices: A price book with the user's own prices; None is the bundled one.
        downgrade: Cheaper models, each from a share of the budgets on, by name or as chat models:
            `{0.8: "openai:gpt-5-nano"}`. The budget that is used up most decides.
        min_output_tokens: Lower a call's own output cap to what is left, but not below this; then the call is
            refused. None never lowers it.
        tell_model: Add a note to each request that says what is left; it is not kept in the conversation.

    Raises:
        InvalidBudget: Something else than a budget, an unknown `on_trip`, or a share outside 0 to 1.
        UnknownPrice: A USD budget, and a model in `downgrade` without a known price.

    ```python
    budget = BudgetMiddleware(Budget(usd="0.50"), on_trip="interrupt", downgrade={0.8: "openai:gpt-5-nano"})
    agent = create_agent("openai:gpt-5", tools, middleware=[budget])
    ```
    """

    def __init__(
        self,
        *budgets: Budget | Policy,
        on_trip: str = "end",
        ledger: Ledger | None = None,
        prices: PriceBook | None = None,
        downgrade: Mapping[float, str | BaseChatModel] | None = None,
        min_output_tokens: int | None = None,
        tell_model: bool = False,
    ) -> None:
        """Check everything that can be checked before an agent is made."""
        super().__init__()
        if not isinstance(on_trip, str):
            problem = f"on_trip must be 'end', 'interrupt' or 'raise' in middleware, not {on_trip!r}: it knows no nodes"
            raise InvalidBudget(problem)
        settings = make_settings(budgets, on_trip=on_trip, ledger=ledger, prices=prices)
        check_kept(settings)
        self._fitting = Fitting.of(
            settings.prices, downgrade=downgrade, min_output_tokens=min_output_tokens, tell_model=tell_model
        )
        check_prices({"downgrade": list(self._fitting.downgrade.values())}, settings)
        self._meter = Meter(settings, {})
        self._meters = {id(settings.ledger): self._meter}
        self.state_schema = _state_schema(self._meter)
        watch()

    # The run, from its input to its end

    def before_agent(self, state: AgentState[ResponseT], runtime: Runtime[ContextT]) -> dict[str, object] | None:  # noqa: ARG002
        """Begin a run in the state, as a guarded graph does at each new input."""
        task = Task.of(get_config())
        check_fields(task)
        if guard_around(current_scope(), task) is not None:
            return None
        told: dict[str, object] = {"spend": {"run_id": uuid.uuid4().hex[:12]}}
        return {**told, "trip": {}} if task.read("trip") else told

    async def abefore_agent(self, state: AgentState[ResponseT], runtime: Runtime[ContextT]) -> dict[str, object] | None:
        """The same."""
        return self.before_agent(state, runtime)

    def after_agent(self, state: AgentState[ResponseT], runtime: Runtime[ContextT]) -> dict[str, object] | None:  # noqa: ARG002
        """Tell the state what was spent after the last call of the model."""
        visit = self._visit()
        visit.scope.meter.unfolded.adopt(visit.scope.task, visit.scope.run)
        visit.scope.meter.finish(visit.scope)
        return told_by(visit.scope) or None

    async def aafter_agent(self, state: AgentState[ResponseT], runtime: Runtime[ContextT]) -> dict[str, object] | None:
        """The same."""
        return self.after_agent(state, runtime)

    # The gate before the model node

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: AgentState[ResponseT], runtime: Runtime[ContextT]) -> dict[str, object] | None:  # noqa: ARG002
        """Lead to the model while there is room, else do what `on_trip` says."""
        visit = self._visit(gated=True)
        if (trip := self._standing(visit.scope)) is not None:
            return {"jump_to": "end", **closing(visit.scope, trip)}
        with visit:
            pass
        return self._decided(visit)

    @hook_config(can_jump_to=["end"])
    async def abefore_model(self, state: AgentState[ResponseT], runtime: Runtime[ContextT]) -> dict[str, object] | None:  # noqa: ARG002
        """The same on an event loop."""
        visit = self._visit(gated=True)
        if (trip := self._standing(visit.scope)) is not None:
            return {"jump_to": "end", **closing(visit.scope, trip)}
        async with visit:
            pass
        return self._decided(visit)

    def _decided(self, visit: Visit) -> dict[str, object] | None:
        stop = cast("Stop | None", visit.output(None))
        told = told_by(visit.scope)
        if stop is None:
            return told or None
        return {**told, **cast("dict[str, object]", stop.update), "jump_to": "end"}

    def _standing(self, scope: Scope) -> Trip | None:
        """The trip that stopped the run in the model node or in a tool, so that it only has to be led to its end."""
        trip = Trip.of({"trip": scope.task.read("trip")})
        if trip is None or trip.answer == "raised" or trip.run != (scope.run or None):
            return None
        return trip if trip.kind == "policy" or trip.budget in self._meter.budgets else None

    # The model's calls

    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> ModelResponse[ResponseT]:
        """Hold each call that is made inside before it is sent; a refused one ends the conversation."""
        visit = self._visit(gated=True)
        visit.door.meter.caps |= caps_of({_MODEL_NODE: request.model})
        response: ModelResponse[ResponseT] | None = None
        with visit as inside:
            if inside:
                ledger = visit.door.meter.settings.ledger
                claims = self._fitting.claims(visit.scope, request.model)
                response = handler(self._fitting.fitted(request, [(claim, *ledger.balance(claim)) for claim in claims]))
        return self._answered(visit, response)

    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ModelResponse[ResponseT]:
        """The same on an event loop."""
        visit = self._visit(gated=True)
        visit.door.meter.caps |= caps_of({_MODEL_NODE: request.model})
        response: ModelResponse[ResponseT] | None = None
        async with visit as inside:
            if inside:
                ledger = visit.door.meter.settings.ledger
                claims = self._fitting.claims(visit.scope, request.model)
                balances = [(claim, *await ledger.abalance(claim)) for claim in claims]
                response = await handler(self._fitting.fitted(request, balances))
        return self._answered(visit, response)

    def _answered(self, visit: Visit, response: ModelResponse[ResponseT] | None) -> ModelResponse[ResponseT]:
        stop = cast("Stop | None", visit.output(None))
        task = visit.scope.task
        writes: list[tuple[str, object]] = list(told_by(visit.scope).items())
        if stop is not None:
            writes.append(("jump_to", "end"))
            words = cast("dict[str, list[BaseMessage]]", stop.update).get("messages", [])
            response = ModelResponse(result=[*(response.result if response is not None else ()), *words])
        task.send(writes)
        return cast("ModelResponse[ResponseT]", response)

    # Tools

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[str]]
    ) -> ToolMessage | Command[str]:
        """Hold the calls that a tool makes, of agents inside it too; a refused one ends the agent after the tools."""
        visit = self._visit()
        result: ToolMessage | Command[str] | None = None
        with visit as inside:
            if inside:
                result = handler(request)
        return self._ran(visit, request, result)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[str]]]
    ) -> ToolMessage | Command[str]:
        """The same on an event loop."""
        visit = self._visit()
        result: ToolMessage | Command[str] | None = None
        async with visit as inside:
            if inside:
                result = await handler(request)
        return self._ran(visit, request, result)

    def _ran(
        self, visit: Visit, request: ToolCallRequest, result: ToolMessage | Command[str] | None
    ) -> ToolMessage | Command[str]:
        visit.output(None)
        scope = visit.scope
        scope.task.send(list(told_by(visit.scope).items()))
        if result is not None:
            return result
        reason = scope.trip.reason if scope.trip is not None else "the budget is exhausted"
        name, call_id, extra = request.tool_call["name"], str(request.tool_call["id"]), {CLOSING: True}
        text = f"Not run: {reason}."
        return ToolMessage(text, tool_call_id=call_id, name=name, status="error", additional_kwargs=extra)

    # Doors

    def _visit(self, *, gated: bool = False) -> Visit:
        config = get_config()
        meter = self._meter_inside(current_scope())
        visit = Door(meter=meter, node=_node(config), gated=gated, talks=True).visit(config, None)
        guard = guard_around(visit.parent, Task.of(config))
        for key, raised in guard.raised.items() if guard is not None else ():
            if meter.has_limit(key):
                visit.scope.raise_limits(key, raised)  # the guard's own door heard the answer
        return visit

    def _meter_inside(self, scope: Scope | None) -> Meter:
        """The meter for agents inside that scope: what is charged there goes to one ledger, the outermost guard's."""
        if scope is None:
            return self._meter
        ledger = scope.ledger
        if id(ledger) not in self._meters:
            self._meters[id(ledger)] = Meter(replace(self._meter.settings, ledger=ledger), {})
        return self._meters[id(ledger)]


def _state_schema(meter: Meter) -> type[AgentState[ResponseT]]:
    field = MeteredSpend()
    field.meter = meter
    kept = BinaryOperatorAggregate(dict, merge_trip)
    fields = {
        "spend": NotRequired[Annotated[dict[str, object], field, PrivateStateAttr]],
        "trip": NotRequired[Annotated[dict[str, object], kept, PrivateStateAttr]],
    }
    return cast("type[AgentState[ResponseT]]", TypedDict("BudgetState", fields))  # type: ignore[operator] # made at run time


def _node(config: RunnableConfig) -> str:
    """The node that a trip names: the model's own, for the gate before it."""
    node = str(config.get("metadata", {}).get("langgraph_node") or _MODEL_NODE)
    return _MODEL_NODE if node.endswith(".before_model") else node
