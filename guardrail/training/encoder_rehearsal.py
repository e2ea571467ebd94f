"""Keeps a model that learns a team's own policy from forgetting the rest: it rehearses what it judged before.

Beside each batch of the team's rows goes a smaller one of texts of our own, under a part of a shipped taxonomy. There
the model is held to the category logits that it had at the start (learning without forgetting, Li & Hoiem 2016, with
texts of our own in place of the new task's alone). No label is needed, and no text that the shipped model was trained
on need be at hand but ours.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from guardrail.prompting import PromptBuilder
from guardrail.resources import folder
from guardrail.taxonomy import Taxonomy
from guardrail.training.encoder_batches import DEFAULT, Batch, Policy, Renderer, batches, pad
from guardrail.training.encoder_hyper import Hyper
from guardrail.training.encoder_model import EncoderModel
from guardrail.training.precision import mixed_precision
from guardrail.training.written import NEVER_TRAINED, PREFIX, expand, groups
from guardrail.types import Conversation, Message, Role

__all__ = ["TAXONOMIES", "Rehearsal", "written_texts"]

TAXONOMIES = (DEFAULT, "llama-guard-3", "aegis-2", "openai-moderation", "canonical")
_DEFAULT_SHARE = 0.5
# What a category says of a text does not depend on the other categories, so a few at a time are as good as all.
_CATEGORIES = 6
_SMALLER = 2
# Half of a logit is a difference that seldom changes an order; beyond it the loss grows with the distance alone, so
# that a few texts that the new labels pull away do not rule the gradient.
_DELTA = 0.5


class Rehearsal:
    """Texts in batches, and a frozen copy of the model as it was at the start."""

    def __init__(
        self,
        model: EncoderModel,
        renderer: Renderer,
        texts: Sequence[Conversation],
        hyper: Hyper,
    ) -> None:
        self._teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self._seed = hyper.seed
        chosen = random.Random(f"{hyper.seed} rehearsal")
        ids = [renderer.shortened(renderer.conversation(text), hyper.max_tokens) for text in texts]
        order = list(range(len(ids)))
        chosen.shuffle(order)
        self._batches = list(batches(ids, order, hyper.tokens_per_batch // _SMALLER, renderer.separator, chosen))
        self._separator = renderer.separator
        self._policies = {name: _policy(name, renderer, hyper.category_tokens) for name in TAXONOMIES}
        self._vectors: dict[tuple[int, ...], Tensor] = {}

    def batch(self, step: int) -> tuple[Policy, Batch]:
        """What is rehearsed at a step: the same for the same seed."""
        chosen = random.Random(f"{self._seed} rehearsal {step}")
        name = DEFAULT if chosen.random() < _DEFAULT_SHARE else chosen.choice(TAXONOMIES)
        whole = self._policies[name]
        kept = chosen.sample(range(len(whole.texts)), min(_CATEGORIES, len(whole.texts)))
        part = Policy(name, tuple(whole.hazards[at] for at in kept), tuple(whole.texts[at] for at in kept))
        return part, self._batches[step % len(self._batches)]

    def loss(self, model: EncoderModel, policy: Policy, batch: Batch) -> Tensor:
        """How far the model's category and verdict logits are from the first ones, in squared logits."""
        inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        # With dropout the loss would not be 0 where nothing has changed, and would itself pull the model away.
        model.eval()
        with mixed_precision():
            with torch.no_grad():
                wanted, _ = self._teacher(*inputs, self._teacher_vectors(policy))
            found, _ = model(*inputs, model.vectors(*self._padded(policy.texts)))
        categories = functional.huber_loss(found, wanted, delta=_DELTA)
        verdicts = functional.huber_loss(model.verdict(found), self._teacher.verdict(wanted), delta=_DELTA)
        return categories + verdicts

    @torch.no_grad()
    def _teacher_vectors(self, policy: Policy) -> Tensor:
        if new := [text for text in policy.texts if text not in self._vectors]:
            self._vectors |= zip(new, self._teacher.vectors(*self._padded(new)).unbind(), strict=True)
        return torch.stack([self._vectors[text] for text in policy.texts])

    def _padded(self, texts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        return pad(texts, self._separator)[:2]


def _policy(name: str, renderer: Renderer, longest: int) -> Policy:
    taxonomy = Taxonomy.load(name)
    texts = PromptBuilder(renderer.template, taxonomy).policy_texts
    ids = tuple(tuple(renderer.shortened(renderer.text(text), longest)) for text in texts)
    return Policy(name, (frozenset(),) * len(ids), ids)


def written_texts(number: int, seed: int) -> list[Conversation]:
    """At most `number` of our own training texts, an equal number of each file, and the same for the same seed."""
    chosen = random.Random(f"{seed} written")
    files = [file for file in sorted(folder("written").glob("*.yaml")) if f"{PREFIX}{file.stem}" not in NEVER_TRAINED]
    found: list[Conversation] = []
    for at, file in enumerate(files):
        texts = list(_conversations(file, chosen))
        wanted = (number - len(found)) // (len(files) - at)
        found.extend(chosen.sample(texts, min(wanted, len(texts))))
    return found


def _conversations(file: Path, chosen: random.Random) -> Iterator[Conversation]:
    for group in groups(file):
        role = Role(group.get("role", "user"))
        for text in expand(group):
            asked = [Message(Role.USER, chosen.choice(group["prompts"]))] if group.get("prompts") else []
            yield Conversation((*asked, Message(role, text)))
