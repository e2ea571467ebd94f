"""The public training sources as labelled rows that any guard can be trained on: `… prepare --help`.

The rows have the codes of the shipped taxonomy `canonical`, so they can be shown under every taxonomy.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from guardrail.resources import digest
from guardrail.taxonomy import Taxonomy
from guardrail.training.held_out import CONFIGS, FILE
from guardrail.training.labelled import LabelSpace, write_rows
from guardrail.training.labels import HazardTable
from guardrail.training.mix import read_mix
from guardrail.training.sources import SOURCES
from guardrail.training.written import NEVER_TRAINED

__all__ = ["MANIFEST", "TRAIN", "main", "prepare"]

TRAIN, MANIFEST = "train.jsonl", "manifest.json"
_SHARE = 0.06


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes train.jsonl, held-out.jsonl and manifest.json, without evaluation texts and repetitions."""
    parser = argparse.ArgumentParser(prog="python -m guardrail.training.prepare", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and eval/")
    parser.add_argument("--sources", nargs="+", default=tuple(SOURCES), metavar="NAME", help="by default all")
    parser.add_argument("--held-out", type=float, default=_SHARE, metavar="SHARE", help=f"by default {_SHARE}")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the files")
    options = parser.parse_args(arguments)
    prepare(options.data, options.output, options.sources, options.held_out)


def prepare(data: Path, output: Path, sources: Sequence[str] = tuple(SOURCES), share: float = _SHARE) -> None:
    """Write the rows of these sources; `share` of each, chosen by the texts, goes to the held-out file.

    Of the sources that were written for that, all do (`written.NEVER_TRAINED`).

    Raises UsageError for an unknown source, one that the data folder does not have, and without evaluation data.
    """
    table = HazardTable.read(CONFIGS / "hazards.yaml")
    apart = NEVER_TRAINED.intersection(sources)
    mix = read_mix(data, table, {name: {"rows": 1} for name in sources if name not in apart}, share, apart)
    space = LabelSpace(Taxonomy.load("canonical"))
    output.mkdir(parents=True, exist_ok=True)
    parts = {TRAIN: [row for rows in mix.train.values() for row in rows], FILE: mix.held_out}
    files = {}
    for name, rows in parts.items():
        count = write_rows(rows, output / name, space)
        files[name] = {"rows": count, "digest": digest((output / name).read_bytes())}
    manifest = {"taxonomy": space.taxonomy.ref, "held_out": share, "files": files, "sources": mix.manifest}
    (output / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
