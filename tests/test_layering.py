"""Imports point downwards, and private names of LangGraph and LangChain stay where they are known."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "graphguard"

# A module may import those before it, never those after it.
ORDER = (
    "errors",
    "accounts",
    "usage",
    "bounds",
    "listed",
    "prices",
    "spend",
    "ids",
    "limits",
    "budget",
    "trip",
    "running",
    "traced",
    "ledger",
    "unfolded",
    "left",
    "meter",
    "scope",
    "task",
    "answers",
    "metering",
    "remote",
    "gate",
    "door",
    "discovery",
    "placement",
    "choices",
    "ways",
    "functional",
    "guard",
    "account",
    "server",
    "history",
    "doorless",
    "fitting",
    "middleware",
    "langsmith",
    "report",
    "dashboard",
    "demo",  # before the command line, which starts it
    "ledger_command",
    "history_command",
    "calibrate_command",
    "check_command",
    "report_command",
    "dashboard_command",
    "cli",
    "testing",
)
FRONT_DOORS = ("__init__", "__main__")

UPSTREAM = ("langgraph", "langchain")  # and langchain_core, langgraph_sdk, …
MAY_USE_PRIVATE_NAMES = ("functional", "guard", "metering", "task", "ways")


@dataclass(frozen=True)
class Import:
    """One imported name, with the line it stands on."""

    module: str
    name: str | None
    line: int
    for_types: bool

    @property
    def dotted(self) -> str:
        return self.module if self.name is None else f"{self.module}.{self.name}"


def parts(module: str) -> tuple[str, ...]:
    """Split a module below the package: `graphguard.ledger.sqlite` is `("ledger", "sqlite")`."""
    return tuple(module.split("."))[1:]


def module_of(path: Path, root: Path) -> str:
    """Give a file's dotted name, packages by their `__init__`."""
    return ".".join(("graphguard", *path.relative_to(root).with_suffix("").parts))


def is_type_checking(test: ast.expr) -> bool:
    """Tell an `if TYPE_CHECKING:` from others."""
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imports(source: str, module: str) -> tuple[Import, ...]:
    """Give all imports of a module, at its top and inside functions, relative ones spelled out."""
    found: list[Import] = []

    def visit(node: ast.AST, *, for_types: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, None, node.lineno, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            found.extend(Import(origin, alias.name, node.lineno, for_types) for alias in node.names)
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            for child in node.body:
                visit(child, for_types=True)
            for child in node.orelse:
                visit(child, for_types=for_types)
        else:
            for child in ast.iter_child_nodes(node):
                visit(child, for_types=for_types)

    visit(ast.parse(source), for_types=False)
    return tuple(found)


def upward(source: str, module: str) -> Iterator[str]:
    """Give each import that points upwards, as a sentence."""
    here = parts(module)[0]
    if here in FRONT_DOORS:
        return
    for found in imports(source, module):
        if found.for_types or found.module.split(".")[0] != "graphguard":
            continue
        there = (*parts(found.dotted), "__init__")[0]
        if there not in ORDER:  # `from graphguard import guard`: the front door knows all modules
            yield f"{module}:{found.line} imports {found.dotted}; name the module that has it"
        elif ORDER.index(there) > ORDER.index(here):
            yield f"{module}:{found.line} imports {found.dotted}, which comes after {here!r}"


def is_upstream(module: str) -> bool:
    """Tell LangGraph's and LangChain's modules from others."""
    return re.match(r"[a-z]*", module)[0] in UPSTREAM


def private(names: Iterable[str]) -> bool:
    """Tell whether a path has a private part; `__version__` and its like are public."""
    return any(name.startswith("_") and not name.startswith("__") for name in names)


def private_names(source: str, module: str) -> Iterator[str]:
    """Give each private name of LangGraph or LangChain in a module, imported or reached by a dot."""
    if parts(module)[0] in MAY_USE_PRIVATE_NAMES:
        return
    upstream = [found for found in imports(source, module) if is_upstream(found.module)]
    yield from (f"{module}:{found.line} uses {found.dotted}" for found in upstream if private(found.dotted.split(".")))

    aliases = {
        alias.asname or alias.name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import)
        for alias in node.names
        if is_upstream(alias.name)
    } | {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and not node.level and is_upstream(node.module or "")
        for alias in node.names
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and private([node.attr]):
            path = ast.unparse(node)
            if path.split(".")[0] in aliases:
                yield f"{module}:{node.lineno} uses {path}"


SOURCES = {module_of(path, PACKAGE): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_module_has_a_place():
    """Each module of the package stands in the order of layers: a new one is given its place here."""
    assert {parts(module)[0] for module in SOURCES} <= {*ORDER, *FRONT_DOORS}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_downwards(module):
    """No module imports one of a layer above it, not even inside a function."""
    if parts(module)[0] in (*ORDER, *FRONT_DOORS):
        assert not list(upward(SOURCES[module], module))


@pytest.mark.parametrize("module", SOURCES)
def test_private_names_stay_in_two_modules(module):
    """Private names of LangGraph and LangChain are used in guard.py and metering.py alone."""
    assert not list(private_names(SOURCES[module], module))


@pytest.mark.parametrize(
    "line",
    [
        "from graphguard.guard import guard",
        "import graphguard.guard",
        "from graphguard import guard",
        "from .guard import guard",
        "from . import guard",
        "def f():\n    from graphguard.guard import guard",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import graphguard.guard",
    ],
)
def test_an_upward_import_is_seen(line):
    """However it is written, an import from a higher layer is found."""
    assert list(upward(line, "graphguard.trip"))


@pytest.mark.parametrize(
    "line",
    [
        "from graphguard.errors import InvalidBudget",
        "from .errors import InvalidBudget",
        "from graphguard.trip import Trip",
        "if TYPE_CHECKING:\n    from graphguard.guard import guard",
        "import langgraph.graph",
    ],
)
def test_a_downward_import_is_let_through(line):
    """Lower layers, the module's own, other packages and imports for types alone are allowed."""
    assert not list(upward(line, "graphguard.trip"))


def test_a_package_counts_as_one_layer():
    """Modules of one package may import each other, and from the layers below, by relative paths too."""
    source = "from .memory import MemoryLedger\nfrom ..errors import HoldMismatch\nfrom . import rows"
    assert not list(upward(source, "graphguard.ledger.sqlite"))


@pytest.mark.parametrize(
    "line",
    [
        "from langgraph._internal._runnable import RunnableCallable",
        "from langgraph import _internal",
        "import langgraph.pregel._algo as algo",
        "from langgraph.pregel import _loop",
        "from langchain_core.runnables.config import _set_config_context",
        "def f():\n    from langchain.agents import _x",
        "import langgraph.pregel as pregel\npregel._algo.run()",
        "import langgraph.pregel\nlanggraph.pregel._algo.run()",
        "from langgraph import pregel\npregel._algo.run()",
    ],
)
def test_a_private_name_is_seen(line):
    """However it is reached, a private name of LangGraph or LangChain is found."""
    assert list(private_names(line, "graphguard.gate"))


@pytest.mark.parametrize(
    "line",
    [
        "from langgraph.version import __version__",
        "from langgraph.graph import StateGraph\nself._nodes = StateGraph",
        "from graphguard.spend import _fold",
    ],
)
def test_a_public_name_is_let_through(line):
    """Version names, our own attributes and our own private names are no business of this rule."""
    assert not list(private_names(line, "graphguard.gate"))
