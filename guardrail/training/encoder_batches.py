"""What one training step sees: texts of similar length, a taxonomy, and the targets under it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guardrail.prompting import PromptBuilder, Template
from guardrail.taxonomy import Taxonomy
from guardrail.tokens import TextTokenizer
from guardrail.training.labels import HazardTable
from guardrail.training.rows import UNKNOWN, Hazards, Row, targets
from guardrail.types import Conversation

__all__ = ["Batch", "Policy", "PolicySampler", "Renderer", "batches", "flip", "pad", "target_tensors"]

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


class PolicySampler:
    """Draws taxonomies: the default, another shipped one, or a made-up one from the hazards' wordings."""

    def __init__(self, table: HazardTable, renderer: Renderer, shares: Mapping[str, float], longest: int) -> None:
        self._table = table
        self._renderer = renderer
        self._shares = dict(shares)
        self._longest = longest
        self.shipped = {name: self.shipped_policy(name) for name in self._shares if name != "made_up"}

    def shipped_policy(self, name: str) -> Policy:
        """A shipped taxonomy with the texts that inference would encode."""
        taxonomy = Taxonomy.load(name)
        texts = PromptBuilder(self._renderer.template, taxonomy).policy_texts
        kept = [(frozenset(item.hazards), text) for item, text in zip(taxonomy, texts, strict=True) if item.hazards]
        return Policy(name, tuple(hazards for hazards, _ in kept), tuple(self._ids(text) for _, text in kept))

    def draw(self, chosen: random.Random) -> Policy:
        """A policy, often with some of its categories only."""
        name = chosen.choices(list(self._shares), list(self._shares.values()))[0]
        policy = self._made_up(chosen) if name == "made_up" else self.shipped[name]
        if chosen.random() < 0.4:
            count = chosen.randint(max(1, len(policy.texts) // 3), len(policy.texts))
            kept = chosen.sample(range(len(policy.texts)), count)
            return Policy(policy.name, tuple(policy.hazards[at] for at in kept), tuple(policy.texts[at] for at in kept))
        return policy

    def _made_up(self, chosen: random.Random) -> Policy:
        hazards = chosen.sample(sorted(self._table.names), chosen.randint(6, 16))
        texts = []
        for hazard in hazards:
            wording = chosen.choice(self._table.wordings[hazard])
            texts.append(wording.split(":")[0] if chosen.random() < 0.3 else wording)
        return Policy("made_up", tuple(frozenset({name}) for name in hazards), tuple(map(self._ids, texts)))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._renderer.shortened(self._renderer.text(text), self._longest))


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
