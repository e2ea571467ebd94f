"""Server-sent events: whole events from any chunks, and every byte of them."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.sse import Event, EventParser, StreamError, event_bytes

ENDS = st.sampled_from(["\n", "\r\n", "\r"])
LINES = st.one_of(
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12),
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12).map(
        lambda t: f"data:{t}"
    ),
    st.sampled_from(["data", "data: ", ": comment", "event: ping", "id: 1", "retry: 10", "data: é中😀"]),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    lines = draw(st.lists(st.tuples(st.one_of(LINES, st.just("")), ENDS), max_size=20))
    return ("\ufeff" * draw(st.booleans()) + "".join(line + end for line, end in lines)).encode()


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def parsed(parts: list[bytes]) -> tuple[list[Event], bytes]:
    parser = EventParser()
    return [event for part in parts for event in parser.feed(part)], parser.rest()


@given(streams(), st.lists(st.integers(0, 300), max_size=30))
def test_chunks_make_no_difference_and_no_byte_is_lost(data: bytes, cuts: list[int]) -> None:
    events, rest = parsed(chunks(data, cuts))
    assert b"".join(event.raw for event in events) + rest == data
    by_byte, _ = parsed([bytes([byte]) for byte in data])
    # Where a CRLF is cut, its second half is counted to the event behind; what an event says stays the same.
    said = [(event.data, event.name) for event in by_byte]
    assert [(event.data, event.name) for event in events] == said


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_fields(end: str) -> None:
    lines = ["event: message", "data: one", "data:two", "data", ": a comment", "id: 7", "", "data: {", "", ""]
    events, rest = parsed([end.join(lines).encode()])
    assert [(event.name, event.data) for event in events] == [("message", "one\ntwo\n"), ("", "{")]
    assert rest == b""


@pytest.mark.parametrize("line", ["poison", '{"choices": []}', "Data: x", " data: x", "note: x"])
def test_lines_that_clients_skip_are_told(line: str) -> None:
    events, _ = parsed([f"id: 1\n{line}\nother\ndata: x\n\n: comment\nretry: 3\n\n".encode()])
    assert [(event.data, event.stray) for event in events] == [("x", line), (None, None)]


def test_a_comment_alone_is_an_event_without_data() -> None:
    events, _ = parsed([b": ping\n\n"])
    assert [(event.data, event.raw) for event in events] == [(None, b": ping\n\n")]


def test_what_lacks_its_empty_line_stays_behind() -> None:
    events, rest = parsed([b"data: 1\n\ndata: 2\n"])
    assert len(events) == 1
    assert rest == b"data: 2\n"


def test_a_character_cut_in_two() -> None:
    whole = "data: 😀\n\n".encode()
    events, _ = parsed([whole[:8], whole[8:]])
    assert events[0].data == "😀"


@pytest.mark.parametrize(
    ("data", "message"), [(b"data: \xff\n\n", "not UTF-8"), (b"data: " + b"x" * 200, "longer than 100 bytes")]
)
def test_what_is_no_stream(data: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        EventParser(100).feed(data)


def test_data_that_is_no_json() -> None:
    with pytest.raises(StreamError, match="not JSON"):
        parsed([b"data: {\n\n"])[0][0].json()


@given(st.dictionaries(st.text(), st.text()), st.sampled_from(["", "ping"]))
def test_what_is_written_is_read(value: dict[str, str], name: str) -> None:
    events, rest = parsed([event_bytes(value, name)])
    assert [(event.json(), event.name) for event in events] == [(json.loads(json.dumps(value)), name)]
    assert rest == b""
