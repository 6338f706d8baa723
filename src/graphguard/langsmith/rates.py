"""Requests and tokens per minute: how fast model calls may be sent, kept by pyrate-limiter."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pyrate_limiter import Limiter

__all__ = ["RateLimit"]

_MINUTE_MS: Final = 60_000


class RateLimit:
    """At most so many requests, and so many tokens, in any minute.

    Calls are spread out rather than sent in bursts: a tenth of a minute's amount may go at once. What a
    call takes in tokens is known after it, so the mean of the calls so far is set aside before, and the
    difference is made up by the next one: single minutes may go over by that, the mean does not.

    Args:
        requests_per_minute: Calls started in any minute; None is no limit.
        tokens_per_minute: Input and output tokens; None is no limit.
        tokens_per_call: The mean to begin with.

    Raises:
        ImportError: pyrate-limiter, which the extra `graphguard[langsmith]` brings, is not installed.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        *,
        tokens_per_call: float = 2_000.0,
    ) -> None:
        """Begin with an empty minute."""
        for name, limit in (("requests", requests_per_minute), ("tokens", tokens_per_minute)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name}_per_minute must be at least 1, got {limit!r}; None is no limit")
        self._requests = _Bucket(requests_per_minute) if requests_per_minute else None
        self._tokens = _Bucket(tokens_per_minute) if tokens_per_minute else None
        self._lock = threading.Lock()
        self._calls = 1
        self._sum = tokens_per_call
        self._owed = 0.0

    def acquire(self) -> float:
        """Wait until a call may be sent; the tokens set aside for it."""
        mean, tokens = self._set_aside()
        if self._requests is not None:
            self._requests.acquire(1)
        if self._tokens is not None:
            self._tokens.acquire(tokens)
        return mean

    async def aacquire(self) -> float:
        """The same on an event loop."""
        mean, tokens = self._set_aside()
        if self._requests is not None:
            await self._requests.aacquire(1)
        if self._tokens is not None:
            await self._tokens.aacquire(tokens)
        return mean

    def tell(self, tokens: float, *, aside: float) -> None:
        """Say what a call really took, of the tokens that were set aside for it."""
        with self._lock:
            self._calls += 1
            self._sum += tokens
            self._owed += tokens - aside

    def close(self) -> None:
        """Stop the threads of the limiter."""
        for bucket in (self._requests, self._tokens):
            if bucket is not None:
                bucket.close()

    def _set_aside(self) -> tuple[float, int]:
        with self._lock:
            mean = self._sum / self._calls
            tokens = max(round(mean + self._owed), 0)
            self._owed += mean - tokens
            return mean, tokens


class _Bucket:
    """A leaky bucket: no more than the limit in any minute, a tenth of it at once."""

    def __init__(self, limit: int) -> None:
        try:
            from pyrate_limiter import GCRA, InMemoryStateStore, Limiter, Rate, StateBucket  # noqa: PLC0415
        except ImportError as missing:
            raise ImportError("rate limits need pyrate-limiter: pip install 'graphguard[langsmith]'") from missing
        self._most = max(1, limit // 10)
        # What may go at once comes on top of the steady stream, so the two together are the limit.
        rate = Rate(max(1, limit - self._most + 1), _MINUTE_MS, burst=self._most)
        self._limiter: Limiter = Limiter(StateBucket([rate], GCRA(), InMemoryStateStore()))

    def acquire(self, amount: int) -> None:
        while amount > 0:
            self._limiter.try_acquire("calls", weight=min(amount, self._most))
            amount -= self._most

    async def aacquire(self, amount: int) -> None:
        while amount > 0:
            await self._limiter.try_acquire_async("calls", weight=min(amount, self._most))
            amount -= self._most

    def close(self) -> None:
        self._limiter.close()
