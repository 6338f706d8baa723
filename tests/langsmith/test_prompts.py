"""CachedHubPrompt: how often a prompt is fetched, for whom, and what stands in when a fetch fails."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from blockbuster import BlockBuster
from langchain_core.prompts import ChatPromptTemplate
from langsmith import AsyncClient
from langsmith.prompt_cache import prompt_cache_singleton
from langsmith.utils import LangSmithNotFoundError

from graphguard.langsmith import CachedHubPrompt

COMMIT = "/commits/-/agent/latest"


class Clock:
    """Seconds that pass when told to; a machine that has just booted."""

    def __init__(self) -> None:
        self.now = 1.0

    def __call__(self) -> float:
        return self.now


class Source:
    """What fetches: counts, and fails when told to."""

    def __init__(self) -> None:
        self.fetches = 0
        self.error: Exception | None = None

    def __call__(self, ref: str) -> str:
        self.fetches += 1
        if self.error is not None:
            raise self.error
        return f"{ref} version {self.fetches}"


class Gated(Source):
    """Fetches only once the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, ref: str) -> str:
        self.begun.set()
        assert self.go.wait(10)
        return super().__call__(ref)


@pytest.fixture
def clock():
    """Give a clock that stands still."""
    return Clock()


@pytest.fixture
def source():
    """Give a source of prompts."""
    return Source()


@pytest.fixture
def prompt(source, clock):
    """Give a prompt of that source and clock."""
    return CachedHubPrompt("agent", fetch=source, clock=clock)


@pytest.fixture(autouse=True)
def sdk_cache():
    """Empty the SDK's own cache, which all clients of a process share."""
    prompt_cache_singleton.clear()
    yield
    prompt_cache_singleton.clear()


def commit(client, text, name="agent"):
    """Push a version of a prompt."""
    client.push_prompt(name, object=ChatPromptTemplate.from_messages([("system", text)]))


def text(prompt):
    """Give the words of a pulled prompt."""
    return prompt.format_messages()[0].content


def pulls(server, path=COMMIT):
    """Count the GETs of a prompt."""
    return len(server.seen("GET", path))


def test_first_use_fetches_however_short_the_machine_is_up(prompt, clock):
    """On a machine whose clock is younger than the time to live, the first use fetches; it is never None."""
    assert clock() < prompt.ttl_seconds
    assert prompt.get() == "agent version 1"


def test_uses_within_the_time_to_live_fetch_once(prompt, source, clock):
    """Thousands of uses in five minutes are one fetch, and the next one comes after them."""
    for _ in range(1000):
        prompt.get()
    clock.now += 299
    prompt.get()
    assert source.fetches == 1
    clock.now += 1
    assert (prompt.get(), source.fetches) == ("agent version 2", 2)


def test_a_prompt_that_is_none_is_a_value(clock):
    """A fetch that gives None is not made again for that."""
    fetched = []
    prompt = CachedHubPrompt("none", fetch=fetched.append, clock=clock)
    assert (prompt.get(), prompt.get(), fetched) == (None, None, ["none"])


def test_twenty_cold_threads_make_one_fetch():
    """Threads that ask at once, before there is a value, wait for one fetch."""
    source = Gated()
    prompt = CachedHubPrompt("cold", fetch=source)
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(prompt.get) for _ in range(20)]
        source.begun.wait(10)
        source.go.set()
        assert {future.result() for future in asked} == {"cold version 1"}
    assert source.fetches == 1


async def test_twenty_cold_tasks_make_one_fetch():
    """Tasks that ask at once wait for one fetch, made beside the event loop."""
    source = Gated()
    prompt = CachedHubPrompt("cold", fetch=source)
    asked = [asyncio.create_task(prompt.aget()) for _ in range(20)]
    await asyncio.to_thread(source.begun.wait, 10)
    source.go.set()
    assert set(await asyncio.gather(*asked)) == {"cold version 1"}
    assert source.fetches == 1


async def test_an_async_fetch_is_awaited():
    """An async function fetches once for all tasks."""
    fetched = []

    async def fetch(ref):
        fetched.append(ref)
        await asyncio.sleep(0)
        return ref.upper()

    prompt = CachedHubPrompt("agent", fetch=fetch)
    assert await asyncio.gather(*(prompt.aget() for _ in range(5))) == ["AGENT"] * 5
    assert fetched == ["agent"]


def test_an_async_fetch_is_refused_where_nobody_awaits():
    """`get` with an async fetch says what to call instead."""

    async def fetch(ref):
        return ref

    with pytest.raises(TypeError, match="aget"):
        CachedHubPrompt("agent", fetch=fetch).get()


async def test_a_cancelled_task_does_not_end_the_fetch_of_others():
    """The task that leads the fetch may be cancelled; those that wait get its value."""
    source = Gated()
    prompt = CachedHubPrompt("agent", fetch=source)
    leader = asyncio.create_task(prompt.aget())
    await asyncio.to_thread(source.begun.wait, 10)
    follower = asyncio.create_task(prompt.aget())
    await asyncio.sleep(0)
    leader.cancel()
    source.go.set()
    assert await follower == "agent version 1"
    assert source.fetches == 1


async def test_a_cancelled_async_fetch_is_made_by_another():
    """When the task that awaits the fetch itself is cancelled, one that waits fetches."""
    begun, fetched = asyncio.Event(), []

    async def fetch(ref):
        fetched.append(ref)
        begun.set()
        if len(fetched) == 1:
            await asyncio.Event().wait()
        return ref

    prompt = CachedHubPrompt("agent", fetch=fetch)
    leader = asyncio.create_task(prompt.aget())
    await begun.wait()
    follower = asyncio.create_task(prompt.aget())
    await asyncio.sleep(0)
    leader.cancel()
    assert await follower == "agent"
    assert len(fetched) == 2


def test_others_get_the_value_there_is_while_one_fetches(clock):
    """Past the time to live one thread fetches, and the others are not kept waiting."""
    source = Gated()
    source.go.set()
    prompt = CachedHubPrompt("slow", fetch=source, clock=clock)
    prompt.get()
    clock.now += 300
    source.go.clear()
    source.begun.clear()
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(prompt.get)
        source.begun.wait(10)
        assert prompt.get() == "slow version 1"
        source.go.set()
        assert leader.result() == "slow version 2"


def test_a_failed_fetch_is_answered_by_the_last_version(prompt, source, clock, caplog):
    """An outage past the time to live shows nobody an error, only a warning."""
    prompt.get()
    clock.now += 300
    source.error = ConnectionError("down")
    with caplog.at_level(logging.WARNING, "graphguard.langsmith"):
        assert prompt.get() == "agent version 1"
    assert "'agent'" in caplog.text
    assert "down" in caplog.text


def test_the_last_version_stands_in_for_so_long(source, clock):
    """Past `stale_seconds` the fetch's own error is raised."""
    prompt = CachedHubPrompt("agent", fetch=source, clock=clock, stale_seconds=1_000)
    prompt.get()
    clock.now += 1_000
    source.error = ConnectionError("down")
    with pytest.raises(ConnectionError, match="down"):
        prompt.get()


def test_without_a_value_the_error_is_raised_at_once(prompt, source, clock):
    """A prompt that can't be fetched is not asked for again before the backoff is over."""
    source.error = ConnectionError("down")
    for _ in range(10):
        with pytest.raises(ConnectionError, match="down"):
            prompt.get()
    assert source.fetches == 1
    clock.now += 1
    source.error = None
    assert prompt.get() == "agent version 2"


def test_failures_back_off_up_to_a_minute(prompt, source, clock):
    """An outage of an hour costs about one fetch a minute, however often the prompt is used."""
    prompt.get()
    source.error = ConnectionError("down")
    clock.now += 300
    for _ in range(3600):
        prompt.get()
        clock.now += 1
    assert 60 <= source.fetches <= 90


def test_a_commit_is_fetched_once(source, clock):
    """A reference that names a commit never changes, so it is never fetched again."""
    prompt = CachedHubPrompt("agent:12344e88", fetch=source, clock=clock)
    prompt.get()
    clock.now += 1e9
    prompt.get()
    assert source.fetches == 1


def test_a_tag_that_looks_like_a_commit_is_fetched_again(source, clock):
    """A date as a tag is no commit."""
    prompt = CachedHubPrompt("agent:20261120", fetch=source, clock=clock)
    prompt.get()
    clock.now += 300
    assert prompt.get() == "agent:20261120 version 2"


def test_a_short_time_to_live_is_raised_to_a_minute(source):
    """Below 60 seconds it counts as 60, with a warning that says how to have less."""
    with pytest.warns(UserWarning, match="development=True"):
        prompt = CachedHubPrompt("agent", ttl_seconds=30, fetch=source)
    assert prompt.ttl_seconds == 60


def test_development_may_go_below_the_floor(source, clock):
    """With `development` every use may fetch."""
    prompt = CachedHubPrompt("agent", ttl_seconds=0, fetch=source, clock=clock, development=True)
    assert [prompt.get(), prompt.get()] == ["agent version 1", "agent version 2"]


def test_many_fetches_a_minute_warn_once(source, clock, caplog):
    """The sixth fetch in a minute warns, and no later one does again."""
    prompt = CachedHubPrompt("busy", ttl_seconds=0, fetch=source, clock=clock, development=True)
    with caplog.at_level(logging.WARNING, "graphguard.langsmith"):
        for _ in range(5):
            prompt.get()
        assert not caplog.records
        for _ in range(20):
            prompt.get()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "'busy'" in caplog.text


def test_objects_made_in_a_loop_share_the_fetch(source, clock):
    """An object made for each request is as good as one at module level."""
    for _ in range(100):
        CachedHubPrompt("agent", fetch=source, clock=clock).get()
    assert source.fetches == 1


def test_force_refresh_fetches_now(prompt, source):
    """It fetches within the time to live, and through the backoff of a failure."""
    prompt.get()
    assert prompt.force_refresh() == "agent version 2"
    source.error = ConnectionError("down")
    with pytest.raises(ConnectionError):
        prompt.force_refresh()
    assert prompt.get() == "agent version 2"
    source.error = None
    assert prompt.force_refresh() == "agent version 4"


async def test_aforce_refresh_fetches_now(prompt):
    """The same on an event loop."""
    await prompt.aget()
    assert await prompt.aforce_refresh() == "agent version 2"


def test_a_fetch_under_way_is_too_old_after_an_invalidation():
    """What was asked for before the webhook came may lack the new commit, so the next use asks again."""
    source = Gated()
    prompt = CachedHubPrompt("agent", fetch=source)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(prompt.get)
        source.begun.wait(10)
        prompt.invalidate()
        source.go.set()
        first.result()
    assert prompt.get() == "agent version 2"


@pytest.mark.parametrize(("name", "mine"), [("agent", True), ("tests/agent", True), ("judge", False), (None, False)])
def test_a_webhook_invalidates_the_prompt_it_names(prompt, source, name, mine):
    """The payload of LangSmith's webhook makes the next use of that prompt fetch, and of no other."""
    prompt.get()
    payload = {"prompt_id": "p", "prompt_name": name, "commit_hash": "c", "manifest": {}}
    assert prompt.invalidate_by_webhook(payload) is mine
    prompt.get()
    assert source.fetches == (2 if mine else 1)


def test_an_interrupt_of_the_one_who_fetches_is_not_held_against_the_server(clock):
    """After Ctrl-C in the middle of a fetch the next use fetches at once."""
    errors: list[BaseException] = [KeyboardInterrupt()]

    def fetch(ref):
        if errors:
            raise errors.pop()
        return ref

    prompt = CachedHubPrompt("agent", fetch=fetch, clock=clock)
    with pytest.raises(KeyboardInterrupt):
        prompt.get()
    assert prompt.get() == "agent"


def test_fetch_and_client_are_not_given_together(source, client):
    """A fetch of one's own does the whole work; options that it would never see are refused."""
    with pytest.raises(TypeError, match="fetch="):
        CachedHubPrompt("agent", fetch=source, client=client)


# ------------------------------------------------------------------- beside the SDK's own cache, over its real client


def test_langsmith_prompts_are_pulled_once(langsmith, client):
    """By a real client, a hundred uses are one GET, and the prompt is LangChain's."""
    commit(client, "be brief")
    before = pulls(langsmith)
    prompt = CachedHubPrompt("agent", client=client)
    assert {text(prompt.get()) for _ in range(100)} == {"be brief"}
    assert pulls(langsmith) == before + 1


async def test_langsmith_prompts_are_pulled_by_an_async_client(langsmith, client):
    """By a real async client too, without blocking the event loop."""
    commit(client, "be brief")
    before = pulls(langsmith)
    async with AsyncClient(api_url=langsmith.url, api_key="key-of-the-tests") as sdk:
        prompt = CachedHubPrompt("agent", client=sdk)
        assert {text(found) for found in await asyncio.gather(*(prompt.aget() for _ in range(10)))} == {"be brief"}
    assert pulls(langsmith) == before + 1


async def test_waiting_for_a_pull_does_not_block_the_event_loop(langsmith, client):
    """`aget` with a sync client leaves the loop to others."""
    commit(client, "be brief")
    prompt = CachedHubPrompt("agent", client=client)
    detector = BlockBuster()
    detector.activate()
    try:
        assert text(await prompt.aget()) == "be brief"
    finally:
        detector.deactivate()


def test_tenants_never_see_each_others_prompts(langsmith, client):
    """Point 1: the SDK's key ignores endpoint and credential, so the second tenant gets the first one's prompt."""
    commit(client, "of the first tenant")
    first, second = langsmith.client(api_key="first"), langsmith.client(api_key="second")
    mine = [CachedHubPrompt("agent", client=tenant) for tenant in (first, second)]
    first.pull_prompt("agent")
    before = pulls(langsmith)
    second.pull_prompt("agent")
    assert pulls(langsmith) == before, "the SDK asks for each tenant now"

    assert text(mine[0].get()) == "of the first tenant"
    commit(client, "of the second tenant")
    assert text(mine[1].get()) == "of the second tenant"
    assert text(mine[0].get()) == "of the first tenant"


def test_options_of_the_pull_are_part_of_the_key(langsmith, client):
    """A prompt with its model is not the prompt without."""
    commit(client, "be brief")
    CachedHubPrompt("agent", client=client).get()
    before = pulls(langsmith)
    CachedHubPrompt("agent", client=client, include_model=True).get()
    assert pulls(langsmith) == before + 1


def test_cold_threads_make_one_get_and_the_sdk_many(langsmith, client):
    """Point 2: 20 threads on a cold cache are 20 GETs by the SDK, and one here."""
    commit(client, "be brief", "other")
    commit(client, "be brief")
    langsmith.latency = 0.2
    with ThreadPoolExecutor(20) as pool:
        by_sdk, by_us = client_pulls(langsmith, pool, client)
    assert by_us == 1
    assert by_sdk > 1, "the SDK makes one flight of them now"


def client_pulls(server, pool, client):
    """Give the GETs that 20 threads cause, by the SDK and by a CachedHubPrompt."""
    other, fresh = "/commits/-/other/latest", server.client(api_key="cold")
    before = pulls(server, other), pulls(server)
    list(pool.map(lambda _: fresh.pull_prompt("other"), range(20)))
    prompt = CachedHubPrompt("agent", client=client)
    list(pool.map(lambda _: prompt.get(), range(20)))
    return pulls(server, other) - before[0], pulls(server) - before[1]


def refreshers():
    """Find the SDK's thread that refreshes."""
    return [thread for thread in threading.enumerate() if thread.name == "PromptCache-refresh"]


def test_closing_another_client_changes_nothing(langsmith, client, clock):
    """Point 3: closing any client stops the SDK's refresher for all; here the next use fetches all the same."""
    commit(client, "old")
    prompt = CachedHubPrompt("agent", client=client, clock=clock)
    prompt.get()
    other = langsmith.client(api_key="other")
    client.pull_prompt("agent")
    assert refreshers()
    other.close(timeout=5)
    assert not refreshers(), "the SDK's refresher survives now"
    commit(client, "new")
    clock.now += 300
    assert text(prompt.get()) == "new"


def test_an_outage_is_survived_by_the_last_version(langsmith, client, clock):
    """Point 4: past its life the last version stands in for a server that answers 503."""
    commit(client, "be brief")
    prompt = CachedHubPrompt("agent", client=client, clock=clock)
    prompt.get()
    clock.now += 300
    langsmith.fail(500, "/commits", method="GET")
    assert text(prompt.get()) == "be brief"


def test_a_missing_prompt_is_asked_for_once(langsmith, client, clock):
    """Point 5: the SDK asks for a prompt that isn't there at each use; here at most once a backoff."""
    path = "/commits/-/missing/latest"
    for _ in range(3):
        with pytest.raises(LangSmithNotFoundError):
            client.pull_prompt("missing")
    by_sdk = pulls(langsmith, path)
    prompt = CachedHubPrompt("missing", client=client, clock=clock)
    for _ in range(3):
        with pytest.raises(LangSmithNotFoundError):
            prompt.get()
    assert (by_sdk, pulls(langsmith, path) - by_sdk) == (3, 1)


def test_a_pinned_commit_is_told_by_what_was_pulled(langsmith, client, clock):
    """Eight characters that begin the pulled commit's hash pin it."""
    commit(client, "old")
    pinned = client.pull_prompt_commit("agent", skip_cache=True).commit_hash[:8]
    prompt = CachedHubPrompt(f"agent:{pinned}", client=client, clock=clock)
    prompt.get()
    clock.now += 1e6
    prompt.get()
    assert pulls(langsmith, f"/commits/-/agent/{pinned}") == 1
