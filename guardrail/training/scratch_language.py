"""A new Llama's first lesson: to go on with the training texts, token by token."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Trainer

from guardrail.errors import ModelError
from guardrail.training import processes
from guardrail.training.scratch_phase import fixed_words, phase_arguments, run_phase
from guardrail.training.scratch_spec import ScratchSpec

__all__ = ["Blocks", "language_phase"]


class Blocks(Dataset[dict[str, Any]]):
    """Texts one after the other, each behind the first token of a sequence, cut into blocks of equal length."""

    def __init__(self, texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, length: int, seed: int) -> None:
        shuffled = sorted(set(texts))
        random.Random(seed).shuffle(shuffled)
        ids: list[int] = []
        for start in range(0, len(shuffled), 1000):
            for row in tokenizer(shuffled[start : start + 1000], add_special_tokens=False)["input_ids"]:
                ids += [tokenizer.bos_token_id, *row]
        self.tokens = len(ids)
        self._blocks = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self._blocks[index], "labels": self._blocks[index]}


def language_phase(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], spec: ScratchSpec, folder: Path
) -> dict[str, float]:
    """Next-token training on the texts for `language_steps`; returns the number of tokens and the mean loss.

    Word vectors that come from elsewhere (`words_from`) stay as they are.
    """
    length = min(spec.positions, 512)
    blocks = Blocks(texts, tokenizer, length, spec.seed)
    if not len(blocks):
        raise ModelError(
            f"the training texts have {blocks.tokens} tokens, fewer than one block of {length}",
            hint="give more texts, or set language_steps: 0",
        )
    arguments = phase_arguments(
        folder,
        steps=spec.language_steps,
        rate=spec.language_rate,
        batch=max(1, spec.language_tokens // length // processes.count()),
        seed=spec.seed,
    )
    with nullcontext() if spec.words_from is None else fixed_words(model):
        loss = run_phase(Trainer(model=model, args=arguments, train_dataset=blocks), "language")
    return {"tokens": float(blocks.tokens), "steps": float(spec.language_steps), "loss": loss}
