"""What a node's own code can ask and tell: what is left, and what LangChain does not see."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from graphguard.budget import Call
from graphguard.errors import UnknownPrice
from graphguard.ids import new_id
from graphguard.metering import current_scope
from graphguard.spend import METRICS, Charge, to_usd
from graphguard.traced import add_cost
from graphguard.usage import Usage, model_of, nanousd_of

if TYPE_CHECKING:
    from graphguard.scope import Scope

__all__ = ["Remaining", "charge", "remaining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaining:
    """What the tightest budget leaves, by metric; None where nothing limits it.

    Attributes:
        usd: USD.
        tokens: Input and output tokens together.
        input_tokens: Tokens to send.
        output_tokens: Tokens to receive.
        calls: Model calls.
    """

    usd: Decimal | None = None
    tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    calls: int | None = None


def remaining(*, model: str | None = None) -> Remaining:
    """What is left for a call made now, in the node that asks: neither spent nor held by running calls.

    Args:
        model: Also take budgets into account that count this model only; None takes all of them.

    Returns:
        The least of all budgets around the node, by metric. All None outside a guarded node.

    ```python
    model = big if (remaining().usd or 1) > Decimal("0.10") else small
    ```
    """
    scope = current_scope()
    left: dict[str, int] = {}
    for claim in scope.claims(model=model) if scope else ():
        spent, held = scope.ledger.balance(claim) if scope else (None, None)
        for metric, limit in claim.limits.items():
            if spent is not None and held is not None:
                room = max(limit - spent.amount(metric) - held.amount(metric), 0)
                left[metric] = min(left.get(metric, room), room)
    counts = {metric: left.get(metric) for metric in METRICS if metric != "usd"}
    return Remaining(usd=to_usd(left["usd"]) if "usd" in left else None, **counts)


def charge(response: object = None, *, usd: str | float | Decimal | None = None, model: str | None = None) -> Charge:
    """Count money that LangChain does not see: a raw SDK call, or a paid tool.

    Args:
        response: A provider's answer, as a dict or an SDK object; its usage is priced as a model call.
        usd: An amount in USD, for anything else; or the price of `response`, if you know better.
        model: The model's name, when the answer doesn't tell.

    Returns:
        The charge, counted in every budget around the node. It was spent already, so it is never
        refused; the next call is, once a budget is used up.

    Raises:
        RuntimeError: Called outside a node of a guarded graph.
        ValueError: Neither `response` with usage nor `usd` was given, or the amount is not one.
        UnknownPrice: No price is known for the answer's model.
    """
    scope = current_scope()
    if scope is None:
        msg = "charge() counts in the budgets of a guarded graph; call it inside one of its nodes"
        raise RuntimeError(msg)
    usage = Usage.from_response(response) if response is not None else None
    if usage is None and usd is None:
        msg = f"nothing to charge: pass usd=, or a provider's answer that carries its usage, not {response!r}"
        raise ValueError(msg)
    told, provider = model_of(response) if response is not None else (None, None)
    name = model or told
    nanousd = _nanousd(usd) if usd is not None else 0
    if usage is not None and usd is None:
        try:
            nanousd = scope.meter.settings.prices.cost(usage, name, provider)
        except UnknownPrice:
            _settle(scope, Charge(id=new_id(), model=name, unpriced=True, calls=1))
            raise
    amounts = Charge(
        id=new_id(),
        nanousd=nanousd,
        input_tokens=usage.input_tokens if usage else 0,
        output_tokens=usage.output_tokens if usage else 0,
        calls=1 if usage else 0,
        model=name,
        provider=provider,
    )
    if usage is None:  # of a model call, LangSmith knows the price itself, from whoever traced it
        add_cost(nanousd)
    return _settle(scope, amounts)


def _settle(scope: Scope, amounts: Charge) -> Charge:
    claims = scope.claims(model=amounts.model)
    return scope.settle(Call(id=amounts.id, node=scope.task.node, model=amounts.model, claims=claims), amounts)


def _nanousd(usd: str | float | Decimal) -> int:
    try:
        amount = Decimal(str(usd))
    except ArithmeticError:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        msg = f"usd must be an amount of at least 0, got {usd!r}"
        raise ValueError(msg)
    return nanousd_of(amount)
