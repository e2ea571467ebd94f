"""Tree packing: prompts that begin alike, and their answers, as one sequence in which each token is computed once.

The sequence is the tree of all prompts with their answers, in depth-first order. A token attends to the tokens on its
way from the root and to itself, and its position is their number: it is computed as in its own row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from guardrail.backends.causal_rows import common_length
from guardrail.training.answers import Answer, Step

__all__ = ["Branch", "Pack", "collate", "distances", "log_likelihoods", "pack"]

# The matrix library of CPUs compiles a kernel for each new shape, so there are few of them.
_LENGTHS = 64
_PLACES = 32
# The part of the probability that tokens of unknown categories get together: a label names what a text is about, and
# the categories beside it, which nobody looked at, are mostly not violated.
_UNKNOWN = 0.15


@dataclass(frozen=True, slots=True)
class Branch:
    """One prompt with its answers."""

    ids: tuple[int, ...]
    answers: tuple[Answer, ...]
    weight: float = 1.0
    vector: NDArray[np.float32] | None = None
    """(D,) where the state that the verdict is read from is to point, if anywhere."""

    @property
    def size(self) -> int:
        """Its tokens alone: the last one of an answer is predicted but never read."""
        return len(self.ids) + sum(len(answer.steps) - 1 for answer in self.answers)

    @property
    def depth(self) -> int:
        """The tokens of its longest path."""
        return len(self.ids) + max(len(answer.steps) - 1 for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Pack:
    """A tree of tokens, and the places where tokens are predicted (picks); all arrays are of integers but `weights`."""

    ids: NDArray[np.int64]
    """(L,) tokens in depth-first order."""
    depths: NDArray[np.int64]
    """(L,) position ids."""
    ends: NDArray[np.int64]
    """(L,) token j is seen by the tokens from j to before `ends[j]`: its subtree."""
    picks: NDArray[np.int64]
    """(N,) the place that predicts, in branch order and answer order."""
    targets: NDArray[np.int64]
    """(N, K) the right token, then those that may be right as well; -1 where there are fewer than K."""
    weights: NDArray[np.float32]
    """(N,) weight of the row times that of the answer."""
    verdicts: NDArray[np.bool_]
    """(N,) whether the pick is a verdict."""
    closed: NDArray[np.bool_]
    """(N,) whether only the verdict tokens compete."""
    rows: int
    vector_places: NDArray[np.int64]
    """(M,) the places of the verdicts of those branches that have a vector."""
    vectors: NDArray[np.float32]
    """(M, D) those vectors."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class _Pick:
    place: int
    step: Step
    weight: float


def pack(branches: Sequence[Branch]) -> Pack:
    """The tree of these branches; what any of them have in common at their beginning is in it once."""
    paths = [
        (branch.ids + answer.ids[:-1], number, at)
        for number, branch in enumerate(branches)
        for at, answer in enumerate(branch.answers)
    ]
    ids: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    way: list[int] = []  # places of the tokens from the root to the last one
    previous: tuple[int, ...] = ()
    picks: dict[tuple[int, int], list[_Pick]] = {}
    for path, number, at in sorted(paths):
        shared = common_length([previous, path])
        for place in way[shared:]:
            ends[place] = len(ids)
        del way[shared:]
        way += range(len(ids), len(ids) + len(path) - shared)
        ids += path[shared:]
        depths += range(shared, len(path))
        ends += [0] * (len(path) - shared)
        previous = path
        branch, answer = branches[number], branches[number].answers[at]
        first = len(branch.ids) - 1
        picks[number, at] = [
            _Pick(way[first + index], step, branch.weight * answer.weight)
            for index, step in enumerate(answer.steps)
            if step.learnt
        ]
    for place in way:
        ends[place] = len(ids)
    found = [pick for key in sorted(picks) for pick in picks[key]]
    return Pack(
        np.array(ids),
        np.array(depths),
        np.array(ends),
        rows=len(branches),
        **_vector_arrays(branches, picks),
        **_arrays(found),
    )


def _vector_arrays(branches: Sequence[Branch], picks: dict[tuple[int, int], list[_Pick]]) -> dict[str, Any]:
    verdicts: dict[int, int] = {}
    for (number, _), own in picks.items():
        # Behind an explanation the verdict is learnt once more.
        for place in (pick.place for pick in own if pick.step.verdict):
            verdicts[number] = min(place, verdicts.get(number, place))
    vectors = {number: branch.vector for number, branch in enumerate(branches) if branch.vector is not None}
    return {
        "vector_places": np.array([verdicts[number] for number in vectors], dtype=np.int64),
        "vectors": np.array(list(vectors.values()), dtype=np.float32),
    }


def _arrays(picks: Sequence[_Pick]) -> dict[str, Any]:
    widest = max((len(pick.step.targets) for pick in picks), default=1)
    targets = np.full((len(picks), widest), -1)
    for row, pick in enumerate(picks):
        targets[row, : len(pick.step.targets)] = pick.step.targets
    return {
        "picks": np.array([pick.place for pick in picks], dtype=np.int64),
        "targets": targets,
        "weights": np.array([pick.weight for pick in picks], dtype=np.float32),
        "verdicts": np.array([pick.step.verdict for pick in picks], dtype=np.bool_),
        "closed": np.array([pick.step.closed for pick in picks], dtype=np.bool_),
    }


def collate(packs: Sequence[Pack], verdict_weight: float = 1.0) -> dict[str, Tensor]:
    """One batch of B packs.

    `input_ids`, `position_ids`, `ends` (B, L); `keep` (B, P), the places whose logits are needed; and for the N picks
    of all packs together `picks` (N,), an index into the flattened `keep`, `targets` (N, K), `weights` and `closed`;
    and where there are vectors, `vector_picks` (M,) such an index, and `vectors` (M, D).
    """
    length = _up(max(map(len, packs)), _LENGTHS)
    ids = np.zeros((len(packs), length), dtype=np.int64)
    depths = np.zeros_like(ids)
    # Padding sees itself alone.
    ends = np.broadcast_to(np.arange(1, length + 1), ids.shape).copy()
    kept = [np.unique(one.picks) for one in packs]
    places = _up(max(map(len, kept)), _PLACES)
    keep = np.zeros((len(packs), places), dtype=np.int64)
    targets = np.full((sum(len(one.picks) for one in packs), max(one.targets.shape[1] for one in packs)), -1)
    picks: list[NDArray[np.int64]] = []
    led: list[NDArray[np.int64]] = []
    for row, (one, needed) in enumerate(zip(packs, kept, strict=True)):
        ids[row, : len(one)], depths[row, : len(one)], ends[row, : len(one)] = one.ids, one.depths, one.ends
        keep[row, : len(needed)] = needed
        first = sum(map(len, picks))
        targets[first : first + len(one.picks), : one.targets.shape[1]] = one.targets
        picks.append(np.searchsorted(needed, one.picks) + row * places)
        led.append(np.searchsorted(needed, one.vector_places) + row * places)
    weights = np.concatenate([np.where(one.verdicts, verdict_weight, 1.0) * one.weights for one in packs])
    arrays = {
        "input_ids": ids,
        "position_ids": depths,
        "ends": ends,
        "keep": keep,
        "picks": np.concatenate(picks),
        "targets": targets,
        "weights": weights.astype(np.float32),
        "closed": np.concatenate([one.closed for one in packs]),
    }
    if any(map(len, led)):
        arrays["vector_picks"] = np.concatenate(led)
        arrays["vectors"] = np.concatenate([one.vectors for one in packs if len(one.vectors)])
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def log_likelihoods(logits: Tensor, batch: dict[str, Tensor], verdict: Tensor) -> Tensor:
    """log P of the right token at each pick (N,); `logits` are those of the kept places (B, P, V).

    Where other tokens may be right as well, it is 0.85 log P(right) + 0.15 log P(any of the others): highest when the
    model gives them together 0.15. `verdict` are the verdict tokens, the only competitors at closed picks.
    """
    flat = logits.flatten(0, 1).float()
    total = flat.logsumexp(dim=-1)[batch["picks"]]
    if batch["closed"].any():
        total = torch.where(batch["closed"], flat[:, verdict].logsumexp(dim=-1)[batch["picks"]], total)
    targets = batch["targets"]
    values = flat[batch["picks"][:, None], targets.clamp(min=0)] - total[:, None]
    right = values[:, 0]
    if targets.shape[1] == 1:
        return right
    open_ = targets[:, 1] >= 0
    # The lowest finite number instead of -inf: where there are no others, their gradient would be NaN.
    others = values[:, 1:].masked_fill(targets[:, 1:] < 0, torch.finfo(values.dtype).min).logsumexp(dim=-1)
    return torch.where(open_, (1 - _UNKNOWN) * right + _UNKNOWN * others, right)


def distances(states: Tensor, vectors: Tensor) -> Tensor:
    """1 - cos of the two directions, (N,): 0 where the model's state (N, D) points as the teacher's vector does."""
    return 1 - cosine_similarity(states.float(), vectors, dim=-1)
