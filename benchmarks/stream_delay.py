"""What the middleware costs a streamed answer: time to the first text and to the end, beside the same one unguarded.

    python benchmarks/stream_delay.py

A model server on loopback streams 200 harmless words at 50 words a second, as a large model does. In turns, one stream
comes through `GuardMiddleware` with the embedded model and one does not; medians of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from guardrail import load
from guardrail.middleware import GuardMiddleware
from guardrail.sse import event_bytes

WORDS = (
    "The old keeper climbed the stairs of the lighthouse with a small lamp and a book of poems, and the sea was calm. "
    * 10
).split()[:200]
PATH = "/v1/chat/completions"


def application(rate: float) -> Starlette:
    async def words() -> AsyncIterator[bytes]:
        for word in WORDS:
            yield event_bytes({"choices": [{"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}]})
            await asyncio.sleep(1 / rate)
        yield event_bytes("[DONE]")

    async def chat(_: Request) -> StreamingResponse:
        return StreamingResponse(words(), media_type="text/event-stream")

    return Starlette(routes=[Route(PATH, chat, methods=["POST"])])


def serve(app: Any) -> tuple[uvicorn.Server, str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return server, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


def measure(client: httpx2.Client, url: str) -> tuple[float, float]:
    """(seconds to the first text, seconds in all)."""
    body = {"messages": [{"role": "user", "content": "Tell me a story about a lighthouse."}], "stream": True}
    started, first = time.perf_counter(), 0.0
    with client.stream("POST", url + PATH, json=body) as answered:
        for chunk in answered.iter_raw():
            if not first and b"content" in chunk:
                first = time.perf_counter() - started
    return first, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=50.0, help="words a second")
    options = parser.parse_args()
    guard = load()
    apps = {"unguarded": application(options.rate)}
    for mode in ("withhold", "rewind", "end"):
        apps[mode] = GuardMiddleware(application(options.rate), guard, mode=mode)  # type: ignore[assignment]
    servers = {name: serve(app) for name, app in apps.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in apps}
    with httpx2.Client(timeout=60) as client:
        for _ in range(options.rounds + 1):
            for name, (_, url) in servers.items():
                times[name].append(measure(client, url))
    medians = {
        name: [statistics.median(each[place] for each in found[1:]) for place in (0, 1)]
        for name, found in times.items()
    }
    plain = medians["unguarded"]
    for name, (first, whole) in medians.items():
        print(
            f"{name:<10} first text after {first:6.3f} s (+{first - plain[0]:.3f}), "
            f"all after {whole:6.3f} s ({whole / plain[1]:.3f}x)"
        )
    print(json.dumps({"rounds": options.rounds, "rate": options.rate, "medians": medians}))


if __name__ == "__main__":
    main()
