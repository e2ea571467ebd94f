"""Scores of a model in PyTorch, and what training is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from guardrail.training.encoder_batches import Policy, Renderer, pad
from guardrail.training.encoder_model import EncoderModel
from guardrail.training.rows import Row
from guardrail.types import Conversation
from guardrail.windows import fit

__all__ = ["WINDOW", "domain_scores", "logits", "policy_vectors"]

WINDOW = 256
"""The longest prompt, in tokens; longer ones are judged in windows, by their highest score."""

_BUDGET = 4096


@torch.no_grad()
def policy_vectors(model: EncoderModel, policy: Policy, renderer: Renderer) -> torch.Tensor:
    """Category vectors (C, D)."""
    input_ids, mask, _ = pad(policy.texts, renderer.separator)
    return model.vectors(input_ids, mask)


@torch.no_grad()
def logits(
    model: EncoderModel, renderer: Renderer, conversations: Sequence[Conversation], vectors: torch.Tensor
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
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    at = 0
    while at < len(order):
        end = at + 1
        while end < len(order) and len(ids[order[end]]) * (end + 1 - at) <= _BUDGET:
            end += 1
        rows = order[at:end]
        batch, mask, types = pad([ids[row] for row in rows], renderer.separator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values, _ = model(batch, mask, types, vectors)
        owner = [owners[row] for row in rows]
        np.maximum.at(verdicts, owner, model.verdict(values).numpy())
        np.maximum.at(categories, owner, values.numpy())
        at = end
    return verdicts, categories


def domain_scores(
    rows: Sequence[Row], verdicts: NDArray[np.float32], domains: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """AUPRC of the verdict in each domain (a list of sources), and their mean as `macro`."""
    found: dict[str, float] = {}
    for domain, sources in domains.items():
        kept = [at for at, row in enumerate(rows) if row.source in sources and (row.unsafe >= 0.7 or 0 <= row.unsafe <= 0.2)]
        truth = [rows[at].unsafe >= 0.5 for at in kept]
        if any(truth) and not all(truth):
            found[domain] = float(average_precision_score(truth, verdicts[kept]))
    found["macro"] = float(np.mean(list(found.values()))) if found else 0.0
    return found
