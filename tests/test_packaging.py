"""What users import, unpickle and install is what the project says it is."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import re
import tomllib
from decimal import Decimal
from importlib.metadata import entry_points, metadata
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest

import graphguard
from graphguard import errors
from graphguard.langsmith.errors import AgentBudgetError
from graphguard.langsmith.spec import EvalBudgetError
from graphguard.trip import Trip

ROOT = Path(__file__).resolve().parents[1]

# But for `__main__`, which would run the command.
MODULES = [
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "src").rglob("*.py"))
    if path.name != "__main__.py"
]

TRIP = Trip(budget="usd=0.5 per branch", limit=500_000_000, spent=490_000_000, needed=20_000_000, node="plan")

# One of each; a new error gets its line here.
ERRORS = [
    errors.GraphguardError("something went wrong"),
    errors.BudgetExceeded(TRIP),
    EvalBudgetError("too much", calls=30, max_calls=20, usd=Decimal("0.5"), max_cost_usd=Decimal("0.25")),
    AgentBudgetError(TRIP, run_id="r1", trace_id="t1"),
    errors.HistoryUnavailable("no thread 't1' in the file; it has 't2'"),
    errors.HoldMismatch("h1"),
    errors.InvalidBudget("usd must be positive"),
    errors.LedgerUnavailable("calls.sqlite", "database is locked"),
    errors.MissingKey("user_id", "the run's config has none"),
    errors.NoCheckpointer(TRIP),
    errors.NoModelNodes(["plan", "act"]),
    errors.NotGuardable("Pregel"),
    errors.NothingToTopUp("the thread is not at a trip"),
    errors.StateConflict("spend"),
    errors.UnknownNode("plna", ["plan", "act"]),
    errors.UnknownPrice("model-of-tomorrow"),
]


def below(error: type[BaseException]) -> set[type[BaseException]]:
    """Give an error's class and all that derive from it."""
    return {error}.union(*(below(child) for child in error.__subclasses__()))


def test_all_names_what_can_be_imported():
    """`graphguard.__all__` lists each public name of the package once, and nothing else."""
    listed = list(graphguard.__all__)
    present = {
        name
        for name, value in vars(graphguard).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "annotations"
    }
    assert sorted(name for name in listed if not name.startswith("_")) == sorted(present)


@pytest.mark.parametrize("name", MODULES)
def test_all_of_each_module_exists(name):
    """Each name in a module's `__all__` can be imported from it."""
    module = pytest.importorskip(name)  # skipped where its extra is not installed
    assert [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)] == []


def test_every_error_has_an_example():
    """No error class of the package is left out of the pickle test below."""
    for name in MODULES:
        with contextlib.suppress(ModuleNotFoundError):  # where its extra is not installed
            importlib.import_module(name)
    ours = {error for error in below(errors.GraphguardError) if error.__module__.startswith("graphguard")}
    assert ours == {type(example) for example in ERRORS}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_survive_pickle(error):
    """An error that crossed a process is of the same class, with the same text and attributes."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - pickled on the same line
    assert (type(copy), str(copy), copy.args, vars(copy)) == (type(error), str(error), error.args, vars(error))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_stand_in_the_tree(error):
    """Each error is drawn in the tree at the top of errors.py, with the built-ins it also is."""
    row = next(line for line in (errors.__doc__ or "").splitlines() if type(error).__name__ in line.split())
    drawn = set(re.findall(r"\b[A-Z]\w+(?:Error|BubbleUp|Exceeded)\b", row)) - {"GraphguardError", type(error).__name__}
    bases = {base.__name__ for base in type(error).__bases__} - {"GraphguardError", "Exception"}
    assert bases == drawn


def test_types_are_shipped():
    """Type checkers of users read the package's annotations: `py.typed` lies in it."""
    assert files("graphguard").joinpath("py.typed").is_file()


def test_the_command_is_installed():
    """`graphguard` on the command line is `graphguard.cli.main`."""
    (command,) = entry_points(group="console_scripts", name="graphguard")
    assert command.value == "graphguard.cli:main"


def test_the_installed_version_is_the_projects():
    """The installed metadata has the version that pyproject.toml says, so the checkout is what is tested."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert metadata("graphguard")["Version"] == project["version"]


def test_the_changelog_has_the_version():
    """CHANGELOG.md has a heading for the version, or one for what is not released yet."""
    version = metadata("graphguard")["Version"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert {version, "Unreleased"} & set(headings)


def test_the_lock_names_no_index():
    """requirements.lock pins names and versions alone, so it installs from whatever index a machine uses."""
    lines = [line for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines() if line.strip()]
    pin = re.compile(r"[a-z0-9-]+==[\w.+!]+( ; [^#]+?)?( +# via .+)?")
    assert [line for line in lines if not pin.fullmatch(line)] == []
