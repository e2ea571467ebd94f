"""A cascade: a quick classifier judges everything, and a better one what the first is unsure of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from guardrail.backends.base import Backend
from guardrail.calibration import Calibration
from guardrail.errors import BackendError, UsageError
from guardrail.guard import Guard, Judgeable
from guardrail.judgement import Decider, Judgement
from guardrail.prompting import Prompt, Template
from guardrail.scoring import Logits, sigmoid
from guardrail.taxonomy import Taxonomy
from guardrail.tokens import TextTokenizer
from guardrail.types import Decision, Role
from guardrail.workers import Workers

__all__ = ["SCHEME", "Band", "Cascade"]

SCHEME = "cascade"
"""`cascade:FILE` names a cascade where a model's name is wanted."""


@dataclass(frozen=True, slots=True)
class Band:
    """Calibrated P(unsafe) from `low` to `high`, both included: where the first classifier is unsure."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            hint = "give two numbers from 0 to 1, the lower one first"
            raise UsageError(f"a band from {self.low:g} to {self.high:g}", hint=hint)

    def __contains__(self, score: float) -> bool:
        return self.low <= score <= self.high

    def __str__(self) -> str:
        return f"{self.low!r} to {self.high!r}"


class Cascade(Guard):
    """Two guards as one: the second is asked where the first one's P(unsafe) lies in the band, or where it failed.

    A decision is that of whoever judged, by its own calibration and thresholds; `Decision.model` says who. When the
    second fails, that is an error: what the first was unsure of is never safe by default. A role without a band is left
    to the first, but for what it failed on. Both guards are closed with the cascade.
    """

    def __init__(self, first: Guard, second: Guard, bands: Mapping[Role, Band]) -> None:
        """Raises UsageError for guards that cannot stand for each other."""
        _check(first, second)
        # Not that of Guard: everything that it would make, the two have.
        self.first = first
        self.second = second
        self.bands = dict(bands)
        self.backend = _Both(first.backend, second.backend)
        self.taxonomy = first.taxonomy
        self.calibration = first.calibration
        self.policy = first.policy
        self.category_scores = first.category_scores
        self._builder = first._builder
        self._workers = Workers(min(4, os.cpu_count() or 1), "guardrail")

    @property
    def decider(self) -> Decider:
        """As of the first guard, with the second one's for what that judged."""
        return replace(self.first.decider, second=self.second.decider)

    @property
    def stages(self) -> tuple[Guard, ...]:
        """The first and the second."""
        return (self.first, self.second)

    @property
    def classifier(self) -> str:
        """All that a judgement depends on: both classifiers, the first one's calibration, and the bands."""
        bands = ", ".join(f"{role.value} {band}" for role, band in sorted(self.bands.items()))
        first = f"{self.first.classifier} calibration@{self.first.calibration.digest}"
        return f"cascade of {first}; {self.second.classifier}; {bands or 'no band'}"

    @property
    def fingerprint(self) -> str:
        """What decisions depend on: both guards and the bands."""
        return f"{self.classifier}; {self.first.fingerprint}; {self.second.fingerprint}"

    def under(self, taxonomy: Taxonomy | None = None, threshold: float | None = None) -> Cascade:
        """As of a guard, for both; the bands stay."""
        other = Cascade(self.first.under(taxonomy, threshold), self.second.under(taxonomy, threshold), self.bands)
        other.backend = self.backend
        return other

    def decide(self, judgement: Judgement) -> Decision:
        """The decision of the guard that judged."""
        return self.stages[judgement.stage].decide(replace(judgement, stage=0))

    def close(self) -> None:
        """Close both."""
        self._workers.close()
        self.first.close()
        self.second.close()

    def _judge(self, batch: Sequence[Judgeable]) -> list[Judgement]:
        found = self.first._judge(batch)
        unsure = [at for at, judgement in enumerate(found) if self._unsure(judgement)]
        if unsure:
            asked = self.second._judge([batch[at] for at in unsure])
            for at, judgement in zip(unsure, asked, strict=True):
                found[at] = replace(judgement, stage=1)
        return found

    def _unsure(self, judgement: Judgement) -> bool:
        if judgement.margins is None or judgement.role is None:
            return True
        band = self.bands.get(judgement.role)
        curve = self.calibration.side(judgement.role).curve
        return band is not None and sigmoid(curve(judgement.margins.unsafe)) in band


def _check(first: Guard, second: Guard) -> None:
    if len(first.stages) > 1 or len(second.stages) > 1:
        raise UsageError("a cascade has two models, and one of these is a cascade itself", hint="give plain models")
    if first.backend.name == second.backend.name:
        raise UsageError(f"both models of the cascade are {first.backend.name}", hint="name two different ones")
    if first.taxonomy.codes != second.taxonomy.codes:
        codes = (", ".join(guard.taxonomy.codes) for guard in (first, second))
        hint = "load both with the same taxonomy"
        raise UsageError(f"the two models of a cascade have the categories {' and '.join(codes)}", hint=hint)
    if first.policy.on_error != second.policy.on_error:
        modes = f"{first.policy.on_error!r} and {second.policy.on_error!r}"
        raise UsageError(f"the two models of a cascade have on_error {modes}", hint="give both the same")


class _Both:
    """The two classifiers as far as others ask for one: names, and closing."""

    def __init__(self, first: Backend, second: Backend) -> None:
        self.first = first
        self.second = second

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.first.name} + {self.second.name}"

    @property
    def numerics(self) -> str:
        """Of both."""
        return f"{self.first.numerics} + {self.second.numerics}"

    @property
    def template(self) -> Template:
        """The first one's."""
        return self.first.template

    @property
    def tokenizer(self) -> TextTokenizer:
        """The first one's."""
        return self.first.tokenizer

    @property
    def max_tokens(self) -> int:
        """The first one's."""
        return self.first.max_tokens

    @property
    def default_taxonomy(self) -> Taxonomy:
        """The first one's."""
        return self.first.default_taxonomy

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Of the one that reads no policy, if there is one."""
        return self.second.labels if self.first.labels is None else self.first.labels

    @property
    def calibration(self) -> Calibration:
        """The first one's."""
        return self.first.calibration

    def logits(self, prompts: Sequence[Prompt], categories: bool = True) -> list[Logits | BackendError]:
        """Nobody asks both the same: the two have prompts of their own."""
        raise BackendError("a cascade is asked through its guards, not as one classifier")

    def close(self) -> None:
        """Close both."""
        self.first.close()
        self.second.close()
