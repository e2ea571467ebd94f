"""One HTTP request to the application, and its answer to the client, as ASGI messages."""

from __future__ import annotations

import json
from typing import Any

from guardrail.serving.asgi import OF_THE_BODY, Headers, Message, Receive, Scope, Send, header, plain_scope
from guardrail.serving.bodies import Decoder, json_body
from guardrail.serving.exchange import Blocked, Exchange
from guardrail.serving.failures import JudgeFailure, Reason
from guardrail.serving.streaming import GuardedStream

__all__ = ["Responder"]

_EMPTY = (204, 304)


class _Over(OSError):
    """Raised in an application that goes on sending after its answer was cut off, as servers do for lost clients."""


class Responder:
    """Judges the request, hands it on, and holds the answer back as long as its route wants."""

    def __init__(self, app: Any, exchange: Exchange, receive: Receive, send: Send, *, most_bytes: int) -> None:
        self._app = app
        self.exchange = exchange
        self._receive = receive
        self._send = send
        self.most_bytes = most_bytes
        self._received: list[Message] = []
        """Of the request, not yet handed on."""
        self._start: Message | None = None
        """The answer's first message, as long as it is held back."""
        self._body: _Body | None = None
        self._over = False
        """Whether the answer's last byte was sent."""
        self._ended_here = False
        """Whether that was not the application's doing."""

    async def run(self, scope: Scope) -> None:
        """The whole exchange."""
        blocked = await self._request(scope)
        if blocked is not None:
            await self.refuse(blocked)
            return
        if not self.exchange.route.checks("output"):
            await self._app(scope, self._next_message, self._tagged)
            return
        try:
            await self._app(plain_scope(scope), self._next_message, self._respond)
        except Exception:
            if not self._ended_here:
                raise
            # What the application makes of being cut off is nobody's error.
        finally:
            if self._body is not None:
                self._body.close()

    async def _request(self, scope: Scope) -> Blocked | None:
        try:
            decoder = Decoder(header(scope["headers"], b"content-encoding"), self.most_bytes)
            body = await self._whole(decoder)
            if not body:
                return None  # nothing is said, as when a stored answer is read
            self.exchange.read(json_body(body))
        except JudgeFailure as failure:
            return self.exchange.outcome("input", failure)
        return await self.exchange.check_input() if self.exchange.route.checks("input") else None

    async def _whole(self, decoder: Decoder) -> bytes:
        """The request's body; its messages are kept for the application."""
        body = bytearray()
        more = True
        while more:
            message = await self._receive()
            self._received.append(message)
            body += decoder.feed(message.get("body", b""))
            if len(body) > self.most_bytes:
                raise JudgeFailure(Reason.TOO_LARGE, f"the body has more than {self.most_bytes} bytes")
            # A client that is gone sends nothing more either.
            more = message["type"] == "http.request" and message.get("more_body", False)
        decoder.end()
        return bytes(body)

    async def _next_message(self) -> Message:
        if self._over:
            return {"type": "http.disconnect"}
        return self._received.pop(0) if self._received else await self._receive()

    async def _tagged(self, message: Message) -> None:
        """Part of an answer that is not judged."""
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *self._tags()]}
        await self._send(message)

    async def _respond(self, message: Message) -> None:
        if self._ended_here:
            raise _Over("the answer was cut off by the guard")
        if message["type"] == "http.response.start":
            self._start = message
            self._body = self._body_of(message)
        elif message["type"] == "http.response.body" and self._body is not None:
            await self._body.take(message.get("body", b""), message.get("more_body", False))
        else:
            await self._send(message)

    def _body_of(self, start: Message) -> _Body:
        headers = start.get("headers", [])
        if start["status"] >= 400 or start["status"] in _EMPTY:
            return _Untouched(self)
        kind = header(headers, b"content-type").partition(";")[0].strip().lower()
        encoding = header(headers, b"content-encoding")
        return _Stream(self, encoding) if kind == "text/event-stream" else _Json(self, encoding)

    async def send_start(self, *, same_body: bool) -> None:
        """The answer's first message, unless it was sent. `same_body`: the application's bytes follow, all of them."""
        if self._start is None:
            return
        start, self._start = self._start, None
        dropped = frozenset() if same_body else OF_THE_BODY
        headers = [(name, value) for name, value in start.get("headers", []) if name.lower() not in dropped]
        await self._send({**start, "headers": [*headers, *self._tags()]})

    async def send_body(self, data: bytes, *, more: bool) -> None:
        """A part of the answer's body; behind the last one the application is told that nobody listens."""
        self._over = self._over or not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def end_here(self) -> None:
        """What the application still sends is not wanted."""
        self._ended_here = True

    async def refuse(self, blocked: Blocked, body: Any = None) -> None:
        """Take the place of an answer of which nothing was sent; `body`: the one that has other choices as well."""
        self._ended_here = True
        api, request, notice = self.exchange.route.api, self.exchange.request, blocked.notice
        if blocked.action == "block":
            await self._json(blocked.status, api.error(blocked.status, notice), blocked.retry_after)
        elif body is not None:
            await self._json(200, api.redacted(body, blocked.choices, notice))
        elif request.stream:
            headers: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            await self._own(200, headers, api.reader(request).refusal(notice))
        else:
            await self._json(200, api.refusal(request, notice))

    async def _json(self, status: int, body: Any, retry_after: float | None = None) -> None:
        headers: Headers = [(b"content-type", b"application/json")]
        if retry_after is not None:
            headers.append((b"retry-after", str(max(1, round(retry_after))).encode()))
        await self._own(status, headers, json.dumps(body, ensure_ascii=False).encode())

    async def _own(self, status: int, headers: Headers, body: bytes) -> None:
        """An answer that is made here."""
        self._start = {"type": "http.response.start", "status": status, "headers": headers}
        headers.append((b"content-length", str(len(body)).encode()))
        await self.send_start(same_body=True)
        await self.send_body(body, more=False)

    def _tags(self) -> Headers:
        if self.exchange.route.action == "shadow":
            return []
        return [(name.encode(), value.encode()) for name, value in self.exchange.tags.items()]


class _Body:
    """An answer's body on its way through."""

    def __init__(self, responder: Responder) -> None:
        self.responder = responder

    async def take(self, data: bytes, more: bool) -> None:
        """The next part."""
        raise NotImplementedError

    def close(self) -> None:
        """The application is done."""


class _Untouched(_Body):
    """An error, or nothing."""

    async def take(self, data: bytes, more: bool) -> None:
        await self.responder.send_start(same_body=True)
        await self.responder.send_body(data, more=more)


class _Json(_Body):
    """Held back until it is whole and judged."""

    def __init__(self, responder: Responder, encoding: str) -> None:
        super().__init__(responder)
        self._encoding = encoding
        self._raw = bytearray()
        self._judged = False

    async def take(self, data: bytes, more: bool) -> None:
        self._raw += data
        if more and not self._judged and len(self._raw) <= self.responder.most_bytes:
            return
        if not self._judged:
            blocked, body = await self._judge() if self._raw else (None, None)
            if blocked is not None:
                await self.responder.refuse(blocked, body)
                return
            self._judged = True
            await self.responder.send_start(same_body=True)
        await self.responder.send_body(bytes(self._raw), more=more)
        self._raw.clear()

    async def _judge(self) -> tuple[Blocked | None, Any]:
        """What is wrong with it, and its value where some of its choices may be kept."""
        exchange, limit = self.responder.exchange, self.responder.most_bytes
        try:
            if len(self._raw) > limit:
                raise JudgeFailure(Reason.TOO_LARGE, f"the answer has more than {limit} bytes")
            decoder = Decoder(self._encoding, limit)
            body = json_body(decoder.feed(bytes(self._raw)))
            decoder.end()
            return await exchange.check_output(exchange.answers(body)), body
        except JudgeFailure as failure:
            return exchange.outcome("output", failure), None


class _Stream(_Body):
    """Server-sent events."""

    def __init__(self, responder: Responder, encoding: str) -> None:
        super().__init__(responder)
        self._encoding = encoding
        self._decoder: Decoder | None = None
        self._guarded = GuardedStream(responder.exchange, self._emit, self._refuse, most_bytes=responder.most_bytes)

    async def take(self, data: bytes, more: bool) -> None:
        try:
            if self._decoder is None:
                self._decoder = Decoder(self._encoding, self.responder.most_bytes)
            plain = self._decoder.feed(data)
            if not more:
                self._decoder.end()
        except JudgeFailure as failure:
            # What cannot be decoded cannot be passed on without its header either.
            await self._guarded.fail(failure)
            return
        await self._guarded.feed(plain)
        if not more:
            await self._guarded.end()

    async def _emit(self, data: bytes, last: bool) -> None:
        await self.responder.send_start(same_body=False)
        if self._guarded.cut:
            self.responder.end_here()
        await self.responder.send_body(data, more=not last)

    async def _refuse(self, blocked: Blocked) -> None:
        await self.responder.refuse(blocked)

    def close(self) -> None:
        self._guarded.close()
