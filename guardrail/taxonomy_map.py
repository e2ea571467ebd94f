"""Conversion of scores between taxonomies through the canonical hazards that their categories share.

A category of the target is as likely as the likeliest category of the source that shares a hazard with it: the maximum,
never a sum or a mean, so a converted score is always one of the given scores. It is exact where both cover the same
hazards, too high at worst where the source covers more (the target is narrower), and too low at worst where the source
covers less (the target is broader).
"""

from __future__ import annotations

import math
from collections.abc import Mapping as Scores
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from guardrail.errors import TaxonomyError
from guardrail.taxonomy import Category, Taxonomy

__all__ = ["Mapping", "Pair", "Relation", "mapping"]


class Relation(StrEnum):
    """How the hazards of a target category compare with those of a source category."""

    EXACT = "exact"
    """The same hazards."""
    BROADER = "broader"
    """All hazards of the source category and others."""
    NARROWER = "narrower"
    """Some hazards of the source category and no others."""
    OVERLAP = "overlap"
    """Some hazards of the source category and others."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A category of the source and one of the target that share hazards."""

    source: str
    """The code in the source taxonomy."""
    target: str
    """The code in the target taxonomy."""
    relation: Relation
    hazards: tuple[str, ...]
    """The shared hazards, in the order of the source category."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """The way from one taxonomy to another."""

    source: Taxonomy
    target: Taxonomy
    pairs: tuple[Pair, ...]
    """In the order of the target's categories, then of the source's."""

    @property
    def without_counterpart(self) -> tuple[str, ...]:
        """Codes of the target that no category of the source shares a hazard with; they get no score."""
        reached = {pair.target for pair in self.pairs}
        return tuple(code for code in self.target.codes if code not in reached)

    @property
    def going_nowhere(self) -> tuple[str, ...]:
        """Codes of the source whose scores are lost, because no category of the target shares a hazard with them."""
        used = {pair.source for pair in self.pairs}
        return tuple(code for code in self.source.codes if code not in used)

    def convert(self, scores: Scores[str, float]) -> dict[str, float | None]:
        """Scores by target code, in the target's order; None where there is no counterpart, which is not 0.

        Raises TaxonomyError for an unknown code, for a score that is not a finite number, and when a score that the
        result depends on is not given: the maximum of the others could be too low.
        """
        for code, score in scores.items():
            self.source.category(code)
            if not math.isfinite(score):
                raise TaxonomyError(f"the score of {code!r} is {score}", field="scores", hint="scores are finite")
        converted: dict[str, float | None] = dict.fromkeys(self.target.codes)
        for pair in self.pairs:
            if pair.source not in scores:
                hint = f"{pair.target!r} depends on it; give a score for every category"
                raise TaxonomyError(f"there is no score for {pair.source!r}", field="scores", hint=hint)
            best = converted[pair.target]
            score = scores[pair.source]
            converted[pair.target] = score if best is None else max(best, score)
        return converted

    def to_dict(self) -> dict[str, Any]:
        """The mapping as plain JSON values."""
        pairs = [
            {"source": pair.source, "target": pair.target, "relation": pair.relation.value, "hazards": [*pair.hazards]}
            for pair in self.pairs
        ]
        return {
            "source": self.source.ref,
            "target": self.target.ref,
            "pairs": pairs,
            "without_counterpart": list(self.without_counterpart),
            "going_nowhere": list(self.going_nowhere),
        }


def mapping(source: Taxonomy, target: Taxonomy) -> Mapping:
    """The mapping from `source` to `target`; codes and names play no part in it, only hazards."""
    found = (_pair(old, new) for new in target for old in source)
    return Mapping(source, target, tuple(pair for pair in found if pair is not None))


def _pair(source: Category, target: Category) -> Pair | None:
    shared = tuple(hazard for hazard in source.hazards if hazard in target.hazards)
    if not shared:
        return None
    old, new = set(source.hazards), set(target.hazards)
    if old == new:
        relation = Relation.EXACT
    elif old < new:
        relation = Relation.BROADER
    elif old > new:
        relation = Relation.NARROWER
    else:
        relation = Relation.OVERLAP
    return Pair(source.code, target.code, relation, shared)
