"""What few-shot examples of a policy add to an encoder's judgement: how much a text is like them.

A text and an example are the mean of their token states. Seen from the centre of the policy, texts like the examples of
a category point where those do: the class means of prototypical networks (Snell et al. 2017), by the cosine of centred
vectors. The constants were chosen on labelled rows, none of an evaluation set: for a policy that the model does not
know, as far as one that it knows, with examples of all its categories, loses next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["EncodedPolicy", "ExampleShift"]

Vectors = NDArray[np.float32]

_WEIGHT = 8.0
"""How much the cosine of 1 adds to a logit, with many examples."""
_FEW = 2.0
"""With so many examples it adds half of that."""
_USUAL = 0.2
"""The cosine that changes nothing: of some categories a harmless text is always a little like one."""


@dataclass(frozen=True, slots=True)
class ExampleShift:
    """What the examples of a policy add to its category logits."""

    centre: Vectors
    """(D,)"""
    directions: Vectors
    """(C, D), of length 1; zeros for a category without unsafe examples."""
    weights: Vectors
    """(C,), 0 for such a category."""
    sharpness: float
    """Of the verdict, as the weights have it."""

    @classmethod
    def of(cls, texts: Vectors, unsafe: Sequence[Vectors], safe: Vectors, sharpness: float) -> ExampleShift | None:
        """None without unsafe examples: safe ones say what they differ from, and nothing by themselves.

        `texts` (C, D) are the vectors of the categories' texts, `unsafe` those of each category's unsafe examples
        (K, D), `safe` those of all safe ones (K, D). The centre is the mean over the categories, where one without
        examples is there with its text, and half of the way from there to the safe examples.
        """
        given = np.array([len(vectors) for vectors in unsafe], dtype=np.float32)
        if not given.any():
            return None
        means = np.stack(
            [found.mean(axis=0) if len(found) else text for found, text in zip(unsafe, texts, strict=True)]
        )
        # A category alone would be its own centre.
        centre = (means if len(means) > 1 else np.concatenate([means, texts])).mean(axis=0)
        if len(safe):
            centre = (centre + safe.mean(axis=0)) / 2
        directions = np.where(given[:, None] > 0, _unit(means - centre), 0)
        return cls(centre, directions.astype(np.float32), _WEIGHT * given / (given + _FEW), sharpness)

    def judged(self, logits: Vectors, vector: Vectors) -> tuple[float, Vectors]:
        """The verdict's logit and the category logits (C,), from those without examples, and the text's vector (D,)."""
        cosines = self.directions @ _unit(vector - self.centre)
        shifted = np.asarray(logits + self.weights * (cosines - _USUAL), dtype=np.float32)
        # As the graph has it for other logits: their mean, in which each has the weight of its size.
        scaled = self.sharpness * shifted
        weights = np.exp(scaled - scaled.max())
        return float(weights @ shifted / weights.sum()), shifted


@dataclass(frozen=True, slots=True)
class EncodedPolicy:
    """A taxonomy as an encoder reads it."""

    vectors: Vectors
    """(C, D), of the categories' texts."""
    examples: ExampleShift | None


def _unit(vectors: Vectors) -> Vectors:
    """Each at length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-9), dtype=np.float32)
