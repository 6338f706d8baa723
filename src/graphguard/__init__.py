"""Budgets for LangGraph agents: no model call starts that the budget can't pay for.

```python
from graphguard import Budget, guard

agent = guard(create_agent(model, tools), Budget(usd="0.50", calls=20), on_trip="interrupt")
```
"""

from graphguard.account import Remaining, charge, remaining
from graphguard.budget import Breach, Budget, Call
from graphguard.choices import to
from graphguard.errors import (
    BudgetExceeded,
    GraphguardError,
    HoldMismatch,
    InvalidBudget,
    LedgerUnavailable,
    NoCheckpointer,
    NoModelNodes,
    NotGuardable,
    NothingToTopUp,
    StateConflict,
    UnknownNode,
    UnknownPrice,
)
from graphguard.guard import guard, model_nodes
from graphguard.history import atop_up, top_up
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
    "Hold",
    "HoldMismatch",
    "InvalidBudget",
    "Ledger",
    "LedgerUnavailable",
    "MemoryLedger",
    "ModelNode",
    "NoCheckpointer",
    "NoModelNodes",
    "NotGuardable",
    "NothingToTopUp",
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
    "atop_up",
    "charge",
    "guard",
    "model_nodes",
    "remaining",
    "to",
    "top_up",
]
