"""Streams whose answers have several parts: thoughts before content, blocks, choices, noise; none holds up another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from guardrail.middleware import GuardMiddleware, Windowing
from guardrail.schemas import schema
from guardrail.schemas.base import ChatRequest
from guardrail.serving.gate import StreamGate
from guardrail.sse import EventParser, event_bytes
from guardrail.types import Message, Role
from tests.chat_streams import BAD, Upstream, ask, chat_body, guard

ASKED = ChatRequest(((Message(Role.USER, "hello"),),), stream=True)
THOUGHTS = [f"thought{number} " for number in range(30)]
WORDS = [f"word{number} " for number in range(40)]
CHAT, MESSAGES, RESPONSES = "openai-chat", "anthropic-messages", "openai-responses"


def chunk(delta: Any, index: int = 0, finish: str | None = None, **fields: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return event_bytes({"id": "c", "object": "chat.completion.chunk", "choices": [choice], **fields})


def block(index: int, kind: str, text: str) -> bytes:
    delta = {"type": f"{kind}_delta", kind: text}
    return event_bytes({"type": "content_block_delta", "index": index, "delta": delta}, "content_block_delta")


def response(kind: str, place: int, **fields: Any) -> bytes:
    return event_bytes({"type": f"response.{kind}", "output_index": place, **fields})


REASONING = [chunk({"reasoning_content": text}) for text in THOUGHTS] + [chunk({"content": text}) for text in WORDS]
CALL = [chunk({"content": text}) for text in THOUGHTS] + [
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": text}}]}) for text in WORDS
]
CHOICES = [
    *(chunk({"content": text}, 1) for text in THOUGHTS),
    chunk({}, 1, "stop"),
    *(chunk({"content": text}) for text in WORDS),
]
NOISE = [chunk({"content": text}, obfuscation=f"x{number}", note="hm") for number, text in enumerate(WORDS)]
FILTERED = [
    event_bytes({"choices": [{"index": 0, "delta": {"content": text}, "content_filter_results": {"hate": "safe"}}]})
    for text in WORDS
]
BLOCKS = [block(0, "thinking", text) for text in THOUGHTS] + [block(1, "text", text) for text in WORDS]
ITEMS = [
    *(response("reasoning_summary_text.delta", 0, delta=text) for text in THOUGHTS),
    response("reasoning_summary_text.done", 0, text="".join(THOUGHTS)),
    *(response("output_text.delta", 1, delta=text) for text in WORDS),
]


class Fed:
    """A gate that is fed events whose windows are all safe."""

    def __init__(self, name: str, windowing: Windowing | None = None) -> None:
        self.reader = schema(name).reader(ASKED)
        self.gate = StreamGate(self.reader, ASKED, windowing or Windowing(), most_bytes=1 << 20, mode="withhold")
        self.judged: list[str] = []

    def feed(self, events: Iterable[bytes], *, early: bool = False) -> bytes:
        """What left."""
        left = b""
        for data in events:
            for event in EventParser().feed(data):
                self.gate.hold(event)
                self.gate.read(self.reader.read(event))
            left += self._judge(early=early)
        return left

    def tick(self) -> bytes:
        """The clock asks."""
        return self._judge(early=True)

    def _judge(self, *, early: bool) -> bytes:
        for due in self.gate.due(early=early):
            self.judged.append(due.text)
            self.gate.safe(due)
        return self.gate.release()


@pytest.mark.parametrize(
    ("name", "events"),
    [
        (CHAT, REASONING),
        (CHAT, CALL),
        (CHAT, CHOICES),
        (CHAT, NOISE),
        (CHAT, FILTERED),
        (MESSAGES, BLOCKS),
        (RESPONSES, ITEMS),
    ],
    ids=["reasoning", "tool call", "choices", "noise", "filter", "blocks", "items"],
)
def test_what_follows_leaves_before_the_end(name: str, events: list[bytes]) -> None:
    fed = Fed(name)
    left = fed.feed(events)
    assert b"word2 " in left
    assert left == b"".join(events)[: len(left)]
    fed.gate.end()
    assert left + fed.tick() == b"".join(events)
    assert len(fed.judged) < 14


def test_a_part_that_goes_on_is_judged_with_what_it_had_said() -> None:
    fed = Fed(CHAT)
    fed.feed([*(chunk({"content": f"a{number} "}) for number in range(20)), chunk({"reasoning": "hm "})])
    fed.feed([chunk({"content": f"b{number} "}) for number in range(40)])
    over = [text for text in fed.judged if "a19" in text and "b0" in text]
    assert over
    assert all("a10 " in text for text in over)


@pytest.mark.parametrize("finish", ["", "stop"])
def test_a_finish_reason_in_every_event_takes_no_context_away(finish: str) -> None:
    fed = Fed(CHAT)
    fed.feed(chunk({"content": text}, finish=finish) for text in [*WORDS, *THOUGHTS])
    assert len(fed.judged) < 6
    assert any("word0 " in text and "word15 " in text for text in fed.judged)


def test_parts_that_take_turns_cost_no_judgement_each_time() -> None:
    fed = Fed(CHAT)
    fed.feed([chunk({key: f"{key[0]}{number} "}) for number in range(100) for key in ("content", "reasoning")])
    assert len(fed.judged) < 12


def test_the_clock_lets_a_choice_pass_that_fell_silent_without_a_reason() -> None:
    fed = Fed(CHAT)
    left = fed.feed(chunk({"content": text}, 1) for text in THOUGHTS)
    left += fed.feed(chunk({"content": text}) for text in WORDS)
    assert b"word0 " not in left
    left += fed.tick()
    left += fed.feed(chunk({"content": text}) for text in WORDS)
    left += fed.tick()
    assert b"word2 " in left


def test_a_stream_that_stands_still_keeps_back_its_overlap() -> None:
    fed = Fed(CHAT)
    fed.feed(chunk({"content": text}) for text in WORDS)
    left = [fed.tick() for _ in range(5)]
    assert b"word39 " not in b"".join(left)


@pytest.mark.parametrize("key", ["content", "reasoning_content"])
def test_an_unsafe_sentence_across_two_parts_of_one_channel_is_cut(key: str) -> None:
    events = [
        *(chunk({key: text}) for text in THOUGHTS), chunk({key: "a BO"}), chunk({"other": "hm"}), chunk({key: "MB "}),
        *(chunk({key: text}) for text in WORDS), event_bytes("[DONE]"),
    ]  # fmt: skip
    app = GuardMiddleware(Upstream(events, "text/event-stream"), guard())
    answered = asyncio.run(ask(app, chat_body(stream=True)))
    assert b"thought0" in answered.body
    assert b"word0" not in answered.body
    assert BAD.encode() not in answered.body
    assert answered.finish() == "content_filter"
