"""Scores of a model in PyTorch, and what training is judged by: held-out rows and a development set, never more."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from guardrail.training.dedupe import EvaluationIndex
from guardrail.training.encoder_batches import Policy, Renderer, pad
from guardrail.training.encoder_model import EncoderModel
from guardrail.training.precision import mixed_precision
from guardrail.training.rows import Hazards, Row
from guardrail.types import Conversation
from guardrail.windows import fit

__all__ = ["WINDOW", "Validation", "category_ranking", "development_set", "domain_scores", "logits", "policy_vectors"]

WINDOW = 256
"""The longest prompt, in tokens; longer ones are judged in windows, by their highest score."""

_BUDGET = 4096
_PER_SOURCE = 150


@dataclass(frozen=True, slots=True)
class Validation:
    """Held-out rows of every source, and (text, toxic) pairs for developing."""

    rows: tuple[Row, ...]
    development: tuple[tuple[str, bool], ...]
    domains: Mapping[str, Sequence[str]]

    @classmethod
    def make(cls, held_out: Sequence[Row], domains: Mapping[str, Sequence[str]], data: Path) -> Validation:
        """A fixed sample of the held-out rows: of each source at most 150 unsafe and 150 other ones."""
        groups: dict[tuple[str, bool], list[Row]] = {}
        for row in held_out:
            groups.setdefault((row.source, row.unsafe >= 0.5), []).append(row)
        chosen = random.Random(0)
        rows = [row for group in groups.values() for row in chosen.sample(group, min(_PER_SOURCE, len(group)))]
        return cls(tuple(rows), development_set(data), domains)

    def measure(self, model: EncoderModel, renderer: Renderer, policy: Policy) -> dict[str, float]:
        """Average precision by domain, on the development set, and `goal`, what the best checkpoint is chosen by."""
        vectors = policy_vectors(model, policy, renderer)
        verdicts, categories = logits(model, renderer, [row.conversation for row in self.rows], vectors)
        found = domain_scores(self.rows, verdicts, self.domains)
        found["category_top"] = category_ranking(self.rows, categories, policy.hazards)
        parts = [found["macro"]]
        if self.development:
            verdicts, _ = logits(model, renderer, [Conversation.parse(text) for text, _ in self.development], vectors)
            found["development"] = float(average_precision_score([toxic for _, toxic in self.development], verdicts))
            parts.append(found["development"])
        found["goal"] = float(np.mean(parts))
        return found


@torch.no_grad()
def policy_vectors(model: EncoderModel, policy: Policy, renderer: Renderer) -> torch.Tensor:
    """Category vectors (C, D)."""
    input_ids, mask, _ = pad(policy.texts, renderer.separator)
    return model.vectors(input_ids, mask)


@torch.no_grad()
def logits(
    model: EncoderModel,
    renderer: Renderer,
    conversations: Sequence[Conversation],
    vectors: torch.Tensor,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Verdict logits (N,) and category logits (N, C): the highest over each conversation's windows."""
    model.eval()
    ids: list[list[int]] = []
    owners: list[int] = []
    for number, conversation in enumerate(conversations):
        for window in fit(conversation, WINDOW, renderer.builder, renderer.tokenizer).conversations:
            ids.append(renderer.conversation(window))
            owners.append(number)
    verdicts = np.full(len(conversations), -np.inf, dtype=np.float32)
    categories = np.full((len(conversations), len(vectors)), -np.inf, dtype=np.float32)
    for rows in _groups([len(row) for row in ids]):
        batch, mask, types = pad([ids[row] for row in rows], renderer.separator)
        with mixed_precision():
            values, _ = model(batch, mask, types, vectors)
        owner = [owners[row] for row in rows]
        np.maximum.at(verdicts, owner, model.verdict(values).numpy())
        np.maximum.at(categories, owner, values.numpy())
    return verdicts, categories


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not groups or lengths[row] * (len(groups[-1]) + 1) > _BUDGET:
            groups.append([])
        groups[-1].append(row)
    return groups


def domain_scores(
    rows: Sequence[Row], verdicts: NDArray[np.floating], domains: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """AUPRC of the verdict in each domain (a list of sources), and their mean as `macro`."""
    found: dict[str, float] = {}
    for domain, sources in domains.items():
        clear = (at for at, row in enumerate(rows) if row.unsafe >= 0.7 or 0 <= row.unsafe <= 0.2)
        kept = [at for at in clear if rows[at].source in sources]
        truth = [rows[at].unsafe >= 0.5 for at in kept]
        if any(truth) and not all(truth):
            found[domain] = float(average_precision_score(truth, verdicts[kept]))
    found["macro"] = float(np.mean(list(found.values()))) if found else 0.0
    return found


def category_ranking(rows: Sequence[Row], categories: NDArray[np.floating], hazards: Sequence[Hazards]) -> float:
    """How often the highest category, of those that cover `hazards`, is one that the row violates."""
    hits = [
        bool(hazards[int(scores.argmax())] & row.violated)
        for row, scores in zip(rows, categories, strict=True)
        if row.unsafe >= 0.8 and any(item & row.violated for item in hazards)
    ]
    return float(np.mean(hits)) if hits else 0.0


def development_set(data: Path) -> tuple[tuple[str, bool], ...]:
    """ToxicChat's human-written training prompts, without those that its test set has too; empty when absent."""
    folder = data / "eval" / "toxic_chat"
    files = [folder / f"toxicchat0124_{name}.jsonl" for name in ("train_human_only", "test")]
    if not all(file.is_file() for file in files):
        return ()
    train, test = ([json.loads(line) for line in file.read_text("utf-8").splitlines()] for file in files)
    index = EvaluationIndex(row["user_input"] for row in test)
    kept = [row for row in train if row["user_input"].strip() and not index.exact(row["user_input"])]
    return tuple((row["user_input"], bool(int(row["toxicity"]))) for row in kept)
