"""How time grows: with the rows of a file, the categories of a taxonomy, and the tokens of a conversation.

    python benchmarks/growth.py --plot growth.png

Prints the exponent b of seconds ~ size^b over the larger half of the sizes: 1 is in proportion, 0 is no growth. Rows
are scored with the embedded model up to `--most`, and to 1,000,000 by a scripted classifier, which leaves the time that
reading, deciding and writing take.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.comparing import exponent, plot_lines
from benchmarks.embedded import SENTENCE, some_texts
from guardrail import load
from guardrail.batch import Options, score_file
from guardrail.guard import Guard
from guardrail.taxonomy import Taxonomy

Curve = tuple[list[float], list[float]]


def seconds(run: Callable[[], object], rounds: int) -> float:
    """The median of some calls."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def rows(guard: Guard, sizes: Sequence[int], folder: Path) -> Curve:
    """`guardrail score` over files of so many rows, once each."""
    texts = some_texts(None, 1000)
    times = []
    source, target, options = folder / "in.jsonl", folder / "out.jsonl", Options(overwrite=True)
    for size in sizes:
        with source.open("w", encoding="utf-8") as file:
            for index in range(size):
                file.write(json.dumps({"id": index, "text": texts[index % len(texts)]}) + "\n")
        times.append(seconds(partial(score_file, guard, source, target, options), 1))
    return list(map(float, sizes)), times


def categories(sizes: Sequence[int]) -> Curve:
    """One text under taxonomies of so many categories, whose vectors are known."""
    base = Taxonomy.load("default")
    some = []
    for index in range(max(sizes)):
        category = base.categories[index % len(base)]
        some.append(replace(category, code=f"X{index}", name=f"{category.name} {index}"))
    times = []
    for size in sizes:
        with load(taxonomy=Taxonomy(f"of-{size}", f"{size} categories", tuple(some[:size]))) as guard:
            guard.check(SENTENCE)
            times.append(seconds(partial(guard.check, SENTENCE), 50))
    return list(map(float, sizes)), times


def tokens(sizes: Sequence[int]) -> Curve:
    """One conversation whose last message has so many words."""
    chosen = random.Random(1)
    times = []
    with load() as guard:
        guard.check(SENTENCE)
        for size in sizes:
            text = " ".join(chosen.choices(SENTENCE.split(), k=size))
            times.append(seconds(partial(guard.check, text), 5))
    return list(map(float, sizes)), times


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10_000, help="rows that the embedded model scores at the most")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, help="also draw them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        powers = [size for size in (1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000) if size <= options.most]
        with load() as guard:
            curves = {"rows, embedded model": rows(guard, powers, folder)}
        with load("scripted:") as guard:
            curves["rows, no model"] = rows(guard, [1000, 10_000, 100_000, 1_000_000], folder)
    curves["categories"] = categories([1, 2, 5, 10, 20, 40, 60])
    curves["words of the message"] = tokens([10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000])
    drawn = {}
    for label, (sizes, times) in curves.items():
        half = len(sizes) // 2 if len(sizes) > 3 else 0
        slope = exponent(sizes[half:], times[half:])
        drawn[label] = sizes, times, slope
        pairs = ", ".join(f"{size:g}: {found:.4g} s" for size, found in zip(sizes, times, strict=True))
        print(f"{label:24} exponent {slope:5.2f}   {pairs}")
    if options.json:
        options.json.write_text(json.dumps(drawn, indent=2) + "\n", encoding="utf-8")
    plot_lines(options.plot, drawn)


if __name__ == "__main__":
    main()
