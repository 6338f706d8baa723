"""What happens to LangChain's model calls during an evaluation: which there were, and how fast they may be sent."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tracers.context import register_configure_hook

from graphguard.answers import answer
from graphguard.metering import Either

if TYPE_CHECKING:
    from contextvars import Token
    from uuid import UUID

    from graphguard.langsmith.rates import RateLimit

__all__ = ["Watch"]


class Watch(BaseCallbackHandler):
    """Sees each call that LangChain makes, in graphs with guards of their own too, and lets it wait for the rate.

    Attributes:
        seen: The run ids of the calls so far.
    """

    run_inline = True
    ignore_chain = True
    ignore_agent = True
    ignore_retriever = True
    ignore_retry = True
    ignore_custom_event = True

    def __init__(self, rate: RateLimit | None) -> None:
        """Watch nothing yet; a rate of None lets all calls go."""
        self.seen: set[str] = set()
        self._rate = rate
        self._aside: dict[UUID, float] = {}
        self._token: Token[Watch | None] | None = None

    def _wait(self, *_: object, run_id: UUID, **__: object) -> None:
        self.seen.add(str(run_id))
        if self._rate is not None:
            self._aside[run_id] = self._rate.acquire()

    async def _await(self, *_: object, run_id: UUID, **__: object) -> None:
        self.seen.add(str(run_id))
        if self._rate is not None:
            self._aside[run_id] = await self._rate.aacquire()

    on_chat_model_start = Either(_wait, _await)
    on_llm_start = Either(_wait, _await)

    def on_llm_end(self, response: Any, *, run_id: UUID, **_: Any) -> None:  # noqa: ANN401 - LangChain's signature
        """Say what the call took."""
        aside = self._aside.pop(run_id, None)
        if self._rate is not None and aside is not None and (usage := answer(response)[0]) is not None:
            self._rate.tell(usage.tokens, aside=aside)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:  # noqa: ARG002, ANN401
        """Forget a call that failed."""
        self._aside.pop(run_id, None)

    def begin(self) -> None:
        """Watch what is called in this context from here on."""
        self._token = _watching.set(self)

    def end(self) -> None:
        """Watch no more."""
        if self._token is not None:
            _watching.reset(self._token)
            self._token = None
        if self._rate is not None:
            self._rate.close()


_watching: ContextVar[Watch | None] = ContextVar("graphguard_watch", default=None)
register_configure_hook(_watching, inheritable=False)
