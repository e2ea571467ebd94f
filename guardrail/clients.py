"""A guard inside of an HTTP client: for the `openai` and `anthropic` packages, and any other on httpx2.

    from openai import OpenAI
    from guardrail.clients import guarded_http_client

    client = OpenAI(http_client=guarded_http_client())

All that the client sends and gets goes through `GuardMiddleware`: the same paths, schemas, actions and streams as in
front of a server. What is blocked arrives as the API's own error, so the package raises it as one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

import httpx2

from guardrail.guard import Guard
from guardrail.middleware import GuardMiddleware
from guardrail.serving.asgi import Message, Receive, Scope, Send

__all__ = ["AsyncGuardedTransport", "GuardedTransport", "guarded_async_http_client", "guarded_http_client"]

_T = TypeVar("_T")
# The inner transport talks to the real server, so what concerns one connection is its own affair.
_HOP = frozenset({b"host", b"connection", b"transfer-encoding", b"content-length"})


def guarded_http_client(guard: Guard | None = None, *, timeout: Any = 600.0, **options: Any) -> httpx2.Client:
    """For `OpenAI(http_client=…)` and `Anthropic(http_client=…)`; `options` are those of `GuardMiddleware`."""
    return httpx2.Client(transport=GuardedTransport(guard, **options), timeout=timeout)


def guarded_async_http_client(
    guard: Guard | None = None, *, timeout: Any = 600.0, **options: Any
) -> httpx2.AsyncClient:
    """For `AsyncOpenAI(http_client=…)` and `AsyncAnthropic(http_client=…)`."""
    return httpx2.AsyncClient(transport=AsyncGuardedTransport(guard, **options), timeout=timeout)


class AsyncGuardedTransport(httpx2.AsyncBaseTransport):
    """Another transport behind the middleware."""

    def __init__(
        self, guard: Guard | None = None, inner: httpx2.AsyncBaseTransport | None = None, **options: Any
    ) -> None:
        self._inner = inner or httpx2.AsyncHTTPTransport()
        self._guarded = GuardMiddleware(self._forward, guard, **options)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.Event()
        answered: asyncio.Queue[Message | BaseException | None] = asyncio.Queue(1)

        async def receive() -> Message:
            if asked:
                return asked.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            scope = {
                "type": "http",
                "method": request.method,
                "path": request.url.path,
                "query_string": request.url.query,
                "headers": [(name.lower(), value) for name, value in request.headers.raw],
                "guardrail.request": request,
            }
            try:
                await self._guarded(scope, receive, answered.put)
                await answered.put(None)
            except Exception as error:
                await answered.put(error)

        task = asyncio.get_running_loop().create_task(run())
        start = await _next(answered, task)
        if start is None:
            raise httpx2.RemoteProtocolError("there was no answer", request=request)
        stream = _Answered(answered, task, gone)
        return httpx2.Response(start["status"], headers=start.get("headers", []), stream=stream, request=request)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: the request as it was, to the inner transport."""
        request = scope["guardrail.request"]
        body = (await receive()).get("body", b"")
        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP]
        asked = httpx2.Request(
            request.method, request.url, headers=headers, content=body, extensions=request.extensions
        )
        response = await self._inner.handle_async_request(asked)
        try:
            head = {"status": response.status_code, "headers": [(n.lower(), v) for n, v in response.headers.raw]}
            await send({"type": "http.response.start", **head})
            async for chunk in response.stream:  # type: ignore[union-attr]
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _next(answered: asyncio.Queue[Message | BaseException | None], task: asyncio.Task[None]) -> Message | None:
    try:
        found = await answered.get()
    except asyncio.CancelledError:
        task.cancel()
        raise
    if isinstance(found, BaseException):
        raise found
    return found


class _Answered(httpx2.AsyncByteStream):
    """The body, as the middleware lets it through."""

    def __init__(
        self, answered: asyncio.Queue[Message | BaseException | None], task: asyncio.Task[None], gone: asyncio.Event
    ) -> None:
        self._answered = answered
        self._task = task
        self._gone = gone

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await _next(self._answered, self._task)) is not None:
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                return

    async def aclose(self) -> None:
        self._gone.set()
        self._task.cancel()


class GuardedTransport(httpx2.BaseTransport):
    """The same without `await`: the exchange runs on an event loop in a thread of its own."""

    def __init__(
        self, guard: Guard | None = None, inner: httpx2.AsyncBaseTransport | None = None, **options: Any
    ) -> None:
        self._async = AsyncGuardedTransport(guard, inner, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="guardrail-client", daemon=True)
        self._thread.start()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        body = request.read()
        asked = httpx2.Request(
            request.method, request.url, headers=request.headers, content=body, extensions=request.extensions
        )
        found = self._run(self._async.handle_async_request(asked))
        stream = _Synchronous(self, found)
        return httpx2.Response(found.status_code, headers=found.headers.raw, stream=stream, request=request)

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        if self._thread.is_alive():
            self._run(self._async.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class _Synchronous(httpx2.SyncByteStream):
    def __init__(self, transport: GuardedTransport, found: httpx2.Response) -> None:
        self._transport = transport
        self._stream = found.stream
        self._parts = found.stream.__aiter__()  # type: ignore[union-attr]

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                yield self._transport._run(self._next())
            except StopAsyncIteration:
                return

    async def _next(self) -> bytes:
        return bytes(await self._parts.__anext__())

    def close(self) -> None:
        self._transport._run(self._stream.aclose())  # type: ignore[union-attr]
