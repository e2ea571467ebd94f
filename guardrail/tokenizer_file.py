"""The content of a tokenizer.json: its control tokens, and a vocabulary without them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Container, Sequence
from typing import Any

__all__ = ["plain", "separate", "unknown_id"]

# Added tokens that are plain writing (runs of spaces in some vocabularies) stay part of text; all others are control.
_PLAIN = re.compile(r"[\w\s]+")


def plain(token: str) -> bool:
    """Whether an added token is ordinary writing, and so part of text."""
    return _PLAIN.fullmatch(token) is not None


def separate(config: dict[str, Any]) -> dict[str, int]:
    """Take the control tokens out of a tokenizer.json; returns the ids of all that were taken out.

    The unknown token stays usable: it is what a text gives that the vocabulary cannot express.
    """
    added = config.get("added_tokens") or []
    kept = [token for token in added if not token["special"] and plain(token["content"])]
    taken = {token["content"]: int(token["id"]) for token in added if token not in kept}
    config.update(added_tokens=kept, post_processor=None, truncation=None, padding=None)
    _hide(config["model"], taken)
    return taken


def unknown_id(model: dict[str, Any]) -> int | None:
    """The id of a model's unknown token."""
    if isinstance(model["vocab"], list):
        return model.get("unk_id")
    found: int | None = model["vocab"].get(model.get("unk_token"))
    return found


def _hide(model: dict[str, Any], taken: dict[str, int]) -> None:
    """Give tokens names in the vocabulary that no text contains, and drop the merges that would lead to them."""
    hidden = f"\ue000{secrets.token_hex(16)}:"
    vocabulary = model["vocab"]
    ids = set(taken.values())
    if isinstance(vocabulary, list):  # Unigram: ids are positions
        model["vocab"] = [
            [f"{hidden}{index}" if piece in taken or index in ids else piece, score]
            for index, (piece, score) in enumerate(vocabulary)
        ]
        return
    names = {token: f"{hidden}{number}" for token, number in vocabulary.items() if token in taken or number in ids}
    if not names:
        return
    model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _involves(merge, names)]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]


def _involves(merge: str | Sequence[str], tokens: Container[str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left + right in tokens or left in tokens or right in tokens
