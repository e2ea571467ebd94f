"""What a trained checkpoint says about itself: guardrail.json, taxonomy.yaml and its prompt template.

    {"format": 1, "id": "my-guard", "template": "llama-guard-3@0123456789ab", "taxonomy": "mine@0123456789ab",
     "explanation": "none"}

The template lies beside it as `llama-guard-3.jinja`: a later release reads the weights with the format that they were
trained on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from guardrail.errors import GuardrailError, ModelError
from guardrail.prompting import Template
from guardrail.taxonomy import Taxonomy

__all__ = ["FACTS", "Facts", "read_facts", "write_facts"]

FACTS: Final = "guardrail.json"
_TAXONOMY: Final = "taxonomy.yaml"
_FORMAT: Final = 1
_KEYS: Final = ("format", "id", "template", "taxonomy", "explanation")

Explanation = Literal["none", "before", "after"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What goes with the weights of a trained guard."""

    id: str
    template: Template
    taxonomy: Taxonomy
    """The default taxonomy."""
    explanation: Explanation = "none"
    """Where the answers that it was trained on have an explanation."""


def write_facts(facts: Facts, folder: Path) -> None:
    """Write guardrail.json, taxonomy.yaml and the template."""
    record = {
        "format": _FORMAT,
        "id": facts.id,
        "template": facts.template.ref,
        "taxonomy": facts.taxonomy.ref,
        "explanation": facts.explanation,
    }
    (folder / f"{facts.template.id}.jinja").write_text(facts.template.source, encoding="utf-8")
    (folder / _TAXONOMY).write_text(facts.taxonomy.to_yaml(), encoding="utf-8")
    (folder / FACTS).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_facts(folder: Path) -> Facts | None:
    """The facts in a folder; None where it has no guardrail.json, as other checkpoints.

    Raises ModelError when the files do not belong together.
    """
    file = folder / FACTS
    if not file.is_file():
        return None
    raw = _read(file)
    template = _part(file, "template", raw["template"], lambda: _template(folder, raw["template"]))
    taxonomy = _part(file, "taxonomy", raw["taxonomy"], lambda: Taxonomy.load(folder / _TAXONOMY))
    return Facts(raw["id"], template, taxonomy, raw["explanation"])


def _template(folder: Path, ref: str) -> Template:
    return Template.load(folder / Path(f"{ref.partition('@')[0]}.jinja").name)


def _part(file: Path, key: str, ref: str, load: Any) -> Any:
    """A template or taxonomy, which must be the one that the record names."""
    try:
        found = load()
    except GuardrailError as error:
        raise ModelError(f"{file.parent}: {error}", hint=error.hint) from None
    if found.ref.rpartition("@")[2] != ref.rpartition("@")[2]:
        raise ModelError(
            f"{file}: {key}: the weights were trained with {ref}, the folder has {found.ref}",
            hint="a file was changed, or the model is of another release: pass another one to the guard instead",
        )
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read: {error}") from None
    if not isinstance(raw, dict) or raw.get("format") != _FORMAT:
        raise ModelError(f"{file}: format: expected {_FORMAT}", hint="the model was made for another release")
    for key in _KEYS:
        if key not in raw:
            raise ModelError(f"{file}: {key}: missing")
        if key != "format" and not isinstance(raw[key], str):
            raise ModelError(f"{file}: {key}: expected a text, got {raw[key]!r}")
    if raw["explanation"] not in get_args(Explanation):
        raise ModelError(f"{file}: explanation: cannot be {raw['explanation']!r}")
    return raw
