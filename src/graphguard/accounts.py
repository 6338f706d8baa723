"""Names of ledger accounts: whose money it is, and in which window of time.

An account is named `place:value`, then `|window` if its budget has one, then `|` and the budget's key if that
counts only some calls: `thread:t1`, `user_id:ada|2026-11-20`. Windows are in UTC.
"""

from __future__ import annotations

import enum
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from graphguard.errors import InvalidBudget, MissingKey

__all__ = [
    "STEP",
    "Every",
    "account_name",
    "account_text",
    "check_every",
    "check_place",
    "key_value",
    "limit_key",
    "window_of",
]

STEP: Final = "step:"
"""How accounts of single supersteps begin: what they count lies in the graph's state once the superstep is over."""

Every: TypeAlias = str | timedelta
"""How long a window is: `"day"`, `"month"` or a timedelta of whole seconds."""

_WORDS: Final = ("branch", "run", "thread")
_LONGEST: Final = 200
_SECOND: Final = timedelta(seconds=1)
_UNSAFE: Final = re.compile(r"[%|\x00-\x1f\x7f\ud800-\udfff]")
_PERIOD: Final = re.compile(r"every (\d+) s (-?\d+)")
_HOW: Final = "pass it with config={{'configurable': {{{key!r}: ...}}}}, or in the context"


def check_place(per: object) -> None:
    """Raise `InvalidBudget` unless `per` is a word of ours or may be the name of a key."""
    if not isinstance(per, str) or not per or re.search(r"\s", per):
        allowed = "'branch', 'run', 'thread', or a key of config['configurable'] or of the context, such as 'user_id'"
        msg = f"per must be {allowed}; got {per!r}"
        raise InvalidBudget(msg)
    if f"{per}:" == STEP or per.startswith("__"):
        msg = f"per={per!r} is a name that graphguard or LangGraph uses itself; give the key another name"
        raise InvalidBudget(msg)


def check_every(every: object, per: str) -> None:
    """Raise `InvalidBudget` unless `every` is a window, of a budget that can have one."""
    whole = isinstance(every, timedelta) and every >= _SECOND and not every % _SECOND
    if every not in ("day", "month") and not whole:
        msg = f"every must be 'day', 'month', or a timedelta of whole seconds such as timedelta(hours=1); got {every!r}"
        raise InvalidBudget(msg)
    if per in ("branch", "run"):
        msg = (
            f"every={every!r} needs money that time travel can't bring back, and per={per!r} is counted in the "
            "graph's state; use per='thread', or per a key such as 'user_id'"
        )
        raise InvalidBudget(msg)


def window_of(every: Every, now: float) -> str:
    """The name of the window that a moment lies in.

    Args:
        every: How long windows are; timedeltas are counted from 1970 on.
        now: Seconds since the epoch.

    >>> window_of("day", 1_795_000_000), window_of("month", 1_795_000_000)
    ('2026-11-18', '2026-11')
    >>> window_of(timedelta(hours=1), 1_795_000_000)
    'every 3600 s 498611'
    """
    if isinstance(every, timedelta):
        seconds = every // _SECOND
        return f"every {seconds} s {int(now // seconds)}"
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d" if every == "day" else "%Y-%m")


def account_name(place: str, value: str, *, window: str = "", budget: str = "") -> str:
    """The name of an account; no value can make it look like another's.

    Args:
        place: A word of ours, or the name of a key.
        value: The thread's id, or the key's value.
        window: What `window_of` gives; empty without one.
        budget: The key of a budget that counts only some calls; empty for all others, which share the account.

    >>> account_name("user_id", "ada", window="2026-11-20"), account_name("user_id", "ada|2026-11-20")
    ('user_id:ada|2026-11-20', 'user_id:ada%7C2026-11-20')
    """
    # A colon in the place would move the border between place and value.
    name = f"{_escaped(place).replace(':', '%3A')}:{_escaped(value)}"
    name = f"{name}|{window}" if window else name
    return f"{name}|{budget}" if budget else name


def limit_key(budget: str, account: str | None) -> str:
    """What a raised limit is known by in the state.

    Args:
        budget: The budget's key.
        account: The account that the raise is for; None for budgets that the state counts itself.
    """
    return budget if account is None else f"{budget}|{account}"


def account_text(account: str) -> str:
    """An account as people read it.

    >>> account_text("user_id:ada|2026-11-20")
    "user_id 'ada' on 2026-11-20"
    >>> account_text("tenant:acme|every 3600 s 498611")
    "tenant 'acme' since 2026-11-18 11:00:00 UTC"
    """
    name, *rest = account.split("|")
    place, _, value = name.partition(":")
    text = f"{place} {value!r}"
    window = rest[0] if rest else ""
    if period := _PERIOD.fullmatch(window):
        seconds, count = map(int, period.groups())
        began = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds * count)
        return f"{text} since {began:%Y-%m-%d %H:%M:%S} UTC"
    if re.fullmatch(r"\d{4}-\d\d(-\d\d)?", window):
        return f"{text} {'on' if window.count('-') > 1 else 'in'} {window}"
    return text


def key_value(key: str, configurable: Mapping[str, object], context: object) -> str:
    """What a run says for a budget's key.

    Args:
        key: The budget's `per`.
        configurable: The run's `config["configurable"]`, which is asked first: servers put who was
            authenticated there.
        context: The run's context: a mapping, or an object with attributes; None is none.

    Raises:
        MissingKey: There is none, or none that can name an account.

    >>> key_value("user_id", {"user_id": 7}, None), key_value("tenant", {}, {"tenant": "acme"})
    ('7', 'acme')
    """
    value = configurable.get(key)
    if value is None:
        value = context.get(key) if isinstance(context, Mapping) else getattr(context, key, None)
    if value is None:
        known = sorted(name for name in configurable if not name.startswith(("__", "checkpoint_")))
        problem = f"the run has no {key!r} in config['configurable'], which has {known!r}, nor in its context"
        raise MissingKey(key, f"{problem}; {_HOW.format(key=key)}")
    return _text(key, value)


def _text(key: str, value: object) -> str:
    if not isinstance(value, (str, enum.Enum)):  # who was authenticated, as servers tell it
        named = value.get("identity") if isinstance(value, Mapping) else getattr(value, "identity", None)
        value = value if named is None else named
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool) or not isinstance(value, (str, int, uuid.UUID)):
        problem = f"its value is a {type(value).__name__}; use a string, a whole number, or what has an 'identity'"
        raise MissingKey(key, problem)
    text = str(value)
    if not text.strip():
        raise MissingKey(key, f"its value is empty; {_HOW.format(key=key)}")
    if len(text) > _LONGEST:
        problem = f"its value has {len(text):,} characters; use an id of at most {_LONGEST}"
        raise MissingKey(key, problem)
    return text


def _escaped(text: str) -> str:
    """The text without the separator, and without what a database can't store."""
    return _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", text)
