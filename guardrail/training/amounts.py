"""How many rows of each source a pass sees."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from guardrail.errors import UsageError
from guardrail.training.rows import Row

__all__ = ["Amount", "sample"]


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of a source one pass sees: at most `rows`, each at most `repeat` times, weighted by `weight`."""

    rows: int
    repeat: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.repeat < 1 or self.weight <= 0:
            raise UsageError(
                f"rows {self.rows}, repeat {self.repeat}, weight {self.weight:g} is no amount",
                hint="rows and repeat are from 1, the weight is above 0; leave the source out for none",
            )


def sample(sources: Mapping[str, Sequence[Row]], amounts: Mapping[str, Amount], number: int, seed: int) -> list[Row]:
    """The rows of pass `number`: unsafe and safe rows of a source in equal parts as far as both are there."""
    chosen = random.Random(f"{seed} {number}")
    result: list[Row] = []
    for name, amount in amounts.items():
        picked = _balanced(sources.get(name, ()), amount, chosen)
        result.extend(replace(row, weight=row.weight * amount.weight) for row in picked)
    return result


def _balanced(rows: Sequence[Row], amount: Amount, chosen: random.Random) -> list[Row]:
    unsafe = [row for row in rows if row.unsafe >= 0.5]
    others = [row for row in rows if row.unsafe < 0.5]
    total = min(amount.rows, len(rows) * amount.repeat)
    smaller = min(len(unsafe), len(others)) * amount.repeat
    first = min(total // 2, smaller)
    counts = (first, total - first) if len(unsafe) < len(others) else (total - first, first)
    return [row for part, count in zip((unsafe, others), counts, strict=True) for row in _draw(part, count, chosen)]


def _draw(rows: Sequence[Row], count: int, chosen: random.Random) -> list[Row]:
    picked: list[Row] = []
    while rows and len(picked) < count:
        picked.extend(chosen.sample(rows, min(len(rows), count - len(picked))))
    return picked
