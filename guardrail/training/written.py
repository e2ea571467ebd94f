"""Rows of our own writing, for what the public sources lack.

The phrases are in `configs/written/*.yaml`, one file a source: groups of templates with slots. A group is safe, or
names its hazards; a group with `prompts` holds answers to them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from guardrail.training.rows import Row
from guardrail.training.sources_prompts import LoaderContext

__all__ = ["FOLDER", "NEVER_TRAINED", "PREFIX", "expand", "groups", "rows"]

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "written"
PREFIX = "ours_"
"""Before a file's name, the name of its source."""
NEVER_TRAINED = frozenset(PREFIX + name for name in ("asked", "found", "judged", "probed"))
"""Messages and answers that were written apart from the others, to calibrate and to validate with."""
_PER_TEMPLATE = 12
# Of libyaml where PyYAML is built with it: all files take a third of a second instead of six.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Answers have more fillings than their slots: each is also drawn with several of the group's prompts.
_PROMPTS_PER_ANSWER = 3


def rows(context: LoaderContext, source: str) -> Iterator[Row]:
    """All groups of the source's file; the same rows in every run."""
    for group in groups(FOLDER / f"{source.removeprefix(PREFIX)}.yaml"):
        for turns in _conversations(group):
            if group["label"] == "safe":
                yield from context.safe(source, turns)
            else:
                yield from context.unsafe(source, turns, 1.0, tuple(group["label"]))


def groups(file: Path) -> list[dict[str, Any]]:
    """The groups of one of our files: a name, a label, templates, and for some slots, a role and prompts."""
    found: list[dict[str, Any]] = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)
    return found


def _conversations(group: dict[str, Any]) -> Iterator[list[tuple[str, str]]]:
    """The group's texts as user messages, or as answers to some of its prompts."""
    role, prompts = group.get("role", "user"), group.get("prompts", [])
    chosen = random.Random(f"{group['name']} prompts")
    for text in expand(group):
        if not prompts:
            yield [(role, text)]
        for prompt in chosen.sample(prompts, min(_PROMPTS_PER_ANSWER, len(prompts))):
            yield [("user", prompt), (role, text)]


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
