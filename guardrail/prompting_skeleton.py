"""Rendered templates with the messages still to be filled in.

A template never sees a message. It is rendered with a random placeholder for each one, the result is cut at the
control tokens, and only then are the placeholders filled: no text can become a control token or template syntax.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from guardrail.errors import TemplateError

__all__ = ["Placeholders", "Segment", "Skeleton", "Slot"]

# Around a placeholder; a template that strips white space from its messages takes it away, which tells that it does.
_EDGE = "\x1f"
_CONTROL_LIKE = re.compile(r"<\|[^<>|\s]{1,40}\|>")


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of text, or exactly one control token."""

    text: str
    control: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the text of a message goes."""

    index: int
    left: bool
    """Whether the template strips whitespace on the left of the text."""
    right: bool

    def fill(self, text: str) -> str:
        """The text as the template shows it."""
        if self.left:
            text = text.lstrip()
        return text.rstrip() if self.right else text


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A rendered template whose messages are not filled in yet."""

    parts: tuple[Segment | tuple[str | Slot, ...], ...]

    def fill(self, texts: Sequence[str]) -> tuple[Segment, ...]:
        """The segments of a prompt for these message texts."""
        return tuple(
            [
                part
                if isinstance(part, Segment)
                else Segment("".join([p if isinstance(p, str) else p.fill(texts[p.index]) for p in part]))
                for part in self.parts
            ]
        )

    @property
    def slots(self) -> tuple[int, ...]:
        """The messages that are shown, by index, in the order of their places."""
        runs = (part for part in self.parts if not isinstance(part, Segment))
        return tuple(piece.index for run in runs for piece in run if isinstance(piece, Slot))


@dataclass(frozen=True, slots=True)
class Placeholders:
    """What a template is rendered with in place of messages and categories; nobody can guess them."""

    mark: str
    messages: tuple[str, ...]
    categories: tuple[str, ...]

    @classmethod
    def draw(cls, messages: int, categories: int) -> Placeholders:
        """New placeholders for so many messages and categories."""
        mark = secrets.token_hex(8)
        return cls(
            mark,
            tuple(f"{_EDGE}{mark}m{index}e{_EDGE}" for index in range(messages)),
            tuple(f"{mark}c{index}e" for index in range(categories)),
        )

    def read(self, rendered: str, control: Sequence[str], categories: Sequence[str], name: str) -> Skeleton:
        """Cut at the control tokens, then fill in the categories' texts; `name` is the template's, for errors."""
        tokens = re.compile("|".join(re.escape(token) for token in sorted(control, key=len, reverse=True)) or "(?!)")
        parts: list[Segment | tuple[str | Slot, ...]] = []
        end = 0
        for match in [*tokens.finditer(rendered), None]:
            run = rendered[end : match.start()] if match else rendered[end:]
            if found := _CONTROL_LIKE.search(run):
                raise TemplateError(
                    f"{found[0]!r} is written like a control token but is not one of the family's",
                    file=name,
                    hint="control tokens are listed under `control` in the header of the family's template",
                )
            if pieces := self._pieces(run, categories):
                parts.append(pieces)
            if match:
                parts.append(Segment(match[0], control=True))
                end = match.end()
        return Skeleton(tuple(parts))

    def _pieces(self, run: str, categories: Sequence[str]) -> tuple[str | Slot, ...]:
        """Literal text, with the categories filled in, and slots for the messages."""
        pieces: list[str | Slot] = []
        literal: list[str] = []
        end = 0
        for match in re.finditer(f"({_EDGE}?){self.mark}([mc])([0-9]+)e({_EDGE}?)", run):
            literal.append(run[end : match.start()])
            end = match.end()
            if match[2] == "c":
                literal.append(categories[int(match[3])])
                continue
            pieces += ["".join(literal), Slot(int(match[3]), left=not match[1], right=not match[4])]
            literal = []
        pieces.append("".join([*literal, run[end:]]))
        return tuple(piece for piece in pieces if piece != "")
