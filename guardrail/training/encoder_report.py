"""Scores of an exported model on rows, through the guard that users get."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from guardrail.backends.encoder import EncoderBackend
from guardrail.guard import Guard
from guardrail.taxonomy import Taxonomy
from guardrail.training.rows import Row
from guardrail.types import Decision

__all__ = ["guard_scores"]


def guard_scores(model: Path | EncoderBackend, rows: Sequence[Row], taxonomy: Taxonomy | None = None) -> list[Decision]:
    """The guard's decisions on the rows, with the model in a folder or one that is open."""
    backend = EncoderBackend(model) if isinstance(model, Path) else model
    return list(Guard(backend, taxonomy=taxonomy).check_many([row.conversation for row in rows]))
