"""OpenAI's Responses."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from guardrail.schemas.base import Answer, ChatRequest, Notice, Piece, SchemaError, StreamReader, Text, merged
from guardrail.schemas.messages import content_text, mapping
from guardrail.schemas.openai import openai_error
from guardrail.schemas.texts import strings
from guardrail.sse import Event, event_bytes
from guardrail.types import Role

__all__ = ["Responses"]

_FINAL = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled", "error"})
_OUTPUT = ("output", "output_text", "error")
# A response repeats what it was asked.
_ECHOED = frozenset(
    {
        "instructions", "input", "tools", "tool_choice", "metadata", "prompt", "text", "reasoning", "user",
        "truncation", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "previous_response_id",
        "conversation",
    }
)  # fmt: skip
_PLACES = ("output_index", "content_index", "summary_index")
_LEFT_OUT = frozenset({"system", "developer"})


class Responses:
    """`POST /v1/responses`, and reading a stored one."""

    name = "openai-responses"

    def request(self, body: Any) -> ChatRequest:
        """Turns from `input`, and last what a stored prompt is filled with; `instructions` are the application's."""
        given = mapping(body, "the body").get("input") or ""
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if not isinstance(items, list):
            raise SchemaError("input is neither a string nor a list")
        turns = [turn for at, item in enumerate(items) if (turn := _turn(item, f"input[{at}]")) is not None]
        turns += [(Role.USER, text) for text in _variables(body.get("prompt"))]
        return ChatRequest((merged(turns),), body.get("stream") is True, str(body.get("model") or ""))

    def answers(self, body: Any) -> list[Answer]:
        """All output items together are the one answer."""
        deleted = mapping(body, "the body").get("deleted") is True
        if not deleted and not isinstance(body.get("output"), list):
            raise SchemaError("output is no list")
        return [Answer(0, "\n".join(text for _, text in strings(_output(body))))]

    def refusal(self, request: ChatRequest, notice: Notice) -> dict[str, Any]:
        """An incomplete response, for the reason `content_filter`, that says the message."""
        return _response(request.model, notice, notice.message)

    def redacted(self, body: Any, choices: Collection[int], notice: Notice) -> dict[str, Any]:
        """As `refusal`, with the response's own id, time and model."""
        return {**body, **_outcome(notice, notice.message), "output_text": notice.message}

    def error(self, status: int, notice: Notice) -> dict[str, Any]:
        """OpenAI's error object."""
        return openai_error(status, notice)

    def reader(self, request: ChatRequest) -> StreamReader:
        """For typed events."""
        return _Reader(request)


def _turn(item: Any, place: str) -> tuple[Role, str] | None:
    kind = mapping(item, place).get("type", "message")
    if kind == "item_reference":
        return None
    if kind != "message":
        # Calls and reasoning were the model's, results come from outside.
        role = Role.USER if str(kind).endswith("_output") else Role.ASSISTANT
        if isinstance(item.get("output"), list | Mapping):
            return role, content_text(item["output"], f"{place}.output")
        return role, "\n".join(text for _, text in strings(item))
    role_name = item.get("role")
    if role_name in _LEFT_OUT:
        return None
    if role_name not in ("user", "assistant"):
        raise SchemaError(f"{place}.role is {role_name!r}, which is not known")
    return Role(role_name), content_text(item.get("content"), f"{place}.content")


def _variables(prompt: Any) -> list[str]:
    if prompt is None:
        return []
    place = "prompt.variables"
    filled = mapping(mapping(prompt, "prompt").get("variables") or {}, place)
    return [content_text(value, f"{place}.{key}") for key, value in filled.items()]


def _output(body: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in body.items() if key not in _ECHOED}
    said = [text for _, text in strings(found.get("output"))]
    if found.get("output_text") in ("".join(said), "\n".join(said)):
        del found["output_text"]
    return found


def _outcome(notice: Notice, text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}] if text else []
    item = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "status": "incomplete"}
    return {
        "status": "incomplete",
        "incomplete_details": {"reason": "content_filter"},
        "error": None,
        "output": [{**item, "content": content}],
        "guardrail": notice.to_dict(),
    }


def _response(model: str, notice: Notice, text: str) -> dict[str, Any]:
    head = {"id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time()), "model": model}
    rest = {"parallel_tool_calls": False, "tool_choice": "none", "tools": [], "metadata": {}, "instructions": None}
    return {**head, **rest, **_outcome(notice, text)}


class _Reader:
    """One stream; an ending has the numbers and the head of its events."""

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._head: dict[str, Any] | None = None
        self._events = 0
        self._number = -1
        """Of the last event that left."""
        self._said: dict[str, str] = {}
        """By channel, the text so far: events that end a part repeat it."""

    def read(self, event: Event) -> Piece:
        if event.data is None:
            return Piece()
        body = mapping(event.json(), "an event")
        kind = str(body.get("type") or event.name)
        self._events += 1
        if isinstance(body.get("response"), Mapping):
            self._head = {key: value for key, value in body["response"].items() if key not in _OUTPUT}
        texts = self._delta(kind, body) if isinstance(body.get("delta"), str) else self._whole(kind, body)
        return Piece(texts, final=kind in _FINAL)

    def _delta(self, kind: str, body: Mapping[str, Any]) -> tuple[Text, ...]:
        channel = ".".join([kind, *(str(body[key]) for key in _PLACES if key in body)])
        self._said[channel] = self._said.get(channel, "") + body["delta"]
        rest = {key: value for key, value in body.items() if key not in ("delta", "obfuscation", "response")}
        others = (Text(0, f"{channel} {path}", text) for path, text in strings(rest))
        return (*([Text(0, channel, body["delta"])] if body["delta"] else ()), *others)

    def _whole(self, kind: str, body: Mapping[str, Any]) -> tuple[Text, ...]:
        shown = {key: value for key, value in body.items() if key != "response"}
        if isinstance(body.get("response"), Mapping):
            shown["response"] = _output(body["response"])
        known = set(self._said.values())
        texts: list[Text] = []
        for path, text in strings(shown):
            if text not in known:
                known.add(text)
                channel = f"{kind} {self._events} {path}"
                self._said[channel] = text
                texts.append(Text(0, channel, text, whole=True))
        return tuple(texts)

    def without(self, event: Event, choices: Collection[int]) -> bytes:
        if 0 in choices:
            return b""
        number = event.json().get("sequence_number") if event.data is not None else None
        self._number = number if isinstance(number, int) else self._number
        return event.raw

    def ending(self, choices: Sequence[int], notice: Notice) -> bytes:
        head = self._head or _response(self._request.model, notice, "")
        response = {**head, **_outcome(notice, "")}
        return self._event("response.incomplete", response=response)

    def closing(self) -> bytes:
        return b""

    def refusal(self, notice: Notice) -> bytes:
        response = _response(self._request.model, notice, notice.message)
        item = response["output"][0]
        started = {**response, "status": "in_progress", "incomplete_details": None, "output": []}
        place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        empty = {"type": "output_text", "text": "", "annotations": []}
        return b"".join(
            (
                self._event("response.created", response=started),
                self._event("response.output_item.added", output_index=0, item={**item, "content": []}),
                self._event("response.content_part.added", **place, part=empty),
                self._event("response.output_text.delta", **place, delta=notice.message, logprobs=[]),
                self._event("response.output_text.done", **place, text=notice.message, logprobs=[]),
                self._event("response.content_part.done", **place, part=item["content"][0]),
                self._event("response.output_item.done", output_index=0, item=item),
                self._event("response.incomplete", response=response),
            )
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return event_bytes({"type": kind, "sequence_number": self._number, **fields}, kind)
