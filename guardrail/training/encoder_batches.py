"""What one training step sees: texts of similar length, a taxonomy, and the targets under it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guardrail.prompting import PromptBuilder, Template
from guardrail.taxonomy import Taxonomy
from guardrail.tokens import TextTokenizer
from guardrail.training.policies import PolicySampler, TrainingPolicy
from guardrail.training.rows import UNKNOWN, Hazards, Row, targets
from guardrail.types import Conversation

__all__ = ["Batch", "EncoderPolicies", "Policy", "Renderer", "batches", "flip", "pad", "target_tensors"]

DEFAULT = "default"
_RELATED = 0.15


class Renderer:
    """Conversations and category texts to token ids, by the template and tokenizer that inference uses."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.template = Template.load("encoder")
        self.builder = PromptBuilder(self.template, Taxonomy.load(DEFAULT))
        self.start = tokenizer.control_id("[CLS]")
        self.separator = tokenizer.control_id("[SEP]")

    def conversation(self, conversation: Conversation) -> list[int]:
        """The ids of the prompt that judges the conversation."""
        return self.tokenizer.encode(self.builder.build(conversation))

    def text(self, text: str) -> list[int]:
        """The ids of a category's text."""
        return [self.start, *self.tokenizer.encode_text(text), self.separator]

    def shortened(self, ids: list[int], limit: int, offset: int = 0) -> list[int]:
        """At most `limit` ids, from `offset` on, still between the control tokens."""
        if len(ids) <= limit:
            return ids
        first = min(1 + offset, len(ids) - limit + 1)
        return [ids[0], *ids[first : first + limit - 2], self.separator]


@dataclass(frozen=True, slots=True)
class Policy:
    """The taxonomy of one training step: the hazards of each category and its text as ids."""

    name: str
    hazards: tuple[Hazards, ...]
    texts: tuple[tuple[int, ...], ...]


class EncoderPolicies:
    """Draws training policies and gives their categories' texts as ids, as inference would encode them."""

    def __init__(self, sampler: PolicySampler, renderer: Renderer, longest: int) -> None:
        self._sampler = sampler
        self._renderer = renderer
        self._longest = longest
        self._ids: dict[str, tuple[int, ...]] = {}
        self.shipped = {name: self.encoded(policy) for name, policy in sampler.shipped.items()}
        self._known = frozenset(text for policy in self.shipped.values() for text in policy.texts)

    def draw(self, chosen: random.Random) -> Policy:
        """A policy for a whole batch; `flip` takes categories away from single rows.

        It is drawn for no rows, so a part of a taxonomy may lack what a row violates: the row's targets follow.
        """
        return self.encoded(self._sampler.draw(chosen))

    def known(self, policy: Policy) -> bool:
        """Whether all of its texts are those of shipped taxonomies, which come again and again."""
        return self._known.issuperset(policy.texts)

    def encoded(self, policy: TrainingPolicy) -> Policy:
        """The policy with its texts as ids."""
        texts = PromptBuilder(self._renderer.template, policy.taxonomy).policy_texts
        return Policy(policy.name, policy.labels, tuple(map(self._encode, texts)))

    def _encode(self, text: str) -> tuple[int, ...]:
        if text not in self._ids:
            self._ids[text] = tuple(self._renderer.shortened(self._renderer.text(text), self._longest))
        return self._ids[text]


@dataclass(frozen=True, slots=True)
class Batch:
    """Row numbers and their padded ids."""

    rows: tuple[int, ...]
    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor


def batches(
    ids: Sequence[list[int]], order: Sequence[int], budget: int, separator: int, chosen: random.Random
) -> Iterator[Batch]:
    """The rows in `order`, in batches of at most `budget` padded tokens, of similar lengths, shuffled.

    Few shapes occur: the matrix library compiles a kernel for each new one, which takes longer than running it. So
    the longest row sets a batch's padded length, and shorter ones fill it up to the number of rows of that length.
    """
    groups: list[list[int]] = []
    pool = 40 * budget // 64
    for at in range(0, len(order), pool):
        rows = sorted(order[at : at + pool], key=lambda row: -len(ids[row]))
        while rows:
            count = max(1, budget // _padded(len(ids[rows[0]])))
            groups.append(rows[:count])
            rows = rows[count:]
    chosen.shuffle(groups)
    for group in groups:
        yield Batch(tuple(group), *pad([ids[row] for row in group], separator))


def _padded(length: int) -> int:
    step = 8 if length <= 32 else 16 if length <= 96 else 32
    return -(-length // step) * step


def pad(ids: Sequence[Sequence[int]], separator: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and segment ids (B, T); the second segment starts after the first separator."""
    longest = _padded(max(map(len, ids)))
    batch = torch.zeros(len(ids), longest, dtype=torch.long)
    mask = torch.zeros_like(batch)
    for row, values in enumerate(ids):
        batch[row, : len(values)] = torch.tensor(values)
        mask[row, : len(values)] = 1
    ends = (batch == separator).long()
    return batch, mask, ((ends.cumsum(dim=1) - ends > 0) & (mask > 0)).long()


def flip(row: Row, policy: Sequence[Hazards], chosen: random.Random, rate: float) -> list[bool]:
    """Which categories this row's policy keeps; sometimes none that the row violates or may violate."""
    draw = chosen.random()
    everything = [True] * len(policy)
    if not row.violated or draw > 2 * rate:
        return everything
    touched = row.violated | row.possible
    if draw < rate:
        kept = [not hazards & touched for hazards in policy]
    else:
        kept = [bool(hazards & touched) or chosen.random() < 0.5 for hazards in policy]
    return kept if any(kept) else everything


def _sharpened(row: Row, value: float) -> float:
    """A label says what a text is about, so a related category is probably, not certainly, not violated.

    Left unknown, related categories all become high together, and leaving one out of the policy changes nothing.
    """
    return _RELATED * row.unsafe if value == UNKNOWN and row.violated and row.unsafe > 0 else value


def target_tensors(
    rows: Sequence[Row], policy: Sequence[Hazards], kept: Sequence[Sequence[bool]]
) -> tuple[Tensor, Tensor]:
    """Verdict targets (B,) and category targets (B, C) under each row's own part of the policy."""
    verdicts, categories = [], []
    for row, keep in zip(rows, kept, strict=True):
        _, all_values = targets(row, policy)
        verdict, _ = targets(row, [hazards for hazards, stays in zip(policy, keep, strict=True) if stays])
        verdicts.append(verdict)
        categories.append([_sharpened(row, value) for value in all_values])
    return torch.tensor(verdicts), torch.tensor(categories)
