"""The page's stream: an answer that the visitor wrote, as if a model said it, with and without the guard."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any, get_args

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from guardrail.guard import Guard
from guardrail.middleware import GuardMiddleware, Limits, Route
from guardrail.server.errors import BadRequest, error_response, failure_response, json_object
from guardrail.serving.asgi import Message, Receive, Scope, Send
from guardrail.serving.failures import JudgeFailure
from guardrail.serving.routes import Mode
from guardrail.sse import event_bytes

__all__ = ["DEMO", "UNGUARDED_DEMO", "Demo", "demo_answer"]

DEMO = "/demo/chat/completions"
UNGUARDED_DEMO = "/demo/unguarded/chat/completions"
_MOST_BYTES = 64 << 10
_MOST_RATE = 1000


async def demo_answer(request: Request) -> Response:
    """The answer word by word, at `rate` words a second, without a guard."""
    answer, rate, _ = _read(await json_object(request, _MOST_BYTES))
    return StreamingResponse(
        _words(answer, rate), media_type="text/event-stream", headers={"cache-control": "no-cache"}
    )


class Demo:
    """ASGI: the same behind the middleware, in the mode that the request names."""

    def __init__(self, guard: Guard, limits: Limits) -> None:
        self._guarded = {
            mode: GuardMiddleware(
                _answering, guard, routes=[Route(DEMO, "openai-chat", check="output", mode=mode)], limits=limits
            )
            for mode in get_args(Mode)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await json_object(Request(scope, receive), _MOST_BYTES)
            _, _, mode = _read(body)
        except BadRequest as error:
            await error_response(error)(scope, receive, send)
            return
        except JudgeFailure as failure:
            await failure_response(failure)(scope, receive, send)
            return
        given: list[Message] = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

        async def again() -> Message:
            return given.pop() if given else await receive()

        plain = {**scope, "headers": [each for each in scope["headers"] if each[0] != b"content-encoding"]}
        await self._guarded[mode](plain, again, send)


async def _answering(scope: Scope, receive: Receive, send: Send) -> None:
    response = await demo_answer(Request(scope, receive))
    await response(scope, receive, send)


def _read(body: dict[str, Any]) -> tuple[str, float, Mode]:
    demo = body.get("demo")
    if not isinstance(demo, dict) or not isinstance(demo.get("answer"), str):
        raise BadRequest("expected an object with an answer", "demo")
    rate, mode = demo.get("rate", 12), demo.get("mode", "withhold")
    if not isinstance(rate, int | float) or not 0 < rate <= _MOST_RATE:
        raise BadRequest(f"expected words per second, at most {_MOST_RATE}", "demo.rate")
    if mode not in get_args(Mode):
        raise BadRequest(f"known: {', '.join(get_args(Mode))}", "demo.mode")
    return demo["answer"], float(rate), mode


async def _words(answer: str, rate: float) -> AsyncIterator[bytes]:
    head = {"id": "chatcmpl-demo", "object": "chat.completion.chunk", "created": int(time.time()), "model": "demo"}
    for word in re.findall(r"\s*\S+\s*", answer):
        delta = {"index": 0, "delta": {"content": word}, "finish_reason": None}
        yield event_bytes({**head, "choices": [delta]})
        await asyncio.sleep(1 / rate)
    yield event_bytes({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    yield event_bytes("[DONE]")
