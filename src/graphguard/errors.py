"""Every error that graphguard raises.

```
GraphguardError
├── AgentBudgetError    also BudgetExceeded: a traced function called too much; in graphguard.langsmith
├── BudgetExceeded      also RuntimeError and GraphBubbleUp: no budget has room for the call
├── EvalBudgetError     also RuntimeError: an evaluation does not fit its ceilings; in graphguard.langsmith
├── HistoryUnavailable  also LookupError: no history, thread or checkpoint is where it was looked for
├── HoldMismatch        also ValueError: one hold id was used for two different calls
├── InvalidBudget       also ValueError: a budget that can't be kept, found when it is made
├── LedgerUnavailable   also OSError: a ledger's file or server can't answer
├── MissingKey          also LookupError and GraphBubbleUp: a run doesn't say whose budget it spends
├── NoCheckpointer      also RuntimeError and GraphBubbleUp: a question to a person that nobody could answer
├── NoModelNodes        also ValueError: nothing to guard was found in the graph
├── NotGuardable        also TypeError: the thing given to guard() is not a graph it can change
├── NothingToTopUp      also ValueError: a thread that is not at a trip, or an amount of the wrong kind
├── StateConflict       also ValueError: the graph's own state uses graphguard's field names
├── UnknownNode         also ValueError: a node name that the graph doesn't have
└── UnknownPrice        also LookupError: no price is known for a model
```

Attributes first, text made from them. Every one survives `pickle`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from langgraph.errors import GraphBubbleUp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphguard.trip import Trip

__all__ = [
    "BudgetExceeded",
    "GraphguardError",
    "HistoryUnavailable",
    "HoldMismatch",
    "InvalidBudget",
    "LedgerUnavailable",
    "MissingKey",
    "NoCheckpointer",
    "NoModelNodes",
    "NotGuardable",
    "NothingToTopUp",
    "StateConflict",
    "UnknownNode",
    "UnknownPrice",
]


class GraphguardError(Exception):
    """What all errors of this package have in common."""


class BudgetExceeded(GraphguardError, GraphBubbleUp, RuntimeError):
    """No budget has room for a model call, so the call was not made.

    It is a `GraphBubbleUp`, so that no retry policy, error handler or tool node of LangGraph takes it
    for a failure of the node, and a `RuntimeError`, so that servers show its text to clients.

    Attributes:
        trip: What tripped, where, and how to go on.
    """

    def __init__(self, trip: Trip) -> None:
        """Make the error of one trip."""
        super().__init__(trip.reason)
        self.trip = trip

    def __reduce__(self) -> tuple[type[BudgetExceeded], tuple[Trip]]:
        """Rebuild from the trip."""
        return type(self), (self.trip,)


class HistoryUnavailable(GraphguardError, LookupError):
    """No history, thread or checkpoint is where it was looked for.

    Attributes:
        problem: What was found instead, and what to do.
    """

    def __init__(self, problem: str) -> None:
        """Say what was found."""
        super().__init__(problem)
        self.problem = problem

    def __reduce__(self) -> tuple[type[HistoryUnavailable], tuple[str]]:
        """Rebuild from the problem."""
        return type(self), (self.problem,)


class HoldMismatch(GraphguardError, ValueError):
    """One hold id came with two different amounts or scopes.

    Attributes:
        id: The hold's id.
    """

    def __init__(self, id: str) -> None:  # noqa: A002 - the ledger's own word for it
        """Name the id."""
        super().__init__(f"hold {id!r} exists with another amount or scope; mint a new id for each attempt")
        self.id = id

    def __reduce__(self) -> tuple[type[HoldMismatch], tuple[str]]:
        """Rebuild from the id."""
        return type(self), (self.id,)


class InvalidBudget(GraphguardError, ValueError):
    """A budget that can't be kept as written.

    Attributes:
        problem: What is wrong, and what to write instead.
    """

    def __init__(self, problem: str) -> None:
        """Say what is wrong."""
        super().__init__(problem)
        self.problem = problem

    def __reduce__(self) -> tuple[type[InvalidBudget], tuple[str]]:
        """Rebuild from the problem."""
        return type(self), (self.problem,)


class LedgerUnavailable(GraphguardError, OSError):
    """A ledger's file or server can't answer, so nobody knows what may still be spent.

    Nothing is lost by it: what was held stays held, and is charged when its lease ends.

    Attributes:
        ledger: The file or the server.
        problem: What is wrong, and what to do.
    """

    def __init__(self, ledger: str, problem: str) -> None:
        """Name the ledger and its problem."""
        super().__init__(f"ledger {ledger!r} can't be used: {problem}")
        self.ledger = ledger
        self.problem = problem

    def __reduce__(self) -> tuple[type[LedgerUnavailable], tuple[str, str]]:
        """Rebuild from both."""
        return type(self), (self.ledger, self.problem)


class MissingKey(GraphguardError, GraphBubbleUp, LookupError):
    """A run doesn't say whose money it spends, so a budget per that key can't be kept; no call was made.

    A `GraphBubbleUp`, so that nothing in the graph takes it for a failure of the node and tries again.

    Attributes:
        key: The budget's `per`.
        problem: What is wrong, and what to do.
    """

    def __init__(self, key: str, problem: str) -> None:
        """Name the key and its problem."""
        super().__init__(f"a budget per {key!r} can't be kept: {problem}")
        self.key = key
        self.problem = problem

    def __reduce__(self) -> tuple[type[MissingKey], tuple[str, str]]:
        """Rebuild from both."""
        return type(self), (self.key, self.problem)


class NoCheckpointer(GraphguardError, GraphBubbleUp, RuntimeError):
    """A budget tripped in `on_trip="interrupt"` mode, but the run could never be resumed.

    Attributes:
        trip: The trip that nobody could have answered.
    """

    def __init__(self, trip: Trip) -> None:
        """Make the error of one trip."""
        super().__init__(
            f"{trip.reason}; on_trip='interrupt' needs a checkpointer to go on from there: "
            "compile with checkpointer=..., or on a server run it on a thread, or use on_trip='end' or 'raise'"
        )
        self.trip = trip

    def __reduce__(self) -> tuple[type[NoCheckpointer], tuple[Trip]]:
        """Rebuild from the trip."""
        return type(self), (self.trip,)


class NoModelNodes(GraphguardError, ValueError):
    """No node of the graph was seen to call a model.

    Attributes:
        nodes: The nodes that were looked at.
    """

    def __init__(self, nodes: Sequence[str]) -> None:
        """Name the nodes that were looked at."""
        super().__init__(
            f"no node calls a chat model as far as can be seen, among {list(nodes)!r}; "
            "name the nodes that do: guard(graph, ..., nodes=['...'])"
        )
        self.nodes = tuple(nodes)

    def __reduce__(self) -> tuple[type[NoModelNodes], tuple[tuple[str, ...]]]:
        """Rebuild from the nodes."""
        return type(self), (self.nodes,)


class NotGuardable(GraphguardError, TypeError):
    """The thing given to `guard` is not a graph that it can change.

    Attributes:
        kind: The type's name.
    """

    def __init__(self, kind: str) -> None:
        """Name the type."""
        super().__init__(
            f"can't guard a {kind!r}; "
            "pass a StateGraph, what its compile() or create_agent() returned, or an @entrypoint"
        )
        self.kind = kind

    def __reduce__(self) -> tuple[type[NotGuardable], tuple[str]]:
        """Rebuild from the type's name."""
        return type(self), (self.kind,)


class NothingToTopUp(GraphguardError, ValueError):
    """A thread can't be topped up as asked.

    Attributes:
        problem: What is wrong, and what to do.
    """

    def __init__(self, problem: str) -> None:
        """Say what is wrong."""
        super().__init__(problem)
        self.problem = problem

    def __reduce__(self) -> tuple[type[NothingToTopUp], tuple[str]]:
        """Rebuild from the problem."""
        return type(self), (self.problem,)


class StateConflict(GraphguardError, ValueError):
    """The graph's own state has a field that graphguard needs for itself.

    Attributes:
        field: The field's name.
    """

    def __init__(self, field: str) -> None:
        """Name the field."""
        super().__init__(
            f"the graph's state already has a field {field!r}, which graphguard keeps its own account in; "
            "rename it in the state schema"
        )
        self.field = field

    def __reduce__(self) -> tuple[type[StateConflict], tuple[str]]:
        """Rebuild from the field."""
        return type(self), (self.field,)


class UnknownNode(GraphguardError, ValueError):
    """A node name that the graph doesn't have.

    Attributes:
        node: The name that was asked for.
        nodes: The names that the graph has.
    """

    def __init__(self, node: str, nodes: Sequence[str]) -> None:
        """Name the node and its neighbours."""
        super().__init__(f"the graph has no node {node!r}; it has {sorted(nodes)!r}")
        self.node = node
        self.nodes = tuple(nodes)

    def __reduce__(self) -> tuple[type[UnknownNode], tuple[str, tuple[str, ...]]]:
        """Rebuild from both names."""
        return type(self), (self.node, self.nodes)


class UnknownPrice(GraphguardError, LookupError):
    """No price is known for a model, so a USD budget cannot be kept.

    Attributes:
        model: The model's name, as the provider or LangChain gives it.
    """

    def __init__(self, model: str) -> None:
        """Name the model."""
        super().__init__(f"no price for model {model!r}; add one with PriceBook.add(), or budget in tokens")
        self.model = model

    def __reduce__(self) -> tuple[type[UnknownPrice], tuple[str]]:
        """Rebuild from the model's name."""
        return type(self), (self.model,)
