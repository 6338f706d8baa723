"""RateLimit: calls and tokens a minute, whatever the calls turn out to take."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from graphguard.langsmith.rates import RateLimit


def seconds(run):
    """Time something."""
    begun = time.monotonic()
    run()
    return time.monotonic() - begun


@pytest.fixture
def limited():
    """Give a function that makes rate limits, closed after the test."""
    made = []

    def make(*limits, **options):
        made.append(RateLimit(*limits, **options))
        return made[-1]

    yield make
    for rate in made:
        rate.close()


def test_a_tenth_goes_at_once(limited):
    """Of 600 requests a minute 60 need not wait, and the next one waits a ninth of a second."""
    rate = limited(600)
    assert seconds(lambda: [rate.acquire() for _ in range(60)]) < 3
    assert seconds(rate.acquire) > 0.05


def test_tokens_are_limited_by_their_mean(limited):
    """At 600,000 tokens a minute, calls of 20,000: three at once, then five a second at most."""
    rate = limited(None, 600_000, tokens_per_call=20_000)
    assert seconds(lambda: [rate.acquire() for _ in range(3)]) < 1.5
    assert seconds(rate.acquire) > 1


def test_what_calls_took_too_much_is_made_up(limited):
    """A call that took ten times the mean makes the next one wait for that."""
    rate = limited(None, 600_000, tokens_per_call=1_000)
    rate.tell(60_000, aside=rate.acquire())
    assert seconds(rate.acquire) > 1


def test_what_calls_left_over_is_given_back(limited):
    """Calls that take less than was set aside let more of them through."""
    rate = limited(None, 600_000, tokens_per_call=20_000)
    for _ in range(3):
        rate.tell(0, aside=rate.acquire())
    assert seconds(lambda: [rate.acquire() for _ in range(3)]) < 1.5


def test_a_call_larger_than_what_goes_at_once_waits_for_its_parts(limited):
    """A call of a fifth of a minute's tokens is sent, later."""
    rate = limited(None, 6_000_000, tokens_per_call=660_000)
    assert 0.3 < seconds(rate.acquire) < 5


def test_threads_share_the_rate(limited):
    """It holds over all threads together."""
    rate = limited(600)
    with ThreadPoolExecutor(8) as pool:
        assert seconds(lambda: list(pool.map(lambda _: rate.acquire(), range(64)))) > 0.3


async def test_tasks_share_the_rate_and_the_loop_goes_on(limited):
    """On an event loop, waiting blocks nobody."""
    rate = limited(600)
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    begun = time.monotonic()
    await asyncio.gather(*(rate.aacquire() for _ in range(64)))
    ticking.cancel()
    assert time.monotonic() - begun > 0.3
    assert ticks > 5


@pytest.mark.parametrize("limits", [(0,), (None, -5)])
def test_limits_are_positive(limits):
    """Nothing a minute would wait for ever."""
    with pytest.raises(ValueError, match="None is no limit"):
        RateLimit(*limits)
