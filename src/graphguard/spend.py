"""What was spent: one charge, sums of charges, and the reducer of the state field `spend`.

Money is integer nano-USD inside and `Decimal` USD at the surface; in the graph's state it is a decimal
string, so that people can read and edit it.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["METRICS", "NANO", "ZERO", "Charge", "Spend", "add_spend", "amount_of", "to_usd", "usd_text"]

NANO: Final = 1_000_000_000
"""Nano-USD in a USD."""

METRICS: Final = ("usd", "tokens", "input_tokens", "output_tokens", "calls")
"""What a budget can limit; `usd` is counted in nano-USD, the others in ones."""

_COUNTS: Final = ("input_tokens", "output_tokens", "calls", "estimated", "unpriced")
_RAISED: Final = 12  # raised limits of single accounts remembered, the latest ones
_AMOUNTS: Final = frozenset({"usd", *_COUNTS})
_RARE: Final = frozenset({"by", "run_by", "limits", "run_limits"})
_SEEN: Final = 12  # tasks of cached nodes remembered per run; keeps the field's size constant


def usd_text(nanousd: int) -> str:
    """Nano-USD as a plain decimal string of USD.

    >>> usd_text(35_000_000), usd_text(-1)
    ('0.035', '-0.000000001')
    """
    whole, rest = divmod(abs(nanousd), NANO)
    text = f"{whole}.{rest:09d}".rstrip("0") if rest else str(whole)
    return f"-{text}" if nanousd < 0 else text


def to_usd(nanousd: int) -> Decimal:
    """Nano-USD as USD, without trailing zeros.

    >>> to_usd(20_000_000)
    Decimal('0.02')
    """
    return Decimal(usd_text(nanousd))


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One billed attempt to call a model, or one thing that the user charged.

    Attributes:
        id: Minted for the attempt, before the request is sent.
        nanousd: Cost in nano-USD.
        input_tokens: Tokens sent, cached ones included.
        output_tokens: Tokens received, reasoning included.
        calls: 1 for a model call, 0 for what is not one.
        estimated: True when the provider did not say how much was used.
        assumed: True when the call never reported back and its hold was charged instead; a late
            settle replaces such a charge.
        unpriced: True when no price is known for the model; `nanousd` is 0 then, and every USD budget
            counts as breached.
        model: Name of the model that answered.
        provider: LangChain's name of its provider.
        node: The innermost graph node it ran in.
        run: Id of the run, from one input to its end.
        thread: The thread's id, or None.
        user: The server's authenticated user, else `configurable["user_id"]`, else None.
        task: LangGraph's id of the task. Shared by all attempts of the task, so never a key.
        attempt: LangGraph's count of attempts, from 1.
        path: Where it was made: its task and the tasks around that, innermost first (`Task.place`).
        scopes: The ledger accounts it counts in.
        time: When it was settled, in seconds since the epoch.
        waited: Seconds the call waited for room.
    """

    id: str
    nanousd: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 1
    estimated: bool = False
    assumed: bool = False
    unpriced: bool = False
    model: str | None = None
    provider: str | None = None
    node: str | None = None
    run: str | None = None
    thread: str | None = None
    user: str | None = None
    task: str | None = None
    attempt: int = 1
    path: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    time: float = field(default_factory=time.time)
    waited: float = 0.0

    @property
    def usd(self) -> Decimal:
        """Cost in USD."""
        return to_usd(self.nanousd)

    @property
    def spend(self) -> Spend:
        """The charge as a sum of one."""
        return Spend(
            nanousd=self.nanousd,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            calls=self.calls,
            estimated=self.calls if self.estimated else 0,
            unpriced=1 if self.unpriced else 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """A sum of charges.

    Attributes:
        nanousd: Cost in nano-USD.
        input_tokens: Tokens sent.
        output_tokens: Tokens received.
        calls: Model calls.
        estimated: How many of the calls were estimated.
        unpriced: How many charges had no known price.

    >>> (Spend(nanousd=1, calls=1) + Spend(nanousd=2, calls=1)).calls
    2
    """

    nanousd: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 0
    estimated: int = 0
    unpriced: int = 0

    @classmethod
    def of(cls, state: object) -> Spend:
        """The branch spend of a state: a `StateSnapshot`, its values, or the field itself.

        Args:
            state: What `graph.get_state(config)` gave, its `.values`, a values chunk of a stream, or
                the content of the field `spend`. Without the field, the spend is zero.

        Raises:
            ValueError: The field holds something else than graphguard writes.
        """
        return cls._read(_spend_field(state))

    @classmethod
    def of_run(cls, state: object) -> Spend:
        """The spend of the state's latest run: since the last new input, resumes included."""
        run = _spend_field(state).get("run") or {}
        return cls._read(run) if isinstance(run, Mapping) else cls()

    @classmethod
    def total(cls, charges: Iterable[Charge]) -> Spend:
        """The sum of some charges."""
        total = cls()
        for charge in charges:
            total += charge.spend
        return total

    @classmethod
    def _read(cls, data: Mapping[str, object]) -> Spend:
        return cls(**dict(zip(("nanousd", *_COUNTS), _amounts(data), strict=True))) if data else ZERO

    @property
    def usd(self) -> Decimal:
        """Cost in USD."""
        return to_usd(self.nanousd)

    @property
    def tokens(self) -> int:
        """Tokens sent and received."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Spend) -> Spend:
        """The sum of both."""
        if other is ZERO:
            return self
        if self is ZERO:
            return other
        return Spend(
            nanousd=self.nanousd + other.nanousd,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            calls=self.calls + other.calls,
            estimated=self.estimated + other.estimated,
            unpriced=self.unpriced + other.unpriced,
        )

    def __neg__(self) -> Spend:
        """The opposite amounts, to take a charge back."""
        return Spend(
            nanousd=-self.nanousd,
            input_tokens=-self.input_tokens,
            output_tokens=-self.output_tokens,
            calls=-self.calls,
            estimated=-self.estimated,
            unpriced=-self.unpriced,
        )

    def at_least(self, other: Spend) -> Spend:
        """The larger of both, amount by amount."""
        return replace(self, **{key: max(getattr(self, key), getattr(other, key)) for key in ("nanousd", *_COUNTS)})

    def amount(self, metric: str) -> int:
        """The amount of one of `METRICS`; `usd` in nano-USD."""
        return amount_of[metric](self)

    def to_state(self) -> dict[str, object]:
        """The plain JSON form that the state field uses; zero counts of oddities are left out.

        >>> Spend(nanousd=65_000, input_tokens=20, output_tokens=10, calls=1).to_state()
        {'usd': '0.000065', 'input_tokens': 20, 'output_tokens': 10, 'calls': 1}
        """
        return _state_form([self.nanousd, *(getattr(self, key) for key in _COUNTS)])


amount_of: Final[Mapping[str, Callable[[Spend], int]]] = {
    "usd": operator.attrgetter("nanousd"),
    **{metric: operator.attrgetter(metric) for metric in METRICS if metric != "usd"},
}
"""What reads the amount of each of `METRICS` from a sum."""

ZERO: Final = Spend()
"""Nothing spent; adding it costs nothing."""


def add_spend(old: dict[str, object], new: dict[str, object]) -> dict[str, object]:
    """Reduce one update into the state field `spend`.

    Args:
        old: The field: amounts since the thread began (`usd`, `input_tokens`, `output_tokens`, `calls`),
            the same since the last new input under `run`, both again per narrowed budget under `by`,
            and raised limits per budget under `limits`.
        new: Amounts to add. `run_id` begins a new run; `limits` raises limits; `once` names the task of
            a cached node, whose update is dropped when it comes out of the cache.

    Returns:
        A new dict of plain JSON types, of constant size however many calls were made.

    Raises:
        ValueError: The update is not of that form. To set the field, wrap the value in LangGraph's
            `Overwrite`.
    """
    if not isinstance(new, Mapping):
        msg = f"an update of 'spend' must be a dict of amounts to add, got {new!r}; Overwrite({{...}}) sets the field"
        raise ValueError(msg)  # noqa: TRY004 - a wrong value from a client, which LangGraph reports as such
    result: dict[str, object] = dict(old)
    run: dict[str, object] = dict(_mapping(old, "run"))
    if "run_id" in new:
        run = {"id": new["run_id"]}
        result.pop("parallel", None)
    if "once" in new:
        once = _mapping(new, "once")
        seen = [str(task) for task in _sequence(run, "seen")]
        if once.get("run") != run.get("id") or str(once.get("task")) in seen:
            return result
        run["seen"] = [*seen, str(once.get("task"))][-_SEEN:]
    if not _AMOUNTS.isdisjoint(new):
        amount = _amounts(new)
        result |= _state_form([a + b for a, b in zip(_amounts(old), amount, strict=True)])
        run |= _state_form([a + b for a, b in zip(_amounts(run), amount, strict=True)])
    if not _RARE.isdisjoint(new):
        _add_each(result, _mapping(new, "by"))
        _add_each(run, _mapping(new, "run_by"))
        _raise_each(result, _mapping(new, "limits"))
        _raise_each(run, _mapping(new, "run_limits"))
    if new.get("parallel"):
        result["parallel"] = True
    if run:
        result["run"] = run
    return result


def _add_each(target: dict[str, object], by: Mapping[str, object]) -> None:
    if by:
        old = _mapping(target, "by")
        sums = {key: (Spend._read(_mapping(old, key)) + Spend._read(_mapping(by, key))).to_state() for key in by}  # noqa: SLF001
        target["by"] = {**old, **sums}


def _raise_each(target: dict[str, object], limits: Mapping[str, object]) -> None:
    if limits:
        old = _mapping(target, "limits")
        raised = {key: value for key, value in old.items() if key not in limits}
        raised |= {key: _highest(_mapping(old, key), _mapping(limits, key)) for key in limits}
        # Of budgets with an account each user and each day has limits of its own; the field's size stays constant.
        of_accounts = [key for key in raised if "|" in key]
        target["limits"] = {key: value for key, value in raised.items() if key not in of_accounts[:-_RAISED]}


def _highest(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, object]:
    # Lines beside each other may tell of raises in any order; none of them takes another's back.
    return {**old, **{m: v for m, v in new.items() if m not in old or Decimal(str(v)) >= Decimal(str(old[m]))}}


def _amounts(data: Mapping[str, object]) -> list[int]:
    """The amounts in a field: nano-USD, then `_COUNTS`."""
    counts = [data.get(key, 0) for key in _COUNTS]
    for key, value in zip(_COUNTS, counts, strict=True):
        if type(value) is not int:
            msg = f"{key!r} in the state field 'spend' must be a whole number, got {value!r}"
            raise ValueError(msg)
    return [_nanousd(data.get("usd", 0)), *counts]  # type: ignore[list-item] # each was looked at


def _state_form(amounts: list[int]) -> dict[str, object]:
    """The opposite of `_amounts`; zero counts of oddities are left out."""
    nanousd, sent, received, calls, estimated, unpriced = amounts
    data: dict[str, object] = {
        "usd": usd_text(nanousd),
        "input_tokens": sent,
        "output_tokens": received,
        "calls": calls,
    }
    if estimated:
        data["estimated"] = estimated
    if unpriced:
        data["unpriced"] = unpriced
    return data


def _spend_field(state: object) -> Mapping[str, object]:
    if type(state) is dict:
        found = state.get("spend", state if "usd" in state else {})
        return found if isinstance(found, Mapping) else {}
    values = getattr(state, "values", state)
    if callable(values):  # a dict's own .values
        values = state
    if not isinstance(values, Mapping):
        return {}
    data = values.get("spend", values if "usd" in values else {})
    return data if isinstance(data, Mapping) else {}


def _mapping(data: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = data.get(key) or {}
    if type(value) is not dict and not isinstance(value, Mapping):
        msg = f"{key!r} in the state field 'spend' must be a dict, got {value!r}"
        raise ValueError(msg)
    return value


def _sequence(data: Mapping[str, object], key: str) -> list[object]:
    value = data.get(key) or []
    return list(value) if isinstance(value, (list, tuple)) else []


def _nanousd(value: object) -> int:
    if type(value) is str:
        return _nanousd_of(value)
    return _nanousd_of(str(value))


@functools.lru_cache(maxsize=1024)
def _nanousd_of(text: str) -> int:
    # Kept, as the same amount is read by the task that it is told to, and by the reducer, for thread and run.
    whole, _, rest = text.partition(".")
    if whole.isdecimal() and whole.isascii() and (not rest or (rest.isdecimal() and rest.isascii())):
        return int(whole) * NANO + int(rest[:9].ljust(9, "0"))  # as usd_text() writes it
    try:
        amount = Decimal(text).scaleb(9)
        return int(amount)
    except (InvalidOperation, ValueError, OverflowError):
        msg = f"'usd' in the state field 'spend' must be a decimal number of USD, got {text!r}"
        raise ValueError(msg) from None
