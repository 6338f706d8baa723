"""What the commands print with `--json`: one document each, whose field names stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphguard.ledger_command.words import iso_utc
from graphguard.spend import usd_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from graphguard.ledger.protocol import Hold
    from graphguard.spend import Charge, Spend

__all__ = ["charge_document", "hold_document", "spend_document", "totals_document"]


def spend_document(spend: Spend) -> dict[str, object]:
    """A sum; USD as a decimal string."""
    return {
        "usd": usd_text(spend.nanousd),
        "calls": spend.calls,
        "input_tokens": spend.input_tokens,
        "output_tokens": spend.output_tokens,
        "estimated": spend.estimated,
        "unpriced": spend.unpriced,
    }


def totals_document(by: str, sums: Mapping[str | None, Spend], total: Spend) -> dict[str, object]:
    """Sums by something, and the sum of all."""
    groups = [{"name": name, **spend_document(spend)} for name, spend in sums.items()]
    return {"by": by, "total": spend_document(total), "groups": groups}


def charge_document(charge: Charge) -> dict[str, object]:
    """One charge."""
    return {
        "id": charge.id,
        "time": iso_utc(charge.time),
        "usd": usd_text(charge.nanousd),
        "calls": charge.calls,
        "input_tokens": charge.input_tokens,
        "output_tokens": charge.output_tokens,
        "model": charge.model,
        "provider": charge.provider,
        "node": charge.node,
        "thread": charge.thread,
        "run": charge.run,
        "user": charge.user,
        "task": charge.task,
        "attempt": charge.attempt,
        "scopes": list(charge.scopes),
        "estimated": charge.estimated,
        "assumed": charge.assumed,
        "unpriced": charge.unpriced,
        "waited_seconds": charge.waited,
    }


def hold_document(hold: Hold, now: float) -> dict[str, object]:
    """One open hold; `usd` and the tokens are its worst case."""
    call = hold.call
    return {
        "id": hold.id,
        "time": iso_utc(hold.time),
        "age_seconds": None if hold.time is None else round(now - hold.time, 3),
        "lease_seconds_left": None if hold.expires is None else round(hold.expires - now, 3),
        "usd": usd_text(call.worst.nanousd),
        "input_tokens": call.worst.input_tokens,
        "output_tokens": call.worst.output_tokens,
        "capped": call.capped,
        "model": call.model,
        "provider": call.provider,
        "node": call.node,
        "thread": call.thread,
        "run": call.run,
        "user": call.user,
        "task": call.task,
        "scopes": _unique(claim.scope for claim in call.claims),
        "waited_seconds": hold.waited,
    }


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
