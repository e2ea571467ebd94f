"""The middleware in front of real applications, on a real web server, asked over a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest

from guardrail.middleware import GuardMiddleware
from tests.chat_streams import chat_events, guard, message_events
from tests.served import post, running
from tests.test_middleware import completion

STREAM = chat_events([(0, f"w{number} ") for number in range(60)])
PATH = "/v1/chat/completions"


async def events() -> AsyncIterator[bytes]:
    for event in STREAM:
        yield event
        await asyncio.sleep(0)


def starlette_app() -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    async def chat(request: Request) -> Response:
        if (await request.json()).get("stream"):
            return StreamingResponse(events(), media_type="text/event-stream")
        return Response(completion("fine"), media_type="application/json")

    return Starlette(routes=[Route(PATH, chat, methods=["POST"])])


def fastapi_app() -> Any:
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    app = FastAPI()

    @app.post(PATH, response_model=None)
    async def chat(body: dict[str, Any]) -> Any:
        if body.get("stream"):
            return StreamingResponse(events(), media_type="text/event-stream")
        return json.loads(completion("fine"))

    return app


def django_app() -> Any:
    from django.conf import settings

    if not settings.configured:
        settings.configure(ROOT_URLCONF=(), ALLOWED_HOSTS=["*"], SECRET_KEY="test", DEFAULT_CHARSET="utf-8")
    import django
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
    from django.urls import path

    async def chat(request: HttpRequest) -> Any:
        if json.loads(request.body).get("stream"):
            return StreamingHttpResponse(events(), content_type="text/event-stream")
        return HttpResponse(completion("fine"), content_type="application/json")

    settings.ROOT_URLCONF = (path(PATH.lstrip("/"), chat),)
    django.setup()
    return get_asgi_application()


def litestar_app() -> Any:
    import litestar

    async def chat(request: Any) -> Any:
        if (await request.json()).get("stream"):
            return litestar.response.Stream(events(), media_type="text/event-stream")
        return litestar.Response(json.loads(completion("fine")))

    # Litestar reads the annotations, which are texts in this module.
    chat.__annotations__ = {"request": litestar.Request, "return": litestar.Response}
    return litestar.Litestar([litestar.post(PATH, status_code=200)(chat)])


@pytest.mark.parametrize("make", [starlette_app, fastapi_app, django_app, litestar_app])
def test_real_frameworks(make: Any) -> None:
    with running(GuardMiddleware(make(), guard())) as url:
        asked = {"messages": [{"role": "user", "content": "hello"}]}
        status, body = post(url + PATH, asked)
        assert (status, json.loads(body)) == (200, json.loads(completion("fine")))
        assert post(url + PATH, {**asked, "stream": True}) == (200, b"".join(STREAM))
        status, body = post(url + PATH, {"messages": [{"role": "user", "content": "a BOMB"}]})
        assert (status, json.loads(body)["error"]["code"]) == (400, "content_filter")
        assert post(url + "/elsewhere", asked)[0] == 404
    with running(GuardMiddleware(make(), guard("w40"))) as url:
        status, body = post(url + PATH, {**asked, "stream": True})
        assert status == 200
        assert b"w2 " in body
        assert b"w40 " not in body
        assert body.endswith(b"data: [DONE]\n\n")


def test_anthropics_own_client_reads_the_ending() -> None:
    from starlette.applications import Starlette
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    async def messages(_: Any) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for event in message_events([f"w{number} " for number in range(80)]):
                yield event

        return StreamingResponse(parts(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/v1/messages", messages, methods=["POST"])])
    asked: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    cases = (("BOMB", "block", "end_turn"), ("w70", "block", "refusal"), ("hello", "answer", "refusal"))
    for words, action, stop in cases:
        with (
            running(GuardMiddleware(app, guard(words), action=action)) as url,
            anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client,
            client.messages.stream(**asked) as stream,
        ):
            text = "".join(stream.text_stream)
            message = stream.get_final_message()
        assert message.stop_reason == stop
        assert "w70" not in text or words == "BOMB"
        assert message.content[0].type == "text"
        assert message.content[0].text == text
