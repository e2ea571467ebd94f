"""Streamed answers as the APIs send them, and applications and clients that need no network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from guardrail.backends.scripted import ScriptedBackend
from guardrail.guard import Guard
from guardrail.middleware import GuardMiddleware
from guardrail.sse import EventParser, event_bytes

BAD = "BOMB"


def guard(words: str = BAD, **options: Any) -> Guard:
    """Flags every text that holds the word."""
    return Guard(ScriptedBackend.load(words, max_tokens=100_000, **options))


def chat_events(parts: Iterable[tuple[int, str]], choices: int = 1, *, done: bool = True) -> list[bytes]:
    """A streamed chat completion of (choice, text)."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return event_bytes({**head, "choices": [{"index": index, "delta": delta, "finish_reason": finish}]})

    events = [chunk(index, {"role": "assistant", "content": ""}) for index in range(choices)]
    events += [chunk(index, {"content": text}) for index, text in parts]
    events += [chunk(index, {}, "stop") for index in range(choices)]
    return [*events, event_bytes("[DONE]")] if done else events


def message_events(texts: Iterable[str]) -> list[bytes]:
    """A streamed message of Anthropic's."""
    message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}

    def event(kind: str, **fields: Any) -> bytes:
        return event_bytes({"type": kind, **fields}, kind)

    return [
        event("message_start", message={**message, "usage": {"input_tokens": 1, "output_tokens": 1}}),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        b": ping\n\n",
        *(event("content_block_delta", index=0, delta={"type": "text_delta", "text": text}) for text in texts),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 9}),
        event("message_stop"),
    ]


def response_events(texts: Sequence[str]) -> list[bytes]:
    """A streamed response of OpenAI's, which says its text four times."""
    numbers = iter(range(10_000))
    whole = "".join(texts)
    part = {"type": "output_text", "text": whole, "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    head = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "instructions": "Say BOMB never."}
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}

    def event(kind: str, **fields: Any) -> bytes:
        return event_bytes({"type": kind, "sequence_number": next(numbers), **fields}, kind)

    return [
        event("response.created", response={**head, "status": "in_progress", "output": []}),
        event("response.output_item.added", output_index=0, item={**item, "content": []}),
        event("response.content_part.added", **place, part={**part, "text": ""}),
        *(event("response.output_text.delta", **place, delta=text, logprobs=[]) for text in texts),
        event("response.output_text.done", **place, text=whole, logprobs=[]),
        event("response.content_part.done", **place, part=part),
        event("response.output_item.done", output_index=0, item=item),
        event("response.completed", response={**head, "status": "completed", "output": [item]}),
    ]


def chat_body(text: str = "hello", **fields: Any) -> dict[str, Any]:
    """A request."""
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


class Upstream:
    """An ASGI application that answers with what it is given, and keeps what it was asked."""

    def __init__(
        self, body: bytes | Sequence[bytes], kind: str = "application/json", status: int = 200, **headers: str
    ) -> None:
        self.parts = [body] if isinstance(body, bytes) else list(body)
        self.kind = kind
        self.status = status
        self.headers = headers
        self.pause = 0.0
        self.asked: list[bytes] = []
        self.sent = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        self.asked.append(body)
        headers = [(b"content-type", self.kind.encode())]
        headers += [(name.replace("_", "-").encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for part in self.parts:
            if self.pause:
                await asyncio.sleep(self.pause)
            await send({"type": "http.response.body", "body": part, "more_body": True})
            self.sent += 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Answered:
    """What a client got."""

    def __init__(self, messages: Sequence[dict[str, Any]]) -> None:
        self.parts = [m.get("body", b"") for m in messages if m["type"] == "http.response.body"]
        starts = [m for m in messages if m["type"] == "http.response.start"]
        assert len(starts) == 1, "one response has one start"
        assert messages[-1].get("more_body") is False, "the response was not ended"
        assert sum(m.get("more_body") is False for m in messages if m["type"] == "http.response.body") == 1
        self.status: int = starts[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in starts[0]["headers"]}
        self.body = b"".join(self.parts)

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of the stream's events; a stream must end with a whole one."""
        parser = EventParser()
        found = [event for event in parser.feed(self.body) if event.data is not None]
        assert parser.rest() == b"", "the stream ends within an event"
        return [event.data if event.data == "[DONE]" else event.json() for event in found]

    def chat_text(self, choice: int = 0) -> str:
        """What a choice of a streamed chat completion says."""
        return "".join(
            each["delta"].get("content") or ""
            for event in self.events()
            if event != "[DONE]"
            for each in event["choices"]
            if each["index"] == choice
        )

    def finish(self, choice: int = 0) -> str | None:
        """Why a choice of a streamed chat completion ended."""
        reasons = [
            each["finish_reason"]
            for event in self.events()
            if event != "[DONE]"
            for each in event["choices"]
            if each["index"] == choice and each["finish_reason"]
        ]
        assert len(reasons) <= 1, "a choice ends once"
        return reasons[0] if reasons else None


async def ask(
    app: GuardMiddleware,
    body: Any,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> Answered:
    """One request over ASGI; `body` is JSON, or bytes, or a list of chunks."""
    raw = [json.dumps(body).encode()] if isinstance(body, dict) else [body] if isinstance(body, bytes) else list(body)
    sent: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": part, "more_body": at < len(raw) - 1} for at, part in enumerate(raw)]

    async def receive() -> Any:
        if waiting:
            return waiting.pop(0)
        await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers), "query_string": b""}
    await app(scope, receive, send)
    return Answered(sent)


async def iterate(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
