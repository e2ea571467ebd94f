"""Rows of our own writing: everyday requests with alarming words, harmful ones beside them, and statements.

The phrases are in `configs/contrast.yaml`: groups of templates with slots. A group is safe, or names its hazards.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from guardrail.training.rows import Row
from guardrail.training.sources_prompts import LoaderContext

__all__ = ["expand", "rows"]

FILE = Path(__file__).resolve().parents[2] / "configs" / "contrast.yaml"
_PER_TEMPLATE = 12


def rows(context: LoaderContext, source: str) -> Iterator[Row]:
    """All groups of the file; the same rows in every run."""
    for group in yaml.safe_load(FILE.read_text(encoding="utf-8")):
        for text in expand(group):
            turns = [(group.get("role", "user"), text)]
            if group["label"] == "safe":
                yield from context.safe(source, turns)
            else:
                yield from context.unsafe(source, turns, 1.0, tuple(group["label"]))


def expand(group: dict[str, Any]) -> list[str]:
    """The group's templates with their slots filled; of a template with many fillings, a fixed sample."""
    slots: dict[str, list[str]] = group.get("slots", {})
    chosen = random.Random(group["name"])
    texts: dict[str, None] = {}
    for template in group["templates"]:
        names = [name for name in slots if "{" + name + "}" in template]
        for _ in range(_PER_TEMPLATE if names else 1):
            text = template
            for name in names:
                text = text.replace("{" + name + "}", chosen.choice(slots[name]))
            texts[text] = None
    return list(texts)
