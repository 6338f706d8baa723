"""What a LangGraph server loads for the tests: a guarded graph, its auth, and the dashboard beside both."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The server loads this file by its path, from a folder of its own.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from langgraph_sdk import Auth

from graphguard import Budget, guard
from graphguard.dashboard import dashboard
from graphguard.ledger import SqliteLedger
from tests.history.graphs import chain
from tests.scripted import Scripted

ledger = SqliteLedger(os.environ["TEST_LEDGER"])
line = guard(chain(Scripted(), *"abcd"), Budget(usd="0.0005"), on_trip="interrupt", ledger=ledger).compile()
app = dashboard(ledger)
auth = Auth()


@auth.authenticate
async def authenticate(headers: dict[bytes, bytes]) -> dict[str, object]:
    """Know people by the name that they give; nobody without one gets in."""
    name = headers.get(b"authorization", b"").decode()
    if not name:
        raise Auth.exceptions.HTTPException(status_code=401, detail="who are you?")
    return {"identity": name, "permissions": ["graphguard"] if name == "boss" else []}


@auth.on.threads
async def own(ctx: Auth.types.AuthContext, value: dict[str, object]) -> dict[str, str]:
    """Let everybody have their own threads, and the boss read all."""
    if ctx.user.identity == "boss" and ctx.action in {"read", "search"}:
        return {}
    metadata = value.setdefault("metadata", {})
    metadata["owner"] = ctx.user.identity
    return {"owner": ctx.user.identity}
