"""Which laws are tested over which shapes in `make test`; `make soak` tests all of them over all."""

from __future__ import annotations

import os

import pytest

from tests.laws.table import SHAPES

# Agents of many parts take long to build. What they are made of is in the table too, and there meets every law.
LARGE = frozenset(
    name for name, shape in SHAPES.items() if shape.build.__module__ in {"tests.laws.builtin", "tests.laws.teams"}
)
LIGHT = frozenset({"test_same_type", "test_pure", "test_alone", "test_never_zero"})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the large shapes to the laws on money, transparency and gates."""
    if os.environ.get("GRAPHGUARD_SOAK"):
        return
    left = [item for item in items if _is_large(item)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not _is_large(item)]


def _is_large(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or item.module.__name__.rpartition(".")[2] not in LIGHT:
        return False
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(getattr(part, "name", part) in LARGE for part in params if isinstance(getattr(part, "name", part), str))
