"""Anthropic's messages."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import Any

from guardrail.schemas.base import Answer, ChatRequest, Notice, Piece, SchemaError, StreamReader, Text, merged
from guardrail.schemas.messages import mapping, turns
from guardrail.schemas.texts import strings
from guardrail.sse import Event, event_bytes

__all__ = ["Messages"]

_REFUSED = {"stop_reason": "refusal", "stop_sequence": None}
_ERRORS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
_MORE_ERRORS = {429: "rate_limit_error", 503: "overloaded_error", 529: "overloaded_error"}


class Messages:
    """`POST /v1/messages`."""

    name = "anthropic-messages"

    def request(self, body: Any) -> ChatRequest:
        """Turns from `messages`; `system` is the application's and left out."""
        found = merged(list(turns(mapping(body, "the body").get("messages"), "messages")))
        return ChatRequest((found,), body.get("stream") is True, str(body.get("model") or ""))

    def answers(self, body: Any) -> list[Answer]:
        """All content blocks together are the one answer."""
        if not isinstance(mapping(body, "the body").get("content"), list):
            raise SchemaError("content is no list")
        return [Answer(0, "\n".join(text for _, text in strings(body)))]

    def refusal(self, request: ChatRequest, notice: Notice) -> dict[str, Any]:
        """A message with the stop reason `refusal`."""
        return {**_message(request), **_REFUSED, "content": [_block(notice.message)], "guardrail": notice.to_dict()}

    def redacted(self, body: Any, choices: Collection[int], notice: Notice) -> dict[str, Any]:
        """As `refusal`, with the message's own id, model and usage."""
        return {**body, **_REFUSED, "content": [_block(notice.message)], "guardrail": notice.to_dict()}

    def error(self, status: int, notice: Notice) -> dict[str, Any]:
        """Anthropic's error object."""
        kind = (_ERRORS | _MORE_ERRORS).get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": notice.message}, "guardrail": notice.to_dict()}

    def reader(self, request: ChatRequest) -> StreamReader:
        """For named events from `message_start` to `message_stop`."""
        return _Reader(request)


def _message(request: ChatRequest) -> dict[str, Any]:
    head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": request.model}
    return {**head, "content": [], "usage": {"input_tokens": 0, "output_tokens": 0}}


def _block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


class _Reader:
    """One stream; an ending closes the block that is open."""

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._open: int | None = None
        self._released: int | None = None
        self._started = False

    def read(self, event: Event) -> Piece:
        if event.data is None:
            return Piece()
        body = mapping(event.json(), "an event")
        index = body.get("index", "")
        texts = tuple(Text(0, f"{index} {path}", text) for path, text in strings(body))
        return Piece(texts, final=body.get("type", event.name) in ("message_stop", "error"))

    def without(self, event: Event, choices: Collection[int]) -> bytes:
        if 0 in choices:
            return b""
        if event.data is not None:
            self._follow(event.json())
        return event.raw

    def _follow(self, body: Any) -> None:
        kind = body.get("type")
        if kind == "content_block_start":
            self._open = body.get("index")
        elif kind == "content_block_stop":
            self._open = None
        self._started = self._started or kind == "message_start"

    def ending(self, choices: Sequence[int], notice: Notice) -> bytes:
        head = b"" if self._started else self._event("message_start", message=self._blank())
        stop = b"" if self._open is None else self._event("content_block_stop", index=self._open)
        delta = self._event("message_delta", delta=_REFUSED, usage={"output_tokens": 0}, guardrail=notice.to_dict())
        return head + stop + delta + self._event("message_stop")

    def closing(self) -> bytes:
        return b""

    def refusal(self, notice: Notice) -> bytes:
        said = {"type": "text_delta", "text": notice.message}
        start = self._event("message_start", message=self._blank())
        block = self._event("content_block_start", index=0, content_block=_block(""))
        delta = self._event("content_block_delta", index=0, delta=said)
        self._started, self._open = True, 0
        return start + block + delta + self.ending([0], notice)

    def _blank(self) -> dict[str, Any]:
        return {**_message(self._request), "stop_reason": None, "stop_sequence": None}

    def _event(self, kind: str, **fields: Any) -> bytes:
        return event_bytes({"type": kind, **fields}, kind)
