"""Characters that hide a text from classifiers: chat models read the ASCII that they spell.

People do not see Unicode's tag characters at all. White letters on black discs and squares are symbols, to which
Unicode's own folding (NFKC) gives no letter, as it does to all the other styled alphabets.
"""

from __future__ import annotations

import re

__all__ = ["is_hidden_letter", "spelled_out"]

# A flag, such as England's, is a black one with a region in tag characters behind it, and is seen as a flag.
_FLAG_OR_SPELLING = re.compile(
    "(\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f)"
    "|[\U000e0001\U000e0020-\U000e007f\U0001f150-\U0001f169\U0001f170-\U0001f189]+"
)
_SPELLED = {0xE0000 + code: code for code in range(0x20, 0x7F)} | {0xE0001: None, 0xE007F: None}
_SPELLED |= {first + at: ord("A") + at for first in (0x1F150, 0x1F170) for at in range(26)}


def spelled_out(text: str) -> str:
    """The text with such characters as what they spell; a flag's tags stay, and a text without any is the same."""
    if text.isascii():
        return text
    return _FLAG_OR_SPELLING.sub(lambda found: found[1] or found[0].translate(_SPELLED), text)


def is_hidden_letter(char: str) -> bool:
    """Whether the character is a tag character that spells something else than a space."""
    return "\U000e0021" <= char <= "\U000e007e"
