"""A pytest fixture by which the tests of one session share a budget."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from graphguard.budget import Budget
from graphguard.ids import new_id
from graphguard.langsmith.metered import Metered

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

    from graphguard.ledger.protocol import Ledger
    from graphguard.prices import PriceBook

__all__ = ["session_budget"]


def session_budget(
    *,
    usd: str | float | Decimal | None = None,
    calls: int | None = None,
    tokens: int | None = None,
    ledger: Ledger | None = None,
    prices: PriceBook | None = None,
) -> Any:  # noqa: ANN401 - pytest's own type of fixtures is private
    """A fixture for `conftest.py` that every test uses by itself: together they spend no more than this.

    ```python no-run
    spending = session_budget(usd="2.00", calls=500)  # in conftest.py
    ```

    A model call without room raises `BudgetExceeded`, so its test fails, and so do later ones that call a
    model. A test that asks for the fixture gets the account: `spending.spend` is the sum so far. Charges
    carry the test's id as their node. The workers of pytest-xdist share one account where they share a
    ledger, such as a `SqliteLedger`.

    Args:
        usd: USD for the whole session.
        calls: Model calls.
        tokens: Input and output tokens together.
        ledger: Where it is held; None is the one that all guards of the process share.
        prices: A price book; None is the bundled one.

    Raises:
        InvalidBudget: No limit was given.
        ImportError: pytest is not installed.
    """
    import pytest  # noqa: PLC0415 - whoever tests has it, nobody else needs it

    account = os.environ.get("PYTEST_XDIST_TESTRUNUID") or new_id()
    budget = Budget(usd=usd, calls=calls, tokens=tokens, per="session")
    metered = Metered([budget], ledger=ledger, prices=prices, keys={"session": account})

    @pytest.fixture(autouse=True)
    def spending(request: pytest.FixtureRequest) -> Iterator[Metered]:
        """The account of this session."""
        with metered.block(request.node.nodeid):
            yield metered

    return spending
