"""From a model's name to what is evaluated: one classifier, or a cascade."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guardrail.backends import load_backend
from guardrail.backends.base import Backend
from guardrail.calibration import Calibration
from guardrail.cascade import SCHEME
from guardrail.guard import Guard
from guardrail.loading import load

__all__ = ["calibrations_of", "open_classifier"]


def open_classifier(model: str, options: Mapping[str, Any], fixed: Mapping[str, Any]) -> Backend | Guard:
    """The classifier, to be put under the taxonomies that suites want; or a cascade as its file has it.

    `fixed` is what a cascade has from its file, so that there it is a UsageError.
    """
    if model.startswith(f"{SCHEME}:"):
        return load(model, **fixed, **options)
    return load_backend(model, **options)


def calibrations_of(classifier: Backend | Guard) -> list[Calibration]:
    """Those that scores come from."""
    if isinstance(classifier, Guard):
        return [stage.calibration for stage in classifier.stages]
    return [classifier.calibration]
