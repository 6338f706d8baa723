"""Whether a call has room, and what a call that never reported back is charged: pure, the same for every ledger."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import TYPE_CHECKING, Final

from graphguard.budget import Breach, Call
from graphguard.ledger.protocol import Refusal
from graphguard.spend import Charge, Spend, amount_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from graphguard.budget import Claim

__all__ = ["assumed", "no_room", "scopes_of", "why_not"]

# Whatever a call says of itself, its charge says too: node, model, provider, and what may be added to both.
_SHARED: Final = tuple(
    {f.name for f in fields(Call)} & {f.name for f in fields(Charge)} - {f.name for f in fields(Spend)} - {"id"}
)


def scopes_of(call: Call) -> tuple[str, ...]:
    """The accounts a call is held in, each once, in one order for everybody who locks them."""
    if len(call.claims) == 1:
        return (call.claims[0].scope,)
    return tuple(sorted({claim.scope for claim in call.claims}))


def no_room(call: Call, claim: Claim, spent: Spend, held: Spend) -> Refusal | None:
    """Why a claim has no room for a call, or None.

    Args:
        call: The call.
        claim: One of its claims.
        spent: What counts against the claim, `claim.base` included.
        held: What others hold in the account.
    """
    if spent.unpriced and "usd" in claim.limits:
        return _refusal(call, claim, "usd", spent, held, kind="unpriced")
    for metric, limit in claim.limits.items():
        amount = amount_of[metric]
        # An uncapped call's worst case is not known, but it may only start while something is left.
        needed = amount(call.worst) or (0 if call.capped else 1)
        if amount(spent) + amount(held) + needed > limit:
            kind = "held" if amount(spent) + needed <= limit else "spent"
            return _refusal(call, claim, metric, spent, held, kind=kind)
    return None


def why_not(call: Call, balance: Callable[[Claim], tuple[Spend, Spend]]) -> Refusal | None:
    """Why a call has no room in all of its claims, or None.

    Money that is gone says more than money that is held: waiting can't bring it back.
    """
    refusals = [refusal for claim in call.claims if (refusal := no_room(call, claim, *balance(claim)))]
    return _first(refusals) if refusals else None


def _first(refusals: Iterable[Refusal]) -> Refusal:
    return min(refusals, key=lambda refusal: refusal.breach.kind == "held")


def assumed(call: Call, *, now: float | None = None, waited: float | None = None) -> Charge:
    """The worst case of a call as its charge, for one that never reported back."""
    worst = call.worst
    return Charge(
        id=call.id,
        nanousd=worst.nanousd,
        input_tokens=worst.input_tokens,
        output_tokens=worst.output_tokens,
        calls=worst.calls,
        estimated=True,
        assumed=True,
        scopes=scopes_of(call),
        time=time.time() if now is None else now,
        waited=waited or 0.0,
        **{name: getattr(call, name) for name in _SHARED},
    )


def _refusal(call: Call, claim: Claim, metric: str, spent: Spend, held: Spend, *, kind: str) -> Refusal:
    breach = Breach(
        budget=claim.budget,
        metric=metric,
        limit=claim.limits[metric],
        spent=spent.amount(metric),
        held=held.amount(metric),
        needed=call.worst.amount(metric),
        kind=kind,
        account=claim.scope,
    )
    return Refusal(call, claim, breach)
