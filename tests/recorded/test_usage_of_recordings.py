"""Recorded answers go through the real clients and are metered; what each cost is known from its raw body.

The project's own recordings run in any clone, those beside it where they are present. Each client asks for all the
recordings of its model in turn, in a graph of one node, so that a charge's place says which recording it is of.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph

from graphguard import MemoryLedger, guard
from tests.recorded.conftest import OWN
from tests.recorded.recordings import ADVISERS, CLIENTS, COST, NO_CLIENT, SPEECH, by_client, client, load

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langgraph.graph.state import CompiledStateGraph

    from graphguard.spend import Charge
    from tests.recorded.recordings import Recording
    from tests.recorded.server import Billed, RecordedServer

pytestmark = [
    # Bodies of server-side tools that are newer than the clients' types: the clients say so, and parse them.
    pytest.mark.filterwarnings("ignore:Received unexpected tool content block:UserWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
    pytest.mark.filterwarnings("ignore:The model .* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*Warning. Output may vary each run:UserWarning"),
]


class Question(TypedDict):
    stream: bool


class Metered:
    """Asks for recordings in metered graphs, and keeps each with the charges that it led to."""

    def __init__(self, server: RecordedServer, recordings: tuple[Recording, ...], *, asynchronous: bool) -> None:
        """Take them all through."""
        self.recordings = recordings
        self.replayed: list[Recording] = []
        self.charges: list[Charge] = []
        self.streamed: list[bool] = []
        self.unanswered: list[str] = []
        for (provider, model), group in by_client(recordings).items():
            lane, ledger = server.lane(one.answer for one in group), MemoryLedger()
            builder = one_node(client(provider, model, lane.url), asynchronous=asynchronous)
            graph = guard(builder, ledger=ledger).compile()
            if asynchronous:
                asyncio.run(_all(graph, group))
            else:
                for one in group:
                    graph.invoke({"stream": one.stream})
            self.replayed += group
            self.charges += ledger.charges()
            self.streamed += [asks_for_stream(one) for one in lane.billed]
            self.unanswered += lane.unanswered

    def priced(self) -> dict[str, tuple[Recording, Charge]]:
        """Give the recordings that report usage, with their charges."""
        pairs = zip(self.replayed, self.charges, strict=True)
        return {one.name: (one, charge) for one, charge in pairs if one.bill is not None}


def asks_for_stream(billed: Billed) -> bool:
    """Tell whether a client asked for an event stream; Google's says so in the path."""
    return bool(billed.request.get("stream")) or billed.path.endswith(":streamGenerateContent")


def one_node(model: BaseChatModel, *, asynchronous: bool) -> StateGraph[Question]:
    """Give a graph whose one node asks the model, as a stream or not."""

    def ask(state: Question) -> None:
        if state["stream"]:
            list(model.stream("?"))
        else:
            model.invoke("?")

    async def aask(state: Question) -> None:
        if state["stream"]:
            _ = [chunk async for chunk in model.astream("?")]
        else:
            await model.ainvoke("?")

    builder = StateGraph(Question)
    builder.add_node("ask", aask if asynchronous else ask)
    builder.add_edge(START, "ask")
    builder.add_edge("ask", END)
    return builder


async def _all(graph: CompiledStateGraph, group: list[Recording]) -> None:
    for one in group:
        await graph.ainvoke({"stream": one.stream})


def recordings_of(source: str, request: pytest.FixtureRequest) -> tuple[Recording, ...]:
    """Give the recordings of a source; the test is skipped where they are absent."""
    if source == "own":
        return load(OWN / "responses.jsonl")
    return load(request.getfixturevalue("shared_data") / "provider_responses.jsonl")


@pytest.fixture(scope="module", params=["own-sync", "own-async", "shared-sync", "shared-async"])
def metered(request: pytest.FixtureRequest, server: RecordedServer) -> Metered:
    """Give all recordings of a source, metered."""
    source, mode = request.param.split("-")
    return Metered(server, recordings_of(source, request), asynchronous=mode == "async")


def test_each_recording_is_charged_once(metered):
    """Every recording that a client can ask for is answered, and leads to one charge; none drops out silently."""
    unasked = [one for one in metered.recordings if one.no_client]
    assert metered.unanswered == []
    assert len(metered.charges) == len(metered.replayed) == len(metered.recordings) - len(unasked)


def test_streams_are_asked_for_as_streams(metered):
    """A recorded event stream is given to a client that streams, and a JSON body to one that does not."""
    assert metered.streamed == [one.stream for one in metered.replayed]


def test_metered_tokens_are_those_of_the_raw_body(metered):
    """Input and output of each charge are those that the body or event stream reports, however it spells them."""
    whole = {name: pair for name, pair in metered.priced().items() if pair[0].torn is None}
    found = {name: (charge.input_tokens, charge.output_tokens) for name, (_, charge) in whole.items()}
    assert found == {name: (one.bill.input_tokens, one.bill.output_tokens) for name, (one, _) in whole.items()}


def test_a_body_that_contradicts_itself_is_not_read_as_less(metered):
    """Where a body's counts don't fit together, no fewer tokens are metered than its last word says."""
    for one, charge in metered.priced().values():
        assert one.torn is None or charge.input_tokens >= one.bill.input_tokens
        assert one.torn is None or charge.output_tokens >= one.bill.output_tokens


def test_metered_price_is_that_of_the_raw_body(metered):
    """Each charge is the raw body's price to the nano-USD, except where LangChain drops a part of it (`lost`)."""
    kept = {name: pair for name, pair in metered.priced().items() if pair[0].lost is None and pair[0].torn is None}
    found = {name: None if charge.unpriced else charge.nanousd for name, (_, charge) in kept.items()}
    assert found == {name: one.bill.nanousd for name, (one, _) in kept.items()}


def test_an_answer_without_usage_is_estimated_and_marked(metered):
    """Counts of zero are missing counts: the charge is marked as estimated, and is not free. All others are told."""
    pairs = list(zip(metered.replayed, metered.charges, strict=True))
    silent = {one.name for one, _ in pairs if one.bill is None}
    marked = {one.name: charge for one, charge in pairs if charge.estimated}
    assert set(marked) == silent
    assert all(charge.nanousd > 0 for charge in marked.values())


def test_what_cannot_be_replayed_is_counted(shared_data):
    """Ten of the 621 recordings answer requests that no chat model makes; the others are all replayed."""
    recordings = load(shared_data / "provider_responses.jsonl")
    compact, by_id, stored = NO_CLIENT.values()
    assert Counter(one.no_client for one in recordings) == {None: 611, compact: 5, by_id: 4, stored: 1}


def test_what_langchain_loses_is_counted(shared_data):
    """Of fourteen recordings a part of the price is in the raw body, and not in what LangChain passes on."""
    recordings = load(shared_data / "provider_responses.jsonl")
    assert Counter(one.lost for one in recordings if one.lost) == {SPEECH: 9, COST: 4, ADVISERS: 1}


def test_bodies_that_contradict_themselves_are_counted(shared_data):
    """One recording does."""
    recordings = load(shared_data / "provider_responses.jsonl")
    assert [one.torn for one in recordings if one.torn] == ["its last event counts less than one before"]


def test_every_kind_of_answer_is_among_the_projects_own():
    """Without any other data, each provider is replayed, and each format that streams as a stream too."""
    recordings = load(OWN / "responses.jsonl")
    assert {one.provider for one in recordings} == set(CLIENTS)
    assert {one.provider for one in recordings if one.stream} >= set(CLIENTS) - {"openrouter", "deepseek"}
