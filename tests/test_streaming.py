"""Streams through the middleware: nothing unsafe leaves, and what is safe leaves unchanged."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.middleware import GuardMiddleware, Windowing
from guardrail.schemas.base import ChatRequest, Notice
from guardrail.schemas.openai import ChatCompletions
from guardrail.serving.gate import StreamGate
from guardrail.serving.routes import Mode
from guardrail.sse import EventParser
from tests.chat_streams import (
    BAD,
    Answered,
    Upstream,
    ask,
    chat_body,
    chat_events,
    guard,
    message_events,
    response_events,
)

STREAM = "text/event-stream"
WORDS = st.sampled_from(["one", "two ", " three", ". ", "!\n", "漢字", "😀", " ", "\n\n", "x" * 40, "ä", "{", '"'])
TEXTS = st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=40)
WINDOWINGS = st.one_of(
    st.builds(
        lambda size, part, first: Windowing(size, min(size - 1, part), first=first),
        st.integers(1, 12),
        st.integers(0, 8),
        st.one_of(st.none(), st.integers(1, 15)),
    ),
    st.builds(
        lambda size, part: Windowing(size, min(size - 1, part), "sentences"), st.integers(1, 3), st.integers(0, 2)
    ),
)
CUTS = st.lists(st.integers(0, 4000), max_size=25)

GUARD = guard()


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)] or [b""]


def streamed(parts: list[bytes], *, path: str = "/v1/chat/completions", **route: Any) -> tuple[Answered, Upstream]:
    upstream = Upstream(parts, STREAM)
    app = GuardMiddleware(upstream, GUARD, **route)
    body = chat_body(stream=True, input="hello", n=route.pop("n", 1))
    return asyncio.run(ask(app, body, path)), upstream


def clean(text: str) -> str:
    return text.replace(BAD, "").replace(BAD.lower(), "")


@settings(max_examples=150)
@given(TEXTS, WINDOWINGS, CUTS, st.sampled_from(["withhold", "rewind", "end"]))
def test_a_safe_stream_arrives_byte_for_byte(
    texts: list[str], windowing: Windowing, cuts: list[int], mode: Mode
) -> None:
    texts = [clean(text) for text in texts]
    if BAD.lower() in "".join(texts).lower():
        return
    data = b"".join(chat_events([(0, text) for text in texts]))
    answered, _ = streamed(chunked(data, cuts), windowing=windowing, mode=mode)
    assert answered.body == data
    assert answered.status == 200


class Recording:
    """A guard, and the texts that it was asked about."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.guard = guard()
        judge_many = self.guard.judge_many

        def recorded(conversations: Any, **options: Any) -> Any:
            conversations = list(conversations)
            self.texts += [each.judged.text for each in conversations]
            return judge_many(conversations, **options)

        self.guard.judge_many = recorded  # type: ignore[method-assign]


@settings(max_examples=200)
@given(TEXTS, TEXTS, WINDOWINGS, CUTS)
def test_no_character_of_an_unsafe_window_leaves(
    before: list[str], after: list[str], windowing: Windowing, cuts: list[int]
) -> None:
    texts = [*map(clean, before), BAD[:2], BAD[2:], *map(clean, after)]
    whole = "".join(texts)
    if whole.lower().count(BAD.lower()) > 1:
        return
    recording = Recording()
    upstream = Upstream(chunked(b"".join(chat_events([(0, text) for text in texts])), cuts), STREAM)
    app = GuardMiddleware(upstream, recording.guard, windowing=windowing, check="output")
    answered = asyncio.run(ask(app, chat_body(stream=True)))
    unsafe = [text for text in recording.texts if BAD in text]
    if not unsafe:  # no window had the whole word, so nothing was judged unsafe
        assert answered.chat_text() == whole
        return
    start = whole.index(BAD) - unsafe[0].index(BAD)
    if answered.status != 200:  # nothing had left: an error takes the place of the stream
        assert answered.json()["error"]["code"] == "content_filter"
        return
    said = answered.chat_text()
    assert whole.startswith(said)
    assert len(said) <= start
    assert answered.finish() == "content_filter"
    assert answered.events()[-1] == "[DONE]"


@settings(max_examples=300)
@given(
    st.lists(st.one_of(WORDS, st.sampled_from([BAD, "BO", "MB ", None])), max_size=60),
    WINDOWINGS,
    st.sampled_from(["withhold", "end"]),
)
def test_the_clock_releases_no_character_of_an_unsafe_window(
    texts: list[str | None], windowing: Windowing, mode: Mode
) -> None:
    """None stands for the clock: what is there is judged although its window is not full."""
    reader = ChatCompletions().reader(ChatRequest())
    gate = StreamGate(reader, ChatRequest(), windowing, most_bytes=1 << 20, mode=mode)
    whole, released, unsafe = "", b"", len("".join(text or "" for text in texts))

    def judge(early: bool) -> None:
        nonlocal released, unsafe
        for due in gate.due(early=early):
            assert due.text == whole[due.window.start : due.window.end]
            if BAD in due.text:
                unsafe = min(unsafe, due.window.start)
                gate.stop(0, Notice("unsafe", ""))
                return
            gate.safe(due)
        released += gate.release()

    for text in [*texts, ""]:
        if text is None:
            judge(early=True)
            continue
        (event,) = EventParser().feed(chat_events([(0, text)], 0, done=False)[0])
        whole += text
        gate.hold(event)
        gate.read(reader.read(event))
        judge(early=False)
        if gate.cut:
            break
    gate.end()
    if not gate.cut:
        judge(early=False)
    said = "".join(event.json()["choices"][0]["delta"]["content"] for event in EventParser().feed(released))
    assert whole.startswith(said)
    assert len(said) <= unsafe
    assert gate.cut or said == whole


def test_overlap_finds_what_lies_across_two_windows() -> None:
    """Whatever fits into the overlap is seen whole by some window."""
    texts = [f"w{number} " for number in range(30)]
    phrase = guard("pipe bomb")
    for place in range(30):
        said = [*texts[:place], "pi", "pe bo", "mb ", *texts[place:]]
        upstream = Upstream(chat_events([(0, text) for text in said]), STREAM)
        app = GuardMiddleware(upstream, phrase, windowing=Windowing(6, 2), action="answer")
        answered = asyncio.run(ask(app, chat_body(stream=True)))
        assert "bomb" not in answered.chat_text()
        assert answered.finish() == "content_filter"


def test_choices_are_cut_on_their_own() -> None:
    parts = [(0, "all "), (1, "this "), (0, "is "), (1, "BOMB "), (0, "fine "), (1, "more ")] * 10
    upstream = Upstream(chat_events(parts, choices=2), STREAM)
    app = GuardMiddleware(upstream, GUARD, windowing=Windowing(4, 1))
    answered = asyncio.run(ask(app, chat_body(stream=True, n=2)))
    assert answered.chat_text(0) == "all is fine " * 10
    assert answered.finish(0) == "stop"
    assert answered.finish(1) == "content_filter"
    assert "BOMB" not in answered.body.decode()
    assert "more" not in answered.chat_text(1)


@pytest.mark.parametrize(
    ("path", "events"),
    [
        ("/v1/messages", message_events),
        ("/v1/responses", response_events),
    ],
)
def test_other_apis(path: str, events: Any) -> None:
    safe = events([f"word {number}, " for number in range(40)])
    answered, _ = streamed(safe, path=path)
    assert answered.body == b"".join(safe)
    texts = [f"word {number}, " for number in range(100)]
    answered, _ = streamed(events([*texts[:80], "BO", "MB!", *texts[80:]]), path=path)
    assert b"word 20" in answered.body
    assert b"BOMB" not in answered.body.replace(b"Say BOMB never.", b"")
    assert b"word 80" not in answered.body
    last = answered.events()[-1]
    if path == "/v1/messages":
        kinds = [event["type"] for event in answered.events()]
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert answered.events()[-2]["delta"]["stop_reason"] == "refusal"
    else:
        assert last["type"] == "response.incomplete"
        assert last["response"]["incomplete_details"] == {"reason": "content_filter"}
        numbers = [event["sequence_number"] for event in answered.events()]
        assert numbers == list(range(len(numbers)))


def test_rewind_takes_back_what_left() -> None:
    texts = [f"w{number} " for number in range(30)]
    answered, _ = streamed(chat_events([(0, text) for text in [*texts, "BOMB ", *texts]]), mode="rewind")
    assert BAD in answered.chat_text()
    ending = next(event for event in answered.events() if "guardrail" in event)
    assert ending["guardrail"]["retract"] is True
    assert ending["guardrail"]["reason"] == "unsafe"
    assert answered.finish() == "content_filter"


@pytest.mark.parametrize("windowing", [None, Windowing(40, 12)])
def test_the_mode_end_lets_nothing_leave_before_all_is_judged(windowing: Windowing | None) -> None:
    recording = Recording()
    texts = [f"w{number} " for number in range(200)]
    data = chat_events([(0, text) for text in texts])
    app = GuardMiddleware(Upstream(data, STREAM), recording.guard, mode="end", check="output", windowing=windowing)
    answered = asyncio.run(ask(app, chat_body(stream=True)))
    assert answered.body == b"".join(data)
    assert len(answered.parts) == 2  # all of it, and the end
    assert recording.texts[0] == "".join(texts) if windowing is None else len(recording.texts) > 5
    unsafe = chat_events([(0, text) for text in [*texts, "BOMB "]])
    app = GuardMiddleware(Upstream(unsafe, STREAM), GUARD, mode="end", check="output", windowing=windowing)
    answered = asyncio.run(ask(app, chat_body(stream=True)))
    assert answered.json()["error"]["code"] == "content_filter"


def test_whole_answers_are_judged_in_the_same_windows() -> None:
    body = {"choices": [{"index": 0, "message": {"content": " ".join(f"w{number}" for number in range(100))}}]}
    recording = Recording()
    app = GuardMiddleware(Upstream(json.dumps(body).encode()), recording.guard, check="output")
    assert asyncio.run(ask(app, chat_body())).json() == body
    whole = recording.texts
    recording = Recording()
    text = body["choices"][0]["message"]["content"]  # type: ignore[index]
    streamed_app = GuardMiddleware(Upstream(chat_events([(0, text)]), STREAM), recording.guard, check="output")
    asyncio.run(ask(streamed_app, chat_body(stream=True)))
    assert len(whole) > 2
    assert whole == recording.texts


def test_a_slow_stream_is_judged_by_the_clock() -> None:
    """Long before a window is full, something leaves."""
    upstream = Upstream(chat_events([(0, f"w{number} ") for number in range(12)]), STREAM)
    upstream.pause = 0.05
    app = GuardMiddleware(upstream, GUARD, windowing=Windowing(1000, 2, max_delay=0.1))
    answered = asyncio.run(ask(app, chat_body(stream=True)))
    assert answered.body == b"".join(upstream.parts)
    assert len(answered.parts) > 3


def test_tool_calls_and_unknown_fields_are_text() -> None:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}

    def events(delta: dict[str, Any]) -> list[bytes]:
        from guardrail.sse import event_bytes

        body = {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        return [event_bytes(body), event_bytes("[DONE]")]

    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "run", "arguments": '{"x": "BOMB"}'}}
    for delta in ({"tool_calls": [call]}, {"reasoning_content": "the BOMB"}, {"some_new_field": {"deep": ["a BOMB"]}}):
        answered, _ = streamed(events(delta))
        assert answered.json()["error"]["code"] == "content_filter"
    smuggled = {"role": "assistant", "content": "x", "tool_calls": [{**call, "id": "a BOMB for you"}]}
    assert BAD.encode() not in streamed(events(smuggled))[0].body
