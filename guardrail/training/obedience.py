"""Does a guard obey its policy? What leaving out, reordering, renaming and recoding categories does to its scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardrail.guard import Guard
from guardrail.taxonomy import Category, Taxonomy
from guardrail.training.policies import TrainingPolicy
from guardrail.training.rows import Row
from guardrail.types import Decision, Role

__all__ = ["MakeGuard", "obedience"]

Floats = NDArray[np.float64]
MakeGuard = Callable[[Taxonomy], Guard]
"""The guard under test, under some taxonomy; whatever else it has stays. Where it shows definitions only for taxonomies
that are not its own, show them always, else that is measured too."""


def obedience(make: MakeGuard, policy: TrainingPolicy, rows: Sequence[Row], most: int = 25) -> dict[str, Any]:
    """What changes of the policy do to the scores of user rows that violate exactly one category; `most` of each.

    Changes of a score are absolute; `..._mean_change` over all rows, `..._largest_change` of one. `rows` and
    `not_judged`, which are left out, are counts; numbers of a group without a row are left out with it.
    """
    taxonomy = policy.taxonomy
    groups = _by_category(rows, policy, most)
    chosen = [row for group in groups.values() for row in group]
    before = _judged(make, taxonomy, chosen)
    groups = {code: kept for code, group in groups.items() if (kept := [row for row in group if id(row) in before])}
    kept = [row for group in groups.values() for row in group]
    found: dict[str, Any] = {"rows": len(kept), "not_judged": len(chosen) - len(kept), "categories": {}}
    if kept:
        found["categories"] = {code: _left_out(make, policy, code, group, before) for code, group in groups.items()}
        for name, other in _variants(taxonomy).items():
            found |= _changes(name, before, _judged(make, other, kept), kept)
    return found


def _variants(taxonomy: Taxonomy) -> dict[str, Taxonomy]:
    """The policy in other words or another order, that means the same or nearly so."""

    def bare(item: Category) -> Category:
        return replace(item, definition="", include=(), exclude=())

    names = {item.code: f"Category {number}" for number, item in enumerate(taxonomy, 1) if item.definition}
    return {
        "reordered": taxonomy.reorder(tuple(reversed(taxonomy.codes))),
        "recoded": taxonomy.renumber("C"),
        "definitions_only": taxonomy.rename(names),
        "names_only": replace(taxonomy, categories=tuple(map(bare, taxonomy))),
    }


def _changes(
    name: str, before: Mapping[int, Decision], after: Mapping[int, Decision], rows: Sequence[Row]
) -> dict[str, float]:
    pairs = [(before[id(row)], after[id(row)]) for row in rows if id(row) in after]
    if not pairs:
        return {}
    change = np.abs(_scores([one for one, _ in pairs]) - _scores([other for _, other in pairs]))
    return {
        f"{name}_mean_change": float(change.mean()),
        f"{name}_largest_change": float(change.max()),
        f"{name}_same_verdict": float(np.mean([one.flagged == other.flagged for one, other in pairs])),
    }


def _left_out(
    make: MakeGuard, policy: TrainingPolicy, code: str, rows: Sequence[Row], before: Mapping[int, Decision]
) -> dict[str, Any]:
    """One category's rows: with all categories, without it, and without all that each row may violate."""
    taxonomy = policy.taxonomy
    first = [before[id(row)] for row in rows]
    stages = {"before": first}
    if len(taxonomy) > 1:
        stages["left_out"] = list(_judged(make, taxonomy.exclude([code]), rows).values())
        stages["all_related_left_out"] = _without_related(make, policy, rows)
    top = [max(item.categories, key=lambda category: category.score).code == code for item in first if item.categories]
    return {
        "name": taxonomy.category(code).name,
        "rows": len(rows),
        "top": float(np.mean(top)) if top else None,
        **{name: float(_scores(found).mean()) for name, found in stages.items() if found},
        **{f"flagged_{name}": _flagged(found) for name, found in stages.items() if found},
    }


def _without_related(make: MakeGuard, policy: TrainingPolicy, rows: Sequence[Row]) -> list[Decision]:
    """The decisions under what is left of the policy without all that a row violates or may violate."""
    groups: defaultdict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        codes = _touched(policy, row.violated | row.possible)
        # Some category has to stay.
        groups[tuple(codes if len(codes) < len(policy) else codes[1:])].append(row)
    return [
        decision
        for codes, group in groups.items()
        for decision in _judged(make, policy.taxonomy.exclude(codes), group).values()
    ]


def _by_category(rows: Sequence[Row], policy: TrainingPolicy, most: int) -> dict[str, list[Row]]:
    """User rows that violate exactly one category, by its code."""
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        codes = _touched(policy, row.violated)
        if len(codes) == 1 and row.unsafe >= 0.8 and row.conversation.role is Role.USER:
            groups[codes[0]].append(row)
    return {code: groups[code][:most] for code in policy.taxonomy.codes if groups[code]}


def _touched(policy: TrainingPolicy, labels: frozenset[str]) -> list[str]:
    return [code for code, covered in zip(policy.taxonomy.codes, policy.labels, strict=True) if covered & labels]


def _judged(make: MakeGuard, taxonomy: Taxonomy, rows: Sequence[Row]) -> dict[int, Decision]:
    """The decisions that there are, by the row's identity."""
    decisions = make(taxonomy).check_many([row.conversation for row in rows])
    return {id(row): found for row, found in zip(rows, decisions, strict=True) if found.score is not None}


def _flagged(decisions: Sequence[Decision]) -> float:
    return float(np.mean([item.flagged for item in decisions]))


def _scores(decisions: Sequence[Decision]) -> Floats:
    return np.array([item.score for item in decisions], dtype=float)
