"""Budgets, calls and breaches: pure values, no I/O.

A budget says what may be spent, counted where (`per=`) and for which calls (`node=`, `model=`). It never
looks anything up; it is told the amounts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Final, TypeAlias

from graphguard.accounts import Every, check_every, check_place
from graphguard.errors import InvalidBudget
from graphguard.spend import METRICS, NANO, ZERO, Spend, usd_text

__all__ = ["Breach", "Budget", "Call", "Claim", "Limits", "Policy", "amount_text", "is_per_run", "progress_text"]

Limits: TypeAlias = Mapping[str, int]
"""Limits by metric (`graphguard.spend.METRICS`); `usd` in nano-USD."""

_STEPS: Final = ((NANO // 100, NANO // 10_000), (NANO // 1_000_000, NANO // 1_000_000))
_LATER: Final = ("seconds", "usd_per_minute", "repeats", "depth")
_ONE_CALL: Final = Spend(calls=1)
_SECOND: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent.

    ```python
    Budget(usd="0.50")                        # half a dollar for this line of work
    Budget(usd=5, per="thread")               # five dollars for the thread, all its forks together
    Budget(calls=20, per="run")               # twenty calls from one input to its end
    Budget(usd=2, per="user_id", every="day") # two dollars a day for each user
    Budget(tokens=50_000, node="research")    # only what the node "research" uses
    Budget(usd="0.10", model="gpt-5")         # only what this model uses
    ```

    Args:
        usd: USD; str, int, Decimal or float (a float counts as what it prints).
        tokens: Input and output tokens together.
        input_tokens: Tokens sent, cached ones included.
        output_tokens: Tokens received, reasoning included.
        calls: Model calls; refused ones and answers from a cache don't count.
        per: `"branch"`, the state field of the thread's current line of checkpoints; `"run"`, one input
            to its end, resumes included; `"thread"`, all branches of the thread together; anything else is
            a key of `config["configurable"]` or of the run's context, such as `"user_id"`, and each value of
            it has the budget anew.
        every: How often the budget begins anew, in UTC: `"day"`, `"month"`, or a timedelta of whole seconds,
            counted from 1970 on. A call counts in the window in which it was held. None is never. Only for
            `per="thread"` and keys.
        node: Only calls made in this node.
        model: Only calls to this model.
        warn_at: Shares of a limit at which a warning is emitted, each once as it is crossed.
        keep: What only the node of `on_trip=to("node")` may spend, say for a last summary: USD of a USD
            limit, else of the budget's only limit. All other nodes have that much less.

    Raises:
        InvalidBudget: No limit, a limit that is not positive and finite, a share outside 0 to 1, or a place,
            window or amount to keep that doesn't go with the rest.
        NotImplementedError: A field that this version does not keep yet, by its name.
    """

    usd: str | int | float | Decimal | None = None
    _: KW_ONLY
    tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    calls: int | None = None
    seconds: float | None = None
    usd_per_minute: str | float | Decimal | None = None
    repeats: int | None = None
    depth: int | None = None
    per: str = "branch"
    every: Every | None = None
    node: str | None = None
    model: str | None = None
    warn_at: tuple[float, ...] = (0.5, 0.8, 0.95)
    keep: str | int | float | Decimal | None = None
    # Asked for at each call, so worked out once.
    _limits: dict[str, int] = field(init=False, repr=False, compare=False)
    _key: str = field(init=False, repr=False, compare=False)
    _kept: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check everything that can be checked without a graph."""
        for name in _LATER:
            if getattr(self, name) is not None:
                msg = f"Budget({name}=...) is not kept by this version; leave it out"
                raise NotImplementedError(msg)
        check_place(self.per)
        if self.every is not None:
            check_every(self.every, self.per)
        object.__setattr__(self, "usd", _money("usd", self.usd))
        for name in METRICS[1:]:
            _check_count(name, getattr(self, name))
        object.__setattr__(self, "warn_at", tuple(sorted(_share(share) for share in self.warn_at)))
        object.__setattr__(self, "_limits", self._read_limits())
        if not self.limits:
            msg = "a budget needs at least one limit: Budget(usd='0.50'), or tokens=, input_tokens=, ... calls="
            raise InvalidBudget(msg)
        object.__setattr__(self, "_kept", self._read_kept())
        object.__setattr__(self, "_key", self._read_key())

    @property
    def limits(self) -> Limits:
        """Its limits by metric; `usd` in nano-USD, rounded down.

        >>> Budget(usd="0.50", calls=3).limits
        {'usd': 500000000, 'calls': 3}
        """
        return self._limits

    @property
    def kept(self) -> Limits:
        """What only the node of `on_trip=to("node")` may spend, by metric; empty when nothing is kept.

        >>> Budget(usd="0.50", calls=3, keep="0.05").kept
        {'usd': 50000000}
        """
        return self._kept

    @property
    def key(self) -> str:
        """What names the budget in the state and in ledgers; equal budgets share it.

        >>> Budget(usd="0.50", node="plan").key
        'usd=0.5 per branch node=plan'
        """
        return self._key

    def _read_limits(self) -> dict[str, int]:
        return {
            metric: int(value * NANO) if metric == "usd" else int(value)
            for metric in METRICS
            if (value := getattr(self, metric)) is not None
        }

    def _read_key(self) -> str:
        parts = [f"{m}={usd_text(v) if m == 'usd' else v}" for m, v in self.limits.items()]
        parts.append(f"per {self.per}")
        if self.every is not None:
            parts.append(f"every {f'{self.every // _SECOND} s' if isinstance(self.every, timedelta) else self.every}")
        parts += [f"keep={usd_text(v) if m == 'usd' else v}" for m, v in self.kept.items()]
        parts += [f"{name}={value}" for name in ("node", "model") if (value := getattr(self, name))]
        return " ".join(parts)

    def _read_kept(self) -> dict[str, int]:
        if self.keep is None:
            return {}
        if self.usd is None and len(self.limits) > 1:
            msg = f"keep={self.keep!r} goes with one limit, got {' and '.join(self.limits)}; make it a budget for each"
            raise InvalidBudget(msg)
        metric = "usd" if self.usd is not None else next(iter(self.limits))
        if metric == "usd":
            usd = _money("keep", self.keep) or Decimal()
            amount = int(usd * NANO)
            object.__setattr__(self, "keep", usd)
        else:
            _check_count("keep", self.keep)
            amount = int(self.keep)
        if amount >= self.limits[metric]:
            limit = amount_text(metric, self.limits[metric])
            kept = amount_text(metric, amount)
            msg = f"keep must be less than the limit of {limit}, or other nodes could spend nothing; got {kept}"
            raise InvalidBudget(msg)
        return {metric: amount}

    def covers(self, *, node: str | None, model: str | None) -> bool:
        """Whether a call in that node to that model counts; None is not known yet, and counts."""
        return (self.node is None or node is None or self.node == node) and (
            self.model is None or model is None or self.model == model
        )

    @property
    def narrowed(self) -> bool:
        """Whether it counts only some calls."""
        return self.node is not None or self.model is not None

    @property
    def in_state(self) -> bool:
        """Whether the graph's state knows what was spent of it; of others, only the ledger does."""
        return self.per in {"branch", "run", "thread"} and self.every is None

    def __repr__(self) -> str:
        """The call that makes it."""
        shown = [f"usd={str(self.usd)!r}"] if self.usd is not None else []
        shown += [f"{name}={value!r}" for name in METRICS[1:] if (value := getattr(self, name)) is not None]
        shown += [f"per={self.per!r}"] if self.per != "branch" else []
        shown += [f"{n}={value!r}" for n in ("every", "node", "model") if (value := getattr(self, n)) is not None]
        if self.keep is not None:
            shown.append(f"keep={(str(self.keep) if isinstance(self.keep, Decimal) else self.keep)!r}")
        return f"Budget({', '.join(shown)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One budget as one call meets it: an account, what it held before, and the limits in force.

    Attributes:
        budget: The budget's key.
        scope: The ledger account in which spend and holds are counted.
        limits: Limits in force, raises included.
        base: Spent before the account began; the account's own amounts are added to it.
        floor: What the account has spent at the very least, for a ledger that has forgotten.
    """

    budget: str
    scope: str
    limits: Limits
    base: Spend = ZERO
    floor: Spend = ZERO


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A model call that is about to be made.

    Attributes:
        id: Minted for this attempt; the ledger knows the call by it.
        node: The graph node it is made in.
        model: The model's name as far as it is known beforehand.
        provider: LangChain's name of its provider.
        worst: The most it can use: nano-USD, tokens and the one call.
        capped: False when nothing limits its output, so that `worst` is a lower bound only.
        claims: The budgets it needs room in.
        run: Id of the run it belongs to.
        thread: The thread's id, or None.
        user: Whom it is made for: the server's authenticated user, else `configurable["user_id"]`, else None.
        task: LangGraph's id of the task that makes it.
        attempt: LangGraph's count of the task's attempts.
        path: Where it was made: its task and the tasks around that, innermost first (`Task.place`).
    """

    id: str
    node: str | None = None
    model: str | None = None
    provider: str | None = None
    worst: Spend = _ONE_CALL
    capped: bool = True
    claims: tuple[Claim, ...] = ()
    run: str | None = None
    thread: str | None = None
    user: str | None = None
    task: str | None = None
    attempt: int = 1
    path: tuple[str, ...] = ()

    @classmethod
    def of(cls, id: str, *, node: str | None = None, usd: str | int | Decimal = 0) -> Call:  # noqa: A002
        """A call whose worst case in USD is known, for trying out a ledger.

        >>> Call.of("r1", node="plan", usd="0.02").worst_case
        20000000
        """
        return cls(id=id, node=node, worst=Spend(nanousd=int(Decimal(usd) * NANO), calls=1))

    @property
    def worst_case(self) -> int | None:
        """The most it can cost in nano-USD; None when nothing limits it."""
        return self.worst.nanousd if self.capped else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """Why a call may not be made.

    Attributes:
        budget: The budget's key, or the policy's name.
        metric: What ran out, one of `METRICS`.
        limit: The limit in force; nano-USD for `usd`.
        spent: Spent so far.
        held: Set aside by calls that are running.
        needed: The most that the refused call could use; 0 when not even the smallest call fits.
        kind: `"spent"`, the money is gone; `"held"`, others hold too much of it; `"unpriced"`, a
            model without a known price was used; `"policy"`, a user's own function said so.
        note: More to say, appended to the reason.
        account: The ledger account that has no room; None if nobody said.
    """

    budget: str
    metric: str = "usd"
    limit: int = 0
    spent: int = 0
    held: int = 0
    needed: int = 0
    kind: str = "spent"
    note: str = ""
    account: str | None = None


Policy: TypeAlias = Callable[[Spend, Call], Breach | None]
"""A user's own rule: given the branch spend and the call about to be made, a breach or None."""


def is_per_run(key: str) -> bool:
    """Whether the budget of a key counts one run, so that a raise of its limit ends with the run.

    >>> is_per_run(Budget(calls=3, per="run").key), is_per_run(Budget(calls=3, per="runner").key)
    (True, False)
    """
    return key.partition(" per ")[2].split(" ")[0] == "run"


def amount_text(metric: str, amount: int) -> str:
    """An amount as people read it; USD to a hundredth of a cent, less than a cent to six places, rounded up.

    >>> amount_text("usd", 500_000_000), amount_text("usd", 87_297_500), amount_text("usd", 1_234_001)
    ('$0.50', '$0.0873', '$0.001235')
    >>> amount_text("usd", 7), amount_text("calls", 20), amount_text("calls", 1)
    ('$0.000000007', '20 calls', '1 call')
    """
    if metric != "usd":
        unit = metric.replace("_", " ")
        return f"{amount:,} {unit.removesuffix('s') if amount == 1 else unit}"
    step = next((step for least, step in _STEPS if amount >= least), 1)
    whole, _, cents = usd_text(-(-amount // step) * step).partition(".")
    return f"${whole}.{cents.ljust(2, '0')}"


def progress_text(metric: str, spent: int, limit: int) -> str:
    """Spent of limit as people read it.

    >>> progress_text("usd", 490_000_000, 500_000_000), progress_text("calls", 3, 20)
    ('$0.49 of $0.50', '3 of 20 calls')
    """
    if metric != "usd":
        return f"{spent:,} of {limit:,} {metric.replace('_', ' ')}"
    return f"{amount_text(metric, spent)} of {amount_text(metric, limit)}"


def _money(name: str, value: object) -> Decimal | None:
    if value is None:
        return None
    try:
        amount = Decimal(str(value)) if not isinstance(value, bool) else Decimal("NaN")
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount * NANO < 1:
        msg = f"{name} must be a positive amount such as '0.50', got {value!r}"
        raise InvalidBudget(msg)
    return amount


def _check_count(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        msg = f"{name} must be a whole number of at least 1, got {value!r}"
        raise InvalidBudget(msg)


def _share(value: float) -> float:
    if not isinstance(value, (int, float)) or not 0 < value <= 1:
        msg = f"warn_at takes shares of the limit above 0 and up to 1, such as 0.8, got {value!r}"
        raise InvalidBudget(msg)
    return float(value)
