"""What people type and read: points in time, and how long something took."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["duration_text", "iso_utc", "local_text", "moment"]

_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_STEPS: Final = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"))
_TENTH: Final = 10


def moment(text: str, now: float) -> float:
    """A point in time as people type it, in seconds since the epoch.

    Args:
        text: A duration before now (`90s`, `30m`, `24h`, `7d`, `2w`), or an ISO date or time; local time, unless
            it says another zone.
        now: Seconds since the epoch.

    Raises:
        ValueError: It is neither.

    >>> moment("24h", 1_795_000_000.0), moment("2026-11-20T12:00Z", 0.0)
    (1794913600.0, 1795176000.0)
    """
    if found := _DURATION.fullmatch(text.strip().lower()):
        return now - float(found[1]) * _UNITS[found[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()  # a naive one is local time
    except (ValueError, OverflowError, OSError):
        known = "a duration such as 24h or 7d, a date, or a time such as 2026-11-20T12:00"
        msg = f"{text!r} is no time; write {known}"
        raise ValueError(msg) from None


def local_text(time: float) -> str:
    """A point in time in this machine's zone, to the second."""
    return datetime.fromtimestamp(time, UTC).astimezone().isoformat(" ", "seconds")[:19]


def iso_utc(time: float | None) -> str | None:
    """A point in time as ISO 8601 in UTC, to the millisecond; None is not known.

    >>> iso_utc(1_795_000_000.25)
    '2026-11-18T11:06:40.250Z'
    """
    if time is None:
        return None
    told = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=time)
    return told.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def duration_text(seconds: float) -> str:
    """How long something takes, as people read it.

    >>> [duration_text(seconds) for seconds in (0.004, 0.25, 59.6, 3_700, 200_000)]
    ['0.00 s', '0.25 s', '1 min', '1 h 1 min', '2 d 7 h']
    """
    if seconds < _TENTH:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, next_size, next_unit in _STEPS:
        if whole >= size:
            count, rest = divmod(whole, size)
            return f"{count} {unit}" + (f" {rest // next_size} {next_unit}" if rest // next_size else "")
    return f"{whole} s"
