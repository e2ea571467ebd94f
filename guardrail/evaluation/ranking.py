"""The metrics that rank rows, also where different log-odds have become one and the same score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import numpy as np

from guardrail.evaluation.metrics import FPR_LIMITS, Floats
from guardrail.evaluation.table import places_of

__all__ = ["with_ranking"]

T = TypeVar("T")

_RANKING: Final = ("auprc", "auroc", "best_f1", *FPR_LIMITS)


def with_ranking(measure: Callable[..., Mapping[str, T]], *systems: tuple[Floats, Floats]) -> dict[str, T]:
    """What `measure` finds by name when it is given the scores of each system; what ranks is found anew where needed.

    A system is its scores and its margins, log-odds that rank as the scores do, both (N,). Where the margins tell rows
    apart that the scores do not, such as two that are both 1 in double precision, they decide the order.
    """
    found = dict(measure(*(score for score, _ in systems)))
    finer = [len(np.unique(score)) < len(np.unique(margin)) for score, margin in systems]
    if any(finer):
        columns = (places_of(margin) if by else score for (score, margin), by in zip(systems, finer, strict=True))
        ranked = measure(*columns)
        found |= {name: ranked[name] for name in _RANKING}
    return found
