"""What a model makes of categories that it never saw: `python -m guardrail.training.new_categories --help`."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.backends.encoder import EncoderBackend
from guardrail.errors import UsageError
from guardrail.evaluation.metrics import auprc
from guardrail.guard import Guard
from guardrail.taxonomy import Category, Example, Taxonomy
from guardrail.training.encoder_batches import DEFAULT
from guardrail.training.held_out import CONFIGS
from guardrail.training.labels import HazardTable
from guardrail.training.mix import configured_mix
from guardrail.training.model_card import NEW_CATEGORIES, write_card
from guardrail.training.obedience import MakeGuard
from guardrail.training.rows import Hazards, Row
from guardrail.training.withheld import base_taxonomy, never_trained, withheld_hazards
from guardrail.types import Decision, Role

__all__ = ["Plan", "Scored", "fit_for_examples", "main", "measure", "split"]

# Examples are as short as those that users write into a taxonomy.
_LONGEST_EXAMPLE = 300


@dataclass(frozen=True, slots=True)
class Plan:
    """How many rows are scored, how many examples are given, and how often they are drawn."""

    unsafe: int = 200
    fewest: int = 25
    safe: int = 400
    others: int = 200
    examples: tuple[int, ...] = (4, 16)
    draws: int = 5


@dataclass(frozen=True, slots=True)
class Scored:
    """The rows that one category is measured on."""

    unsafe: Sequence[Row]
    """Violate the category."""
    safe: Sequence[Row]
    others: Sequence[Row]
    """Unsafe, and certainly not by this category."""

    @property
    def rows(self) -> list[Row]:
        """All of them, in this order."""
        return [*self.unsafe, *self.safe, *self.others]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the withheld categories of a run; writes them into its folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and eval/")
    parser.add_argument("--run", type=Path, required=True, help="folder of a run whose configuration has `without`")
    parser.add_argument("--categories", type=Path, default=CONFIGS / "new-categories.yaml", help="as a taxonomy file")
    parser.add_argument("--card", type=Path, help="folder of another run, whose model card is to tell of this one")
    options = parser.parse_args(arguments)
    config = json.loads((options.run / "config.json").read_text(encoding="utf-8"))
    without = withheld_hazards(config.get("without", ()))
    new = Taxonomy.load(options.categories)
    _check_withheld(new, without)
    mix = configured_mix(options.data, HazardTable.read(CONFIGS / "hazards.yaml"), config)
    rows, base = never_trained(mix, without), base_taxonomy(DEFAULT, without)
    backend = EncoderBackend(options.run / "model")

    def make(taxonomy: Taxonomy) -> Guard:
        return Guard(backend, taxonomy=taxonomy)

    plan = Plan()
    found = {
        "model": backend.name,
        "without": sorted(without),
        "draws": plan.draws,
        "categories": {item.code: measure(make, base, item, *split(item, rows, plan), plan) for item in new},
    }
    backend.close()
    text = json.dumps(found, indent=2) + "\n"
    for folder in (options.run, options.card):
        if folder is not None:
            (folder / NEW_CATEGORIES).write_text(text, encoding="utf-8")
            write_card(folder)
    print(text, end="")


def _check_withheld(new: Taxonomy, without: Hazards) -> None:
    for item in new:
        if not item.hazards or not frozenset(item.hazards) <= without:
            hint = "train with configs/train-embedded-withheld.yaml"
            raise UsageError(f"the run's configuration does not withhold the category {item.name!r}", hint=hint)


def measure(
    make: MakeGuard, base: Taxonomy, category: Category, pool: Sequence[Row], scored: Scored, plan: Plan = Plan()
) -> dict[str, Any]:
    """How well the score of `category`, added to `base`, finds the rows that violate it, none of them trained on.

    `base`: the verdict without the category. `definition` and `examples`: the category's score with its text alone, and
    with examples besides, drawn from `pool`, which is not scored. AUPRC against safe rows, and against rows that
    violate other categories; and the share of the unsafe and of the safe rows that the guard flags. Raises UsageError
    when the pool has too few rows.
    """
    if len(pool) < max(plan.examples):
        hint = f"{max(plan.examples)} are needed that are not scored, of one message and {_LONGEST_EXAMPLE} characters"
        raise UsageError(f"{len(pool)} rows can be examples of {category.name}", hint=hint)
    taxonomy = base.add(category)
    shown = {"base": _measured(make(base), None, scored)}
    shown["definition"] = _measured(make(taxonomy), category.code, scored)
    by_count: dict[str, Any] = {}
    for count in plan.examples:
        draws = []
        for draw in range(plan.draws):
            drawn = random.Random(f"{category.code} {count} {draw}").sample(pool, count)
            examples = [Example("unsafe", row.conversation.messages) for row in drawn]
            guard = make(taxonomy.with_examples({category.code: examples}))
            draws.append(_measured(guard, category.code, scored))
        by_count[str(count)] = {name: _spread(entry[name] for entry in draws) for name in draws[0]}
    return {
        "name": category.name,
        "hazards": list(category.hazards),
        "unsafe": len(scored.unsafe),
        "safe": len(scored.safe),
        "others": len(scored.others),
        "chance": len(scored.unsafe) / (len(scored.unsafe) + len(scored.safe)),
        "chance_others": len(scored.unsafe) / (len(scored.unsafe) + len(scored.others)) if scored.others else None,
        **shown,
        "examples": by_count,
    }


def split(category: Category, rows: Sequence[Row], plan: Plan = Plan()) -> tuple[list[Row], Scored]:
    """Rows to draw examples from, and user rows to score; a fixed choice. Raises UsageError when there are too few."""
    hazards = frozenset(category.hazards)
    chosen = random.Random(f"new category {category.code}")
    user = [row for row in rows if row.conversation.role is Role.USER]
    unsafe = [row for row in user if row.unsafe >= 0.8 and row.violated & hazards]
    chosen.shuffle(unsafe)
    pool = fit_for_examples(unsafe)[: max(0, min(plan.draws * max(plan.examples), len(unsafe) - plan.fewest))]
    if len(pool) < max(plan.examples):
        needed = plan.fewest + max(plan.examples)
        raise UsageError(f"{len(unsafe)} rows violate {category.name}", hint=f"at least {needed} are needed")
    taken = {id(row) for row in pool}
    safe = [row for row in user if 0 <= row.unsafe <= 0.1 and not row.violated]
    others = [row for row in user if row.unsafe >= 0.8 and row.violated and not hazards & (row.violated | row.possible)]
    left = [row for row in unsafe if id(row) not in taken][: plan.unsafe]
    return pool, Scored(left, _spread_over_sources(safe, plan.safe, chosen),
                        _spread_over_sources(others, plan.others, chosen))  # fmt: skip


def fit_for_examples(rows: Sequence[Row]) -> list[Row]:
    """Those that are one message, and short."""
    return [row for row in rows if len(row.conversation.messages) == 1 and len(row.text) <= _LONGEST_EXAMPLE]


def _spread_over_sources(rows: Sequence[Row], most: int, chosen: random.Random) -> list[Row]:
    """At most `most` rows, of each source about equally many as far as there are."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.source, []).append(row)
    for group in groups.values():
        chosen.shuffle(group)
    ranked = sorted(((at, name) for name, group in groups.items() for at in range(len(group))))
    return [groups[name][at] for at, name in ranked[:most]]


def _measured(guard: Guard, code: str | None, scored: Scored) -> dict[str, Any]:
    """AUPRC of the category's score (of the verdict's, without a code), and the shares flagged."""
    decisions = list(guard.check_many([row.conversation for row in scored.rows]))
    judged = np.array([decision.score is not None for decision in decisions])
    values = np.array([_score(decision, code) for decision in decisions], dtype=float)
    flagged = np.array([decision.flagged for decision in decisions])
    truth = np.arange(len(decisions)) < len(scored.unsafe)
    first, second = len(scored.unsafe), len(scored.unsafe) + len(scored.safe)
    safe, others = judged.copy(), judged.copy()
    safe[second:] = False
    others[first:second] = False
    return {
        "auprc": auprc(truth[safe], values[safe]),
        "auprc_others": auprc(truth[others], values[others]) if scored.others else None,
        "flagged": float(flagged[judged & truth].mean()),
        "flagged_safe": float(flagged[safe & ~truth].mean()),
        "not_judged": int((~judged).sum()),
    }


def _score(decision: Decision, code: str | None) -> float:
    if decision.score is None:
        return 0.0
    if code is None:
        return decision.score
    return next(item.score for item in decision.categories if item.code == code)


def _spread(values: Iterable[float | None]) -> Mapping[str, float] | None:
    known = [value for value in values if value is not None]
    return {"mean": float(np.mean(known)), "low": min(known), "high": max(known)} if known else None


if __name__ == "__main__":
    main()
