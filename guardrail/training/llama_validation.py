"""Validation rows as packs of questions, and what their answers are measured by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from guardrail.errors import UsageError
from guardrail.evaluation.metrics import auprc
from guardrail.training.llama_view import Filling, Format, View
from guardrail.training.packing import Branch, Pack, pack
from guardrail.training.policies import TrainingPolicy
from guardrail.training.rows import UNKNOWN, Row, targets

__all__ = ["BEST", "GOAL", "LOG_LOSS", "Validation", "questions"]

BEST = "eval_auprc"
LOG_LOSS = "eval_log_loss"
GOAL = "eval_goal"
"""The measure by which the best weights are chosen: AUPRC, and where that is level, the log loss."""

# Small enough not to outweigh a difference in AUPRC. Without it, of few validation rows, which a model soon ranks
# rightly, the first evaluation to do so would be the best one, however unsure the model still was.
_TIES = 1e-4


@dataclass(frozen=True, slots=True)
class Validation:
    """The packs of all questions, and by row index the P(unsafe) that each should get."""

    packs: list[tuple[Pack, tuple[int, ...]]]
    verdicts: dict[int, float]

    @classmethod
    def make(cls, format: Format, rows: Sequence[Row], policy: TrainingPolicy) -> Validation:
        """UsageError when the rows are of one class only, of which nothing can be ranked."""
        packs, verdicts = questions(format, rows, policy)
        unsafe = sum(value >= 0.5 for value in verdicts.values())
        if rows and not 0 < unsafe < len(verdicts):
            raise UsageError(
                f"of {len(verdicts)} validation rows {unsafe} are unsafe", hint="both classes are needed to compare"
            )
        return cls(packs, verdicts)

    def metrics(self, margins: dict[int, float]) -> dict[str, float]:
        """AUPRC, log loss (against the labels' probabilities) and what both come to, of log-odds by row index."""
        truth = np.array([self.verdicts[row] for row in sorted(self.verdicts)])
        margin = np.array([margins[row] for row in sorted(self.verdicts)])
        area = auprc(truth >= 0.5, margin)
        loss = truth * np.logaddexp(0, -margin) + (1 - truth) * np.logaddexp(0, margin)
        best, mean = math.nan if area is None else float(area), float(loss.mean())
        return {BEST: best, LOG_LOSS: mean, GOAL: best - _TIES * mean}


@dataclass(frozen=True, slots=True)
class _Question:
    """One window of a validation row."""

    row: int
    """Index of its row."""
    branch: Branch


def questions(
    format: Format, rows: Sequence[Row], policy: TrainingPolicy
) -> tuple[list[tuple[Pack, tuple[int, ...]]], dict[int, float]]:
    """What evaluation asks, and the verdict targets by row index; rows whose verdict is unknown are left out.

    One pick per window, in all windows that inference would judge; the second part of each pair is the row of each.
    TemplateError when the template cannot show a row.
    """
    view = View(format, policy)
    if not all(view.leaves_room(role) for role in {row.conversation.role for row in rows}):
        raise UsageError(
            f"the policy {policy.taxonomy.id!r} leaves too little of {format.row_tokens} tokens to the conversations",
            hint="raise pack_tokens, or use fewer or shorter categories",
        )
    verdicts = {index: targets(row, policy.labels)[0] for index, row in enumerate(rows)}
    known = {index: verdict for index, verdict in verdicts.items() if verdict != UNKNOWN}
    answer = (view.writer.question(),)
    room = format.row_tokens - len(answer[0].steps)
    found = [
        _Question(index, Branch(view.ids(window), answer))
        for index in known
        for window in view.windows(rows[index].conversation, room)
    ]
    # Sorted tokens put the prompts of one role and similar ones side by side.
    found.sort(key=lambda question: question.branch.ids)
    return list(_question_packs(found, format.pack_tokens)), known


def _question_packs(found: Sequence[_Question], pack_tokens: int) -> Iterator[tuple[Pack, tuple[int, ...]]]:
    at = 0
    while at < len(found):
        filling = Filling(pack_tokens)
        first = at
        while at < len(found) and filling.add(found[at].branch):
            at += 1
        yield pack(filling.branches), tuple(question.row for question in found[first:at])
