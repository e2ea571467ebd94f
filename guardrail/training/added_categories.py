"""What a guard makes of categories added to a policy: `python -m guardrail.training.added_categories --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from guardrail.errors import UsageError
from guardrail.guard import Guard
from guardrail.loading import load
from guardrail.taxonomy import Taxonomy
from guardrail.training.labelled import LabelSpace, read_rows
from guardrail.training.model_card_behaviour import added_categories
from guardrail.training.new_categories import Scored, fit_for_examples, measure
from guardrail.training.rows import Row
from guardrail.types import Role

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints how each category of a policy, added to the others, is found by its text and by few-shot examples."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="a model, as in guardrail check --model")
    parser.add_argument("--taxonomy", type=Path, required=True, help="the policy, with two categories or more")
    parser.add_argument("--rows", type=Path, required=True, help="labelled rows to score (JSONL)")
    parser.add_argument("--examples", type=Path, required=True, help="labelled rows to draw examples from")
    options = parser.parse_args(arguments)
    taxonomy = Taxonomy.load(options.taxonomy)
    if len(taxonomy) < 2:
        raise UsageError(f"{options.taxonomy}: has one category", hint="give a policy that one can be left out of")
    space = LabelSpace(taxonomy)
    scored, drawn_from = (_user_rows(file, space) for file in (options.rows, options.examples))
    with load(options.model, taxonomy=taxonomy) as opened:

        def make(policy: Taxonomy) -> Guard:
            # A category that was never trained on is told by its definition, also where the template shows names alone.
            return Guard(opened.backend, taxonomy=policy, policy_text=None if opened.template.header.encoder else True)

        found = {}
        for category, label in zip(taxonomy, space.names, strict=True):
            pool = fit_for_examples([row for row in drawn_from if label in row.violated])
            base = taxonomy.select([other for other in taxonomy.codes if other != category.code])
            found[category.code] = measure(make, base, category, pool, _scored(scored, label))
        print(f"{opened.backend.name}, {taxonomy.ref}\n")
    print(added_categories(found))


def _user_rows(file: Path, space: LabelSpace) -> list[Row]:
    return [each.row for each in read_rows(file, space) if each.row.conversation.role is Role.USER]


def _scored(rows: Sequence[Row], label: str) -> Scored:
    """The rows by what is certain about one label; UsageError where none violates it, or none is safe."""
    unsafe = [row for row in rows if label in row.violated]
    safe = [row for row in rows if row.unsafe == 0 and not row.possible]
    others = [row for row in rows if row.violated and label not in row.violated | row.possible]
    if not unsafe or not safe:
        raise UsageError(f"--rows: {len(unsafe)} rows violate {label}, {len(safe)} are safe", hint="both are needed")
    return Scored(unsafe, safe, others)


if __name__ == "__main__":
    main()
