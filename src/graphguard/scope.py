"""One attempt of a task, as the money sees it: whose it spends, what it has used, what the state must still be told.

A `Scope` is made for each attempt of a graph task; scopes nest as graphs do, and a model call counts in every one
around it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict

from graphguard.accounts import STEP, account_name, account_text, key_value, limit_key, window_of
from graphguard.budget import Breach, Budget, Call, Claim, Limits, amount_text, progress_text
from graphguard.limits import limits_in, limits_to_state
from graphguard.meter import DEFAULT_LEDGER
from graphguard.spend import ZERO as _ZERO
from graphguard.spend import Charge, Spend
from graphguard.traced import tell
from graphguard.trip import Trip, amounts_in_event

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from langchain_core.runnables import RunnableConfig

    from graphguard.ledger.protocol import Ledger, Refusal
    from graphguard.meter import Meter
    from graphguard.task import Task

__all__ = ["Scope"]

logger = logging.getLogger("graphguard")
logger.addHandler(logging.NullHandler())  # a library's lines are shown where the application asks for them
_SMALLEST = Spend(nanousd=1, input_tokens=1, output_tokens=1, calls=1)


class _Place(TypedDict):
    node: str
    run: str | None
    thread: str | None
    user: str | None
    task: str
    attempt: int
    path: tuple[str, ...]
    scopes: tuple[str, ...]


class Scope:
    """One attempt of one graph task, as the money sees it.

    Attributes:
        meter: The guard's running object.
        task: What LangGraph says of the task.
        parent: The scope of the task around it, when this graph runs inside another guarded one.
        refusal: The trip of the latest refused call that this guard has to act on.
        raised: Limits that people raised, by budget and metric, as the state and this task know them.
        new_limits: Those of them that this task must tell the state.
        trip: The trip that this task must tell the state.
        stopped: The trip that ended a graph run inside this task, and so must end this one.
        talks: Whether the graph keeps a conversation in `messages`.
        users_config: The config that the user's code gets instead of the task's own, if not None.
    """

    __slots__ = (
        "_beside",
        "_claimed",
        "_tops",
        "field",
        "meter",
        "new_limits",
        "parent",
        "raised",
        "refusal",
        "run",
        "stopped",
        "talks",
        "task",
        "trip",
        "users_config",
    )

    def __init__(self, meter: Meter, task: Task, parent: Scope | None, *, talks: bool = False) -> None:
        """Read the state's spend once; the task's siblings see the same."""
        self.meter = meter
        self.talks = talks
        self.task = task
        self.parent = parent
        self.field: Mapping[str, object] = task.read("spend")
        run = self.field.get("run")
        self.run = str(run.get("id") or "") if isinstance(run, dict) else ""
        self.refusal: Trip | None = None
        self.trip: Trip | None = None
        self.stopped: Trip | None = None
        self.users_config: RunnableConfig | None = None
        self.raised = limits_in(self.field)
        self.new_limits: dict[str, dict[str, int]] = {}
        self._claimed: dict[str, Claim] = {}
        self._beside: list[Mapping[str, object]] | None = None
        self._tops: list[Scope] | None = [self] if parent is None else None
        if parent is not None and self.raised and (top := self.top) is not self:
            for key, limits in self.raised.items():
                top.raise_limits(key, limits)

    @property
    def chain(self) -> Iterator[Scope]:
        """This scope and those around it, innermost first."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    @property
    def top(self) -> Scope:
        """The outermost scope of the same guard: where its budgets are counted."""
        if self.parent is None:
            return self
        return [scope for scope in self.chain if scope.meter is self.meter][-1]

    def tops(self) -> list[Scope]:
        """The outermost scope of each guard around the task, innermost guard first."""
        if self._tops is None:
            self._tops = list({id(scope.meter): scope for scope in self.chain}.values())
        return self._tops

    @property
    def ledger(self) -> Ledger:
        """Where all calls from here are held, for each guard around: the outermost one's that was given any."""
        if self.parent is None:
            return self.meter.settings.ledger
        given = (top.meter.settings.ledger for top in reversed(self.tops()))
        return next((ledger for ledger in given if ledger is not DEFAULT_LEDGER), DEFAULT_LEDGER)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes around the task, innermost first."""
        if self.parent is None:
            return (self.task.node,)
        return tuple(scope.task.node for scope in self.chain)

    @property
    def path(self) -> tuple[str, ...]:
        """Places of the task and of those around it, innermost first; one for each superstep."""
        if self.parent is None:
            return (self.task.place,)
        of_superstep = {scope.task.checkpoint: scope.task.place for scope in reversed([*self.chain])}
        return tuple(reversed(of_superstep.values()))

    def stop_outer(self, trip: Trip) -> None:
        """Tell the tasks around this one, under the same guard, that the run is over."""
        for scope in self.chain:
            if scope is not self and scope.meter is self.meter:
                scope.stopped = trip

    def raise_limits(self, key: str, limits: Mapping[str, int]) -> None:
        """Take note of a raised limit, for this task and for the state."""
        for scope in self.chain:
            if scope.meter is self.meter and any(scope.raised.get(key, {}).get(m, 0) < v for m, v in limits.items()):
                known = scope.raised.get(key, {})
                scope.raised[key] = {**known, **{m: max(v, known.get(m, 0)) for m, v in limits.items()}}
                scope.new_limits[key] = dict(scope.raised[key])
                scope._claimed.clear()  # noqa: SLF001 - another scope of the same class

    def claims(self, *, model: str | None = None, own: bool = False) -> tuple[Claim, ...]:
        """The budgets that a call from here needs room in; `own` leaves out other guards' ones."""
        found: list[Claim] = []
        for top in [self.top] if own else self.tops():
            names: tuple[str, ...] | None = None
            for budget in top.meter.settings.budgets:
                if budget.narrowed:
                    names = self.nodes[: self.nodes_to(top)] if names is None else names
                    if not any(budget.covers(node=name, model=model) for name in names):
                        continue
                found.append(top._claim(budget))  # noqa: SLF001 - another scope of the same class
        return tuple(found)

    def nodes_to(self, top: Scope) -> int:
        """How many scopes lie from here out to `top`, both counted."""
        return next(count for count, scope in enumerate(self.chain, 1) if scope is top)

    def _claim(self, budget: Budget) -> Claim:
        # Read once: the state is what it was when the task began, and only raised limits change it.
        window = "" if budget.every is None else window_of(budget.every, self.meter.settings.ledger.now())
        key = limit_key(budget.key, window) if window else budget.key
        claim = self._claimed.get(key)
        if claim is None:
            claim = self._claimed[key] = self._new_claim(budget, window)
        return claim

    def _new_claim(self, budget: Budget, window: str) -> Claim:
        if not budget.in_state:
            account = self._account(budget, window)
            return Claim(budget=budget.key, scope=account, limits=self._limits_of(budget, account))
        run = self.field.get("run") if budget.per == "run" else None
        place = self.field if budget.per != "run" else (run if isinstance(run, dict) else {})
        if budget.narrowed:
            by = place.get("by")
            place = (by.get(budget.key) if isinstance(by, dict) else None) or {}
        told = Spend.of(place)
        limits = self._limits_of(budget)
        suffix = f"|{budget.key}" if budget.narrowed else ""
        saved = self._saved(budget)
        if budget.per == "thread":
            return Claim(budget=budget.key, scope=self._account(budget), limits=limits, floor=told + saved)
        scope = f"{STEP}{self.task.thread or ''}|{self.task.checkpoint}|{self.task.graph_ns}{suffix}"
        adopted = self.meter.unfolded.adopted(self.task, budget.key if budget.narrowed else None)
        return Claim(budget=budget.key, scope=scope, limits=limits, base=told + adopted, floor=saved)

    def _saved(self, budget: Budget) -> Spend:
        """What tasks of this superstep that won't run again have spent, as their writes tell, not yet in the state."""
        if self._beside is None:
            self._beside = self.task.saved("spend")
        total = _ZERO
        for told in self._beside:
            by = told.get("run_by" if budget.per == "run" else "by") if budget.narrowed else None
            total += Spend.of((by.get(budget.key) if isinstance(by, dict) else {}) if budget.narrowed else told)
        return total

    def _account(self, budget: Budget, window: str = "") -> str:
        task = self.task
        if budget.per == "thread":
            value = task.thread or self.run
        else:
            value = key_value(budget.per, task.configurable, task.context)
        return account_name(budget.per, value, window=window, budget=budget.key if budget.narrowed else "")

    def _limits_of(self, budget: Budget, account: str | None = None) -> Limits:
        """The limits in force for a task of the outermost graph, and for all that runs inside it."""
        limits = budget.limits
        if raised := self.raised.get(limit_key(budget.key, account)):
            limits = {**limits, **{m: v for m, v in raised.items() if m in limits}}
        if budget.kept and self.task.node != self.meter.settings.to:
            limits = {m: v - budget.kept.get(m, 0) for m, v in limits.items()}
        return limits

    def recover(self) -> None:
        """Take over what earlier tasks left behind, and from the ledger what attempts in other processes spent."""
        left, ledger = self.meter.left_for(self.task), self.ledger
        self.meter.unfolded.adopt(self.task, self.run)
        if left is not None:
            if left.charges is None:
                where = left.where(self.task, self.tops()[-1].run)
                left.read(ledger.charges(**where), ledger.open_holds(), **where)
            left.fold_into(self.meter.unfolded, self.task, self.run, self.meter.narrowed)

    async def arecover(self) -> None:
        """The same as `recover`, on an event loop."""
        left, ledger = self.meter.left_for(self.task), self.ledger
        self.meter.unfolded.adopt(self.task, self.run)
        if left is not None:
            if left.charges is None:
                where = left.where(self.task, self.tops()[-1].run)
                left.read(await ledger.acharges(**where), await ledger.aopen_holds(), **where)
            left.fold_into(self.meter.unfolded, self.task, self.run, self.meter.narrowed)

    def breach(self) -> Breach | None:
        """Why not even the smallest call fits into this guard's budgets any more, or None.

        Budgets for one model are left to the calls: nobody knows yet which model the node will choose.
        """
        call = self._smallest_call()
        refusal = self.ledger.room(call) if call.claims else None
        return replace(refusal.breach, needed=0) if refusal else None

    async def abreach(self) -> Breach | None:
        """The same as `breach`, on an event loop."""
        call = self._smallest_call()
        refusal = await self.ledger.aroom(call) if call.claims else None
        return replace(refusal.breach, needed=0) if refusal else None

    def _smallest_call(self) -> Call:
        claims = tuple(claim for claim in self.claims(own=True) if self.meter.budgets[claim.budget].model is None)
        return Call(id="", node=self.task.node, worst=_SMALLEST, claims=claims)  # held by nobody, so it needs no id

    def refuse(self, refusal: Refusal | Breach, call: Call, owner: Scope | None = None) -> Trip:
        """Note that a call was refused, for the guard whose budget it was; the trip."""
        breach = refusal if isinstance(refusal, Breach) else refusal.breach
        tops = self.tops()
        top = owner or next((t for t in tops if t._makes(refusal)), tops[-1])  # noqa: SLF001 - the same class
        trip = top.tripped(breach, node=self.task.node, model=call.model, capped=call.capped)
        if top is not self:
            tell(self.task.config, trip)
        for scope in self.chain:
            if scope.meter is top.meter:
                scope.refusal = trip
        return trip

    def _makes(self, refusal: Refusal | Breach) -> bool:
        """Whether the budget that refused is this guard's; another one may have its equal, with another account."""
        if isinstance(refusal, Breach):
            return refusal.budget in self.meter.budgets
        return refusal.claim in self._claimed.values()

    def tripped(self, breach: Breach, *, node: str, model: str | None = None, capped: bool = True) -> Trip:
        """The trip that a breach leads to at this task."""
        settings, top = self.meter.settings, self.top
        mode = f"to:{settings.to}" if settings.to else settings.on_trip
        budget = self.meter.budgets.get(breach.budget)
        kept = 0
        if budget is not None and breach.kind in {"spent", "held"} and top.task.node != settings.to:
            kept = budget.kept.get(breach.metric, 0)
        trip = Trip.from_breach(
            replace(breach, note=f"{amount_text(breach.metric, kept)} kept for {settings.to!r}") if kept else breach,
            account=None if budget is None or budget.in_state else breach.account or top._claim(budget).scope,  # noqa: SLF001 - another scope of the same class
            kept=kept,
            node=node,
            model=model,
            capped=capped,
            mode=mode,
            run=self.run or None,
            at=self.task.checkpoint,
            pushed=self.task.pushed,
        )
        tell(self.task.config, trip)
        if self.meter.first_trip(top.task.loop, (trip.limit_key, trip.metric, trip.limit)):
            top.task.emit(trip.to_event())
        return trip

    def place_of(self, call: Call) -> _Place:
        """Where a charge for the call belongs, as fields of `Charge`."""
        scopes = tuple(dict.fromkeys([claim.scope for claim in call.claims]))
        task = self.task
        return {
            "node": task.node,
            "run": self.tops()[-1].run or None,
            "thread": task.thread,
            "user": task.user,
            "task": task.id,
            "attempt": task.attempt,
            "path": self.path,
            "scopes": scopes,
        }

    def settle(self, call: Call, charge: Charge) -> Charge:
        """Charge a call to the ledger and to every state around it, and warn as shares are crossed."""
        if charge.task is None:
            charge = replace(charge, **self.place_of(call))
        ledger = self.ledger
        known = ledger.settle(charge.id, charge)
        if known is charge:
            self._settled(charge, [(claim, ledger.balance(claim)[0]) for claim in call.claims])
        return known

    async def asettle(self, call: Call, charge: Charge) -> Charge:
        """The same as `settle`, on an event loop."""
        if charge.task is None:
            charge = replace(charge, **self.place_of(call))
        ledger = self.ledger
        known = await ledger.asettle(charge.id, charge)
        if known is charge:
            self._settled(charge, [(claim, (await ledger.abalance(claim))[0]) for claim in call.claims])
        return known

    def _settled(self, charge: Charge, after: list[tuple[Claim, Spend]]) -> None:
        spend = charge.spend
        self.note(spend, charge.model)
        for claim, spent in after:
            self._warn(claim, spent, spend)

    def note(self, spend: Spend, model: str | None) -> None:
        """Remember an amount for the state fields of this task and of those around it."""
        if self.parent is None and not self.meter.narrowed:
            self.meter.unfolded.add(self.task, self.run, spend, {})
            return
        names = self.nodes
        told: list[tuple[Meter, str]] = []  # a task that another one of its superstep started tells for both
        for depth, scope in enumerate(self.chain, 1):
            by = {
                budget.key: spend
                for budget in scope.meter.narrowed
                if any(budget.covers(node=name, model=model) for name in names[:depth])
            }
            if (state := (scope.meter, scope.task.checkpoint)) not in told:
                scope.meter.unfolded.add(scope.task, scope.run, spend, by)
                told.append(state)

    def _warn(self, claim: Claim, spent: Spend, added: Spend) -> None:
        top = next(t for t in self.tops() if claim.budget in t.meter.budgets)
        budget = top.meter.budgets[claim.budget]
        if not budget.warn_at:
            return
        for metric, limit in claim.limits.items():
            if spent.amount(metric) < budget.warn_at[0] * limit:
                continue
            now, before = spent.amount(metric), spent.amount(metric) - added.amount(metric)
            crossed = [share for share in budget.warn_at if before < share * limit <= now]
            if crossed and top.meter.first_warning((claim.scope, claim.budget, metric, limit, crossed[-1])):
                top._tell(claim, metric, crossed[-1], now)  # noqa: SLF001 - another scope of the same class

    def _tell(self, claim: Claim, metric: str, share: float, spent: int) -> None:
        limit = claim.limits[metric]
        event: dict[str, object] = {
            "type": "budget",
            "event": "warning",
            "budget": claim.budget,
            "metric": metric,
            "share": share,
            "node": self.task.node,
        }
        event |= amounts_in_event(metric, spent, limit)
        whose = "" if self.meter.budgets[claim.budget].in_state else claim.scope
        if whose:
            event["account"] = whose
        self.task.emit(event)
        logger.warning(
            "budget %s: %s spent%s (%d %%) at node %r",
            claim.budget,
            progress_text(metric, spent, limit),
            f" by {account_text(whose)}" if whose else "",
            round(100 * spent / limit),
            self.task.node,
        )

    def delta(self, *, once: bool) -> dict[str, object]:
        """What the state field `spend` must be told by this task; empty when there is nothing.

        Args:
            once: The write may come out of a node cache later, and must not count again then.
        """
        update: dict[str, object] = {}
        entry = self.meter.unfolded.take(self.task)
        if entry is not None and (entry.spend != _ZERO or entry.by):
            update |= entry.spend.to_state()
            for name, per_run in (("by", False), ("run_by", True)):
                keys = {b.key for b in self.meter.narrowed if (b.per == "run") is per_run}
                if amounts := {key: spend.to_state() for key, spend in entry.by.items() if key in keys}:
                    update[name] = amounts
            if once and self.run:
                update["once"] = {"run": self.run, "task": self.task.id[:8]}
        if self.new_limits and self.top is self:
            of_runs = {budget.key for budget in self.meter.settings.budgets if budget.per == "run"}
            for name, chosen in (("run_limits", True), ("limits", False)):
                raised = {key: v for key, v in self.new_limits.items() if (key in of_runs) is chosen}
                if raised:
                    update[name] = limits_to_state(raised)
        return update
