"""The local server gives what was recorded, byte for byte, and knows what it billed."""

from __future__ import annotations

import httpx
import pytest

from tests.recorded.server import Answer

EVENTS = 'data: {"n": 1}\n\ndata: {"n": 2, "text": "größer"}\n\ndata: [DONE]\n\n'


@pytest.fixture
def http():
    """Give an HTTP client."""
    with httpx.Client(verify=False) as client:  # noqa: S501 - plain HTTP; loading certificates takes 30 ms
        yield client


def test_an_event_stream_arrives_verbatim(server, http):
    """The bytes of a recorded event stream are those that the client reads."""
    lane = server.lane([Answer.of(EVENTS)])

    with http.stream("POST", f"{lane.url}/v1/chat/completions", json={}) as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert b"".join(response.iter_bytes()) == EVENTS.encode()


@pytest.mark.parametrize("text", [EVENTS, EVENTS.replace("\n", "\r\n"), EVENTS.strip(), ": ping\n\n"])
def test_an_event_stream_is_sent_event_by_event(text):
    """Each event is a chunk of its own, and the chunks together are the stream."""
    chunks = list(Answer.of(text).chunks())

    assert b"".join(chunks) == text.encode()
    assert [chunk.count(b"data:") for chunk in chunks] == [1] * text.count("data:") or "data:" not in text


def test_lanes_are_apart(server, http):
    """Two tests that ask the same path each get their own answers, and each sees its own requests only."""
    lanes = [server.lane([Answer.of({"lane": name})]) for name in ("a", "b")]

    bodies = [http.post(f"{lane.url}/v1/messages", json={"asks": at}).json() for at, lane in enumerate(lanes)]

    assert bodies == [{"lane": "a"}, {"lane": "b"}]
    assert [[one.request for one in lane.billed] for lane in lanes] == [[{"asks": 0}], [{"asks": 1}]]


def test_a_request_too_many_is_refused_and_remembered(server, http):
    """Without an answer left, a client gets status 400, which none retries; nothing is billed, and the lane tells."""
    lane = server.lane([])

    assert http.post(f"{lane.url}/v1/messages", json={}).status_code == 400
    assert (lane.billed, lane.unanswered) == ([], ["/v1/messages"])


def test_an_unknown_lane_is_not_found(server, http):
    """A path without a lane gets status 404."""
    assert http.post(f"http://127.0.0.1:{server.server_port}/v1/messages", json={}).status_code == 404
