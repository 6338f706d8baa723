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
    from collections.abc import Sequence

    from graphguard.budget import Claim
    from graphguard.scope import Scope
    from graphguard.spend import Spend

__all__ = ["Remaining", "acharge", "aremaining", "charge", "remaining"]


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
    claims = scope.claims(model=model) if scope else ()
    return _least([(claim, scope.ledger.balance(claim)) for claim in claims] if scope else [])


async def aremaining(*, model: str | None = None) -> Remaining:
    """The same as `remaining`, for async nodes: a ledger that asks a file or a server doesn't block the event loop."""
    scope = current_scope()
    claims = scope.claims(model=model) if scope else ()
    return _least([(claim, await scope.ledger.abalance(claim)) for claim in claims] if scope else [])


def _least(balances: Sequence[tuple[Claim, tuple[Spend, Spend]]]) -> Remaining:
    left: dict[str, int] = {}
    for claim, (spent, held) in balances:
        for metric, limit in claim.limits.items():
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
        UnknownPrice: No price is known for the answer's model; its tokens are counted, and every USD budget
            counts as breached.
    """
    scope, call, amounts, unknown = _charged(response, usd=usd, model=model)
    settled = scope.settle(call, amounts)
    if unknown is not None:
        raise unknown
    return settled


async def acharge(
    response: object = None, *, usd: str | float | Decimal | None = None, model: str | None = None
) -> Charge:
    """The same as `charge`, for async nodes: a ledger in a file or on a server doesn't block the event loop."""
    scope, call, amounts, unknown = _charged(response, usd=usd, model=model)
    settled = await scope.asettle(call, amounts)
    if unknown is not None:
        raise unknown
    return settled


def _charged(
    response: object, *, usd: str | float | Decimal | None, model: str | None
) -> tuple[Scope, Call, Charge, UnknownPrice | None]:
    """Where to charge, and what; with the error to raise once an amount without a price was charged."""
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
    nanousd, unknown = _nanousd(usd) if usd is not None else 0, None
    if usage is not None and usd is None:
        try:
            nanousd = scope.meter.settings.prices.cost(usage, name, provider)
        except UnknownPrice as error:
            unknown = error
    if usage is None:  # of a model call, LangSmith knows the price itself, from whoever traced it
        add_cost(nanousd)
    amounts = Charge(
        id=new_id(),
        nanousd=nanousd,
        input_tokens=usage.input_tokens if usage else 0,
        output_tokens=usage.output_tokens if usage else 0,
        calls=1 if usage else 0,
        unpriced=unknown is not None,
        model=name,
        provider=provider,
    )
    claims = scope.claims(model=name)
    return scope, Call(id=amounts.id, node=scope.task.node, model=name, claims=claims), amounts, unknown


def _nanousd(usd: str | float | Decimal) -> int:
    try:
        amount = Decimal(str(usd))
    except ArithmeticError:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        msg = f"usd must be an amount of at least 0, got {usd!r}"
        raise ValueError(msg)
    return nanousd_of(amount)
