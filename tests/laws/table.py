"""The table of shapes that the laws are tested over: a new shape is one more decorated function in one of these."""

from tests.laws import agents, builtin, kinds, places, teams, ways  # noqa: F401 - each puts its shapes into the table
from tests.laws.shapes import SHAPES

__all__ = ["SHAPES"]
