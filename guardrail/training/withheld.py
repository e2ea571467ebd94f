"""Training without some hazards, to measure how a model takes to categories that it never saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from guardrail.errors import UsageError, suggestion
from guardrail.taxonomy import Taxonomy
from guardrail.taxonomy_category import known_hazards
from guardrail.training.labelled import LabelSpace
from guardrail.training.mix import Mix
from guardrail.training.rows import Hazards, Row

__all__ = ["base_taxonomy", "never_trained", "remaining_labels", "withheld_hazards", "withhold"]


def withheld_hazards(names: Iterable[str]) -> Hazards:
    """The hazards that a configuration lists under `without`; UsageError for an unknown one, and for all of them."""
    found = frozenset(names)
    if unknown := sorted(found - set(known_hazards())):
        hint = suggestion(unknown[0], known_hazards(), "'guardrail taxonomy show canonical' lists them")
        raise UsageError(f"without: there is no hazard {unknown[0]!r}", hint=hint)
    if len(found) == len(known_hazards()):
        raise UsageError("without: no hazard is left to train on")
    return found


def withhold(mix: Mix, hazards: Hazards) -> Mix:
    """The mix as if the hazards did not exist: for training and for choosing a checkpoint.

    Rows that violate one are left out of both parts and counted as `withheld` in the manifest; other rows no longer
    say that they may violate one. Unsafe rows of unknown category stay, and some of them may be about these hazards.
    """
    if not hazards:
        return mix
    train = {name: _without(rows, hazards) for name, rows in mix.train.items()}
    apart = _without(mix.held_out, hazards)
    held_out = Counter(row.source for row in apart)
    manifest = []
    for entry in mix.manifest:
        name = entry["source"]
        withheld = entry["training"] + entry["held_out"] - len(train[name]) - held_out[name]
        counts = {"held_out": held_out[name], "training": len(train[name]), "withheld": withheld}
        manifest.append({**entry, **counts})
    return replace(mix, train=train, held_out=apart, manifest=manifest)


def _without(rows: Sequence[Row], hazards: Hazards) -> list[Row]:
    stripped = (replace(row, possible=row.possible - hazards) for row in rows if not row.violated & hazards)
    # An unsafe row that could only be about these hazards would now say that it violates nothing at all.
    return [row for row in stripped if row.violated or row.possible or row.unsafe < 0.5]


def never_trained(mix: Mix, hazards: Hazards) -> list[Row]:
    """Of a whole mix, the rows that training without the hazards does not see: held out, or violating one of them."""
    withheld = (row for rows in mix.train.values() for row in rows if row.violated & hazards)
    return [*mix.held_out, *withheld]


def remaining_labels(hazards: Hazards) -> LabelSpace:
    """All hazards but these. Policies of these labels have no category that covers only hazards left out."""
    return LabelSpace(Taxonomy.load("canonical").exclude(hazards))


def base_taxonomy(name: str, hazards: Hazards) -> Taxonomy:
    """A shipped taxonomy as training without the hazards showed it."""
    taxonomy = Taxonomy.load(name)
    return taxonomy.select([item.code for item in taxonomy if frozenset(item.hazards) - hazards])
