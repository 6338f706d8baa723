"""What an evaluation spends: one account for its targets and evaluators, counted by row."""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self, cast

from langsmith.run_helpers import get_current_run_tree, get_tracing_context

from graphguard.budget import Budget, Call
from graphguard.choices import make_settings
from graphguard.errors import UnknownPrice
from graphguard.ids import new_id
from graphguard.langsmith.metered import MeteredBlock
from graphguard.langsmith.spec import Need
from graphguard.langsmith.traced_calls import TracedCall, traced_calls
from graphguard.langsmith.watching import Watch
from graphguard.meter import Meter
from graphguard.spend import ZERO, Charge, Spend
from graphguard.unfolded import Unfolded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from decimal import Decimal

    from graphguard.langsmith.rates import RateLimit
    from graphguard.ledger.protocol import Hold, Ledger, Refusal
    from graphguard.prices import PriceBook
    from graphguard.scope import Scope
    from graphguard.task import Task

__all__ = ["Tally"]

_PATIENCE: Final = 600.0
"""Seconds that a call waits for other rows to settle what they hold: nobody sits and waits for an evaluation."""

TARGET: Final = "target"
JUDGE: Final = "evaluator"


_folded: ContextVar[str | None] = ContextVar("graphguard_folded", default=None)
"""The row whose traced calls are being charged."""


def _row() -> tuple[str | None, bool]:
    """The trace of the row that this code runs for, and whether an evaluator runs: as the SDK's context tells."""
    if (folded := _folded.get()) is not None:
        return folded, False
    metadata = get_tracing_context().get("metadata") or {}
    judged = metadata.get("target_run_id") or metadata.get("reference_run_id")
    if judged is not None:
        return str(judged), True
    run = get_current_run_tree()
    return (str(run.trace_id) if run else None), False


class Tally(MeteredBlock):
    """The block of code of one evaluation, with what was spent in it by targets, by evaluators, and by row.

    Graphs with guards of their own count in it too.

    Attributes:
        id: Names the account: `evaluation:<id>` in the ledger.
        room: The ceilings; infinite where there is none.
    """

    def __init__(
        self,
        *,
        max_calls: int | None,
        max_cost_usd: str | float | Decimal | None,
        ledger: Ledger | None,
        prices: PriceBook,
        rate: RateLimit | None = None,
        judges_only: bool = False,
        heard: Callable[[Spend, int], None] | None = None,
    ) -> None:
        """Open the account.

        Args:
            max_calls: The ceiling of model calls; None is none.
            max_cost_usd: The ceiling of money; None is none.
            ledger: Where it is held; None is the one that all guards of the process share.
            prices: The price book.
            rate: How fast calls may be sent.
            judges_only: No target runs, so every call is an evaluator's.
            heard: Told the sum, and how many rows have called a model, after each call.
        """
        self.id = new_id()
        limited = max_calls is not None or max_cost_usd is not None
        budgets = [Budget(usd=max_cost_usd, calls=max_calls, per="evaluation", warn_at=())] if limited else []
        settings = make_settings(budgets, on_trip="raise", ledger=ledger, prices=prices)
        meter = Meter(replace(settings, ledger=cast("Ledger", _Patient(settings.ledger))), {})
        super().__init__(meter, {"evaluation": self.id}, TARGET)
        self._judge = MeteredBlock(meter, {"evaluation": self.id}, JUDGE).scope
        self._judges_only = judges_only
        self._limits = dict(budgets[0].limits) if budgets else {}
        self._seen = meter.unfolded = _Seen(self._judge.task, heard)
        self._watch = Watch(rate)

    @property
    def scope(self) -> Scope:
        """The scope of the target, or of the evaluators where one runs."""
        return self._judge if self._judges_only or _row()[1] else self._scope

    @property
    def room(self) -> Need:
        """What is left of the ceilings."""
        spent = self.spend
        calls, usd = self._limits.get("calls", math.inf), self._limits.get("usd", math.inf)
        return Need(max(calls - spent.calls, 0), max(usd - spent.nanousd, 0))

    @property
    def spend(self) -> Spend:
        """Spent so far, in all."""
        return self._seen.of[TARGET] + self._seen.of[JUDGE]

    def spend_of(self, label: str) -> Spend:
        """Spent so far by `"target"` or `"evaluator"`."""
        return self._seen.of[label]

    @property
    def dearest_row(self) -> Need:
        """The most calls and the most money that any row has taken, each for itself."""
        rows = self._seen.rows()
        return Need(max((r.calls for r in rows), default=0), max((r.nanousd for r in rows), default=0))

    @property
    def stopped(self) -> str | None:
        """Why a call was refused, or None."""
        refusal = self._scope.refusal or self._judge.refusal
        return refusal.reason if refusal else None

    def model_of(self, label: str) -> str | None:
        """The model that `"target"` or `"evaluator"` called most, as far as the account's ledger knows."""
        charges = self._scope.meter.settings.ledger.charges(scope=f"evaluation:{self.id}")
        models = Counter(c.model for c in charges if c.model and (c.node == JUDGE) is (label == JUDGE))
        return models.most_common(1)[0][0] if models else None

    def fold(self, run: object) -> None:
        """Charge the calls of a row that LangSmith has traced but LangChain never saw; each once."""
        row = _folded.set(str(getattr(run, "trace_id", None)))
        try:
            for call in traced_calls(run, self._watch.seen):
                self._watch.seen.add(call.id)
                self._charge_traced(call)
        finally:
            _folded.reset(row)

    def _charge_traced(self, call: TracedCall) -> None:
        scope, usage = self._scope, call.usage
        try:
            nanousd, priced = scope.meter.settings.prices.cost(usage, call.model, call.provider), True
        except UnknownPrice:
            nanousd, priced = 0, False
        id_ = new_id()
        charge = Charge(
            id=id_,
            nanousd=nanousd,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            estimated=usage.estimated,
            unpriced=not priced,
            model=call.model,
            provider=call.provider,
        )
        scope.settle(Call(id=id_, node=TARGET, model=call.model, claims=scope.claims(model=call.model)), charge)

    def __enter__(self) -> Self:
        """Meter from here on."""
        self._watch.begin()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        """Meter no more."""
        super().__exit__(*_)
        self._watch.end()

    async def __aenter__(self) -> Self:
        """Meter from here on."""
        self._watch.begin()
        return await super().__aenter__()

    async def __aexit__(self, *_: object) -> None:
        """Meter no more."""
        await super().__aexit__(*_)
        self._watch.end()


class _Patient:
    """A ledger in which calls wait longer for room than its own time limit says."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the ledger has
        return getattr(self._ledger, name)

    def hold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        return self._ledger.hold(call, wait=_PATIENCE if wait is None else wait)

    async def ahold(self, call: Call, *, wait: float | None = None) -> Hold | Refusal:
        return await self._ledger.ahold(call, wait=_PATIENCE if wait is None else wait)


class _Seen(Unfolded):
    """What every charge adds to this account, whichever guard's handler settled it."""

    def __init__(self, judge: Task, heard: Callable[[Spend, int], None] | None) -> None:
        super().__init__()
        self._judge = judge
        self._heard = heard
        self._rows: defaultdict[str, Spend] = defaultdict(Spend)
        self._guarding = threading.Lock()
        self.of: dict[str, Spend] = {TARGET: ZERO, JUDGE: ZERO}

    def add(self, task: Task, run: str, spend: Spend, by: Mapping[str, Spend]) -> None:
        """Count it, and keep no more: there is no state to tell."""
        del run, by
        row = _row()[0]
        with self._guarding:
            self.of[JUDGE if task.id == self._judge.id else TARGET] += spend
            if row is not None:
                self._rows[row] += spend
            whole, rows = self.of[TARGET] + self.of[JUDGE], len(self._rows)
        if self._heard is not None:
            self._heard(whole, rows)

    def rows(self) -> list[Spend]:
        with self._guarding:
            return list(self._rows.values())
