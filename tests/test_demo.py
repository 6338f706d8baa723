"""`graphguard demo`: its agent, its story, the questions it asks, and what it leaves behind."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import threading
import time
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command

from graphguard import Budget, MemoryLedger, Spend, guard
from graphguard.cli import graphguard
from graphguard.demo.agent import shop_scene
from graphguard.demo.mistakes import ModelFailed, WrongUse
from graphguard.demo.question import NobodyToAsk, Question
from graphguard.demo.scripted import CALLS, RunawayModel, count_tokens
from graphguard.demo.shop import Shop, shop_tools
from graphguard.demo.story import describe
from tests.needs import cli_runner

HERE = {"COLUMNS": "80", "NO_COLOR": None, "FORCE_COLOR": None, "TTY_COMPATIBLE": None}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def demo(*options: str, **env: str):
    """Run `graphguard demo` in this process, not on a terminal."""
    return cli_runner().invoke(graphguard, ["demo", *options], env={**HERE, **env})


def process(*options: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run `graphguard demo` in a process of its own, its output piped."""
    command = [sys.executable, "-m", "graphguard", "demo", *options]
    whole = {name: value for name, value in {**os.environ, **HERE, **env}.items() if value is not None}
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=whole, check=False)


def spent(file: str, thread: str) -> Decimal:
    """Give what a thread of a checkpoint file has spent, as its own state says."""
    return Spend.of(state(file, thread)).usd


def state(file: str, thread: str):
    """Give the state of a thread of a checkpoint file, read by a graph made anew."""
    with SqliteSaver.from_conn_string(file) as saver:
        graph = guard(shop_scene(RunawayModel()).graph, Budget(usd="0.05"), on_trip="interrupt")
        graph = graph.compile(checkpointer=saver)
        return graph.get_state({"configurable": {"thread_id": thread}})


def error_line(result) -> str:
    """Give the error that a command ended with, which is one line and exit code 2."""
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    return result.stderr.strip()


def runs_file(path: Path, *runs: dict[str, object]) -> Path:
    """Write recorded runs."""
    path.write_text("".join(json.dumps(run) + "\n" for run in runs), encoding="utf-8")
    return path


def recorded(name: str, *, turns: int, text: str = "x" * 400) -> dict[str, object]:
    """Make up a recorded run: each turn asks a tool and then answers the user."""
    messages = [{"role": "system", "content": "Be brief. " * 200}, {"role": "user", "content": text}]
    for turn in range(turns):
        call = {"id": f"c{turn}", "type": "function", "function": {"name": "find", "arguments": '{"what": "it"}'}}
        messages += [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{turn}", "name": "find", "content": text},
            {"role": "assistant", "content": text},
            {"role": "user", "content": text},
        ]
    return {"id": name, "model": "gpt-4o", "messages": messages}


# The agent.


def test_the_scripted_model_is_never_satisfied():
    """It calls the same tool over and over, each time in other words, and gives up after its last call."""
    model, messages, words = RunawayModel(), [HumanMessage("?")], []
    for _ in range(CALLS):
        messages.append(model.invoke(messages))
        words += [call["args"]["words"] for call in messages[-1].tool_calls if call["name"] == "search_refunds"]

    assert len(words) == len(set(words)) == CALLS - 2
    assert not messages[-1].tool_calls


def test_the_scripted_model_keeps_nothing():
    """The same messages get the same answer, so that a run can be resumed and replayed."""
    model = RunawayModel()
    messages = [HumanMessage("?"), AIMessage("one"), AIMessage("two")]

    first = model.invoke(messages)
    model.invoke([HumanMessage("something else")])

    assert model.invoke(messages).tool_calls == first.tool_calls


def test_every_scripted_answer_carries_usage_within_its_cap():
    """Tokens are reported with every answer, and none is longer than the model's output cap."""
    model, messages = RunawayModel(), [HumanMessage("?")]
    for _ in range(CALLS):
        messages.append(model.invoke(messages))

    used = [message.usage_metadata for message in messages[1:]]
    assert all(usage and 0 < usage["output_tokens"] <= model.max_tokens for usage in used)


def test_tools_are_counted_as_input():
    """Descriptions of bound tools are sent with each call, so they count."""
    asked = [HumanMessage("?")]
    bare, bound = RunawayModel(), RunawayModel().bind_tools(shop_tools(Shop()))

    assert bound.invoke(asked).usage_metadata["input_tokens"] > bare.invoke(asked).usage_metadata["input_tokens"] + 100


def test_tokens_are_counted_from_bytes():
    """Four UTF-8 bytes are a token, rounded up, and tool calls count with their arguments."""
    assert count_tokens([HumanMessage("abcde")]) == 2
    assert count_tokens([HumanMessage("é" * 4)]) == 2
    assert count_tokens([AIMessage("", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "1"}])]) > 0


def test_the_task_can_be_solved():
    """The refund that the task asks for is in the database, under an order number with two digits swapped."""
    order, _, refunds = shop_tools(Shop())

    assert "89.90 EUR" in order.invoke({"order_id": 1042})
    assert refunds.invoke({"words": "Okafor"}).startswith("refund 41, order 1024, 89.90 EUR, paid 2026-02-02")


def test_the_script_never_finds_it():
    """None of the scripted searches shows the refund, so the loop is not a lie."""
    _, _, refunds = shop_tools(Shop())
    model, messages = RunawayModel(), [HumanMessage("?")]
    for _ in range(CALLS - 1):
        messages.append(model.invoke(messages))
        for call in messages[-1].tool_calls:
            if call["name"] == "search_refunds":
                assert "Okafor" not in refunds.invoke(call["args"])


@pytest.mark.parametrize("words", ["'; DROP TABLE refunds; --", "%", "?", "", "a " * 50])
def test_a_search_is_data_not_sql(words):
    """Whatever the model searches for, the query is an answer and the database stays."""
    shop = Shop()
    search = shop_tools(shop)[2]

    assert search.invoke({"words": words})
    assert shop.rows("SELECT count(*) FROM refunds") == [(41,)]


@pytest.mark.parametrize("order_id", [0, -5, 10**30])
def test_an_order_that_is_not_there(order_id):
    """A number that no order has, however large, gets an answer that says so."""
    assert shop_tools(Shop())[0].invoke({"order_id": order_id}) == f"Nothing found: order {order_id}."


def test_the_shop_is_read_only():
    """Nothing can be written once the database is filled."""
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        Shop().rows("DELETE FROM refunds")


def test_the_agent_is_plain_langgraph():
    """Its graph has a model node and a tool node, and a tool's answer is a `ToolMessage` from the database."""
    scene = shop_scene(RunawayModel(calls=2))

    done = scene.graph.compile().invoke({"messages": list(scene.messages)})

    assert list(scene.graph.nodes) == ["agent", "tools"]
    assert "Mira Okafor" in next(message.text for message in done["messages"] if isinstance(message, ToolMessage))


# The story.


def test_the_story_in_its_order():
    """Unguarded it runs to the script's end; guarded it trips, goes on after the raise, trips again and ends."""
    result = demo("--yes")

    assert result.exit_code == 0
    story = [
        "The model is a script",
        "without a budget",
        f"{CALLS} says:",
        'Budget(usd="0.05")',
        "budget reached",
        "Raise the budget to $0.10? [Y/n/amount] yes (--yes)",
        "The run goes on from that checkpoint, with a budget of $0.10.",
        "budget reached",
        "Raise the budget to $0.20? [y/N/amount] no",
        "The run ends here.",
        "Side by side",
        f"no budget         {CALLS}",
        "budget raised to $0.10",
        "graphguard-demo.sqlite",
        "Try next:    graphguard demo",
    ]
    place = 0
    for part in story:
        place = result.output.index(part, place) + len(part)


def test_it_says_what_is_not_real():
    """The output says that the model is a script, that nothing is billed, and where its tokens come from."""
    words = " ".join(demo("--no").output.split())

    assert "The model is a script that loops as runaway agents do: no network, no key, no bill." in words
    assert "tokens are counted from the text and priced as gpt-4o's" in words


def test_a_call_a_line():
    """Each call has a line with its number, what the model did, what is spent and its share of the budget."""
    result = demo("--no")

    lines = re.findall(r"^ *(\d+) (\S.*?) +\$(\d\.\d{4}) [█░]{14} +(\d+)%$", result.output, re.MULTILINE)
    numbers = [int(number) for number, *_ in lines]
    assert numbers[:CALLS] == list(range(1, CALLS + 1))
    assert numbers[CALLS:] == list(range(1, len(numbers) - CALLS + 1))
    assert all(abs(Decimal(usd) / Decimal("0.05") * 100 - int(share)) <= 1 for _, _, usd, share in lines)


def test_the_budget_is_kept():
    """The guarded run costs no more than the budget, as raised, and the unguarded one costs more."""
    demo("--yes")

    assert Decimal("0.05") < spent("graphguard-demo.sqlite", "guarded") <= Decimal("0.10")
    assert spent("graphguard-demo.sqlite", "unguarded") > Decimal("0.20")


def test_no_stops_at_the_first_trip():
    """`--no` ends the run at the budget, and the last message of the run says what was reached."""
    result = demo("--no")

    assert result.exit_code == 0
    assert result.output.count("budget reached") == 1
    assert spent("graphguard-demo.sqlite", "guarded") <= Decimal("0.05")
    assert "Last message of the run: " in result.output


def test_end_asks_nothing():
    """`--on-trip end` ends at the budget without a question."""
    result = demo("--on-trip", "end")

    assert result.exit_code == 0
    assert "Raise" not in result.output
    assert "stopped at call" in result.output
    last = state("graphguard-demo.sqlite", "guarded").values["messages"][-1]
    assert isinstance(last, AIMessage)
    assert "$0.05" in last.text


def test_raise_is_shown_as_what_it_is():
    """`--on-trip raise` stops by `BudgetExceeded`, which the demo catches and names."""
    result = demo("--on-trip", "raise")

    assert result.exit_code == 0
    assert "stopped by BudgetExceeded" in result.output


def test_a_large_budget_is_never_reached():
    """With money enough the guarded run makes every call of the unguarded one."""
    result = demo("--budget", "$5")

    assert result.exit_code == 0
    assert "finished within the budget" in result.output
    assert spent("graphguard-demo.sqlite", "guarded") == spent("graphguard-demo.sqlite", "unguarded")


def test_a_tiny_budget_stops_the_first_call():
    """A budget that no call fits into lets none through."""
    result = demo("--budget", "0.0001", "--no")

    assert result.exit_code == 0
    assert "stopped at call 1" in result.output
    assert spent("graphguard-demo.sqlite", "guarded") == 0


def test_piped_output_is_plain():
    """In a pipe there is no escape sequence, no line over 80 columns but those to copy, and nothing on stderr."""
    done = process("--yes")

    text = done.stdout.decode()
    assert done.returncode == 0
    assert done.stderr == b""
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    assert max(map(len, text.splitlines())) <= 80


def test_a_terminal_without_unicode():
    """Where only ASCII can be printed, bars and boxes are ASCII and nothing fails."""
    done = process("--no", PYTHONIOENCODING="ascii", PYTHONUTF8="0")

    assert done.returncode == 0
    assert done.stdout.isascii()
    assert b"##" in done.stdout


def test_tracing_stays_off(monkeypatch):
    """A scripted run sends no traces, even where the shell turns tracing on."""
    requests = []

    class Traces(BaseHTTPRequestHandler):
        def do_POST(self):
            requests.append(self.path)
            self.send_error(500)

        def log_message(self, *_):
            pass

    with serving(Traces) as address:
        done = process("--no", LANGSMITH_TRACING="true", LANGSMITH_API_KEY="x", LANGSMITH_ENDPOINT=address)

    assert done.returncode == 0
    assert requests == []


# The question.


def test_nobody_to_ask():
    """Without a terminal and without a flag it stops at the question, says what to pass, and exits with 2."""
    result = demo()

    assert "--yes" in error_line(result)
    assert "--on-trip end" in result.stderr
    assert "budget reached" in result.stdout


def test_a_run_left_waiting_can_be_answered_from_its_file():
    """The question stays in the checkpoint file: a graph made anew takes the answer and goes on."""
    demo()

    with SqliteSaver.from_conn_string("graphguard-demo.sqlite") as saver:
        scene = shop_scene(RunawayModel())
        graph = guard(scene.graph, Budget(usd="0.05"), on_trip="interrupt", ledger=MemoryLedger())
        graph = graph.compile(checkpointer=saver)
        config = {"configurable": {"thread_id": "guarded"}}
        before = graph.get_state(config)
        graph.invoke(Command(resume={"decisions": [{"type": "approve"}]}), config)
        after = graph.get_state(config)

    assert before.interrupts
    assert Spend.of(after).calls > Spend.of(before).calls
    assert Decimal("0.05") < Spend.of(after).usd <= Decimal("0.10")


ASKED = Question(nth=1, spent_usd=Decimal("0.04"), limit_usd=Decimal("0.05"), suggested_usd=Decimal("0.10"))
ASKED_AGAIN = Question(nth=2, spent_usd=Decimal("0.09"), limit_usd=Decimal("0.10"), suggested_usd=Decimal("0.20"))


@pytest.mark.parametrize(
    ("question", "typed", "limit"),
    [
        (ASKED, "y", "0.10"),
        (ASKED, " YES ", "0.10"),
        (ASKED, "", "0.10"),
        (ASKED, "n", "0"),
        (ASKED, "0.30", "0.30"),
        (ASKED, "$ 0.30", "0.30"),
        (ASKED_AGAIN, "", "0"),
        (ASKED_AGAIN, "y", "0.20"),
    ],
)
def test_answers_that_can_be_read(question, typed, limit):
    """Yes stands for the suggestion, an amount for itself; Enter is yes the first time and no after that."""
    assert question.read(typed) == Decimal(limit)


@pytest.mark.parametrize("typed", ["maybe", "0.05", "0.01", "-1", "nan", "inf", "1e", "0,30"])
def test_answers_that_can_not(typed):
    """Anything else, and amounts that are no raise, is answered by what can be typed."""
    assert ASKED.read(typed) == "Please answer y, n, or an amount above $0.05."


class Terminal:
    """`graphguard demo` on a terminal of 80 by 24, as a person sees it."""

    def __init__(self, *options: str) -> None:
        self.screen, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        env = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", *HERE}}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "graphguard", "demo", *options],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**env, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(theirs)
        self.text = ""
        self.read_to = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def wait_for(self, words: str, *, seconds: float = 90) -> None:
        """Read what is shown until some words come, after those waited for before."""
        end = time.monotonic() + seconds
        while self.text.find(words, self.read_to) < 0:
            assert self._read(end - time.monotonic()), f"{words!r} never came after {self.text[self.read_to :]!r}"
        self.read_to = self.text.find(words, self.read_to) + len(words)

    def type(self, answer: str) -> None:
        """Type an answer."""
        os.write(self.screen, answer.encode())

    def end(self, *, seconds: float = 90) -> int:
        """Read to the end, and give the exit code."""
        end = time.monotonic() + seconds
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(timeout=30)

    def _read(self, seconds: float) -> bool:
        """Read what is shown next; False at the end, or when nothing comes."""
        ready, _, _ = select.select([self.screen], [], [], max(0, seconds))
        # A terminal whose other side is closed gives EIO instead of an end.
        with contextlib.suppress(OSError):
            shown = os.read(self.screen, 65_536) if ready else b""
            self.text += self._decoder.decode(shown)
            return bool(shown)
        return False


@contextlib.contextmanager
def terminal(*options: str):
    """Give a terminal on which the demo runs, and end it whatever happens."""
    it = Terminal(*options)
    try:
        yield it
    finally:
        if it.process.poll() is None:
            it.process.kill()
            it.process.wait()
        os.close(it.screen)


def test_a_person_raises_the_budget():
    """On a terminal the question waits for an answer; an amount is taken as the new budget; Enter stops later."""
    with terminal() as it:
        it.wait_for("Raise the budget to $0.10? [Y/n/amount]")
        it.type("lots\n")
        it.wait_for("Please answer y, n, or an amount above $0.05.")
        it.wait_for("Raise the budget to $0.10? [Y/n/amount]")
        it.type("0.07\n")
        it.wait_for("with a budget of $0.07.")
        it.wait_for("[y/N/amount]")
        it.type("\n")
        assert it.end() == 0

    assert "budget raised to $0.07" in it.text
    assert Decimal("0.05") < spent("graphguard-demo.sqlite", "guarded") <= Decimal("0.07")


def test_a_terminal_is_left_as_it_was():
    """Live lines hide the cursor, and it is shown again at the end."""
    with terminal("--no") as it:
        assert it.end() == 0

    assert it.text.count("\x1b[?25l") == it.text.count("\x1b[?25h") > 0


def test_end_of_input_means_no():
    """Ctrl-D at the question ends the run there."""
    with terminal() as it:
        it.wait_for("[Y/n/amount]")
        it.type("\x04")
        assert it.end() == 0

    assert "The run ends here." in it.text


def test_ctrl_c_leaves_the_file():
    """Ctrl-C at the question exits with 130 and says where the run waits."""
    with terminal() as it:
        it.wait_for("[Y/n/amount]")
        os.killpg(it.process.pid, signal.SIGINT)
        assert it.end() == 130

    assert "Stopped by you." in it.text
    assert state("graphguard-demo.sqlite", "guarded").interrupts


# The checkpoint file.


def test_an_older_demo_file_is_replaced():
    """The second run says that it replaces the first one's file, and starts anew."""
    first = demo("--no", "--db", "here.sqlite")
    second = demo("--no", "--db", "here.sqlite")

    assert "Replacing" not in first.output
    assert "Replacing the older demo file here.sqlite." in second.output
    assert second.exit_code == 0


def test_a_database_of_somebody_else_stays():
    """An SQLite file that no demo made, even one of LangGraph's, is not touched."""
    with SqliteSaver.from_conn_string("mine.sqlite") as saver:
        saver.setup()
    before = Path("mine.sqlite").read_bytes()

    result = demo("--yes", "--db", "mine.sqlite")

    assert "pass another --db FILE" in error_line(result)
    assert Path("mine.sqlite").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"my diary", b"SQLite format 3\x00"])
def test_any_other_file_stays(content):
    """A file that is not a database at all, or hardly one, is not touched."""
    Path("mine.txt").write_bytes(content)

    error_line(demo("--yes", "--db", "mine.txt"))

    assert Path("mine.txt").read_bytes() == content


@pytest.mark.parametrize("place", [".", "no/such/folder/x.sqlite"])
def test_a_place_where_no_file_can_be(place):
    """A folder, or a file in a folder that doesn't exist, is refused before anything runs."""
    result = demo("--yes", "--db", place)

    assert error_line(result)
    assert result.stdout == ""


# Wrong use.


@pytest.mark.parametrize("budget", ["-1", "0", "nan", "inf", "much", "", "1e-12"])
def test_a_budget_that_is_none(budget):
    """A budget that isn't a positive amount is refused in one line that shows a good one."""
    assert "such as 0.05" in error_line(demo("--budget", budget))


@pytest.mark.parametrize("model", ["gpt-4o", ":gpt-4o", "openai:", "nobody:gpt-4o"])
def test_a_model_of_no_provider(model):
    """A model without a provider, or with one that LangChain doesn't know, is refused with an example."""
    assert "openai:gpt-4o-mini" in error_line(demo("--model", model))


def test_a_provider_that_is_not_installed(monkeypatch):
    """A provider whose package is missing is refused with the package to install."""
    monkeypatch.setitem(sys.modules, "langchain_ollama", None)

    assert "langchain-ollama" in error_line(demo("--model", "ollama:llama3"))


def test_langchain_is_not_installed(monkeypatch):
    """Without langchain, `--model` says which extra to install."""
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)

    assert "pip install 'graphguard[langchain]'" in error_line(demo("--model", "openai:gpt-4o-mini"))


def test_a_key_that_is_missing(monkeypatch):
    """A provider without its key is refused before a file is made."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    assert "OPENAI_API_KEY" in error_line(demo("--model", "openai:gpt-4o-mini"))
    assert not list(Path().iterdir())


def test_two_sources_at_once():
    """A recorded run has its own model, so `--model` beside it is refused."""
    assert "can't be combined" in error_line(demo("--model", "openai:gpt-4o-mini", "--trajectory", "x.jsonl"))


RUN = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        (f"{RUN}\n{{oops", "line 2 is not JSON"),
        (f"{RUN}\n[]", "line 2 has no list 'messages'"),
        ('{"messages": "hi"}', "line 1 has no list 'messages'"),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "line 1 has no message of role 'assistant'"),
        ('{"messages": [{"role": "robot", "content": "hi"}]}', "line 1 holds a message that can't be read"),
        ('{"messages": ["hi", {"role": "assistant", "content": "hello"}]}', "line 1 holds a message"),
        (RUN.replace('{"messages"', '{"model": "nobodys-1", "messages"'), "no price is known for model 'nobodys-1'"),
    ],
)
def test_a_recording_that_can_not_be_read(content, says):
    """A bad line is named by its number, in one line that says what a good one looks like."""
    Path("runs.jsonl").write_text(content, encoding="utf-8")

    assert says in error_line(demo("--trajectory", "runs.jsonl"))


def test_a_recording_that_is_missing():
    """A file that doesn't exist is named."""
    assert "no file 'nowhere.jsonl'" in error_line(demo("--trajectory", "nowhere.jsonl"))


def test_a_recording_that_is_no_text():
    """A file that is no UTF-8 text, or a folder, is refused."""
    Path("runs.jsonl").write_bytes(b"\xff\xfe\x00")

    assert "can't read" in error_line(demo("--trajectory", "runs.jsonl"))
    assert "can't read" in error_line(demo("--trajectory", "."))


@pytest.mark.parametrize("error", [WrongUse("a\nb"), ModelFailed("x"), NobodyToAsk()])
def test_errors_survive_pickle(error):
    """Errors of the demo are one line, and can be sent to another process."""
    import pickle  # noqa: PLC0415

    copied = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes

    assert (type(copied), copied.message, copied.exit_code) == (type(error), error.message, error.exit_code)
    assert "\n" not in copied.message


# Recorded runs.


def test_one_recorded_run_is_told_call_by_call():
    """A file of one run is shown like the scripted agent, and asks like it."""
    file = runs_file(Path("one.jsonl"), recorded("a", turns=12))

    result = demo("--trajectory", str(file), "--budget", "0.03", "--yes")

    assert result.exit_code == 0
    assert "24 says: xxx" in result.output
    assert "Raise the budget to $0.06? [Y/n/amount] yes (--yes)" in result.output
    assert "ran to its recorded end" in result.output


def test_usage_of_recordings_is_said_to_be_counted():
    """The output says that the tokens of recorded runs are counted from the text."""
    file = runs_file(Path("one.jsonl"), recorded("a", turns=1))

    words = " ".join(demo("--trajectory", str(file), "--no").output.split())

    assert "The recording carries no usage: tokens are counted from the text" in words


def test_many_recorded_runs_are_a_line_each():
    """A file of several runs gives each a line and a thread of its own, and asks nothing."""
    file = runs_file(Path("many.jsonl"), recorded("short", turns=1), recorded("long", turns=20))

    result = demo("--trajectory", str(file), "--budget", "0.02")

    assert result.exit_code == 0
    assert re.search(r"^short +2 +\$0\.\d{4} +\$0\.\d{4} within the budget", result.output, re.MULTILINE)
    assert re.search(r"^long +40 +\$0\.\d{4} +\$0\.0[01]\d\d stopped at call", result.output, re.MULTILINE)
    assert "1 of 2 stopped" in result.output


def test_a_run_within_its_budget_is_replayed_to_its_end():
    """Every message of the recording is in the thread, in its order."""
    run = recorded("a", turns=3)
    file = runs_file(Path("two.jsonl"), run, recorded("b", turns=1))

    demo("--trajectory", str(file), "--budget", "1")

    kept = state("graphguard-demo.sqlite", "a").values["messages"]
    roles = {"human": "user", "ai": "assistant"}
    assert [(roles.get(message.type, message.type), message.text) for message in kept] == [
        (message["role"], message.get("content", "")) for message in run["messages"]
    ]


def test_runs_of_one_name_are_kept_apart():
    """Two runs of the same id are two threads, not one conversation."""
    file = runs_file(Path("twins.jsonl"), recorded("a", turns=1), recorded("a", turns=1))

    result = demo("--trajectory", str(file), "--budget", "1")

    assert "a (line 2)" in result.output
    assert spent("graphguard-demo.sqlite", "a") == spent("graphguard-demo.sqlite", "a (line 2)") > 0


def test_a_recording_can_not_write_to_the_terminal():
    """Escape sequences in recorded text are not printed."""
    file = runs_file(Path("evil.jsonl"), recorded("e\x1b[2Jvil", turns=2, text="\x1b[2J\x07gone"))

    assert not re.search(r"[\x00-\x09\x0b-\x1f]", demo("--trajectory", str(file), "--budget", "1").output)


def test_real_recorded_runs(shared_data):
    """Sixty runs of a real agent are replayed; none costs more than its budget, and the long ones are stopped."""
    result = demo("--trajectory", str(shared_data / "agent_trajectories.jsonl"))

    assert result.exit_code == 0
    lines = re.findall(r"^airline-\S+ +\d+ +\$(\S+) +\$(\S+) (.*?)\s*$", result.output, re.MULTILINE)
    assert len(lines) == 60
    assert all(Decimal(kept) <= Decimal("0.05") for _, kept, _ in lines)
    assert all(bare == kept for bare, kept, how in lines if how == "within the budget")
    assert {how for *_, how in lines} >= {"within the budget", "stopped at call 7"}


# A live model.


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]):
    """Give the address of a server on this machine, for as long as it is needed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Provider(BaseHTTPRequestHandler):
    """Chat completions in OpenAI's format: one tool call, then an answer."""

    status = 200
    caps: ClassVar[list[int]] = []

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.caps.append(asked["max_completion_tokens"])
        message = {"role": "assistant", "content": "Booked on order 1024."}
        if asked["messages"][-1]["role"] != "tool":
            function = {"name": "search_refunds", "arguments": '{"words": "Okafor"}'}
            message = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": function}]}
        body = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
        }
        data = json.dumps(body if self.status == 200 else {"error": {"message": "wrong key"}}).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Refusing(Provider):
    status = 401


def test_a_live_model_runs_with_a_budget_only():
    """`--model` drives the same agent by a real client, once, with the budget and an output cap, and says why."""
    Provider.caps.clear()
    with serving(Provider) as address:
        result = demo("--model", "openai:gpt-4o-mini", "--no", OPENAI_API_KEY="x", OPENAI_BASE_URL=f"{address}/v1")

    assert result.exit_code == 0
    assert "its provider bills you, up to $0.05" in " ".join(result.output.split())
    assert "without a budget: calls" not in result.output
    assert 'search_refunds "Okafor"' in result.output
    assert "Booked on order 1024." in result.output
    assert Provider.caps == [1000, 1000]
    # Twice 1,000 tokens in and 100 out, at $0.15 and $0.60 a million.
    assert spent("graphguard-demo.sqlite", "guarded") == Decimal("0.00042")


def test_a_live_model_that_fails():
    """A provider's refusal is one line and exit code 1, not a traceback."""
    with serving(Refusing) as address:
        result = demo("--model", "openai:gpt-4o-mini", "--no", OPENAI_API_KEY="x", OPENAI_BASE_URL=f"{address}/v1")

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: openai:gpt-4o-mini failed: ")
    assert result.stderr.count("\n") == 1


# Small things.


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (AIMessage("All\n done.\x1b[31m"), "says: All done. [31m"),
        (AIMessage("", tool_calls=[{"name": "now", "args": {}, "id": "1"}]), "now"),
        (
            AIMessage("", tool_calls=[{"name": n, "args": {"a": 1, "b": "c"}, "id": n} for n in ("f", "g")]),
            'f 1, "c" + g 1, "c"',
        ),
    ],
)
def test_what_a_model_did_is_one_printable_line(message, line):
    """Tool calls with their arguments, or the words said, without line breaks and control characters."""
    assert describe(message) == line
