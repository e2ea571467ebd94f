"""Bulk scoring of many rows: the peak memory of the process and the rows per second.

With the scripted classifier, which costs next to nothing, the rate is that of everything around a classifier.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import guardrail
from guardrail.batch import Options, score_file

LIMIT_MB = 600


def peak_mb() -> float:
    """The most memory that this process had so far (ru_maxrss is in KiB on Linux, in bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def write_rows(path: Path, rows: int) -> None:
    """Prompts of about 200 bytes, with a key that is carried through."""
    padding = "Please answer in one sentence, and say what the answer depends on. " * 2
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            file.write(json.dumps({"id": row, "text": f"What is {row} times seven? {padding}", "lang": "en"}) + "\n")


def main() -> None:
    """Score the rows and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--model", default="scripted:bomb")
    parser.add_argument("--suffix", default=".jsonl", help="of the output: .jsonl or .jsonl.gz")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.jsonl"), Path(folder, f"out{arguments.suffix}")
        write_rows(source, arguments.rows)
        guard = guardrail.load(arguments.model)
        guard.check("warm")
        before = peak_mb()
        start = time.perf_counter()
        run = score_file(guard, source, target, Options())
        seconds = time.perf_counter() - start
        size = target.stat().st_size / 1e6
    result = {"rows": run.tally.rows, "peak_mb": peak_mb(), "rows_per_second": run.tally.rows / seconds}
    print(
        f"{run.tally.rows} rows, {run.tally.errors} errors: peak {result['peak_mb']:.0f} MB"
        f" ({before:.0f} MB before the first row), {result['rows_per_second']:.0f} rows/s, output {size:.0f} MB"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if run.tally.rows != arguments.rows or result["peak_mb"] > LIMIT_MB:
        sys.exit(f"expected {arguments.rows} rows in at most {LIMIT_MB} MB")


if __name__ == "__main__":
    main()
