"""How the notebooks draw: one look for all pictures, graphs as boxes and arrows, and threads as lines that fork."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from langgraph.graph.state import CompiledStateGraph
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

BLUE, RED, GREEN, AMBER, GREY, PALE = "#2563ab", "#c2383a", "#2f855a", "#b7791f", "#6b7280", "#dbe4ee"

plt.rcParams.update(
    {
        "figure.figsize": (8.6, 3.6),
        "figure.dpi": 100,
        "figure.facecolor": "white",  # also where the page around it is dark
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
        "axes.labelcolor": "#374151",
        "xtick.color": "#374151",
        "ytick.color": "#374151",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e5e7eb",
        "legend.frameon": False,
    }
)


def in_usd(axis: Axis, digits: int = 2) -> None:
    """Write an axis in USD."""
    axis.set_major_formatter(FuncFormatter(lambda usd, _: f"${usd:.{digits}f}"))


def limit_line(axes: Axes, usd: float, text: str, *, at: float = 0.0, color: str = RED) -> None:
    """Draw a limit across a picture, with its name at a share of the width."""
    axes.axhline(usd, color=color, linestyle="--", linewidth=1.3)
    axes.annotate(
        text,
        (at, usd),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        color=color,
        fontsize=9,
    )


def draw_graph(
    axes: Axes,
    graph: CompiledStateGraph,
    places: Mapping[str, tuple[float, float]],
    *,
    bends: Mapping[tuple[str, str], float] | None = None,
) -> None:
    """Draw a graph as LangGraph describes it: conditional edges are dashed, gates blue, model nodes bold.

    Args:
        axes: Where to draw.
        graph: The compiled graph.
        places: Where each node goes; those without a place are left out.
        bends: How much the edge from one node to another is bent.
    """
    nodes = {name: _box(axes, name, *place) for name, place in places.items()}
    for edge in graph.get_graph().edges:
        if edge.source in nodes and edge.target in nodes:
            bend = (bends or {}).get((edge.source, edge.target), 0.0)
            arrow = {
                "arrowstyle": "-|>",
                "color": GREY,
                "linestyle": "--" if edge.conditional else "-",
                "connectionstyle": f"arc3,rad={bend}",
                "patchA": nodes[edge.source],
                "patchB": nodes[edge.target],
                "shrinkA": 2,
                "shrinkB": 2,
            }
            axes.annotate("", places[edge.target], places[edge.source], arrowprops=arrow)
    across, up = zip(*places.values(), strict=True)
    axes.set(xlim=(min(across) - 0.7, max(across) + 0.7), ylim=(min(up) - 0.6, max(up) + 0.6))
    axes.set_axis_off()


def _box(axes: Axes, name: str, x: float, y: float) -> object:
    gate, ends = ".budget" in name or "budget." in name, name.startswith("__")
    face = PALE if gate else "#f3f4f6" if ends else "white"
    box = {"boxstyle": "round,pad=0.45", "facecolor": face, "edgecolor": BLUE if gate else GREY}
    text = axes.text(
        x, y, name.strip("_"), ha="center", va="center", bbox=box, color=BLUE if gate else "#111827", zorder=3
    )
    return text.get_bbox_patch()


def draw_lines(axes: Axes, lines: Sequence[tuple[str, Sequence[tuple[float, float]], str]]) -> None:
    """Draw what each line of a thread has spent as it went on: a dot for each call, a cross where it stopped."""
    for name, points, color in lines:
        across, up = zip(*points, strict=True)
        axes.plot(across, up, color=color, marker="o", markersize=4, label=name)
        axes.plot(across[-1:], up[-1:], color=color, marker="X", markersize=9)


def running(amounts: Sequence[float]) -> list[float]:
    """Add amounts up, one after the other."""
    return list(itertools.accumulate(amounts))
