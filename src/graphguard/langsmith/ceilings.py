"""Ceilings from what requests really took: the 90th percentile, and half as much again."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, cast

from graphguard.budget import Budget
from graphguard.spend import to_usd, usd_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from graphguard.spend import Charge

__all__ = ["Calibration", "Request", "calibrate", "plateau_noise", "requests_of"]

LEAST: Final = 10
"""Requests below which ceilings are only a guess."""

_STEP: Final = 1_000_000
_FINE: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one request took, from its input to its end; None for what nobody knows.

    Attributes:
        id: Its run in the ledger, or its trace in LangSmith.
        calls: Model calls.
        tokens: Input and output tokens together.
        nanousd: Cost in nano-USD.
        seconds: From its beginning to its end; for a ledger, from its first charge to its last.
        depth: How deep it nested: graphs in graphs for a ledger, calls of one function in itself for LangSmith.
    """

    id: str = ""
    calls: int | None = None
    tokens: int | None = None
    nanousd: int | None = None
    seconds: float | None = None
    depth: int | None = None


METRICS: Final = ("depth", "calls", "tokens", "nanousd", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Ceilings for the next requests.

    Attributes:
        count: Requests they are made from.
        usual: The percentile of each metric, as it was measured.
        ceilings: That, times the margin, rounded up; what nobody knows is left out.
        quantile: The percentile, as a share.
        margin: The factor.
        plateau: The noise of repeated scores: a smaller improvement is none. None without such scores.
    """

    count: int
    usual: Mapping[str, float]
    ceilings: Mapping[str, int]
    quantile: float
    margin: float
    plateau: float | None = None

    @property
    def usd(self) -> Decimal | None:
        """The ceiling of money in USD."""
        return to_usd(self.ceilings["nanousd"]) if "nanousd" in self.ceilings else None

    @property
    def budget(self) -> Budget | None:
        """The budget of one run; None when neither money nor calls nor tokens are known."""
        limits: dict[str, Any] = {name: self.ceilings[name] for name in ("calls", "tokens") if self.ceilings.get(name)}
        if self.ceilings.get("nanousd"):
            limits["usd"] = _rounded(self.ceilings["nanousd"])
        return Budget(**limits, per="run") if limits else None

    def to_paste(self) -> str:
        """The same as code."""
        lines = [repr(self.budget)] if self.budget is not None else []
        calls, depth = self.ceilings.get("calls"), self.ceilings.get("depth")
        if calls and depth and self.usual["depth"] > 1:
            lines.append(f"RecursiveTraceGuard(max_depth={depth}, max_calls={calls})")
        loop = {
            "max_total_calls": calls,
            "max_elapsed_seconds": self.ceilings.get("seconds"),
            "plateau_threshold": self.plateau,
        }
        if self.plateau is not None:
            given = ", ".join(f"{name}={value}" for name, value in loop.items() if value)
            lines.append(f"FeedbackLoopGuard({given})")
        return "\n".join(lines)


def calibrate(
    requests: Iterable[Request],
    *,
    scores: Iterable[Sequence[float]] = (),
    quantile: float = 0.9,
    margin: float = 1.5,
) -> Calibration:
    """Ceilings that usual requests stay below and runaways don't.

    ```python no-run
    calibration = calibrate(requests_of(ledger.charges()))
    print(calibration.to_paste())       # Budget(usd='0.05', tokens=24000, calls=18, per='run')
    ```

    Args:
        requests: What representative requests took: ten at least, better twenty; see `requests_of` and
            `requests_in_langsmith`.
        scores: Scores that an evaluator gave to the same answer again and again, one group for each answer.
        quantile: The share of requests that are usual: of ten sorted ones, the ninth.
        margin: How much more than usual is allowed.

    Raises:
        ValueError: There are no requests at all.

    Warns:
        UserWarning: There are fewer than ten.

    >>> seen = [Request(calls=n, nanousd=n * 2_000_000) for n in range(1, 11)]
    >>> calibrate(seen).budget
    Budget(usd='0.027', calls=14, per='run')
    """
    seen = list(requests)
    if not seen:
        raise ValueError("there are no requests to calibrate from; run the agent on 10 to 20 representative ones first")
    if len(seen) < LEAST:
        warnings.warn(
            f"only {len(seen)} requests to calibrate from; with fewer than {LEAST} the ceilings are a guess",
            stacklevel=2,
        )
    usual: dict[str, float] = {}
    for metric in METRICS:
        known = sorted(cast("float", value) for one in seen if (value := getattr(one, metric)) is not None)
        if known:
            usual[metric] = _percentile(known, quantile)
    groups = [group for group in scores if len(group) > 1]
    return Calibration(
        count=len(seen),
        usual=usual,
        ceilings={metric: _up(value, margin) for metric, value in usual.items()},
        quantile=quantile,
        margin=margin,
        plateau=plateau_noise(groups, quantile=quantile) if groups else None,
    )


def plateau_noise(scores: Iterable[Sequence[float]], *, quantile: float = 0.9) -> float:
    """How far apart an evaluator's scores of the same answer are: an improvement by less is none.

    Args:
        scores: Scores of one answer, again and again; one group for each answer.
        quantile: The share of pairs of scores that lie no further apart.

    Raises:
        ValueError: No answer was scored twice.

    >>> plateau_noise([[0.50, 0.54, 0.52], [0.8, 0.8]])
    0.04
    """
    apart = sorted(abs(a - b) for group in scores for a, b in combinations(group, 2))
    if not apart:
        raise ValueError("no answer was scored twice; score the same answers two or three times each")
    return round(_percentile(apart, quantile), 6)


def requests_of(charges: Iterable[Charge]) -> list[Request]:
    """What each run took, by its charges in a ledger, the earliest first.

    Charges outside of any run count as one request for each thread. What was charged by hand, such as a
    paid tool, counts as money but not as a call.
    """
    runs: defaultdict[str, list[Charge]] = defaultdict(list)
    for one in charges:
        key = one.run or one.thread
        if key is not None:
            runs[key].append(one)
    found = []
    for key, made in runs.items():
        times = [charge.time for charge in made]
        depths = [len(charge.path) for charge in made if charge.path]
        found.append(
            Request(
                id=key,
                calls=sum(charge.calls for charge in made),
                tokens=sum(charge.input_tokens + charge.output_tokens for charge in made),
                # A model without a known price costs something, so nobody knows how much.
                nanousd=None if any(c.unpriced for c in made) else sum(charge.nanousd for charge in made),
                seconds=max(times) - min(times) if len(times) > 1 else None,
                depth=max(depths) if depths else None,
            )
        )
    return found


def _percentile(ordered: Sequence[float], quantile: float) -> float:
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must be above 0 and at most 1, got {quantile!r}")
    return ordered[math.ceil(quantile * len(ordered) - 1e-9) - 1]


def _up(value: float, margin: float) -> int:
    # In decimals: 7 times 1.1 is 7.7, not the 7.700000000000001 that rounds up differently where it matters.
    return math.ceil(Decimal(str(value)) * Decimal(str(margin)))


def _rounded(nanousd: int) -> str:
    """A ceiling that can be read: rounded up to a tenth of a cent, below a cent to a millionth."""
    step = _STEP if nanousd >= 10 * _STEP else _FINE
    return usd_text(-(-nanousd // step) * step)
