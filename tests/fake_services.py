"""A local server that answers as the moderation services do, and as they do not."""

from __future__ import annotations

import hashlib
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message as Headers
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = [
    "DROP",
    "OPENAI",
    "FakeService",
    "Received",
    "Reply",
    "logit",
    "openai_reply",
    "perspective_reply",
    "score_of",
    "serving",
]

OPENAI = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


@dataclass(frozen=True, slots=True)
class Received:
    """One request."""

    path: str
    headers: Headers
    payload: Any
    """None of a GET."""

    @property
    def texts(self) -> list[str]:
        """The texts of a request to the OpenAI endpoint."""
        return list(self.payload["input"])


@dataclass(frozen=True, slots=True)
class Reply:
    """A status and a body: bytes as they are, anything else as JSON."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Whether the connection ends in the middle of the body."""


DROP = Reply(status=0)
"""The connection ends before any answer."""

Respond = Callable[[Received], Reply]


class FakeService:
    """What was received, and how to respond."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.address = f"http://127.0.0.1:{server.server_address[1]}"
        self.received: list[Received] = []
        self.respond: Respond = openai_reply
        self.stall = threading.Event()
        """Set when the test is over: what a handler that never answers may wait for."""
        self.lock = threading.Lock()
        self.connections: set[tuple[str, int]] = set()
        """Where requests came from: one address and port per connection."""

    def script(self, *replies: Reply, then: Respond | None = None) -> None:
        """Give these replies one after another, and from then on those of `then`."""
        waiting = list(replies)
        rest = then or self.respond

        def respond(received: Received) -> Reply:
            with self.lock:
                reply = waiting.pop(0) if waiting else None
            return rest(received) if reply is None else reply

        self.respond = respond


@contextmanager
def serving() -> Iterator[FakeService]:
    """A server on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(None)

        def do_POST(self) -> None:
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def answer(self, payload: Any) -> None:
            received = Received(self.path, self.headers, payload)
            with service.lock:
                service.received.append(received)
                service.connections.add(self.client_address)
            reply = service.respond(received)
            self.close_connection = reply.cut or reply.status == 0
            if reply.status == 0:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
                self.send_header(name, value)
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if reply.cut else body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing on stderr."""

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # the client gave up
                self.close_connection = True

    class Server(ThreadingHTTPServer):
        request_queue_size = 64
        # A kept connection ends when its client lets it go, which may be after the server.
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    service = FakeService(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        service.stall.set()
        server.shutdown()
        server.server_close()
        thread.join()


def score_of(text: str, label: str) -> float:
    """A score that depends on text and label and on nothing else, between 0.05 and 0.95."""
    number = int.from_bytes(hashlib.sha256(f"{label}\0{text}".encode()).digest()[:6], "big")
    return 0.05 + 0.9 * number / 2**48


def openai_reply(received: Received, labels: Sequence[str] = OPENAI) -> Reply:
    """An answer in the documented shape. A text is flagged when it says so; `illicit` may be null in `categories`."""
    assert received.path.endswith("/moderations")
    results = []
    for text in received.texts:
        scores = {label: score_of(text, label) for label in labels}
        categories = {label: None if label.startswith("illicit") else score > 0.5 for label, score in scores.items()}
        inputs = {label: ["text"] for label in labels}
        results.append(
            {
                "flagged": "flag" in text,
                "categories": categories,
                "category_scores": scores,
                "category_applied_input_types": inputs,
            }
        )
    return Reply({"id": "modr-1", "model": received.payload["model"], "results": results})


def perspective_reply(received: Received) -> Reply:
    """An answer in the documented shape, with span scores."""
    assert received.path.endswith("/v1alpha1/comments:analyze")
    text = received.payload["comment"]["text"]
    scores = {}
    for label in received.payload["requestedAttributes"]:
        value = {"value": score_of(text, label), "type": "PROBABILITY"}
        scores[label] = {"spanScores": [{"begin": 0, "end": len(text), "score": value}], "summaryScore": value}
    return Reply({"attributeScores": scores, "languages": ["en"], "detectedLanguages": ["en"]})


def logit(score: float) -> float:
    """Log-odds."""
    return math.log(score / (1 - score))
