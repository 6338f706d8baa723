"""Limits that people raised, in the plain JSON form of the state and as numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphguard.spend import Spend, usd_text

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["limits_from_state", "limits_in", "limits_to_state"]


def limits_to_state(raised: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, object]]:
    """Raised limits in the plain JSON form of the state; USD as decimal strings.

    >>> limits_to_state({"b": {"usd": 1_500_000_000, "calls": 4}})
    {'b': {'usd': '1.5', 'calls': 4}}
    """
    return {key: {m: usd_text(v) if m == "usd" else v for m, v in limits.items()} for key, limits in raised.items()}


def limits_from_state(limits: Mapping[str, object]) -> dict[str, int]:
    """The opposite of `limits_to_state`, for one budget.

    >>> limits_from_state({"usd": "1.5", "calls": 4})
    {'usd': 1500000000, 'calls': 4}
    """
    return {m: Spend.of({"usd": str(v)}).nanousd if m == "usd" else int(str(v)) for m, v in limits.items()}


def limits_in(spend: Mapping[str, object]) -> dict[str, dict[str, int]]:
    """All raised limits that a state field `spend` tells of, those of its run included."""
    found: dict[str, dict[str, int]] = {}
    run = spend.get("run")
    for place in (spend, run if isinstance(run, dict) else {}):
        limits = place.get("limits")
        for key, raised in limits.items() if isinstance(limits, dict) else ():
            found[key] = limits_from_state(raised)
    return found
