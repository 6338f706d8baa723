"""`graphguard check`: what it finds in the graphs of a `langgraph.json`, and how it says so."""

from __future__ import annotations

import json
import textwrap

import pytest
from langgraph.graph import StateGraph

from graphguard import Budget, guard
from graphguard.check_command.seen import calls_of
from graphguard.cli import graphguard
from tests.laws.shapes import Bench
from tests.laws.table import SHAPES
from tests.needs import cli_runner
from tests.scripted import Scripted

PRELUDE = """
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.store.memory import InMemoryStore
from graphguard import Budget, SqliteLedger, charge, guard
from graphguard.middleware import BudgetMiddleware
from graphguard.server import adjustable
from tests.scripted import Scripted

class Nano(Scripted):
    model_name: str = "gpt-5-nano"

model = Scripted()

def call(state):
    return {"messages": [model.invoke(state["messages"])]}

def steps(*nodes, loop=False):
    builder = StateGraph(MessagesState)
    builder.add_sequence([(f"step{at}", node) for at, node in enumerate(nodes, 1)])
    builder.add_edge(START, "step1")
    if loop:
        builder.add_edge(f"step{len(nodes)}", "step1")
    return builder

"""


@pytest.fixture
def check(tmp_path):
    """Run the command over a file with `graph`; give its JSON document and its exit code."""

    def run(source, *options, **config):
        (tmp_path / "graphs.py").write_text(PRELUDE + textwrap.dedent(source))
        document = {"dependencies": ["."], "graphs": {"graph": "./graphs.py:graph"}, **config}
        (tmp_path / "langgraph.json").write_text(json.dumps(document))
        done = cli_runner().invoke(graphguard, ["check", str(tmp_path / "langgraph.json"), "--json", *options])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return json.loads(done.stdout)["graphs"][0], done.exit_code

    return run


def codes(report):
    """Give the kinds of what was found."""
    return [found["code"] for found in report["findings"]]


def test_a_guarded_graph_is_fine(check):
    """Each call has its gate, the ceiling is the budget's, and nothing is wrong."""
    report, code = check("graph = guard(steps(call, call), Budget(usd='0.50'))")

    assert [(call["node"], call["guarded"], call["gate"]) for call in report["calls"]] == [
        ("step1", True, "node"),
        ("step2", True, "node"),
    ]
    assert report["ceilings"] == [{"usd": "0.5", "per": "branch", "exact": True, "by": "Budget(usd='0.50')"}]
    assert (codes(report), code) == ([], 0)


@pytest.mark.parametrize("name", SHAPES)
def test_no_shape_of_graph_hides_a_call(name):
    """In every shape that the laws are tested over, all model nodes are seen: bare without a guard, guarded with."""
    shape = SHAPES[name]
    bare = shape.build(Bench(Scripted(script=list(shape.script))))
    without, guarded = (
        list(calls_of(graph.compile() if isinstance(graph, StateGraph) else graph))
        for graph in (bare, guard(bare, Budget(calls=9)))
    )

    for node in shape.models:
        assert any(f"{call.name}:".startswith(f"{node}:") for call in without)
    assert [call.name for call in guarded] == [call.name for call in without]
    assert not any(call.around for call in without)
    assert all(call.around for call in guarded)


def test_a_call_in_an_edge_is_one(check):
    """A model that an edge asks where to go is seen, and is held where the graph is guarded."""
    source = """
        bare = StateGraph(MessagesState)
        bare.add_node("plan", lambda state: {})
        bare.add_edge(START, "plan")
        bare.add_conditional_edges("plan", lambda state: model.invoke("Go on?").content, {"ok": END})
    """
    report, code = check(f"{source}\n        graph = bare")
    guarded, fine = check(f"{source}\n        graph = guard(bare, Budget(calls=3), nodes=['plan'])")

    assert [(found["node"], found["code"]) for found in report["findings"]] == [("plan", "unguarded")]
    assert report["calls"][0]["how"] == "its edge holds the model Scripted"
    assert (codes(guarded), code, fine) == ([], 1, 0)


def test_an_unguarded_call_is_an_error(check):
    """A graph without a guard is told node by node."""
    report, code = check("graph = steps(call, lambda state: {}, call)")

    assert [(found["node"], found["code"]) for found in report["findings"]] == [
        ("step1", "unguarded"),
        ("step3", "unguarded"),
    ]
    assert (report["guarded"], code) == (False, 1)


def test_only_the_calls_outside_of_an_inner_guard_are_unguarded(check):
    """A graph inside that is guarded itself needs no other guard, whether it is a node or called in one."""
    report, _ = check("""
        inner = guard(steps(call), Budget(calls=2)).compile()
        graph = steps(inner, lambda state: inner.invoke(state), call)
    """)

    assert [found["node"] for found in report["findings"]] == ["step3"]
    assert [call["node"] for call in report["calls"] if call["guarded"]] == ["step1:step1", "step2:step1"]


@pytest.mark.parametrize(
    "source",
    [
        "graph = create_agent(model, [], middleware=[BudgetMiddleware(Budget(calls=3))])",
        "graph = guard(create_agent(model, []), Budget(calls=3))",
        "graph = adjustable(create_agent(model, []), max_calls=Budget(calls=3))",
        "def graph(config): return guard(steps(call), Budget(calls=config['configurable'].get('calls', 3)))",
        "async def graph(): return guard(steps(call), Budget(calls=3))",
        "def graph(run: 'ServerRuntime', config): return guard(steps(call), Budget(calls=3 if run.store else 0))",
        "@asynccontextmanager\nasync def graph(config): yield guard(steps(call), Budget(calls=3))",
    ],
)
def test_every_way_to_a_guarded_graph_is_followed(check, source):
    """Agents, middleware, settings and each kind of factory are looked into."""
    report, code = check(source)

    assert report["guarded"] is True
    assert [guard["budgets"] for guard in report["guards"]] == [["Budget(calls=3)"]]
    assert (codes(report), code) == ([], 0)


@pytest.mark.parametrize(
    ("budgets", "found"),
    [
        ("", ["endless"]),
        (", Budget(calls=50)", []),
        (", Budget(calls=50, node='step1')", []),
        (", Budget(calls=50, node='step2')", ["endless", "never-trips"]),
        (", Budget(calls=50, model='gpt-4o-mini')", []),
        (", Budget(calls=50, model='gpt-5')", ["endless", "never-trips"]),
        (", lambda spend, call: None", []),
    ],
)
def test_a_loop_needs_a_budget_that_ends_it(check, budgets, found):
    """A loop around a call is an error unless a budget that counts the call is around it."""
    report, code = check(f"graph = guard(steps(call, lambda state: {{}}, loop=True){budgets})")

    assert codes(report) == found
    assert code == ("endless" in found)


def test_an_agent_without_a_guard_may_loop_for_ever(check):
    """An agent's own loop is one."""
    report, _ = check("""
        @tool
        def look(q: str) -> str:
            "Look it up."
        graph = create_agent(model, [look])
    """)

    assert codes(report) == ["unguarded", "endless"]


@pytest.mark.parametrize(
    ("source", "found", "code"),
    [
        ("graph = GUARDED.compile(checkpointer=InMemorySaver())", ["own-checkpointer"], 1),
        ("graph = GUARDED.compile(store=InMemoryStore())", ["own-store"], 1),
        ("def graph(): return GUARDED.compile(checkpointer=InMemorySaver())", ["own-checkpointer"], 0),
    ],
)
def test_a_checkpointer_of_ones_own_is_found(check, source, found, code):
    """The server refuses a graph with one; from a factory it only takes no notice."""
    report, exit_code = check(source.replace("GUARDED", "guard(steps(call), Budget(calls=3))"))

    assert (codes(report), exit_code) == (found, code)


def test_an_unpriced_model_is_found(check):
    """A model whose calls nobody can price is a warning, which only --strict takes for wrong."""
    source = "fake = FakeListChatModel(responses=['Hm.'])\n"
    source += "graph = guard(steps(lambda state: {'messages': [fake.invoke('Hi')]}), Budget(calls=3))"
    report, code = check(source)
    _, strict = check(source, "--strict")

    assert codes(report) == ["unpriced"]
    assert (code, strict) == (0, 1)


@pytest.mark.parametrize(
    ("budgets", "never"),
    [
        ("Budget(calls=9), Budget(calls=4)", ["Budget(calls=9)"]),
        ("Budget(calls=4, per='run'), Budget(calls=4)", ["Budget(calls=4, per='run')"]),
        ("Budget(calls=9, per='run'), Budget(calls=4)", ["Budget(calls=9, per='run')"]),
        ("Budget(calls=4, per='run'), Budget(calls=9)", []),
        ("Budget(calls=9, node='step1'), Budget(calls=4)", ["Budget(calls=9, node='step1')"]),
        ("Budget(calls=4, node='step1'), Budget(calls=9)", []),
        ("Budget(calls=9, usd=1), Budget(calls=4)", []),
        ("Budget(calls=9, per='a', every='day'), Budget(calls=4, per='a')", ["Budget(calls=9, per='a', every='day')"]),
        ("Budget(calls=9, per='a'), Budget(calls=4, per='a', every='day')", []),
        ("Budget(calls=9, per='a'), Budget(calls=4, per='b')", []),
    ],
)
def test_a_budget_behind_a_smaller_one_never_trips(check, tmp_path, budgets, never):
    """A budget is dead where another one counts at least as much and has less."""
    ledger = f"SqliteLedger({str(tmp_path / 'ledger.sqlite')!r})"
    report, _ = check(f"graph = guard(steps(call), {budgets}, ledger={ledger})")

    assert [found["text"].split(" can never")[0] for found in report["findings"]] == never


def test_a_budget_too_small_for_any_call_is_found(check):
    """A budget that the first call's worst case is more than is told, with the amount."""
    report, _ = check("model.max_tokens = 100_000\ngraph = guard(steps(call), Budget(usd='0.001'))")

    assert codes(report) == ["too-small"]
    assert "may cost up to $" in report["findings"][0]["text"]


def test_a_model_without_a_cap_is_found(check):
    """Without an output cap a limit is not exact, and the ceiling says so."""
    report, _ = check("model.max_tokens = None\ngraph = guard(steps(call), Budget(usd=1))")

    assert codes(report) == ["uncapped"]
    assert report["ceilings"][0]["exact"] is False


def test_real_money_in_memory_is_found(check):
    """A budget that only the ledger counts is told when the ledger forgets."""
    report, _ = check("graph = guard(steps(call), Budget(usd=1, per='user_id', every='day'))")

    assert codes(report) == ["forgetful"]
    assert report["ceilings"][0]["per"] == "user_id every day"


def test_calls_and_tokens_have_a_ceiling_where_prices_are_known(check):
    """Tokens are priced at the dearest model's dearest rate."""
    report, _ = check("""
        nano = Nano()
        graph = guard(steps(call, lambda state: {"messages": [nano.invoke("Hi")]}), Budget(tokens=1_000_000))
    """)

    # gpt-4o-mini answers at $0.60 a million tokens; its priority tier, which a worst case must cover, costs more.
    assert 0.6 <= float(report["ceilings"][0]["usd"]) <= 1.2


def test_a_narrowed_budget_is_no_ceiling(check):
    """What counts only some calls says nothing of all."""
    report, _ = check("graph = guard(steps(call, call), Budget(usd=1, node='step1'))")

    assert report["ceilings"] == []


@pytest.mark.parametrize(
    ("node", "found"),
    [
        ("lambda state: OpenAI().responses.create(input='Hi')", ["uncounted"]),
        ("lambda state: charge(OpenAI().responses.create(input='Hi'))", []),
    ],
)
def test_a_client_that_langchain_does_not_see_is_found(check, node, found):
    """A provider's own client is not counted, unless the node says what it cost."""
    report, _ = check(f"from openai import OpenAI\ngraph = guard(steps(call, {node}), Budget(calls=3))")

    assert codes(report) == found


@pytest.mark.parametrize(
    ("node", "found"),
    [
        ("remote", []),
        ("lambda state: counted.invoke(state)", []),
        ("lambda state: remote.invoke(state)", ["uncounted"]),
    ],
)
def test_a_remote_graph_that_nobody_counts_is_found(check, node, found):
    """A remote graph is counted as a node, and wrapped by `counted`; not where a node's code just calls it."""
    report, _ = check(f"""
        from langgraph.pregel.remote import RemoteGraph
        from graphguard.remote import counted as wrap
        remote = RemoteGraph("agent", url="http://127.0.0.1:1")
        counted = wrap(remote, usd="0.02")
        graph = guard(steps({node}), Budget(calls=3))
    """)

    assert codes(report) == found


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("other = 1", "has no 'graph'"),
        (
            "graph = guard(steps(lambda s: FakeListChatModel(responses=['x']).invoke('')), Budget(usd=1, node='x'))",
            "'x'",
        ),
        ("graph = 5", "is of type int"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_a_line(check, source, why):
    """A graph that can't be imported is an error of that graph, not a traceback."""
    report, code = check(source)

    assert (len(report["findings"]), code) == (1, 1)
    assert why in report["findings"][0]["text"]


def test_a_graph_that_is_not_python_is_told(check):
    """A JavaScript graph beside is an error of its own."""
    report, _ = check("", graphs={"graph": "./agent.ts:graph"})

    assert report["findings"][0]["text"] == "can't be loaded: './agent.ts' is not Python, so it can't be looked into"


def test_the_environment_and_folders_of_the_server_are_there(check, tmp_path):
    """What `env` and `dependencies` say is there when graphs are imported, as under the server."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "limits_of_the_test.py").write_text("LIMIT = 3")
    (tmp_path / ".env").write_text("CALLS_OF_THE_TEST=2\n")
    report, _ = check(
        """
        import os
        from limits_of_the_test import LIMIT
        graph = guard(steps(call), Budget(calls=LIMIT * int(os.environ["CALLS_OF_THE_TEST"])))
        """,
        dependencies=["./lib"],
        env=".env",
    )

    assert report["guards"] == [{"budgets": ["Budget(calls=6)"], "on_trip": "end"}]


@pytest.mark.parametrize(
    ("text", "options", "why"),
    [
        ("{", [], "can't read"),
        ("[]", [], "must hold one JSON object"),
        ('{"graphs": {}}', [], "lists no graphs"),
        ('{"graphs": {"a": "./a.py:a"}}', ["--graph", "b"], "lists no graph 'b'; it lists: a"),
    ],
)
def test_wrong_use_is_exit_code_2(tmp_path, text, options, why):
    """A langgraph.json that can't be used is told in one line."""
    (tmp_path / "langgraph.json").write_text(text)

    done = cli_runner().invoke(graphguard, ["check", str(tmp_path / "langgraph.json"), *options])

    assert done.exit_code == 2
    assert why in done.stderr


def test_the_text_is_one_block_a_graph(tmp_path):
    """People read each graph's guard, calls, ceiling and findings, and the sums."""
    (tmp_path / "graphs.py").write_text(PRELUDE + "good = guard(steps(call), Budget(usd=1))\nbad = steps(call)\n")
    graphs = {"good": "./graphs.py:good", "bad": {"path": "./graphs.py:bad"}}
    (tmp_path / "langgraph.json").write_text(json.dumps({"graphs": graphs}))

    done = cli_runner().invoke(graphguard, ["check", str(tmp_path / "langgraph.json")])

    assert done.stdout.splitlines() == [
        "good  ./graphs.py:good",
        "  guard    Budget(usd='1'); on_trip=end",
        "  call     step1: gate node; holds the model Scripted",
        "  at most  $1.00 per branch, by Budget(usd='1')",
        "",
        "bad  ./graphs.py:bad",
        "  call     step1: NOT GUARDED; holds the model Scripted",
        "  error    step1: holds the model Scripted, and no guard is around it; guard(graph, Budget(...)) [unguarded]",
        "",
        "2 graphs, 1 error, 0 warnings",
    ]
    assert done.exit_code == 1
