"""Scores to decisions: the only place where thresholds are applied and where a failure gets its meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from guardrail.errors import UsageError
from guardrail.resources import digest
from guardrail.scoring import Scores
from guardrail.taxonomy import Taxonomy
from guardrail.types import CategoryScore, Role, Verdict

__all__ = ["OnError", "Policy", "Thresholds", "flagged_on_error"]

OnError = Literal["closed", "open", "raise"]


def _checked(value: float | None, name: str) -> None:
    if value is not None and not (isinstance(value, int | float) and 0.0 <= value <= 1.0):
        raise UsageError(f"{name} is {value!r}, which is not a probability", hint="give a number from 0 to 1")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """At or above which score something is flagged, for one judged role.

    `verdict` applies to P(unsafe); None leaves the verdict to the categories. `categories` holds the codes that have
    a threshold of their own. With `own` the verdict is the one that the classifier itself gave, where it gave one.
    """

    verdict: float | None = 0.5
    categories: Mapping[str, float] = field(default_factory=dict)
    own: bool = False

    def __post_init__(self) -> None:
        _checked(self.verdict, "threshold")
        if not isinstance(self.own, bool):
            raise UsageError(f"own is {self.own!r}", hint="give true or false")
        for code, value in self.categories.items():
            _checked(value, f"threshold of {code}")
        if self.verdict is None and not self.categories:
            raise UsageError("no threshold at all", hint="give one for the verdict or for a category")
        object.__setattr__(self, "categories", MappingProxyType(dict(self.categories)))

    def replaced(self, verdict: float | None, categories: Mapping[str, float] | None = None) -> Thresholds:
        """With these instead, where they are given; a given verdict threshold ends the classifier's own verdict."""
        if verdict is None:
            return Thresholds(self.verdict, {**self.categories, **(categories or {})}, self.own)
        return Thresholds(verdict, {**self.categories, **(categories or {})})

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field."""
        return {"verdict": self.verdict, "categories": dict(self.categories), "own": self.own}


@dataclass(frozen=True, slots=True)
class Policy:
    """Thresholds per role, and what a failed judgement means."""

    user: Thresholds = Thresholds()
    assistant: Thresholds = Thresholds()
    on_error: OnError = "closed"

    def __post_init__(self) -> None:
        if self.on_error not in get_args(OnError):
            known = ", ".join(get_args(OnError))
            raise UsageError(f"on_error is {self.on_error!r}, which is not known", hint=f"known: {known}")

    @property
    def digest(self) -> str:
        """Names this policy in a log; equal policies have equal digests."""
        sides = [[t.verdict, sorted(t.categories.items()), t.own] for t in (self.user, self.assistant)]
        return digest(json.dumps([sides, self.on_error]))

    def side(self, role: Role) -> Thresholds:
        """The part for a judged role."""
        return self.user if role is Role.USER else self.assistant

    def check(self, taxonomy: Taxonomy) -> None:
        """Refuse thresholds for codes that the taxonomy does not have: they would never apply."""
        for thresholds in (self.user, self.assistant):
            for code in thresholds.categories:
                taxonomy.category(code)

    def decide(self, scores: Scores, taxonomy: Taxonomy, role: Role) -> tuple[Verdict, tuple[CategoryScore, ...]]:
        """The verdict and the scored categories.

        Unsafe when P(unsafe) reaches the verdict threshold, or when a category reaches a threshold of its own. A
        category without one is flagged when the verdict is unsafe by P(unsafe) and the category reaches the verdict
        threshold too. When no category does, the highest one without a threshold of its own is: an unsafe verdict
        names a reason.
        """
        thresholds = self.side(role)
        by_score = thresholds.verdict is not None and scores.unsafe >= thresholds.verdict
        if thresholds.own and scores.own is not None:
            by_score = scores.own
        own = thresholds.categories
        flags = [
            score >= own[category.code]
            if category.code in own
            else by_score and thresholds.verdict is not None and score >= thresholds.verdict
            for category, score in zip(taxonomy, scores.categories, strict=True)
        ]
        unsafe = by_score or any(flags)
        if unsafe and not any(flags):
            free = [index for index, category in enumerate(taxonomy) if category.code not in own]
            if free:
                flags[max(free, key=lambda index: scores.categories[index])] = True
        categories = tuple(
            CategoryScore(category.code, category.name, score, flag)
            for category, score, flag in zip(taxonomy, scores.categories, flags, strict=True)
        )
        return (Verdict.UNSAFE if unsafe else Verdict.SAFE), categories


def flagged_on_error(on_error: OnError) -> bool:
    """Whether a conversation that could not be judged counts as flagged: yes, unless failing open was asked for."""
    return on_error != "open"
