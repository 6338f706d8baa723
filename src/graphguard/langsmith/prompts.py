"""Prompts pulled from LangSmith, or from anywhere else, without a fetch for each use."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import re
import threading
import time
import warnings
from collections import OrderedDict, deque
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from graphguard.langsmith.fetched import Flight, Terms, recall

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from langsmith import AsyncClient, Client

    from graphguard.langsmith.fetched import Entry

__all__ = ["CachedHubPrompt"]

logger = logging.getLogger("graphguard.langsmith")

_COMMIT: Final = re.compile(r"[0-9a-f]{8}|[0-9a-f]{40}|[0-9a-f]{64}")
_WATCHED: Final = 256
_MINUTE: Final = 60.0


class CachedHubPrompt:
    """A prompt that is fetched on first use, and then once in a while.

    ```python no-run
    agent_prompt = CachedHubPrompt("agent-v3", ttl_seconds=300)  # at module level, or anywhere

    def answer(question: str) -> str:
        return model.invoke(agent_prompt.get().invoke({"question": question})).text
    ```

    All objects for one prompt in a process share one value, so it doesn't matter how many are made. The
    value belongs to an endpoint, a credential, a reference and the options of the pull: what one client is
    given is never shown to another. However many threads and tasks ask at once, one of them fetches; the
    others get the value there is, or wait if there is none. No lock is held meanwhile. A fetch that fails is
    answered by the value there is for `stale_seconds`, and is tried again after one second, then two, up to
    a minute; where there is no value, its error is raised, at once until then. A reference to a commit
    (`"agent-v3:12344e88"`) is fetched once.

    Everybody gets the same object: don't change it.

    Args:
        ref: The prompt: `"name"`, `"name:tag"`, `"name:commit"`, or `"owner/name"` with
            `dangerously_pull_public_prompt=True`.
        ttl_seconds: How old the value may be. Less than 60 counts as 60, and warns, unless `development`.
        fetch: Any function that gives the prompt of a reference, such as `hub.pull`; sync or async, and
            async ones for `aget` only. None pulls it by `client`.
        client: A LangSmith client, sync or async; None is one made from the environment on first use.
        include_model: Also pull the model's configuration.
        stale_seconds: How old the value may be when a fetch fails; the default is a day.
        development: Take `ttl_seconds` as it is, down to 0, to see each new version of the prompt.
        clock: Seconds that never go back, for tests.
        pull_options: What else `client.pull_prompt` takes, such as `secrets`.

    >>> prompt = CachedHubPrompt("greeting", fetch=lambda ref: f"the prompt {ref}")
    >>> prompt.get()
    'the prompt greeting'
    """

    MIN_TTL_SECONDS: Final = 60
    WARN_FETCH_RATE_PER_MIN: Final = 5

    def __init__(
        self,
        ref: str,
        ttl_seconds: float = 300,
        *,
        fetch: Callable[[str], object] | None = None,
        client: Client | AsyncClient | None = None,
        include_model: bool = False,
        stale_seconds: float = 86_400,
        development: bool = False,
        clock: Callable[[], float] = time.monotonic,
        **pull_options: object,
    ) -> None:
        """Name a prompt; nothing is fetched yet."""
        if fetch is not None and (client is not None or include_model or pull_options):
            raise TypeError("fetch= does the whole fetch; give it what client= or the options were meant to say")
        if ttl_seconds < self.MIN_TTL_SECONDS and not development:
            warnings.warn(
                f"CachedHubPrompt: ttl_seconds={ttl_seconds} is below the minimum of {self.MIN_TTL_SECONDS}, which is "
                "used instead; development=True takes it as it is",
                stacklevel=2,
            )
            ttl_seconds = self.MIN_TTL_SECONDS
        self.ref = ref
        self.ttl_seconds = ttl_seconds
        self.stale_seconds = stale_seconds
        self._fetch = fetch
        self._client = client
        self._options = {"include_model": include_model, **pull_options}
        self._clock = clock

    def __repr__(self) -> str:
        """The reference and how long it is kept."""
        return f"CachedHubPrompt({self.ref!r}, ttl_seconds={self.ttl_seconds})"

    def get(self) -> object:
        """The prompt, at most `ttl_seconds` old; on an event loop use `aget`, which doesn't block it.

        Raises:
            Exception: What the fetch raises, when there is no value that could stand in.
        """
        return self._read(0)

    async def aget(self) -> object:
        """The same on an event loop."""
        return await self._aread(0)

    def force_refresh(self) -> object:
        """Fetch now, whatever there is, and give what was fetched.

        Raises:
            Exception: What the fetch raises; others still get the value there was.
        """
        return self._read(self._entry().invalidate(retry=True))

    async def aforce_refresh(self) -> object:
        """The same on an event loop."""
        return await self._aread(self._entry().invalidate(retry=True))

    def invalidate(self) -> None:
        """Let the next use fetch; a fetch under way counts as too old. Prompts pinned to a commit stay."""
        self._entry().invalidate(retry=True)

    def invalidate_by_webhook(self, payload: Mapping[str, object]) -> bool:
        """Let the next use fetch if LangSmith's webhook tells of a new commit of this prompt.

        Args:
            payload: The webhook's JSON body, which has the prompt's name as `prompt_name`.

        Returns:
            Whether it was about this prompt. A tag that was moved is not told by webhooks.
        """
        named = str(payload.get("prompt_name") or "").rpartition("/")[2]
        mine = bool(named) and named == self.ref.partition(":")[0].rpartition("/")[2]
        if mine:
            self.invalidate()
        return mine

    def _read(self, generation: int) -> object:
        entry, terms = self._entry(), Terms(self.ttl_seconds, self.stale_seconds, generation)
        flight: Flight | None = None
        while isinstance(answer := entry.ask(terms, flight), Flight):
            flight = answer
            if answer.lead:
                self._fly(entry, answer)
            else:
                answer.landing.result()
        return answer.value

    async def _aread(self, generation: int) -> object:
        entry, terms = self._entry(), Terms(self.ttl_seconds, self.stale_seconds, generation)
        flight: Flight | None = None
        while isinstance(answer := entry.ask(terms, flight), Flight):
            flight = answer
            if not answer.lead:
                # Shielded: a reader that is cancelled must not end the flight of the others.
                await asyncio.shield(asyncio.wrap_future(answer.landing))
            elif _is_async(self._fetching()):
                await self._afly(entry, answer)
            else:
                # The thread flies on if this task is cancelled, and lands for the others.
                await asyncio.get_running_loop().run_in_executor(None, partial(self._fly, entry, answer))
        return answer.value

    def _fly(self, entry: Entry, flight: Flight) -> None:
        try:
            self._watch_rate()
            fetching = self._fetching()
            if _is_async(fetching):
                raise TypeError(f"the fetch of prompt {self.ref!r} is async; use `await prompt.aget()`")  # noqa: TRY301
            value = fetching(self.ref)
        except BaseException as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self._crashed(entry, flight, error)
        else:
            entry.land(flight, value, pinned=self._is_pinned(value))

    async def _afly(self, entry: Entry, flight: Flight) -> None:
        try:
            self._watch_rate()
            value = await cast("Awaitable[object]", self._fetching()(self.ref))
        except BaseException as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self._crashed(entry, flight, error)
        else:
            entry.land(flight, value, pinned=self._is_pinned(value))

    def _crashed(self, entry: Entry, flight: Flight, error: BaseException) -> None:
        left = entry.crash(flight, error)
        if not isinstance(error, Exception):
            raise error
        if left:
            logger.warning("prompt %r could not be fetched, the last version stands in: %r", self.ref, error)

    def _fetching(self) -> Callable[[str], object]:
        if self._fetch is not None:
            return self._fetch
        pull: Callable[..., object] = self._langsmith().pull_prompt
        # What the SDK caches is not looked at: its key knows neither endpoint nor credential.
        known = inspect.signature(pull).parameters
        skip = {"skip_cache": True} if "skip_cache" in known else {}
        return partial(pull, **self._options, **skip)

    def _langsmith(self) -> Client | AsyncClient:
        if self._client is None:
            # Late, so that an object at module level sees the environment as the program sets it up.
            from langsmith.run_trees import get_cached_client  # noqa: PLC0415

            self._client = get_cached_client()
        return self._client

    def _entry(self) -> Entry:
        if self._fetch is not None:
            return recall((self._fetch, self.ref), self._clock)
        client = self._langsmith()
        url, headers = getattr(client, "api_url", None), getattr(client, "_headers", None)
        if url is None or headers is None or not getattr(client, "api_key", None):
            # Async clients, and those that log in another way, don't tell whose they are: each is its own.
            return recall((client, self.ref, repr(sorted(self._options.items()))), self._clock)
        told = repr((url, sorted(headers.items()), sorted(self._options.items())))
        # Hashed: keys outlive clients, and must not keep their secrets.
        return recall((hashlib.sha256(told.encode()).digest(), self.ref), self._clock)

    def _is_pinned(self, value: object) -> bool:
        commit = self.ref.partition(":")[2]
        if not _COMMIT.fullmatch(commit):
            return False
        metadata = getattr(value, "metadata", None)
        pulled = metadata.get("lc_hub_commit_hash") if isinstance(metadata, dict) else None
        # A tag may look like a commit, such as a date; what was pulled tells, or else a letter in it.
        return str(pulled).startswith(commit) if pulled else not commit.isdigit()

    def _watch_rate(self) -> None:
        rate = _rates.begin(self.ref, self._clock())
        if rate > self.WARN_FETCH_RATE_PER_MIN and _rates.first_warning(self.ref):
            logger.warning(
                "prompt %r was fetched %d times in the last minute; raise ttl_seconds, or make its CachedHubPrompt "
                "once, outside of loops",
                self.ref,
                rate,
            )


def _is_async(function: Callable[[str], object]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


class _Rates:
    """How often each prompt was fetched in the last minute, in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: OrderedDict[str, deque[float]] = OrderedDict()
        self._warned: set[str] = set()

    def begin(self, ref: str, now: float) -> int:
        with self._lock:
            begun = self._begun.setdefault(ref, deque())
            self._begun.move_to_end(ref)
            begun.append(now)
            while now - begun[0] >= _MINUTE:
                begun.popleft()
            while len(self._begun) > _WATCHED:
                self._warned.discard(self._begun.popitem(last=False)[0])
            return len(begun)

    def first_warning(self, ref: str) -> bool:
        with self._lock:
            first = ref not in self._warned
            self._warned.add(ref)
            return first


_rates: Final = _Rates()
