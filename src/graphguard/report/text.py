"""Stories as text, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from graphguard.budget import amount_text
from graphguard.report.charts import bars

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from graphguard.history import PastTrip
    from graphguard.report.database import Library
    from graphguard.report.story import Story, Tale
    from graphguard.spend import Spend

__all__ = ["Section", "library_sections", "story_sections"]

_BAR: Final = 24
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"

Section = tuple[str, "list[dict[str, str]] | list[str]"]
"""A heading, and what stands below it: rows of a table, or lines."""


def story_sections(story: Story, tale: Tale) -> Iterator[Section]:
    """What there is to say of a thread."""
    spend = story.spend
    told = [
        f"{_amounts(spend)}{' charged by the ledger' if story.real is not None else ''}",
        f"{len(story.points):,} steps, {len(story.branches):,} branches, {len(story.trips):,} trips",
    ]
    if spend.estimated:
        told.append(f"{spend.estimated:,} calls estimated: the provider did not say what was used")
    if not story.metered:
        told.append("Nothing was metered: no guard ran in this thread.")
    yield f"Thread {story.thread}", told
    for name, sums in (("node", story.by_node), ("model", story.by_model)):
        if sums:
            yield f"By {name}", _rows(name, sums, story.metric)
    if len(story.branches) > 1:
        yield (
            "By branch",
            [
                {
                    "branch": str(branch.number),
                    "from": f"branch {branch.parent}, step {branch.forked.at + 1}"
                    if branch.forked
                    else "the beginning",
                    "steps": f"{len(branch.points):,}",
                    "added": amount_text(story.metric, branch.added.amount(story.metric)),
                    "at its end": amount_text(story.metric, branch.spend.amount(story.metric)),
                }
                for branch in story.branches
            ],
        )
    if story.loss is not None:
        yield "Paid for nothing", _losses(story)
    yield "Trips", list(_trips(story.trips, tale)) or ["No budget ever stopped this thread."]


def library_sections(library: Library, tale: Tale) -> Iterator[Section]:
    """What there is to say of a database."""
    yield tale.db, [f"{len(library.chapters):,} threads, {_amounts(library.spend)}"]
    yield (
        "Threads",
        [
            {
                "thread": chapter.thread,
                "last step (UTC)": chapter.ended[:19].replace("T", " "),
                "steps": f"{chapter.steps:,}",
                "branches": f"{chapter.branches:,}",
                "trips": f"{len(chapter.trips):,}" if chapter.trips else "",
                "calls": f"{chapter.spend.calls:,}",
                "USD": amount_text("usd", chapter.spend.nanousd),
            }
            for chapter in library.chapters
        ],
    )
    named = {"day": library.by_day, "model": library.by_model, "node": library.by_node, "user": library.by_user}
    for name, sums in named.items():
        if sums:
            yield f"By {name}", _rows(name, sums, library.metric)


def _amounts(spend: Spend) -> str:
    tokens = f"{spend.input_tokens:,} tokens in, {spend.output_tokens:,} out"
    return f"{amount_text('usd', spend.nanousd)}, {amount_text('calls', spend.calls)}, {tokens}"


def _rows(name: str, sums: Mapping[str | None, Spend], metric: str) -> list[dict[str, str]]:
    rows = []
    for bar in bars(sums, metric):
        row = {name: bar.name, "calls": f"{bar.calls:,}"}
        rows.append({**row, **({"USD": bar.text} if metric == "usd" else {}), "": _bar(bar.share)})
    return rows


def _bar(share: float) -> str:
    eighths = round(share * _BAR * 8)
    return (_EIGHTHS[-1] * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _losses(story: Story) -> list[dict[str, str]]:
    assert story.loss is not None  # noqa: S101 - asked by who calls
    named = {
        "attempts that a retry replaced": story.loss.retries,
        "calls that never reported back, at their worst case": story.loss.assumed,
        "charged, but in no branch: cancelled, rolled back or crashed work": story.loss.elsewhere,
    }
    return [
        {"what": what, "calls": f"{spend.calls:,}", "USD": amount_text("usd", spend.nanousd)}
        for what, spend in named.items()
    ]


def _trips(trips: Sequence[PastTrip], tale: Tale) -> Iterable[str]:
    for number, trip in enumerate(trips, 1):
        yield f"{number}. {(trip.time or '')[:19].replace('T', ' ')} {trip.reason} | {trip.outcome}"
        yield f"   {tale.replay(trip) or 'not kept, so it cannot be replayed'}"
