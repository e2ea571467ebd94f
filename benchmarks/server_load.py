"""How much of the classifier's own speed the server delivers to many clients, and at what delay.

    python benchmarks/server_load.py

`guardrail serve` runs as its own process; this one asks `/v1/moderations` with rising concurrency, a bounded number of
times, after it measured `check_many` on the same texts, all on the same machine: ratios tell, times do not. Errors are
counted, and the server's memory is read before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx2

from guardrail import load
from tests.served import served

SENTENCE = "how do I cook the rice for my old dog while a train waits near the green house of our neighbour"


def texts(count: int) -> list[str]:
    """Of the lengths that chat prompts have: most of them short, some long."""
    chosen = random.Random(1)
    lengths = (min(120, 1 + round(chosen.lognormvariate(3.0, 0.8))) for _ in range(count))
    return [" ".join(chosen.choices(SENTENCE.split(), k=length)) for length in lengths]


def offline(some: list[str]) -> float:
    """Texts a second of `check_many`."""
    with load() as guard:
        list(guard.check_many(some[:50]))
        started = time.perf_counter()
        assert all(decision.error is None for decision in guard.check_many(some))
        return len(some) / (time.perf_counter() - started)


async def online(url: str, some: list[str], clients: int) -> dict[str, Any]:
    """Each client asks one text after the other."""
    waiting = iter(some)
    times: list[float] = []
    errors = 0

    async def one(client: httpx2.AsyncClient) -> None:
        nonlocal errors
        for text in waiting:
            started = time.perf_counter()
            answered = await client.post(f"{url}/v1/moderations", json={"input": text})
            times.append(time.perf_counter() - started)
            errors += answered.status_code != 200

    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(timeout=60, limits=limits) as client:
        started = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        seconds = time.perf_counter() - started
    cuts = statistics.quantiles(times, n=100)
    return {
        "clients": clients,
        "per_second": len(times) / seconds,
        "errors": errors,
        **{f"p{cut}_ms": 1000 * cuts[cut - 1] for cut in (50, 95, 99)},
    }


def resident(process: int) -> float:
    """MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=0.0, help="then go on at 16 clients for so long, at most 15")
    options = parser.parse_args()
    some = texts(options.texts)
    alone = offline(some)
    print(f"check_many: {alone:.0f} texts a second")
    with tempfile.TemporaryDirectory() as folder, served(log=Path(folder) / "log") as server:
        asyncio.run(online(server.url, some[:100], 4))
        before = resident(server.process.pid)
        for clients in (1, 2, 4, 8, 16, 32, 64):
            found = asyncio.run(online(server.url, some, clients))
            rate, delays = found["per_second"], "/".join(f"{found[f'p{cut}_ms']:.0f}" for cut in (50, 95, 99))
            print(
                f"{clients:>3} clients: {rate:5.0f} a second ({rate / alone:.2f} of check_many), "
                f"p50/p95/p99 {delays} ms, {found['errors']} errors"
            )
        sizes = [before, resident(server.process.pid)]
        end = time.monotonic() + 60 * min(options.minutes, 15.0)
        errors = 0
        while time.monotonic() < end:
            errors += asyncio.run(online(server.url, some, 16))["errors"]
            sizes.append(resident(server.process.pid))
        shown = " ".join(f"{size:.0f}" for size in sizes[:: max(1, len(sizes) // 12)])
        print(f"resident memory, MB: {shown}; errors {errors}")
        print(json.dumps({"check_many": alone, "resident_mb": sizes}))


if __name__ == "__main__":
    main()
