"""Model calls outside of any graph, held and settled on a ledger as a guarded graph's are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from langchain_core.runnables.config import var_child_runnable_config

from graphguard.choices import make_settings
from graphguard.ids import new_id
from graphguard.meter import Meter
from graphguard.metering import Handler, current_scope
from graphguard.scope import Scope
from graphguard.spend import ZERO
from graphguard.task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphguard.budget import Breach, Budget, Claim, Policy
    from graphguard.ledger.protocol import Ledger
    from graphguard.prices import PriceBook
    from graphguard.spend import Spend
    from graphguard.trip import Trip

__all__ = ["Metered", "MeteredBlock"]


class Metered:
    """Budgets for what a program calls outside of graphs; graphs called from there count in them too.

    Args:
        budgets: Budgets that count per key (`per="tenant"`), for the `keys` given here; policies too.
        ledger: Where real money is held; None is the `MemoryLedger` that all guards of the process share.
        prices: A price book; None is the bundled one.
        keys: The values of the budgets' keys.

    ```python
    from graphguard import Budget
    from graphguard.langsmith.metered import Metered

    metered = Metered([Budget(usd="1.00", per="job")], keys={"job": "nightly"})
    with metered.block("summarise"):
        ...  # every LangChain model called in here, in its threads and tasks too, is held and settled
    ```
    """

    def __init__(
        self,
        budgets: Sequence[Budget | Policy],
        *,
        ledger: Ledger | None = None,
        prices: PriceBook | None = None,
        keys: Mapping[str, str],
    ) -> None:
        """Check the budgets."""
        self._meter = Meter(make_settings(budgets, on_trip="raise", ledger=ledger, prices=prices), {})
        self._keys = dict(keys)

    def block(self, label: str) -> MeteredBlock:
        """A block of code in which model calls are held and settled, under the node name `label`.

        Used with `with`, or `async with` on an event loop. A call without room raises `BudgetExceeded`.
        """
        return MeteredBlock(self._meter, self._keys, label)

    @property
    def spend(self) -> Spend:
        """What all blocks have spent, as the account of the first budget has it."""
        block = self.block("")
        return block.scope.ledger.balance(block.claims[0])[0] if block.claims else ZERO

    async def aspend(self) -> Spend:
        """The same on an event loop."""
        block = self.block("")
        return (await block.scope.ledger.abalance(block.claims[0]))[0] if block.claims else ZERO


class MeteredBlock(Handler):
    """One block of code whose model calls are metered; see `Metered.block`."""

    def __init__(self, meter: Meter, keys: Mapping[str, str], label: str) -> None:
        """Prepare the block; nothing is metered before it is entered."""
        super().__init__()
        around = var_child_runnable_config.get() or {}
        said = around.get("configurable", {})
        user: dict[str, object] = {name: said[name] for name in ("user_id", "langgraph_auth_user") if name in said}
        thread = said.get("thread_id")
        self._scope = Scope(
            meter,
            Task(
                config={"configurable": {**user, **keys}},
                node=label,
                id=new_id(),
                graph_ns="",
                checkpoint=new_id(),
                thread=None if thread is None else str(thread),
                attempt=1,
            ),
            current_scope(),
        )

    @property
    def scope(self) -> Scope:
        """Whose money is spent."""
        return self._scope

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The budgets that a call from here needs room in."""
        return self._scope.claims(own=True)

    @property
    def refusal(self) -> Trip | None:
        """The trip of the latest call that was refused for want of room here."""
        return self._scope.refusal

    def tripped(self, breach: Breach) -> Trip:
        """The trip that a breach leads to here."""
        return self._scope.tripped(breach, node=self._scope.task.node)

    def __enter__(self) -> Self:
        """Meter from here on."""
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        """Meter no more."""
        try:
            self.end()
        except ValueError:  # the garbage collector closes a forgotten generator in somebody else's context
            self._token = None
            self.end()
        self._scope.meter.unfolded.take(self._scope.task)  # there is no state to tell

    async def __aenter__(self) -> Self:
        """Meter from here on."""
        self.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Meter no more."""
        try:
            await self.aend()
        except ValueError:  # as in __exit__
            self._token = None
            await self.aend()
        self._scope.meter.unfolded.take(self._scope.task)
