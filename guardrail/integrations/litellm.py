"""LiteLLM: a custom guardrail for its proxy and its Python calls.

guardrails:
  - guardrail_name: safety
    litellm_params:
      guardrail: guardrail.integrations.litellm.LiteLLMGuardrail
      mode: [pre_call, post_call]
      default_on: true
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from importlib import import_module
from typing import Any, Literal

from guardrail.errors import MissingExtraError
from guardrail.guard import Guard
from guardrail.integrations.checks import Checks, WithheldError
from guardrail.serving.exchange import Blocked, Exchange, Observer
from guardrail.serving.failures import JudgeFailure, Reason
from guardrail.serving.judge import Limits
from guardrail.serving.routes import Side
from guardrail.serving.streaming import GuardedStream
from guardrail.serving.windowing import Windowing
from guardrail.sse import EventParser, event_bytes

try:
    # By name, since its types are checked only where it is installed.
    CustomGuardrail: Any = import_module("litellm.integrations.custom_guardrail").CustomGuardrail
    GuardrailRaisedException: Any = import_module("litellm.exceptions").GuardrailRaisedException
except ImportError as error:
    raise MissingExtraError("litellm", "litellm") from error

__all__ = ["LiteLLMGuardrail"]

_MOST_BYTES = 8 << 20
_SCHEMAS = {
    "completion": "openai-chat", "acompletion": "openai-chat",
    "text_completion": "openai-completions", "atext_completion": "openai-completions",
    "responses": "openai-responses", "aresponses": "openai-responses",
    "anthropic_messages": "anthropic-messages", "aanthropic_messages": "anthropic-messages",
}  # fmt: skip
_OBJECTS = {
    "chat.completion": "openai-chat", "chat.completion.chunk": "openai-chat",
    "text_completion": "openai-completions", "text_completion.chunk": "openai-completions",
    "response": "openai-responses", "message": "anthropic-messages",
}  # fmt: skip
# No chat, as other paths are for the middleware; what is in neither list is refused.
_NO_CHAT = frozenset({"embedding", "embeddings", "moderation", "rerank", "speech", "audio_speech", "transcription"})
_NO_ANSWERS = frozenset({"EmbeddingResponse", "RerankResponse", "TranscriptionResponse", "HttpxBinaryResponseContent"})


_SAID = frozenset({"messages", "prompt", "input"})


class LiteLLMGuardrail(CustomGuardrail):  # type: ignore[misc]
    """Judges chat completions, completions, Responses and Anthropic messages: requests, answers and streams.

    What does not pass is LiteLLM's `GuardrailRaisedException`, with the status 400 or 503 and a `WithheldError` as its
    cause. Of a stream no text leaves before it is judged; one that is cut ends with `content_filter`.
    """

    def __init__(
        self,
        guard: Guard | None = None,
        *,
        action: Literal["block", "answer"] = "block",
        message: str = "Withheld by the content policy.",
        windowing: Windowing | None = None,
        limits: Limits | None = None,
        observe: Observer | None = None,
        **options: Any,
    ) -> None:
        """`action` "answer": unsafe choices of an answer are replaced by a refusal. `options` are LiteLLM's own."""
        options.setdefault("guardrail_name", "guardrail")
        hooks = import_module("litellm.types.guardrails").GuardrailEventHooks
        options.setdefault("supported_event_hooks", [hooks.pre_call, hooks.post_call])
        super().__init__(**options)
        self._checks = Checks(
            guard,
            "litellm",
            limits=limits,
            observe=observe,
            action=action,
            message=message,
            windowing=windowing or Windowing(),
        )

    async def async_pre_call_hook(self, user_api_key_dict: Any, cache: Any, data: Any, call_type: Any) -> Any:
        """The request, unchanged, when it is safe."""
        kind = str(getattr(call_type, "value", call_type))
        if kind in _NO_CHAT or kind.removeprefix("a") in _NO_CHAT:
            return data
        if kind not in _SCHEMAS:
            raise self._unread("input", f"calls of type {kind!r} are not read")
        exchange = self._checks.exchange(_SCHEMAS[kind])
        blocked = _read(exchange, data, "input") or await exchange.check_input()
        if blocked is not None:
            raise self._raised(blocked)
        return data

    async def async_post_call_success_hook(self, data: Any, user_api_key_dict: Any, response: Any) -> Any:
        """The answer when it is safe, or with its unsafe choices replaced."""
        if type(response).__name__ in _NO_ANSWERS:
            return response
        body = _plain(response)
        exchange = self._answering(body)
        blocked = _read(exchange, data, "output")
        if blocked is None:
            try:
                blocked = await exchange.check_output(exchange.answers(body))
            except JudgeFailure as failure:
                blocked = exchange.outcome("output", failure)
        if blocked is None:
            return response
        if blocked.action == "block":
            raise self._raised(blocked)
        redacted = exchange.route.api.redacted(body, blocked.choices, blocked.notice)
        return redacted if isinstance(response, Mapping) else type(response)(**redacted)

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: Any
    ) -> AsyncGenerator[Any, None]:
        """The stream's chunks, as far as they are judged."""
        chunks = aiter(response)
        first = await anext(chunks, _END)
        if first is _END:
            return
        raw = isinstance(first, str | bytes)  # Anthropic's messages come as they are on the wire
        exchange = self._checks.exchange("anthropic-messages") if raw else self._answering(_plain(first))
        blocked = _read(exchange, request_data, "output")
        if blocked is not None:
            raise self._raised(blocked)
        stream = _Stream(exchange, _chained(first, chunks), type(first), self._raised)
        async with aclosing(stream.chunks()) as judged:
            async for chunk in judged:
                yield chunk

    def _answering(self, body: Any) -> Exchange:
        """For an answer, by what it calls itself."""
        name = body.get("object", body.get("type")) if isinstance(body, Mapping) else None
        if str(body.get("type") if isinstance(body, Mapping) else "").startswith("response."):
            name = "response"
        if name not in _OBJECTS:
            raise self._unread("output", f"answers of type {name!r} are not read")
        return self._checks.exchange(_OBJECTS[name])

    def _unread(self, side: Side, message: str) -> Exception:
        return self._raised(self._checks.refused(side, JudgeFailure(Reason.UNSUPPORTED, message)))

    def _raised(self, blocked: Blocked) -> Exception:
        raised: Exception = GuardrailRaisedException(
            guardrail_name=self.guardrail_name,
            message=blocked.notice.message,
            should_wrap_with_default_message=False,
            status_code=blocked.status,
            blocked_content=blocked.notice.reason == Reason.UNSAFE,
        )
        raised.__cause__ = WithheldError(blocked)
        return raised


class _Stream:
    """Chunks → events → what may leave → the same chunks, so far as they were not changed."""

    def __init__(
        self,
        exchange: Exchange,
        source: AsyncIterator[Any],
        kind: type[Any],
        raised: Callable[[Blocked], Exception],
    ) -> None:
        self._exchange = exchange
        self._source = source
        self._kind = kind
        self._raised = raised
        self._ready: asyncio.Queue[Any] = asyncio.Queue()
        self._held: dict[bytes, list[Any]] = {}
        self._parser = EventParser(_MOST_BYTES)
        self._guarded = GuardedStream(exchange, self._emit, self._refuse, most_bytes=_MOST_BYTES)

    async def chunks(self) -> AsyncGenerator[Any, None]:
        """What may leave, as soon as it may."""
        feeding = asyncio.get_running_loop().create_task(self._feed())
        try:
            while (item := await self._ready.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._guarded.close()
            feeding.cancel()
            with suppress(asyncio.CancelledError):
                await feeding

    async def _feed(self) -> None:
        try:
            async for chunk in self._source:
                await self._guarded.feed(self._event(chunk))
                if self._guarded.done:
                    break
            await self._guarded.end()
        except Exception as error:  # the source's own error, or one that was raised for the caller
            self._ready.put_nowait(error)
        finally:
            self._ready.put_nowait(_END)

    def _event(self, chunk: Any) -> bytes:
        if isinstance(chunk, str | bytes):
            return chunk.encode() if isinstance(chunk, str) else chunk
        body = _plain(chunk)
        event = event_bytes(body, str(body.get("type") or ""))
        self._held.setdefault(event, []).append(chunk)
        return event

    async def _emit(self, data: bytes, last: bool) -> None:
        if issubclass(self._kind, str | bytes):
            if data:
                self._ready.put_nowait(data if self._kind is bytes else data.decode())
            return
        for event in self._parser.feed(data):
            same = self._held.get(event.raw)
            if same:
                self._ready.put_nowait(same.pop(0))
            elif event.data not in (None, "[DONE]"):
                self._ready.put_nowait(self._made(event.json()))

    def _made(self, body: Any) -> Any:
        """A chunk that the model did not send; events of Responses have a class for each type."""
        if "type" not in body:
            return self._kind(**body)
        return import_module("litellm.types.llms.openai").GenericEvent(**body)

    async def _refuse(self, blocked: Blocked) -> None:
        if blocked.action == "block":
            raise self._raised(blocked)
        await self._emit(self._exchange.route.api.reader(self._exchange.request).refusal(blocked.notice), True)


_END = object()


async def _chained(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for chunk in rest:
        yield chunk


def _read(exchange: Exchange, data: Mapping[str, Any], side: Side) -> Blocked | None:
    """Take the request in."""
    try:
        exchange.read({key: _plain(value) if key in _SAID else value for key, value in data.items()})
    except JudgeFailure as failure:
        return exchange.outcome(side, failure)
    return None


def _plain(value: Any) -> Any:
    """JSON values of LiteLLM's objects."""
    if hasattr(value, "model_dump_json"):
        return json.loads(value.model_dump_json(exclude_none=True))
    return [_plain(each) for each in value] if isinstance(value, list) else value
