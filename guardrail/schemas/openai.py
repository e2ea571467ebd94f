"""OpenAI's chat completions and completions, as its own service and most model servers speak them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from guardrail.schemas.base import Answer, ChatRequest, Notice, Piece, SchemaError, StreamReader, Text, merged
from guardrail.schemas.messages import mapping, turns
from guardrail.schemas.texts import strings
from guardrail.sse import Event, event_bytes
from guardrail.types import Message, Role

__all__ = ["ChatCompletions", "Completions", "openai_error"]

_DONE = "[DONE]"
_NOISE = "obfuscation"
"""Random letters in each event, so that its length tells nothing."""
_FILTER = "content_filter_results"
"""What Azure's own filter says of a choice, in each event."""
_FILTERED = "content_filter"
_MOST_CHOICES = 128
"""Of one prompt, as OpenAI has it."""


class ChatCompletions:
    """`POST /v1/chat/completions`."""

    name = "openai-chat"
    whole: ClassVar[str] = "chat.completion"
    streamed: ClassVar[str] = "chat.completion.chunk"

    def request(self, body: Any) -> ChatRequest:
        """Turns from `messages`; what tools returned counts as the user's."""
        contexts = (merged(list(turns(mapping(body, "the body").get("messages"), "messages"))),)
        return _request(body, contexts)

    def answers(self, body: Any) -> list[Answer]:
        """One per entry of `choices`; texts elsewhere in the body belong to the first."""
        texts = _texts_by_choice(body)
        return [Answer(choice, "\n".join(found)) for choice, found in sorted(texts.items())]

    def refusal(self, request: ChatRequest, notice: Notice) -> dict[str, Any]:
        """Every choice is the message, with the finish reason `content_filter`."""
        count = request.choices * max(1, len(request.contexts))
        body = {"id": f"{self.whole.replace('.', '')}-{uuid.uuid4().hex}", "object": self.whole}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return {
            **body,
            "created": int(time.time()),
            "model": request.model,
            "choices": [self.choice(index, notice) for index in range(count)],
            "usage": usage,
            "guardrail": notice.to_dict(),
        }

    def redacted(self, body: Any, choices: Collection[int], notice: Notice) -> dict[str, Any]:
        """The other choices stay as they are."""
        kept = [
            self.choice(index, notice) if index in choices else choice
            for index, choice in ((_index(choice, at), choice) for at, choice in enumerate(body["choices"]))
        ]
        return {**body, "choices": kept, "guardrail": notice.to_dict()}

    def error(self, status: int, notice: Notice) -> dict[str, Any]:
        """OpenAI's error object."""
        return openai_error(status, notice)

    def reader(self, request: ChatRequest) -> StreamReader:
        """For `data: {…}` events that end with `[DONE]`."""
        return _Reader(self, request)

    def choice(self, index: int, notice: Notice) -> dict[str, Any]:
        """A whole response's choice."""
        message = {"role": "assistant", "content": notice.message, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": _FILTERED}

    def delta(self, index: int, text: str | None) -> dict[str, Any]:
        """A streamed choice that says this text, or ends."""
        delta = {} if text is None else {"role": "assistant", "content": text}
        return {"index": index, "delta": delta, "finish_reason": _FILTERED if text is None else None}


class Completions(ChatCompletions):
    """`POST /v1/completions`."""

    name = "openai-completions"
    whole = streamed = "text_completion"

    def request(self, body: Any) -> ChatRequest:
        """A prompt each, as the user's."""
        prompt = mapping(body, "the body").get("prompt", "")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list):
            raise SchemaError("prompt is neither a string nor a list")
        if not all(isinstance(each, str) for each in prompts):
            raise SchemaError("prompt is a list of token ids, which is not text", unsupported=True)
        suffix = body.get("suffix")
        end = [(Role.USER, suffix)] if isinstance(suffix, str) else []
        return _request(body, tuple(merged([(Role.USER, each), *end]) for each in prompts))

    def choice(self, index: int, notice: Notice) -> dict[str, Any]:
        """A whole response's choice."""
        return {"index": index, "text": notice.message, "logprobs": None, "finish_reason": _FILTERED}

    def delta(self, index: int, text: str | None) -> dict[str, Any]:
        """A streamed choice that says this text, or ends."""
        return {"index": index, "text": text or "", "logprobs": None, "finish_reason": None if text else _FILTERED}


class _Reader:
    """One stream; endings take id, time and model from its events."""

    def __init__(self, schema: ChatCompletions, request: ChatRequest) -> None:
        self._schema = schema
        self._request = request
        self._head: dict[str, Any] = {
            "id": f"{schema.whole.replace('.', '')}-{uuid.uuid4().hex}",
            "object": schema.streamed,
            "created": int(time.time()),
            "model": request.model,
        }
        self._seen: set[tuple[int, str, str]] = set()
        """Texts which come with every event: those outside of the choices, and what a filter says of one."""

    def read(self, event: Event) -> Piece:
        if event.data is None:
            return Piece()
        if event.data.strip() == _DONE:
            return Piece(final=True)
        body = mapping(event.json(), "an event")
        self._head |= {key: body[key] for key in self._head if key in body}
        texts: list[Text] = []
        for choice, path, text in _choice_strings(body):
            filtered = path.startswith(_FILTER)
            texts += self._once(choice, path, text) if filtered else [Text(choice, path, text)]
        for path, text in _other_strings(body):
            texts += self._once(0, path, text) if path != _NOISE else []
        return Piece(tuple(texts), _finished(body))

    def _once(self, choice: int, path: str, text: str) -> list[Text]:
        if (choice, path, text) in self._seen:
            return []
        self._seen.add((choice, path, text))
        return [Text(choice, f"{path} {len(self._seen)}", text, whole=True)]

    def without(self, event: Event, choices: Collection[int]) -> bytes:
        if event.data is None or event.data.strip() == _DONE:
            return event.raw
        body = event.json()
        found = body.get("choices") or []
        kept = [choice for at, choice in enumerate(found) if _index(choice, at) not in choices]
        if len(kept) == len(found):
            return event.raw
        return event_bytes({**body, "choices": kept}, event.name) if kept else b""

    def ending(self, choices: Sequence[int], notice: Notice) -> bytes:
        return b"".join(self._chunk(self._schema.delta(choice, None), notice) for choice in choices)

    def closing(self) -> bytes:
        return event_bytes(_DONE)

    def refusal(self, notice: Notice) -> bytes:
        choices = range(self._request.choices * max(1, len(self._request.contexts)))
        said = b"".join(self._chunk(self._schema.delta(choice, notice.message)) for choice in choices)
        return said + self.ending(choices, notice) + self.closing()

    def _chunk(self, choice: Mapping[str, Any], notice: Notice | None = None) -> bytes:
        extra = {"guardrail": notice.to_dict()} if notice is not None else {}
        return event_bytes({**self._head, "choices": [choice], **extra})


def openai_error(status: int, notice: Notice) -> dict[str, Any]:
    """The error object of all of OpenAI's APIs."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status)
    error = {
        "message": notice.message,
        "type": kind or ("invalid_request_error" if status < 500 else "server_error"),
        "param": notice.details.get("param"),
        "code": _FILTERED if notice.reason == "unsafe" else notice.reason,
    }
    return {"error": error, "guardrail": notice.to_dict()}


def _request(body: Mapping[str, Any], contexts: tuple[tuple[Message, ...], ...]) -> ChatRequest:
    count = body.get("n")
    if count is not None and (not isinstance(count, int) or not 1 <= count <= _MOST_CHOICES):
        raise SchemaError(f"n is {count!r}; it is from 1 to {_MOST_CHOICES}")
    return ChatRequest(contexts, body.get("stream") is True, str(body.get("model") or ""), count or 1)


def _texts_by_choice(body: Any) -> dict[int, list[str]]:
    deleted = mapping(body, "the body").get("deleted") is True
    if not deleted and not isinstance(body.get("choices"), list):
        raise SchemaError("choices is no list")
    found: dict[int, list[str]] = {}
    for at, choice in enumerate(body.get("choices") or []):
        found[_index(choice, at)] = []
    for index, _, text in _choice_strings(body):
        found[index].append(text)
    others = [text for _, text in _other_strings(body)]
    if others:
        found.setdefault(min(found, default=0), []).extend(others)
    return found


def _choice_strings(body: Mapping[str, Any]) -> list[tuple[int, str, str]]:
    """(choice, path, text) of every text in the choices."""
    choices = body.get("choices")
    if choices is None:
        return []
    if not isinstance(choices, list):
        raise SchemaError("choices is no list")
    return [
        (_index(choice, at), path, text)
        for at, choice in enumerate(choices)
        for path, text in strings(mapping(choice, f"choices[{at}]"))
    ]


def _finished(body: Mapping[str, Any]) -> tuple[int, ...]:
    choices = body.get("choices") or []
    return tuple(_index(choice, at) for at, choice in enumerate(choices) if choice.get("finish_reason"))


def _other_strings(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(strings({key: value for key, value in body.items() if key != "choices"}))


def _index(choice: Any, at: int) -> int:
    index = mapping(choice, f"choices[{at}]").get("index", at)
    if not isinstance(index, int):
        raise SchemaError(f"choices[{at}].index is {index!r}")
    return index
