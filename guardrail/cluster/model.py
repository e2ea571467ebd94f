"""What a worker loads, in a form that can be sent to it: no weights, no file of the sender's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail.calibration import Calibration
from guardrail.errors import UsageError
from guardrail.guard import CategoryScores, Guard
from guardrail.loading import load
from guardrail.taxonomy import Taxonomy

__all__ = ["ModelSpec"]

# Options that say where a model runs, and not what it answers.
_WHERE = frozenset({"device", "threads"})


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A guard to be; the taxonomy and the calibration are read here, the model where it is needed."""

    model: str = "embedded"
    taxonomy: Taxonomy | None = None
    template: str | None = None
    threshold: float | None = None
    calibration: Mapping[str, Any] | None = None
    """The content of a calibration file."""
    category_scores: CategoryScores = "first"
    options: Mapping[str, Any] = field(default_factory=dict)
    """For the backend: `device`, `dtype` and others."""

    @classmethod
    def read(
        cls,
        model: str = "embedded",
        *,
        taxonomy: str | Path | Taxonomy | None = None,
        template: str | None = None,
        threshold: float | None = None,
        calibration: str | Path | None = None,
        category_scores: CategoryScores = "first",
        **options: Any,
    ) -> ModelSpec:
        """From what `guardrail.load` takes; a model in a folder or file must be at the same path on every worker."""
        return cls(
            _absolute(model),
            None if taxonomy is None else Taxonomy.load(taxonomy),
            template,
            threshold,
            None if calibration is None else Calibration.read(Path(calibration)).to_dict(),
            category_scores,
            options,
        )

    def load(self, *, cpus: int, gpu: bool) -> Guard:
        """The guard, on a graphics card when the worker has one, else on so many threads."""
        options = dict(self.options)
        if gpu:
            options.setdefault("device", "cuda")
            return self._load(options)
        if "threads" in options:
            return self._load(options)
        try:
            return self._load({**options, "threads": cpus})
        except UsageError:  # not every model takes it, and what else is wrong is wrong without it too
            return self._load(options)

    def describe(self) -> dict[str, Any]:
        """What the output depends on, for the record of a run."""
        calibration = None if self.calibration is None else self._calibration().digest
        return {
            "model": self.model,
            "taxonomy": None if self.taxonomy is None else self.taxonomy.ref,
            "template": self.template,
            "threshold": self.threshold,
            "calibration": calibration,
            "category_scores": self.category_scores,
            "options": {name: str(value) for name, value in sorted(self.options.items()) if name not in _WHERE},
        }

    def _load(self, options: Mapping[str, Any]) -> Guard:
        return load(
            self.model,
            taxonomy=self.taxonomy,
            template=self.template,
            threshold=self.threshold,
            calibration=None if self.calibration is None else self._calibration(),
            category_scores=self.category_scores,
            **options,
        )

    def _calibration(self) -> Calibration:
        return Calibration.from_dict(self.calibration, Path("calibration"))


def _absolute(model: str) -> str:
    """With the whole path where it names a file or a folder: workers have working folders of their own."""
    scheme, separator, rest = model.rpartition(":")
    return f"{scheme}{separator}{os.path.abspath(rest)}" if rest and os.path.exists(rest) else model
