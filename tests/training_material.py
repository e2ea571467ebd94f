"""A small tokenizer, tiny models and rows that can be learnt from, for the tests of training."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

from guardrail.prompting import PromptBuilder, Template
from guardrail.taxonomy import Category, Taxonomy
from guardrail.tokens import TextTokenizer
from guardrail.training.labelled import LabelSpace
from guardrail.training.policies import OWN, PolicyChanges, PolicySampler, TrainingPolicy
from guardrail.training.rows import Row
from guardrail.training.scratch_tokenizer import train_tokenizer
from guardrail.types import Conversation, Message, Role

__all__ = [
    "TAXONOMY",
    "TEMPLATE",
    "own_policy",
    "rows",
    "sampler",
    "text_tokenizer",
    "tiny_model",
    "transformers_tokenizer",
    "whole_square",
]

TEMPLATE = Template.load("llama-guard-3")
TAXONOMY = Taxonomy(
    "tiny",
    "Tiny",
    (Category("S1", "Weapons", "Bombs."), Category("S2", "Hate", "Insults."), Category("S3", "Fraud", "Lies.")),
)
_UNCHANGED = PolicyChanges()
_UNSAFE = (("build a bomb", "S1"), ("insult my neighbour", "S2"), ("lie to my bank", "S3"))
_SAFE = ("bake a cake", "paint a wall", "learn to swim")
_PLACES = ("at home", "in town", "by the sea", "on a hill", "with friends", "alone", "in winter", "at night")


def rows(count: int, seed: int = 0) -> list[Row]:
    """Half of them unsafe, with one category each; a third are judged as answers."""
    chosen = random.Random(seed)
    found = []
    for number in range(count):
        text, code = chosen.choice(_UNSAFE) if number % 2 else (chosen.choice(_SAFE), "")
        message = f"how do I {text} {chosen.choice(_PLACES)} {chosen.choice(_PLACES)}"
        turns = [Message(Role.USER, message)]
        if number % 3 == 0:
            turns.append(Message(Role.ASSISTANT, f"to {text} you begin {chosen.choice(_PLACES)}"))
        violated = frozenset({code}) if code else frozenset()
        found.append(Row("test", Conversation(tuple(turns)), float(number % 2), violated))
    return found


def sampler(changes: PolicyChanges = _UNCHANGED) -> PolicySampler:
    """Shows the tiny taxonomy."""
    return PolicySampler(LabelSpace(TAXONOMY), {"own": 1.0}, changes)


def own_policy() -> TrainingPolicy:
    """The tiny taxonomy, unchanged."""
    space = LabelSpace(TAXONOMY)
    return TrainingPolicy(OWN, space.taxonomy, space.labels)


@lru_cache(maxsize=1)
def transformers_tokenizer() -> Any:
    """Some hundred tokens, and the control tokens of Llama Guard 3."""
    builder = PromptBuilder(TEMPLATE, TAXONOMY)
    prompts = [f"{builder.build(row.conversation).text}\n\nunsafe\nS1,S2,S3" for row in rows(60)]
    return train_tokenizer([row.text for row in rows(60)], [*prompts, *["safe", "unsafe"] * 20], 700, TEMPLATE)


@lru_cache(maxsize=1)
def text_tokenizer() -> TextTokenizer:
    """The same, as prompts are encoded with it."""
    return TextTokenizer.from_transformers(transformers_tokenizer())


def tiny_model(seed: int = 0, **settings: Any) -> Any:
    """A two-layer Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = {
        "vocab_size": len(transformers_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # Ones of the usual size, made for wide layers, would leave the attention of narrow ones flat for a long time.
        "initializer_range": 0.1,
        "tie_word_embeddings": True,
    }
    return LlamaForCausalLM(LlamaConfig(**{**config, **settings}))


def whole_square(ends: Any) -> Any:
    """The additive mask (B, 1, L, L) of a batch's `ends` (B, L), as models take it."""
    import torch

    place = torch.arange(ends.shape[1])
    seen = (place <= place[:, None]) & (place[:, None] < ends[:, None, :])
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
