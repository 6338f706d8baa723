"""A graph as a drawing: its nodes in rows, its gates among them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from graphguard.history.attempts import is_gate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from graphguard.placement import AnyGraph

__all__ = ["Box", "Drawing", "Wire", "drawing", "rows"]

_BOX_HEIGHT: Final = 30
_ROW: Final = 66
_GAP: Final = 24
_LETTER: Final = 7.6
_MARGIN: Final = 16
_BULGE: Final = 46
_SWEEPS: Final = 4
_ENDS: Final = {"__start__": "start", "__end__": "end"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A node; `kind` is `"gate"`, `"end"` or `"node"`, and `x`, `y` are its middle."""

    name: str
    kind: str
    x: float
    y: float
    width: float
    height: float = _BOX_HEIGHT


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """An edge, as the path of an SVG; `kind` is `"conditional"` or `"always"`."""

    path: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """The whole graph, with its size."""

    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]
    width: float
    height: float


def drawing(graph: AnyGraph) -> Drawing:
    """Draw a compiled graph."""
    drawn = graph.get_graph()
    edges = [(edge.source, edge.target, edge.conditional) for edge in drawn.edges]
    layers = rows(list(drawn.nodes), [(source, target) for source, target, _ in edges])
    widths = {name: 2 * _MARGIN + _LETTER * len(_ENDS.get(name, name)) for name in drawn.nodes}
    across = max(sum(widths[name] + _GAP for name in layer) for layer in layers) + 2 * _BULGE
    boxes: dict[str, Box] = {}
    for level, layer in enumerate(layers):
        left = (across - sum(widths[name] + _GAP for name in layer) + _GAP) / 2
        for name in layer:
            kind = "gate" if is_gate(name) else "end" if name in _ENDS else "node"
            middle = round(left + widths[name] / 2, 1)
            boxes[name] = Box(
                name=_ENDS.get(name, name),
                kind=kind,
                x=middle,
                y=_MARGIN + level * _ROW + _BOX_HEIGHT / 2,
                width=round(widths[name], 1),
            )
            left += widths[name] + _GAP
    wires = [
        Wire(path=_path(boxes[source], boxes[target], across), kind="conditional" if conditional else "always")
        for source, target, conditional in edges
    ]
    height = 2 * _MARGIN + (len(layers) - 1) * _ROW + _BOX_HEIGHT
    return Drawing(boxes=tuple(boxes.values()), wires=tuple(wires), width=round(across, 1), height=height)


def rows(names: Sequence[str], edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Nodes in rows: each below those that lead to it, but for ways back; near what it is joined with.

    >>> rows(["a", "b", "c", "d"], [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "a")])
    [['a'], ['b', 'c'], ['d']]
    """
    ways: defaultdict[str, list[str]] = defaultdict(list)
    for source, target in edges:
        ways[source].append(target)
    forward = _forward(names, ways)
    level = dict.fromkeys(names, 0)
    for _ in names:  # as long as the longest way can be
        for source, target in forward:
            level[target] = max(level[target], level[source] + 1)
    if "__end__" in level:
        level["__end__"] = max(level.values())
    layers: list[list[str]] = [[] for _ in range(max(level.values()) + 1)]
    for name in names:
        layers[level[name]].append(name)
    for _ in range(_SWEEPS):
        place = {name: at / len(layer) for layer in layers for at, name in enumerate(layer)}
        above: defaultdict[str, list[float]] = defaultdict(list)
        for source, target in forward:
            above[target].append(place[source])
        for layer in layers:
            layer.sort(key=lambda name: _mean(above.get(name), place[name]))
    return [layer for layer in layers if layer]


def _forward(names: Sequence[str], ways: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """The edges but those that lead back to where a way came from."""
    found: list[tuple[str, str]] = []
    done: set[str] = set()
    for first in names:
        stack = [] if first in done else [(first, iter(ways.get(first, ())))]
        open_now = {first}
        done.add(first)
        while stack:
            name, targets = stack[-1]
            target = next(targets, None)
            if target is None:
                stack.pop()
                open_now.discard(name)
            elif target not in open_now:
                found.append((name, target))
                if target not in done:
                    done.add(target)
                    open_now.add(target)
                    stack.append((target, iter(ways.get(target, ()))))
    return found


def _mean(values: Sequence[float] | None, otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _path(source: Box, target: Box, across: float) -> str:
    """A line from a box down to another; ways back and over several rows go around, at the nearer side."""
    if target.y > source.y and target.y - source.y <= _ROW:
        top, foot = source.y + source.height / 2, target.y - target.height / 2
        middle = (top + foot) / 2
        return f"M{source.x},{top} C{source.x},{middle} {target.x},{middle} {target.x},{foot}"
    side = 1 if (source.x + target.x) / 2 >= across / 2 else -1
    begin, end = source.x + side * source.width / 2, target.x + side * target.width / 2
    out = round((max if side > 0 else min)(begin, end) + side * _BULGE, 1)
    return f"M{begin:.1f},{source.y} C{out},{source.y} {out},{target.y} {end:.1f},{target.y}"
