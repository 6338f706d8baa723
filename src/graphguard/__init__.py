"""Budgets for LangGraph agents: no model call starts that the budget can't pay for.

```python
from graphguard import Budget, guard

agent = guard(create_agent(model, tools), Budget(usd="0.50", calls=20), on_trip="interrupt")
```
"""

from graphguard.account import Remaining, acharge, aremaining, charge, remaining
from graphguard.budget import Breach, Budget, Call
from graphguard.choices import to
from graphguard.errors import (
    BudgetExceeded,
    GraphguardError,
    HistoryUnavailable,
    HoldMismatch,
    InvalidBudget,
    LedgerUnavailable,
    MissingKey,
    NoCheckpointer,
    NoModelNodes,
    NotGuardable,
    NothingToTopUp,
    StateConflict,
    UnknownNode,
    UnknownPrice,
)
from graphguard.guard import guard, model_nodes
from graphguard.history import PastTrip, abacktest, areplay, atop_up, atrips, backtest, replay, top_up, trips
from graphguard.ledger import Hold, Ledger, MemoryLedger, Refusal, SqliteLedger
from graphguard.placement import ModelNode
from graphguard.prices import PriceBook
from graphguard.spend import Charge, Spend
from graphguard.trip import Trip
from graphguard.usage import Usage

__all__ = [
    "Breach",
    "Budget",
    "BudgetExceeded",
    "Call",
    "Charge",
    "GraphguardError",
    "HistoryUnavailable",
    "Hold",
    "HoldMismatch",
    "InvalidBudget",
    "Ledger",
    "LedgerUnavailable",
    "MemoryLedger",
    "MissingKey",
    "ModelNode",
    "NoCheckpointer",
    "NoModelNodes",
    "NotGuardable",
    "NothingToTopUp",
    "PastTrip",
    "PriceBook",
    "Refusal",
    "Remaining",
    "Spend",
    "SqliteLedger",
    "StateConflict",
    "Trip",
    "UnknownNode",
    "UnknownPrice",
    "Usage",
    "abacktest",
    "acharge",
    "aremaining",
    "areplay",
    "atop_up",
    "atrips",
    "backtest",
    "charge",
    "guard",
    "model_nodes",
    "remaining",
    "replay",
    "to",
    "top_up",
    "trips",
]
