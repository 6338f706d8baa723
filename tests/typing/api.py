"""The public API as a type checker sees it; mypy reads this file, nothing runs it."""

from __future__ import annotations

from typing import assert_type

from graphguard.errors import BudgetExceeded, HoldMismatch, NoModelNodes, UnknownNode, UnknownPrice
from graphguard.trip import Trip


def errors_carry_what_they_are_about(
    exceeded: BudgetExceeded, hold: HoldMismatch, nothing: NoModelNodes, node: UnknownNode, price: UnknownPrice
) -> None:
    """Each error's attributes have types of their own."""
    assert_type(exceeded.trip, Trip)
    assert_type(hold.id, str)
    assert_type(nothing.nodes, tuple[str, ...])
    assert_type(node.nodes, tuple[str, ...])
    assert_type(price.model, str)


def errors_are_the_fitting_built_ins(exceeded: BudgetExceeded, price: UnknownPrice, node: UnknownNode) -> None:
    """Handlers for built-in errors catch them."""
    runtime: RuntimeError = exceeded
    lookup: LookupError = price
    value: ValueError = node
    assert_type((runtime, lookup, value), tuple[RuntimeError, LookupError, ValueError])
