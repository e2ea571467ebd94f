"""Reads all sources, holds a part out, and draws each pass's rows by the configured amounts."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from guardrail.errors import UsageError
from guardrail.training.amounts import Amount, sample
from guardrail.training.dedupe import EvaluationIndex, apart, evaluation_texts
from guardrail.training.labels import HazardTable
from guardrail.training.rows import Row, normalise
from guardrail.training.sources import SOURCES, read_source

__all__ = ["Mix", "configured_mix", "read_mix"]


@dataclass(frozen=True, slots=True)
class Mix:
    """Training rows by source, the held-out rows, and the manifest's entries."""

    train: dict[str, list[Row]]
    held_out: list[Row]
    manifest: list[dict[str, Any]]
    amounts: dict[str, Amount]

    def sample(self, number: int, seed: int) -> list[Row]:
        """The rows of pass `number`: unsafe and safe rows of a source in equal parts as far as both are there."""
        return sample(self.train, self.amounts, number, seed)

    def with_amounts(self, amounts: Mapping[str, Mapping[str, float]]) -> Mix:
        """The same rows in other amounts; of the sources that are read, those that have an amount."""
        return replace(self, amounts=_amounts(amounts, self.train))


def configured_mix(data: Path, hazards: HazardTable, config: Mapping[str, Any]) -> Mix:
    """The mix that a configuration asks for: its `sources`, `held_out` and, if it has it, `only_held_out`."""
    return read_mix(data, hazards, config["sources"], config["held_out"], config.get("only_held_out", ()))


def read_mix(
    data: Path, hazards: HazardTable, amounts: Mapping[str, Mapping[str, float]], share: float,
    only_held_out: Collection[str] = (),
) -> Mix:  # fmt: skip
    """The sources without evaluation texts and repetitions; `share` of each is held out, and `only_held_out` wholly.

    A held-out row whose judged text is trained on in another conversation would be no new text: it is left out, and
    counted as `also_trained` in the manifest.
    """
    if unknown := sorted({*amounts, *only_held_out} - set(SOURCES)):
        raise UsageError(f"unknown training sources: {', '.join(unknown)}", hint=f"known: {', '.join(SOURCES)}")
    index = EvaluationIndex(evaluation_texts(data / "eval"))
    seen: set[tuple[object, ...]] = set()
    train: dict[str, list[Row]] = {}
    aside: dict[str, list[Row]] = {}
    reports = []
    for name in (name for name in SOURCES if name in amounts or name in only_held_out):
        rows, report = read_source(SOURCES[name], data, hazards, index, seen)
        part = 1.0 if name in only_held_out else share
        train[name] = [row for row in rows if not apart(row, part)]
        aside[name] = [row for row in rows if apart(row, part)]
        reports.append(report)
        print(f"{name}: {report.kept} of {report.read} rows", file=sys.stderr, flush=True)
    held_out = _unseen(aside, train)
    manifest = [
        {
            **asdict(report),
            "held_out": len(held_out[report.source]),
            "also_trained": len(aside[report.source]) - len(held_out[report.source]),
            "training": len(train[report.source]),
        }
        for report in reports
    ]
    return Mix(train, [row for rows in held_out.values() for row in rows], manifest, _amounts(amounts, train))


def _unseen(aside: Mapping[str, list[Row]], train: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    """The rows set aside whose judged text is not trained on, in whatever conversation and role."""
    trained = {normalise(row.text) for rows in train.values() for row in rows}
    return {name: [row for row in rows if normalise(row.text) not in trained] for name, rows in aside.items()}


def _amounts(amounts: Mapping[str, Mapping[str, float]], known: Iterable[str]) -> dict[str, Amount]:
    return {
        name: Amount(**{key: _number(value) for key, value in amounts[name].items()})
        for name in known
        if name in amounts
    }


def _number(value: float) -> Any:
    return int(value) if float(value).is_integer() else value
