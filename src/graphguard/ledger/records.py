"""Calls and charges as text and rows, the same in every database."""

from __future__ import annotations

import json
import operator
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

import orjson

from graphguard.budget import Call, Claim
from graphguard.spend import ZERO, Charge, Spend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "AMOUNTS",
    "NARROWING",
    "amounts",
    "call_from_text",
    "call_to_text",
    "charge_from_text",
    "charge_to_text",
    "narrowing",
    "same_call",
    "spend_from",
]

AMOUNTS: Final = tuple(field.name for field in fields(Spend))
"""What accounts count, in the order of their columns."""

NARROWING: Final = ("thread", "run", "node", "model", "task", "user")
"""What `charges` and `total` can be narrowed by, beside the account and the time."""

_CALL: Final = tuple(field.name for field in fields(Call) if field.name not in {"worst", "claims"})
_CHARGE: Final = tuple(field.name for field in fields(Charge))
# Asked for at each call; a getter of many is one step.
_amounts: Final = operator.attrgetter(*AMOUNTS)
_call_values: Final = operator.attrgetter(*_CALL)
_charge_values: Final = operator.attrgetter(*_CHARGE)
narrowing: Final[Callable[[Charge], tuple[str | None, ...]]] = operator.attrgetter(*NARROWING)
"""What a charge says of each of `NARROWING`."""


def amounts(spend: Spend) -> tuple[int, int, int, int, int, int]:
    """A sum as numbers in the order of `AMOUNTS`.

    >>> amounts(Spend(nanousd=5, calls=1))
    (5, 0, 0, 1, 0, 0)
    """
    return _amounts(spend)


def spend_from(row: Sequence[int]) -> Spend:
    """The opposite of `amounts`; what comes after them is left alone."""
    if not any(row[: len(AMOUNTS)]):
        return ZERO
    return Spend(
        nanousd=row[0],
        input_tokens=row[1],
        output_tokens=row[2],
        calls=row[3],
        estimated=row[4],
        unpriced=row[5],
    )


def call_to_text(call: Call) -> str:
    """A call as JSON."""
    data: dict[str, object] = dict(zip(_CALL, _call_values(call), strict=True))
    data["worst"] = amounts(call.worst)
    data["claims"] = [
        [claim.budget, claim.scope, dict(claim.limits), amounts(claim.base), amounts(claim.floor)]
        for claim in call.claims
    ]
    return _encode(data)


def call_from_text(text: str) -> Call:
    """The opposite of `call_to_text`; what a newer version added is left out.

    >>> call = Call.of("r1", node="plan", usd="0.02")
    >>> call_from_text(call_to_text(call)) == call
    True
    """
    data = json.loads(text)
    claims = tuple(
        Claim(budget=budget, scope=scope, limits=limits, base=spend_from(base), floor=spend_from(floor))
        for budget, scope, limits, base, floor in data["claims"]
    )
    data["path"] = tuple(data.get("path", ()))
    return Call(**_known(data, _CALL), worst=spend_from(data["worst"]), claims=claims)


def same_call(text: str, call: Call) -> bool:
    """Whether a call is the one written down, in amounts and accounts."""
    known = call_from_text(text)
    return (known.worst, known.claims) == (call.worst, call.claims)


def charge_to_text(charge: Charge) -> str:
    """A charge as JSON."""
    return _encode(dict(zip(_CHARGE, _charge_values(charge), strict=True)))


def charge_from_text(text: str) -> Charge:
    """The opposite of `charge_to_text`; what a newer version added is left out.

    >>> charge = Charge(id="r1", nanousd=5, scopes=("thread:t",))
    >>> charge_from_text(charge_to_text(charge)) == charge
    True
    """
    data = json.loads(text)
    data["scopes"], data["path"] = tuple(data["scopes"]), tuple(data.get("path", ()))
    return Charge(**_known(data, _CHARGE))


def _encode(data: Mapping[str, object]) -> str:
    try:
        return orjson.dumps(data).decode()  # a fifth of the time, and this is done twice a call
    except TypeError:  # numbers beyond 64 bits
        return json.dumps(data, ensure_ascii=False)


def _known(data: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: data[name] for name in names if name in data}
