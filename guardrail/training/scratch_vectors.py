"""A new Llama's second lesson: to say of a text, in one vector, what an encoder that is a guard already says of it.

A label is one number per text, a vector has hundreds: the encoder's, which is the mean of its token states, holds what
it learnt before it learnt to judge. The new model's state where it will give its verdict learns to point where that
vector does (distillation of sentence vectors, Reimers and Gurevych 2020).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from guardrail.backends.causal_rows import common_length
from guardrail.errors import ModelError, TemplateError, UsageError
from guardrail.training import processes
from guardrail.training.llama_feed import ahead
from guardrail.training.llama_view import View
from guardrail.training.packing import distances
from guardrail.training.rows import Row
from guardrail.training.scratch_phase import fixed_words, phase_arguments, run_phase
from guardrail.training.scratch_spec import ScratchSpec
from guardrail.training.teacher import LONGEST, Teacher
from guardrail.types import Conversation, Message, Role

__all__ = ["vector_phase"]

# Texts that are sorted by length before they become batches.
_SORTED = 2048
_STEP = 16
_AHEAD = 8


class _Batches(IterableDataset[dict[str, Tensor]]):
    """This process's share of batches of texts about as long as each other, pass after pass without an end."""

    def __init__(
        self, rows_of_pass: Callable[[int, int], Sequence[Row]], view: View, teacher: Teacher, spec: ScratchSpec
    ) -> None:
        self._rows_of_pass = rows_of_pass
        self._view = view
        self._teacher = teacher
        self._spec = spec
        # By roles: two prompts that have nothing but the policy and its frame in common.
        self._examples: dict[tuple[Role, ...], list[tuple[int, ...]]] = {}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return ahead(self._batches(), _AHEAD)

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        rank, among = processes.rank(), processes.count()
        for number in count():
            chosen = random.Random(f"vectors {self._spec.seed} {number}")
            rows = list(self._rows_of_pass(number, self._spec.seed))
            chosen.shuffle(rows)
            empty = True
            for start in range(0, len(rows), _SORTED):
                texts = [text for row in rows[start : start + _SORTED] if (text := self._text(row)) is not None]
                batches = list(self._cut(texts))
                chosen.shuffle(batches)
                for batch in batches:
                    empty = False
                    yield self._batch(batch[rank::among])
            if empty:
                hint = "are there as many rows as processes, and can the template show them?"
                raise UsageError(f"none of {len(rows)} rows can be shown to the teacher and the new model", hint=hint)

    def _text(self, row: Row) -> _Text | None:
        """None where the template cannot show the row, or the new vocabulary takes twice as many tokens for it."""
        try:
            shown = self._teacher.window(row.conversation)
            roles = tuple(message.role for message in shown.messages)
            if roles not in self._examples:
                self._examples[roles] = [self._view.ids(_example(roles, text)) for text in ("x", "0")]
            ids = self._view.ids(shown)
        except TemplateError:
            return None
        # The policy is left out: it says nothing about the text, and would be most of the tokens.
        behind = ids[common_length([*self._examples[roles], ids]) :]
        return _Text(shown, (ids[0], *behind, *self._view.writer.verdict.prefix)) if len(behind) < 2 * LONGEST else None

    def _cut(self, texts: Sequence[_Text]) -> Iterator[list[_Text]]:
        batch: list[_Text] = []
        for text in sorted(texts, key=lambda text: len(text.ids)):
            if batch and (len(batch) + 1) * len(text.ids) > self._spec.vector_tokens:
                yield batch
                batch = []
            batch.append(text)
        if len(batch) >= processes.count():
            yield batch

    def _batch(self, texts: Sequence[_Text]) -> dict[str, Tensor]:
        """`input_ids` (B, T), `places` (B,) of the last token of each, and the teacher's `vectors` (B, D)."""
        longest = max(len(text.ids) for text in texts)
        ids = np.zeros((len(texts), -(-longest // _STEP) * _STEP), dtype=np.int64)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text.ids)] = text.ids
        vectors = self._teacher.vectors([text.shown for text in texts])
        places = torch.tensor([len(text.ids) - 1 for text in texts])
        return {"input_ids": torch.from_numpy(ids), "places": places, "vectors": torch.from_numpy(vectors)}


@dataclass(frozen=True, slots=True)
class _Text:
    shown: Conversation
    ids: tuple[int, ...]


def _example(roles: Sequence[Role], text: str) -> Conversation:
    """A conversation of these roles, of this text."""
    return Conversation(tuple(Message(role, text) for role in roles))


class _Student(nn.Module):
    """The new model without its output layer."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model.model

    def forward(self, input_ids: Tensor, places: Tensor, vectors: Tensor) -> dict[str, Tensor]:
        """The mean distance from the vectors. What follows a place is not seen there, so padding needs no mask."""
        states = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        return {"loss": distances(states[torch.arange(len(places), device=places.device), places], vectors).mean()}


class _VectorTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    def __init__(self, model: nn.Module, arguments: TrainingArguments, batches: _Batches) -> None:
        super().__init__(model=model, args=arguments, train_dataset=batches)
        self._batches = batches

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Whole batches of this process alone; the accelerator has no part in sharing them out."""
        return DataLoader(self._batches, batch_size=None)


def vector_phase(
    model: LlamaForCausalLM,
    view: View,
    rows_of_pass: Callable[[int, int], Sequence[Row]],
    teacher: Teacher,
    spec: ScratchSpec,
    folder: Path,
) -> dict[str, float]:
    """Learn the teacher's vectors for `vector_steps`; returns how many, and the mean distance on the way.

    `view` shows the prompts, `rows_of_pass` gives the rows by pass and seed. The word vectors stay as they are.
    """
    hidden = model.config.hidden_size
    if teacher.dimension != hidden:
        raise ModelError(
            f"{spec.vectors_from}: its vectors have {teacher.dimension} numbers, the model's {hidden}",
            hint=f"set hidden: {teacher.dimension}",
        )
    arguments = phase_arguments(folder, steps=spec.vector_steps, rate=spec.vector_rate, batch=1, seed=spec.seed)
    attention = model.config._attn_implementation
    if arguments.device.type == "cpu":
        # The fused product is the slower one there, backwards, at texts as short as these.
        model.set_attn_implementation("eager")
    try:
        with fixed_words(model):
            trainer = _VectorTrainer(_Student(model), arguments, _Batches(rows_of_pass, view, teacher, spec))
            loss = run_phase(trainer, "vector")
    finally:
        model.set_attn_implementation(attention)
    return {"vector_steps": float(spec.vector_steps), "vector_loss": loss}
