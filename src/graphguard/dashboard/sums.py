"""What was spent in a window of time, added up beside the pages, so that no page waits for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

from graphguard.spend import ZERO, Spend

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphguard.dashboard.asking import Asker
    from graphguard.ledger.protocol import Hold
    from graphguard.ledger_command.opening import Readable

__all__ = ["WINDOWS", "Bucket", "Sums", "Window"]

_GROUPS: Final = ("thread", "user", "model", "node")
_LATE: Final = 60
"""Seconds in which other processes' charges may still come in with an earlier time."""
_LONGEST: Final = 600
"""Seconds after which sums are made anew, and charges that were corrected since count right."""


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time up to now, in seconds, and the length of its parts in a chart."""

    name: str
    text: str
    seconds: int
    part: int


WINDOWS: Final = {
    window.name: window
    for window in (
        Window("1h", "last hour", 3_600, 60),
        Window("24h", "last 24 hours", 86_400, 1_800),
        Window("7d", "last 7 days", 7 * 86_400, 4 * 3_600),
        Window("30d", "last 30 days", 30 * 86_400, 86_400),
    )
}


@dataclass(frozen=True, slots=True)
class Bucket:
    """What was spent in one part of the window; `since` is in seconds since the epoch."""

    since: float
    spend: Spend


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What is known of a window at one moment.

    Attributes:
        window: The window.
        made: When, in seconds since the epoch.
        base: Sums up to `cut` by thread, user, model and node; they are made now and then.
        base_since: Where the base begins.
        cut: Where the base ends and what is added each time begins.
        groups: Sums up to now.
        burn: The window's parts, oldest first.
        minute: What was spent in the last minute.
        holds: What is held now.
        totals: What some threads spent since their beginning.
    """

    window: Window
    made: float = 0.0
    base: Mapping[str, Mapping[str | None, Spend]] = field(default_factory=dict)
    base_since: float = 0.0
    cut: float = 0.0
    groups: Mapping[str, Mapping[str | None, Spend]] = field(default_factory=dict)
    burn: Sequence[Bucket] = ()
    minute: Spend = ZERO
    holds: Sequence[Hold] = ()
    totals: Mapping[str, Spend] = field(default_factory=dict)

    @property
    def total(self) -> Spend:
        """All that was spent in the window."""
        return sum(self.groups.get("model", {}).values(), ZERO)

    def now(self, book: Readable, asker: Asker, shown: int) -> Sums:
        """The same window now. Reads what is new, and all of it now and then; may take its time.

        Args:
            book: The ledger.
            asker: Who looks.
            shown: Of how many threads all that they ever spent is wanted.
        """
        now, where = time.time(), cast("dict[str, Any]", asker.narrowed)
        window = self.window
        base, begun, cut = self.base, self.base_since, self.cut
        if not base or now - self.cut > min(_LONGEST, max(window.seconds / 30, 2 * _LATE)):
            begun, cut = now - window.seconds, now - _LATE
            base = {by: book.totals(by, since=begun, until=cut, **where) for by in _GROUPS}
        latest = {by: book.totals(by, since=cut, **where) for by in _GROUPS}
        groups = {by: _added(base[by], latest[by]) for by in _GROUPS}
        totals = {
            thread: self.totals[thread]
            if thread in self.totals and thread not in latest["thread"]
            else book.total(thread=thread, **where)
            for thread in list(groups["thread"])[:shown]
            if thread is not None
        }
        holds = tuple(hold for hold in book.open_holds() if asker.everything or hold.call.user == asker.user)
        return replace(
            self,
            made=now,
            base=base,
            base_since=begun,
            cut=cut,
            groups=groups,
            burn=self._burned(book, now, where),
            minute=book.total(since=now - 60, **where),
            holds=holds,
            totals=totals,
        )

    def _burned(self, book: Readable, now: float, where: Mapping[str, Any]) -> tuple[Bucket, ...]:
        """The window's parts; those that are over and were known are taken as they were."""
        part = self.window.part
        last = int(now // part) * part
        known = {bucket.since: bucket for bucket in self.burn if bucket.since + part < now - 2 * _LATE}
        found = []
        for at in range(last - self.window.seconds + part, last + part, part):
            known_bucket = known.get(at) if self.made - at > part + _LATE else None
            spend = known_bucket.spend if known_bucket else book.total(since=at, until=at + part, **where)
            found.append(Bucket(at, spend))
        return tuple(found)


def _added(base: Mapping[str | None, Spend], latest: Mapping[str | None, Spend]) -> dict[str | None, Spend]:
    """Both, the most expensive first."""
    sums = dict(base)
    for name, spend in latest.items():
        sums[name] = sums.get(name, ZERO) + spend
    return dict(sorted(sums.items(), key=lambda item: (-item[1].nanousd, -item[1].calls, item[0] or "")))
