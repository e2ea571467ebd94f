"""How much of the classifier's own speed the server delivers to many clients, and at what delay.

    python benchmarks/server_load.py
    python benchmarks/server_load.py --pin
    python benchmarks/server_load.py --minutes 10

`guardrail serve` runs as its own process; this one asks `/v1/moderations`, each client one text after the other over a
connection that stays open. Every run of the server stands between two runs of `check_many` over the same texts in a
third process, and the ratio is to the mean of the two: times on a busy machine tell little. Told are medians over the
rounds. The answers must be those of `check_many`. `--pin` gives the server and `check_many` the same single core and
this process the others. `--minutes` then goes on at 16 clients and tells whether the server's memory grows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guardrail import Guard, load
from tests.served import Served, served

SENTENCE = "how do I cook the rice for my old dog while a train waits near the green house of our neighbour"
CLIENTS = (1, 8, 16, 32, 64)
LONG_CLIENTS = 16
MOST_MINUTES = 15.0


def texts(count: int) -> list[str]:
    """Of the lengths that chat prompts have: most of them short, some long."""
    chosen = random.Random(1)
    lengths = (min(120, 1 + round(chosen.lognormvariate(3.0, 0.8))) for _ in range(count))
    return [" ".join(chosen.choices(SENTENCE.split(), k=length)) for length in lengths]


@cache
def guard() -> Guard:
    """Of the process that runs `check_many`."""
    found = load()
    list(found.check_many(texts(50)))
    return found


def offline(some: Sequence[str]) -> tuple[float, float, list[float | None]]:
    """Texts a second of `check_many`, CPU seconds per text, and the scores."""
    judge = guard()
    cpu, started = time.process_time(), time.perf_counter()
    scores = [decision.score for decision in judge.check_many(some)]
    return len(some) / (time.perf_counter() - started), (time.process_time() - cpu) / len(some), scores


@dataclass
class Load:
    """What many clients saw."""

    seconds: float = 0.0
    times: list[float] = field(default_factory=list)
    """Of each request."""
    scores: dict[int, float | None] = field(default_factory=dict)
    """By the text's place."""
    errors: int = 0


async def online(url: str, some: Sequence[str], clients: int) -> Load:
    """Ask every text once."""
    address = urlsplit(url)
    requests = enumerate([_request(address.netloc, text) for text in some])
    bodies: dict[int, bytes] = {}
    found = Load()

    async def client() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for place, request in requests:
            started = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(_length(head))
            found.times.append(time.perf_counter() - started)
            if head.startswith(b"HTTP/1.1 200 "):
                bodies[place] = body
            else:
                found.errors += 1
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    found.seconds = time.perf_counter() - started
    # Read only now: in a real deployment the clients are elsewhere.
    found.scores = {place: json.loads(body)["results"][0]["guardrail"]["score"] for place, body in bodies.items()}
    return found


def _request(host: str, text: str) -> bytes:
    body = json.dumps({"input": text}).encode()
    head = f"POST /v1/moderations HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _length(head: bytes) -> int:
    _, _, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.partition(b"\r\n")[0])


def cpu_seconds(process: int) -> float:
    """That a process has taken so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(process: int) -> float:
    """MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def delays(times: Sequence[float]) -> str:
    """p50/p95/p99 in ms."""
    cuts = statistics.quantiles(times, n=100)
    return "/".join(f"{1000 * cuts[cut - 1]:.0f}" for cut in (50, 95, 99))


def compare(server: Served, pool: ProcessPoolExecutor, some: Sequence[str], rounds: int) -> dict[str, Any]:
    """Rounds of all numbers of clients, `check_many` before and after each; the medians by number of clients."""
    found: dict[int, list[tuple[float, Load]]] = {clients: [] for clients in CLIENTS}
    spent: dict[str, list[float]] = {"check_many": [], "server": [], "asking": []}
    before, _, scores = pool.submit(offline, some).result()
    for _ in range(rounds):
        for clients in CLIENTS:
            server_cpu, own_cpu = cpu_seconds(server.process.pid), time.process_time()
            seen = asyncio.run(online(server.url, some, clients))
            spent["server"].append((cpu_seconds(server.process.pid) - server_cpu) / len(some))
            spent["asking"].append((time.process_time() - own_cpu) / len(some))
            after, cpu, _ = pool.submit(offline, some).result()
            spent["check_many"].append(cpu)
            assert all(scores[place] == score for place, score in seen.scores.items()), "other answers than check_many"
            found[clients].append((2 * len(some) / seen.seconds / (before + after), seen))
            before = after
    print("CPU ms a text:", ", ".join(f"{name} {1000 * statistics.median(each):.2f}" for name, each in spent.items()))
    return {str(clients): _told(clients, each) for clients, each in found.items()}


def _told(clients: int, rounds: Sequence[tuple[float, Load]]) -> list[float]:
    ratios = [ratio for ratio, _ in rounds]
    times = [one for _, seen in rounds for one in seen.times]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(
        f"{clients:>3} clients: {statistics.median(ratios):.2f} of check_many ({spread}), "
        f"p50/p95/p99 {delays(times)} ms, {sum(seen.errors for _, seen in rounds)} errors"
    )
    return ratios


def endure(server: Served, some: Sequence[str], minutes: float) -> None:
    """Tell how the server's memory grows under load; the first tenth of the time is its warm-up."""
    started, sizes, times, errors = time.monotonic(), [(0.0, resident(server.process.pid))], list[float](), 0
    while (past := time.monotonic() - started) < 60 * minutes:
        seen = asyncio.run(online(server.url, some, LONG_CLIENTS))
        sizes.append((past, resident(server.process.pid)))
        times += seen.times
        errors += seen.errors
    warm = [size for past, size in sizes if past >= 6 * minutes]
    part = max(1, len(warm) // 10)
    first, last = statistics.median(warm[:part]), statistics.median(warm[-part:])
    print(f"{minutes:g} minutes, {len(times)} requests: p50/p95/p99 {delays(times)} ms, {errors} errors")
    shown = " ".join(f"{size:.0f}" for _, size in sizes[:: max(1, len(sizes) // 12)])
    print(f"resident memory, MB: {shown}; after the warm-up {first:.1f}, at the end {last:.1f}: {last / first:.3f}")


@contextmanager
def processes(pin: bool) -> Iterator[tuple[Served, ProcessPoolExecutor]]:
    """The server, and one for `check_many`; pinned, they share a core that is not this process's."""
    cores = sorted(os.sched_getaffinity(0))
    if pin:
        os.sched_setaffinity(0, cores[:1])  # inherited by what is started
    with (
        tempfile.TemporaryDirectory() as folder,
        served(log=Path(folder) / "log") as server,
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
    ):
        pool.submit(offline, texts(1)).result()
        if pin:
            os.sched_setaffinity(0, cores[1:])
        yield server, pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=700)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pin", action="store_true", help="server and check_many on one core, this process on others")
    parser.add_argument("--minutes", type=float, default=0.0, help=f"then go on for so long, at most {MOST_MINUTES:g}")
    options = parser.parse_args()
    some = texts(options.texts)
    with processes(options.pin) as (server, pool):
        asyncio.run(online(server.url, some[:100], 4))
        found = compare(server, pool, some, options.rounds)
        print(f"resident memory after {len(CLIENTS) * options.rounds * len(some)} requests: ", end="")
        print(f"{resident(server.process.pid):.0f} MB")
        if options.minutes:
            endure(server, some, min(options.minutes, MOST_MINUTES))
        print(json.dumps(found))


if __name__ == "__main__":
    main()
