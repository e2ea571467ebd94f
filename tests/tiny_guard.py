"""A policy, labelled rows and a tiny Llama with its own vocabulary, for runs of a few seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from guardrail.prompting import PromptBuilder, Template
from guardrail.taxonomy import Taxonomy
from guardrail.taxonomy_yaml import dump, parse
from guardrail.training.config import TrainingConfig, parse_config
from guardrail.training.scratch import new_model
from guardrail.training.scratch_spec import ScratchSpec
from guardrail.training.scratch_tokenizer import train_tokenizer
from guardrail.types import Conversation

__all__ = ["SPEC", "TAXONOMY", "config_of", "rows", "settings", "tiny_checkpoint", "write_rows", "write_taxonomy"]

TAXONOMY = Taxonomy.from_yaml("""
format: 1
id: shop
name: Shop rules
categories:
  - {code: S1, name: Weapons, definition: "Asks for a weapon."}
  - {code: S2, name: Refunds, definition: "Asks for money back.", include: ["Without an invoice"], exclude: ["Prices"]}
""")
SPEC = ScratchSpec(vocabulary=700, hidden=64, layers=1, heads=2, inner=128, positions=512)
_THINGS = {"S1": ("bomb", "poison"), "S2": ("refund", "chargeback"), None: ("cake", "garden", "train", "book")}
_VERBS = ("make", "find", "get", "buy", "hide", "carry", "draw", "keep")
_TIMES = ("now", "soon", "again", "twice", "today", "early", "late", "often", "first", "last")


def rows(count: int = 300, seed: int = 1) -> list[dict[str, Any]]:
    """Wishes, insistent so that a tiny model hears them; half of the things violate a category.

    No two are nearly equal, so each is held out or trained on by itself.
    """
    chosen = random.Random(seed)
    found = []
    for number in range(count):
        code = chosen.choice(("S1", "S2", None, None))
        thing = chosen.choice(_THINGS[code])
        words = [word for time in chosen.sample(_TIMES, 6) for word in (thing, time)]
        text = f"{chosen.choice(_VERBS)} {' '.join(words)} in town {number}"
        label = {"label": "unsafe", "categories": [code]} if code else {"label": "safe"}
        found.append({"text": text, **label, "source": "made"})
    return found


def write_rows(file: Path, items: list[dict[str, Any]]) -> Path:
    """As JSON Lines."""
    file.write_text("".join(f"{json.dumps(item)}\n" for item in items), encoding="utf-8")
    return file


def write_taxonomy(folder: Path, taxonomy: Taxonomy = TAXONOMY) -> Path:
    """The policy as a file."""
    file = folder / f"{taxonomy.id}.yaml"
    file.write_text(taxonomy.to_yaml(), encoding="utf-8")
    return file


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """A configuration for a run from nothing, on rows and a policy that are written into the folder."""
    spec = {name: getattr(SPEC, name) for name in ("vocabulary", "hidden", "layers", "heads", "inner", "positions")}
    whole = {
        "format": 1,
        "id": "tiny",
        "kind": "llama",
        "scratch": {**spec, "language_steps": 2, "language_tokens": 512},
        "taxonomy": str(write_taxonomy(folder)),
        "data": {"train": [str(write_rows(folder / "rows.jsonl", rows()))], "validation_share": 0.3},
        "train": {"dtype": "float32", "weights": "float32", "steps": 120, "evaluate_every": 60,
                  "pack_tokens": 512, "learning_rate": 5e-3},
        "calibration": {"at_least": 5},
    }  # fmt: skip
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def config_of(data: dict[str, Any]) -> TrainingConfig:
    """The configuration, read as from a file."""
    return parse_config(parse(dump(data), "config.yaml").root)


def tiny_checkpoint(template: Template, taxonomy: Taxonomy = TAXONOMY) -> tuple[Any, Any]:
    """A model with random weights, and its tokenizer."""
    builder = PromptBuilder(template, taxonomy)
    prompts = [builder.build(Conversation.parse(row["text"])).text for row in rows(50)]
    answers = [f"{template.answer_prefix}{word}" for word in (*template.safe, *template.unsafe)] * 50
    tokenizer = train_tokenizer([row["text"] for row in rows(50)], prompts + answers, SPEC.vocabulary, template)
    return new_model(SPEC, tokenizer), tokenizer
