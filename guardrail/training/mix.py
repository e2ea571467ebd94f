"""Reads all sources, holds a part out, and draws each pass's rows by the configured amounts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from guardrail.errors import UsageError
from guardrail.training.amounts import Amount, sample
from guardrail.training.dedupe import EvaluationIndex, evaluation_texts
from guardrail.training.labels import HazardTable
from guardrail.training.rows import Row
from guardrail.training.sources import SOURCES, held_out, read_source

__all__ = ["Mix", "read_mix"]


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
        """The same rows in other amounts; of the sources that are read."""
        return replace(self, amounts=_amounts(amounts, self.train))


def read_mix(data: Path, hazards: HazardTable, amounts: Mapping[str, Mapping[str, float]], share: float) -> Mix:
    """All configured sources without evaluation texts and repetitions; `share` of each is held out."""
    if unknown := sorted(set(amounts) - set(SOURCES)):
        raise UsageError(f"unknown training sources: {', '.join(unknown)}", hint=f"known: {', '.join(SOURCES)}")
    index = EvaluationIndex(evaluation_texts(data / "eval"))
    seen: set[tuple[object, ...]] = set()
    train: dict[str, list[Row]] = {}
    apart: list[Row] = []
    manifest = []
    for name in (name for name in SOURCES if name in amounts):
        rows, report = read_source(SOURCES[name], data, hazards, index, seen)
        train[name] = [row for row in rows if not held_out(row, share)]
        kept_apart = [row for row in rows if held_out(row, share)]
        apart.extend(kept_apart)
        manifest.append({**asdict(report), "held_out": len(kept_apart), "training": len(train[name])})
        print(f"{name}: {report.kept} of {report.read} rows", file=sys.stderr, flush=True)
    return Mix(train, apart, manifest, _amounts(amounts, train))


def _amounts(amounts: Mapping[str, Mapping[str, float]], known: Iterable[str]) -> dict[str, Amount]:
    return {name: Amount(**{key: _number(value) for key, value in amounts[name].items()}) for name in known}


def _number(value: float) -> Any:
    return int(value) if float(value).is_integer() else value
