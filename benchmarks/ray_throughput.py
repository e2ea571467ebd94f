"""The Ray engine against the local one on the same rows: ratios of interleaved rounds, and how the time grows.

A round scores the same file with the local engine on one thread, then with one and with two workers of one core each,
and compares the time for the rows; starting workers and loading models is a figure of its own. Core time (from the
records of the parts) depends less than the seconds on what else a machine does. The growth is that of two workers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import guardrail
from guardrail.batch import Options, score_file
from guardrail.cluster.engine import ClusterOptions, Progress, score
from guardrail.cluster.model import ModelSpec
from guardrail.cluster.pool import Size, opened

HOUR = 3600.0


class Spent(NamedTuple):
    """What a run took."""

    seconds: float
    """From the first row to the last."""
    cpu: float
    """Seconds of a core, for the rows only."""
    fixed: float = 0.0
    """Seconds besides: starting workers, loading models, joining parts."""


def write_rows(path: Path, rows: int) -> None:
    """Prompts of about 200 bytes, as in score_memory.py."""
    padding = "Please answer in one sentence, and say what the answer depends on. " * 2
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            file.write(json.dumps({"id": row, "text": f"What is {row} times seven? {padding}", "lang": "en"}) + "\n")


def local_run(guard: guardrail.Guard, source: Path, target: Path) -> Spent:
    """One run; the model is loaded already."""
    start, busy = time.perf_counter(), time.process_time()
    score_file(guard, source, target, Options(overwrite=True))
    return Spent(time.perf_counter() - start, time.process_time() - busy)


def ray_run(model: str, source: Path, target: Path, workers: int, part_bytes: int) -> Spent:
    """One run, on a cluster that is there already."""
    began: list[float] = []
    ended: list[float] = []
    busy: list[float] = []

    def note(progress: Progress) -> None:
        if progress.record:
            ended.append(time.perf_counter())
            began.append(ended[-1] - progress.record.seconds)
            busy.append(progress.record.cpu_seconds)

    cluster = ClusterOptions(Size(workers=workers), part_bytes=part_bytes)
    options = Options(engine="ray", overwrite=True)
    start = time.perf_counter()
    score(str(source), str(target), ModelSpec.read(model), options, cluster, report=note)
    seconds = max(ended) - min(began)
    return Spent(seconds, sum(busy), time.perf_counter() - start - seconds)


def compared(model: str, folder: Path, rows: int, rounds: int) -> dict[str, float]:
    """Medians over the rounds; the first one, which fills caches, is left out when there are more."""
    source = folder / "in.jsonl"
    write_rows(source, rows)
    part_bytes = max(1, source.stat().st_size // 12)
    guard = guardrail.load(model, threads=1) if model == "embedded" else guardrail.load(model)
    guard.check("warm")
    measured: list[dict[str, float]] = []
    for _ in range(rounds):
        local = local_run(guard, source, folder / "local.jsonl")
        one = ray_run(model, source, folder / "ray.jsonl", 1, part_bytes)
        if (folder / "local.jsonl").read_bytes() != (folder / "ray.jsonl").read_bytes():
            raise SystemExit("the outputs differ")
        two = ray_run(model, source, folder / "ray.jsonl", 2, part_bytes)
        measured.append(
            {
                "rows_per_core_hour": rows / one.cpu * HOUR,
                "cpu_beside_local": one.cpu / local.cpu,
                "one_worker_speed": local.seconds / one.seconds,
                "two_workers_speed": local.seconds / two.seconds,
                "fixed_seconds": two.fixed,
            }
        )
    kept = measured[1:] or measured
    return {name: statistics.median(entry[name] for entry in kept) for name in kept[0]}


def growth(model: str, folder: Path, sizes: list[int]) -> list[dict[str, float]]:
    """Seconds, and microseconds of a core for each row, for each number of rows."""
    measured = []
    for rows in sizes:
        write_rows(folder / "in.jsonl", rows)
        part_bytes = max(1, min((folder / "in.jsonl").stat().st_size // 12, 4 << 20))
        spent = ray_run(model, folder / "in.jsonl", folder / "ray.jsonl", 2, part_bytes)
        measured.append({"rows": rows, "seconds": spent.seconds, "cpu_us_per_row": spent.cpu / rows * 1e6})
    return measured


def main() -> None:
    """Run the rounds and print a few lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--growth", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--growth-model", default="scripted:bomb", help="embedded takes long with many rows")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, opened(None, Size(workers=2)):
        result = compared(arguments.model, Path(name), arguments.rows, arguments.rounds)
        grown = growth(arguments.growth_model, Path(name), arguments.growth)
    print(f"{arguments.model}, {arguments.rows} rows, {os.cpu_count()} cores, medians of {arguments.rounds} rounds")
    print(f"rows per hour of a core: {result['rows_per_core_hour']:,.0f} in this run")
    print(f"core time beside the local engine on one thread: {result['cpu_beside_local']:.2f}x")
    print(f"speed beside it: {result['one_worker_speed']:.2f}x, two workers {result['two_workers_speed']:.2f}x")
    print(f"besides the rows, on a running cluster: {result['fixed_seconds']:.1f} s")
    for entry in grown:
        figures = (
            f"{entry['rows']:>9,.0f} rows {entry['seconds']:8.2f} s, {entry['cpu_us_per_row']:5.0f} us of a core each"
        )
        print(f"{arguments.growth_model}: {figures}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": arguments.rows, **result, "growth": grown}, indent=2) + "\n")


if __name__ == "__main__":
    main()
