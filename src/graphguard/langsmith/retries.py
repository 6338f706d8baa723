"""`StructuredRetryLimit`: an agent asks again for structured output that doesn't fit its schema, but not for ever.

`with_structured_output()` itself makes one call, and raises. `ToolStrategy`, the strategy of `create_agent`, hands the
error back to the model and asks again, without a limit of its own. Each time is a model call, which a guard counts as
any other; this middleware limits how often.

Needs the extra `langchain`: `pip install 'graphguard[langchain]'`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

try:
    from langchain.agents.middleware.types import AgentMiddleware
except ImportError as error:
    msg = "graphguard.langsmith.retries needs langchain: pip install 'graphguard[langchain]'"
    raise ImportError(msg) from error

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.config import get_config

from graphguard.errors import BudgetExceeded, InvalidBudget
from graphguard.traced import live_runs, mark, trip_metadata
from graphguard.trip import Trip

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from langchain.agents.middleware.types import ModelRequest, ModelResponse

__all__ = ["StructuredRetryLimit"]


class StructuredRetryLimit(AgentMiddleware):
    """Middleware that limits how often an agent asks again for structured output, in one request of a user.

    What counts is in the conversation itself, so a run that is resumed goes on with its count.

    Args:
        max_retries: How often it may ask again.

    Attributes:
        retries: How often agents with this middleware asked again, over all requests.
    """

    def __init__(self, max_retries: int = 2) -> None:
        """Check the limit."""
        super().__init__()
        if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
            text = f"max_retries must be a whole number of at least 0, got {max_retries!r}"
            raise InvalidBudget(text)
        self.max_retries = max_retries
        self.retries = 0
        self._lock = threading.Lock()

    def wrap_model_call(
        self,
        request: ModelRequest,
        handler: Callable[[ModelRequest], ModelResponse],
    ) -> ModelResponse:
        """Call the model, unless it had its last chance; then raise `BudgetExceeded`."""
        self._ask(request)
        return handler(request)

    async def awrap_model_call(
        self,
        request: ModelRequest,
        handler: Callable[[ModelRequest], Awaitable[ModelResponse]],
    ) -> ModelResponse:
        """The same on an event loop."""
        self._ask(request)
        return await handler(request)

    def _ask(self, request: ModelRequest) -> None:
        failed = _failures(request)
        if failed <= self.max_retries:
            with self._lock:
                self.retries += failed > 0
            return
        trip = Trip(
            budget=f"max_retries={self.max_retries} of structured output",
            metric="structured_retries",
            limit=self.max_retries,
            spent=self.max_retries,
            node="model",
            mode="raise",
        )
        mark(live_runs(get_config()), trip_metadata(trip))
        raise BudgetExceeded(trip)


def _failures(request: ModelRequest) -> int:
    """How often the model has given structured output since the user's last message: had it fitted, we'd be done."""
    names = _schemas(request.response_format)
    count = 0
    for message in reversed(request.messages):
        if isinstance(message, HumanMessage):
            break
        count += isinstance(message, AIMessage) and any(call["name"] in names for call in message.tool_calls)
    return count


def _schemas(response_format: object) -> set[str]:
    """The names under which a model gives structured output."""
    schema = getattr(response_format, "schema", None)
    specs = getattr(response_format, "schema_specs", ())
    named = schema.get("title") if isinstance(schema, dict) else getattr(schema, "__name__", None)
    return {*(str(spec.name) for spec in specs), *([str(named)] if named else ())}
