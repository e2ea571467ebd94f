"""What a classifier said, and what calibration and policy make of it: all of a guard but the classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace

from guardrail.calibration import Calibration
from guardrail.errors import GuardrailError, UsageError
from guardrail.policy import Policy, flagged_on_error
from guardrail.scoring import Margins, Scores
from guardrail.taxonomy import Taxonomy
from guardrail.types import CategoryScore, Role, Verdict

__all__ = ["Decided", "Decider", "Judgement"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the classifier said about one conversation, before calibration and policy."""

    margins: Margins | None
    """None when it could not be judged."""
    role: Role | None = None
    """Whose message was judged; None when the input could not be read."""
    truncated: bool = False
    markers: tuple[str, ...] = ()
    error: GuardrailError | None = None
    stage: int = 0
    """Whose it is: 0 the classifier's, or the first one's of a cascade; 1 the second one's."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A verdict with its scores; None when there is no judgement."""

    verdict: Verdict
    flagged: bool
    scores: Scores | None = None
    categories: tuple[CategoryScore, ...] = ()
    margin: float | None = None
    """Calibrated log-odds of unsafe. They rank as P(unsafe) does, also where two of those are both 1."""


@dataclass(frozen=True, slots=True)
class Decider:
    """Turns judgements into decisions."""

    taxonomy: Taxonomy
    calibration: Calibration
    policy: Policy
    second: Decider | None = None
    """For judgements of a cascade's second classifier."""

    def __call__(self, judgement: Judgement) -> Decided:
        """The decision; without a judgement an error, flagged unless the policy fails open.

        Raises UsageError for a judgement of a second classifier when there is none.
        """
        if judgement.stage:
            if self.second is None:
                raise UsageError("the judgement is of a cascade's second classifier, and there is only one here")
            return self.second(replace(judgement, stage=0))
        if judgement.margins is None or judgement.role is None:
            return Decided(Verdict.ERROR, flagged_on_error(self.policy.on_error))
        side = self.calibration.side(judgement.role)
        scores = side.scores(judgement.margins, self.taxonomy)
        verdict, categories = self.policy.decide(scores, self.taxonomy, judgement.role)
        return Decided(verdict, verdict is Verdict.UNSAFE, scores, categories, side.curve(judgement.margins.unsafe))
