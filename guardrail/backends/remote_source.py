"""What is read beside a served model: its tokenizer, and what it says about its prompt format. No weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from guardrail.backends.llama_family import default_taxonomy, template_for
from guardrail.backends.llama_folder import FACTS, read_facts
from guardrail.calibration import Calibration
from guardrail.errors import ModelError
from guardrail.prompting import Template
from guardrail.taxonomy import Taxonomy
from guardrail.tokens import TextTokenizer

__all__ = ["Source", "read_source"]

_TOKENIZER: Final = "tokenizer.json"
_CONFIG: Final = "tokenizer_config.json"
_CHAT: Final = "chat_template.jinja"
_CALIBRATION: Final = "calibration.json"
_FILES: Final = (_TOKENIZER, _CONFIG, _CHAT, FACTS, "taxonomy.yaml", "*.jinja", _CALIBRATION)
_HINT: Final = "name a folder with a tokenizer.json, or a hub id, with tokenizer=… or --tokenizer"


@dataclass(frozen=True, slots=True)
class Source:
    """What belongs to a served model."""

    tokenizer: TextTokenizer
    template: Template
    taxonomy: Taxonomy
    calibration: Calibration


def read_source(name: str, template: str | None = None, revision: str | None = None) -> Source:
    """Read a checkpoint's folder, or fetch the small files of one from the hub; neither torch nor weights are needed.

    `template` is a prompt format in place of the checkpoint's own. Raises ModelError for files that are missing or
    do not fit together.
    """
    folder = _folder(name, revision)
    config = _json(folder / _TOKENIZER)
    facts = read_facts(folder)
    if facts is not None and template is None:
        chosen = facts.template
    else:
        # A tokenizer of an unexpected shape is refused by TextTokenizer, with its reason.
        names = {str(token.get("content")) for token in config.get("added_tokens") or [] if isinstance(token, dict)}
        chosen = template_for(template, names, _chat_template(folder))
    calibration = folder / _CALIBRATION
    return Source(
        TextTokenizer.read(folder / _TOKENIZER),
        chosen,
        facts.taxonomy if facts else default_taxonomy(chosen),
        Calibration.read(calibration) if calibration.is_file() else Calibration(),
    )


def _folder(name: str, revision: str | None) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / _TOKENIZER).is_file():
            raise ModelError(f"{name!r} holds no {_TOKENIZER}", hint=_HINT)
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 or name.endswith(".gguf"):
        raise ModelError(f"there is no tokenizer {name!r}: it is no folder and no hub id", hint=_HINT)
    from huggingface_hub import snapshot_download  # slow to import

    try:
        found = Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except Exception as error:  # the library raises its own, httpx2's and the system's errors
        raise ModelError(f"cannot fetch the tokenizer {name!r}: {_first_line(error)}", hint=_HINT) from error
    if not (found / _TOKENIZER).is_file():
        raise ModelError(f"{name!r} has no {_TOKENIZER} on the hub", hint=_HINT)
    return found


def _chat_template(folder: Path) -> str | None:
    """The chat template: a file of its own, or the tokenizer's configuration, where it may be one of several."""
    file = folder / _CHAT
    if file.is_file():
        return _text(file)
    if not (folder / _CONFIG).is_file():
        return None
    found = _json(folder / _CONFIG).get("chat_template")
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read: {error}") from None


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{file}: is not a JSON object")
    return found


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
