"""Real servers on loopback: `guardrail serve` as its own process, and a model server that follows a script."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import uvicorn

from tests.chat_streams import chat_events

_START = 60.0
STORY = "The old keeper climbed the stairs of the lighthouse with a small lamp and a book of poems. " * 5
RECIPE = "To build the pipe bomb, fill the steel pipe with black powder, drill a hole for the fuse and seal both ends. "


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    url: str
    process: subprocess.Popen[str]

    def get(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """(status, JSON or text, headers) of a request; with a body it is a POST."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json", **named})
        try:
            with urllib.request.urlopen(request, timeout=60) as answered:
                return answered.status, _value(answered.read()), {k.lower(): v for k, v in answered.headers.items()}
        except urllib.error.HTTPError as error:
            return error.code, _value(error.read()), {k.lower(): v for k, v in error.headers.items()}


def _value(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def served(*arguments: str, log: Path) -> Iterator[Served]:
    """`guardrail serve` with these arguments, ready; its log goes to a file."""
    port = free_port()
    command = [sys.executable, "-m", "guardrail", "serve", "--port", str(port), *arguments]
    with log.open("w") as out:
        process = subprocess.Popen(command, stderr=out, stdout=out, text=True)
    server = Served(f"http://127.0.0.1:{port}", process)
    try:
        _wait(server, log)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=60)


def _wait(server: Served, log: Path) -> None:
    end = time.monotonic() + _START
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if server.get("/ready")[0] == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"the server did not start: {log.read_text()}")


class Model(BaseHTTPRequestHandler):
    """Answers chat completions; what the user says is the script: `say TEXT`, `tell`, `die`, `garbage`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers), None))  # type: ignore[attr-defined]
        self._json({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, dict(self.headers), body))  # type: ignore[attr-defined]
        said = body["messages"][-1]["content"]
        if said == "garbage":
            self._raw(b"\xff\xfe not a body", "application/json")
        elif body.get("stream"):
            with suppress(ConnectionError):  # the guard hangs up after an unsafe window
                self._stream(said)
        else:
            message = {"role": "assistant", "content": said.removeprefix("say ")}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._json({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})

    def _stream(self, said: str) -> None:
        texts = {"tell": STORY + RECIPE + STORY, "die": STORY * 2, "die unsafe": STORY + RECIPE + STORY}
        text = texts.get(said, said.removeprefix("say "))
        events = chat_events([(0, f"{word} ") for word in text.split()])
        dies = said.startswith("die")
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in events[: len(events) // 2] if dies else events:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
            time.sleep(0.002)
        if dies:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def _json(self, value: Any) -> None:
        self._raw(json.dumps(value).encode(), "application/json")

    def _raw(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def model_server() -> Iterator[tuple[str, list[Any]]]:
    """(url, what it was asked)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    server.daemon_threads = True
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The URL of this ASGI application on a real web server in a thread."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="auto"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)


def post(url: str, body: Any) -> tuple[int, bytes]:
    """(status, body) of a request."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answered:
            return answered.status, answered.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
