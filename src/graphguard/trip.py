"""A trip: which budget stopped the graph, where, why, and how to go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from graphguard.accounts import account_text, limit_key
from graphguard.budget import Breach, amount_text, progress_text
from graphguard.spend import to_usd, usd_text

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Trip", "amounts_in_event", "merge_trip"]

_AMOUNTS: Final = ("limit", "spent", "held", "needed", "kept")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """One stop at one budget.

    Attributes:
        budget: The budget's key.
        metric: What ran out: `usd`, `tokens`, `input_tokens`, `output_tokens` or `calls`.
        limit: The limit in force then; nano-USD for `usd`.
        spent: Spent then.
        held: Set aside by running calls then.
        needed: The most that the refused call could have used.
        kind: `"spent"`, `"held"`, `"unpriced"` or `"policy"`, as in `Breach`.
        note: More to say.
        node: The node whose call was refused.
        model: The model that would have been called, as far as it was known.
        mode: What `on_trip` said.
        capped: False when nothing limited the refused call's output.
        run: The run's id.
        at: Id of the checkpoint from which the refused task ran.
        answer: None while unanswered, `"raised"` or `"stopped"` after.
        waiting: Gate nodes that wait for the answer.
        pushed: True when a `Send` started the refused task, whose payload nobody kept.
        account: The ledger account of a budget per key or with a window, such as `user_id:ada|2026-11-20`;
            None for others. A raised limit counts for this account alone.
        kept: What the limit leaves for the node of `on_trip=to("node")`; nano-USD for `usd`.
    """

    budget: str
    metric: str = "usd"
    limit: int = 0
    spent: int = 0
    held: int = 0
    needed: int = 0
    kind: str = "spent"
    note: str = ""
    node: str | None = None
    model: str | None = None
    mode: str = "end"
    capped: bool = True
    run: str | None = None
    at: str | None = None
    answer: str | None = None
    waiting: tuple[str, ...] = ()
    pushed: bool = False
    account: str | None = None
    kept: int = 0

    @classmethod
    def of(cls, state: object) -> Trip | None:
        """The trip in a state: a `StateSnapshot`, its values, or the field itself; None if there is none.

        Of a snapshot, a question that waits for an answer comes first: an inline gate asks from within
        its task, before anything is written to the state.
        """
        for interrupt in getattr(state, "interrupts", ()):
            payload = interrupt.value
            if isinstance(payload, Mapping) and payload.get("kind") == "graphguard.budget" and "trip" in payload:
                return cls.of(payload["trip"])
        values = getattr(state, "values", state)
        if callable(values):
            values = state
        data = values.get("trip", values if "budget" in values else None) if isinstance(values, Mapping) else None
        if not isinstance(data, Mapping) or "budget" not in data:
            return None
        known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        metric = str(data.get("metric", "usd"))
        for name in _AMOUNTS:
            if metric == "usd" and name in known:
                known[name] = int(Decimal(str(known[name])).scaleb(9))
        known["waiting"] = tuple(data.get("waiting") or ())
        return cls(**known)

    @classmethod
    def from_breach(cls, breach: Breach, **where: str | int | None) -> Trip:
        """The trip that a breach leads to."""
        named = {field.name: getattr(breach, field.name) for field in fields(breach)}
        return replace(cls(**named), **where)  # type: ignore[arg-type] # each name is checked by replace()

    @property
    def limit_usd(self) -> Decimal | None:
        """The limit in USD; None when something else ran out."""
        return self._usd(self.limit)

    @property
    def spent_usd(self) -> Decimal | None:
        """Spent in USD; None when something else ran out."""
        return self._usd(self.spent)

    @property
    def held_usd(self) -> Decimal | None:
        """Held in USD; None when something else ran out."""
        return self._usd(self.held)

    @property
    def needed_usd(self) -> Decimal | None:
        """The most the refused call could have cost in USD; None when something else ran out."""
        return self._usd(self.needed)

    def _usd(self, nanousd: int) -> Decimal | None:
        return to_usd(nanousd) if self.metric == "usd" else None

    @property
    def reason(self) -> str:
        """One sentence: what was reached, with both numbers, and what would help.

        >>> Trip(budget="b", limit=500_000_000, spent=490_000_000, needed=20_000_000, node="plan").reason
        "budget exhausted at 'plan': $0.49 of $0.50 spent, the next call may cost up to $0.02"
        """
        where = f" at {self.node!r}" if self.node else ""
        text = f"budget exhausted{where}: {self.progress}"
        text += f" by {account_text(self.account)}" if self.account else ""
        if self.kind == "policy":
            text = f"budget policy {self.budget!r} refused a call{where}"
        elif self.kind == "unpriced":
            text = f"budget can't be kept{where}: no price for model {self.model!r}"
        elif self.kind == "held":
            text += f", {self._text(self.held)} held by running calls"
        if self.needed and self.metric != "calls" and self.kind in {"spent", "held"}:
            verb = "cost" if self.metric == "usd" else "use"
            text += f", the next call may {verb} up to {self._text(self.needed)}"
            text += "" if self.capped else " and its output has no cap"
        return f"{text}; {self.note}" if self.note else text

    @property
    def limit_key(self) -> str:
        """What a raise of its limit is known by in the state: the budget's key, with the account if it has one.

        >>> Trip(budget="usd=5 per user_id", account="user_id:ada").limit_key
        'usd=5 per user_id|user_id:ada'
        """
        return limit_key(self.budget, self.account)

    @property
    def progress(self) -> str:
        """Spent of limit, as people read it.

        >>> Trip(budget="b", metric="calls", limit=3, spent=3).progress
        '3 of 3 calls spent'
        """
        return f"{progress_text(self.metric, self.spent, self.limit)} spent"

    def _text(self, amount: int) -> str:
        return amount_text(self.metric, amount)

    def to_event(self) -> dict[str, object]:
        """What the graph's custom stream tells of it, in plain JSON; USD amounts are decimal strings.

        >>> Trip(budget="calls=2 per branch", metric="calls", limit=2, spent=2, node="plan").to_event()["reason"]
        "budget exhausted at 'plan': 2 of 2 calls spent"
        """
        event: dict[str, object] = {"type": "budget", "event": "trip", "budget": self.budget, "kind": self.kind}
        event |= {"metric": self.metric, "node": self.node, "mode": self.mode, "reason": self.reason}
        if self.kind in {"spent", "held"}:
            event |= amounts_in_event(self.metric, self.spent, self.limit)
        return event if self.account is None else {**event, "account": self.account}

    def to_state(self) -> dict[str, object]:
        """The plain JSON form that the state field `trip` uses; USD amounts are decimal strings."""
        data: dict[str, object] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _AMOUNTS and self.metric == "usd":
                value = usd_text(value)
            data[field.name] = list(value) if isinstance(value, tuple) else value
        data["reason"] = self.reason
        return data


def amounts_in_event(metric: str, spent: int, limit: int) -> dict[str, object]:
    """Spent, limit and what remains, named as events name them; nano-USD for `usd`.

    >>> amounts_in_event("usd", 400_000_000, 500_000_000)
    {'spent_usd': '0.4', 'limit_usd': '0.5', 'remaining_usd': '0.1'}
    """
    amounts = (("spent", spent), ("limit", limit), ("remaining", max(limit - spent, 0)))
    return {f"{n}_usd" if metric == "usd" else n: usd_text(v) if metric == "usd" else v for n, v in amounts}


def merge_trip(old: dict[str, object], new: dict[str, object]) -> dict[str, object]:
    """Reduce one update into the state field `trip`.

    Args:
        old: The field; empty when nothing tripped in this run.
        new: A trip; or `{"answer": ...}` for the one there is; or `{}`, which clears it.

    Returns:
        The first of several trips of one superstep, with all gates that wait, or the one that was answered with
        a stop; else the new one.
    """
    if not isinstance(new, Mapping):
        msg = f"an update of 'trip' must be a dict, got {new!r}; {{}} clears the field"
        raise ValueError(msg)  # noqa: TRY004 - a wrong value from a client, which LangGraph reports as such
    if not new or "budget" not in new:
        return {**old, **new} if new and old else {}
    same = bool(old) and old.get("run") == new.get("run")
    if same and old.get("answer") is None and old.get("mode") == "interrupt":
        return {**old, "waiting": sorted({*_names(old), *_names(new)})}
    if same and old.get("at") == new.get("at") and (old.get("answer"), new.get("answer")) == ("stopped", "raised"):
        return dict(old)  # of what people answered to tasks beside each other, a stop is what the next one hears
    return dict(new)


def _names(trip: Mapping[str, object]) -> Sequence[str]:
    waiting = trip.get("waiting")
    return [str(name) for name in waiting] if isinstance(waiting, (list, tuple)) else []
