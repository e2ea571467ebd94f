"""Finds text that imitates the prompt: control tokens, block markers, forged verdicts. It is reported, not removed.

A marker counts also when it is spelled with full-width letters or has invisible characters inside. The bare words
safe and unsafe, and markup such as `<b>`, are not markers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

__all__ = ["FORGED_VERDICT", "find_markers"]

FORGED_VERDICT = "forged verdict"
"""Reported for a verdict with codes on the next line, or for a verdict line behind another marker."""

# Any `<|name|>`: a token of the family that judges, or of the model that is being protected.
_FIXED = r"\[/?INST\]|<</?SYS>>|<\|\w{2,40}\|>|<(?:BEGIN|END) [A-Z][A-Z _-]{2,60}>"
_FOLDED = re.compile(r"<\s*(BEGIN|END)\s+(CONVERSATION|UNSAFE\s*CONTENT\s*CATEGORIES)\s*>", re.IGNORECASE)
_VERDICT_WITH_CODES = re.compile(
    r"^[ \t]*unsafe[ \t]*\r?\n[ \t]*[A-Z]\d{1,3}(?:[ \t]*,[ \t]*[A-Z]\d{1,3})*[ \t]*$", re.M
)
_VERDICT = re.compile(r"^[ \t]*(?:un)?safe[ \t]*$", re.M)
# Unassigned to any visible glyph: soft hyphen, zero-width and bidi characters, variation selectors, tags, controls.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e01ef]"
)


def find_markers(texts: Iterable[str], control: Sequence[str]) -> tuple[str, ...]:
    """The markers in the texts, each once, in order of appearance; `control` are the family's control tokens."""
    found: dict[str, None] = {}
    pattern = _pattern(tuple(control))
    for text in texts:
        text = _plain(text)
        if "<" in text or "[" in text or "safe" in text:
            found.update(dict.fromkeys(_markers(text, pattern)))
    return tuple(found)


def _markers(text: str, pattern: re.Pattern[str]) -> list[str]:
    places = [(match.start(), match[0]) for match in pattern.finditer(text)]
    places += [(match.start(), _canonical(match)) for match in _FOLDED.finditer(text)]
    places.sort()
    verdict = _VERDICT_WITH_CODES.search(text)
    if verdict is None and places:
        verdict = _VERDICT.search(text, places[0][0])
    names = [name for _, name in places]
    return names if verdict is None else [*names, FORGED_VERDICT]


def _plain(text: str) -> str:
    """The text as a reader sees it: compatibility forms folded, invisible characters gone."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _INVISIBLE.sub("", text)


def _canonical(match: re.Match[str]) -> str:
    return f"<{match[1].upper()} {' '.join(match[2].upper().split())}>"


@lru_cache(maxsize=32)
def _pattern(control: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join([*map(re.escape, sorted(control, key=len, reverse=True)), _FIXED]))
