"""What a training run hands on: from a kind's trainer to the common end of a run, and from there to whoever asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Outcome", "Say", "Trained"]

Say = Callable[[str], None]
"""Is told what happens, in single lines."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A kind's training is over: `OUT/model` is a folder that `guardrail.load` opens, without a calibration."""

    best_step: int
    """The step whose weights the folder has."""
    steps: int
    """How many steps were made."""
    metrics: Mapping[str, float]
    """Of the best step on the validation rows."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What happened to rows on the way, such as texts that were cut; by reason."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run."""

    folder: Path
    model: Path
    """The folder to load."""
    name: str
    """`id@digest` of the weights."""
    trained: Trained
    before: str | None
    """The model that training started from, as `id@digest`; None where it could not be read as a guard."""
    comparison: Sequence[Mapping[str, Any]]
    """One entry for each suite: `run`, `items`, `unsafe`, and by metric `before`, `after` and the difference's ends."""
    calibration: Sequence[Mapping[str, Any]]
    """What was fitted, see `evaluation.calibrate`."""
    notes: Sequence[str] = ()
    """What a reader must know, such as why nothing could be calibrated."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        trained = {name: getattr(self.trained, name) for name in ("best_step", "steps")}
        parts = {name: dict(getattr(self.trained, name)) for name in ("metrics", "counts")}
        return {
            "folder": str(self.folder),
            "model": str(self.model),
            "name": self.name,
            **trained,
            **parts,
            "before": self.before,
            "comparison": [dict(entry) for entry in self.comparison],
            "calibration": [dict(line) for line in self.calibration],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Outcome:
        """Read back what `to_dict` made."""
        trained = Trained(raw["best_step"], raw["steps"], raw["metrics"], raw["counts"])
        return cls(
            Path(raw["folder"]),
            Path(raw["model"]),
            raw["name"],
            trained,
            raw["before"],
            raw["comparison"],
            raw["calibration"],
            tuple(raw["notes"]),
        )
