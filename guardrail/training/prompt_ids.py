"""Token ids of many prompts under one policy, without encoding the policy each time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from guardrail.prompting import Prompt, PromptBuilder
from guardrail.tokens import TextTokenizer
from guardrail.types import Conversation, Message, Role

__all__ = ["Encoding", "PromptIds"]

Shape = tuple[Role, Role]
"""Role of the first message and of the judged one."""

# Behind a line break and before a character that is not white space, tokenizers of words and line breaks begin anew.
_CUT = re.compile(r"\n(?=\S)")


@dataclass(frozen=True, slots=True)
class _Frame:
    """What all prompts of one shape have around the messages, in one of their segments."""

    head: str
    head_ids: tuple[int, ...]
    tail: str
    tail_ids: tuple[int, ...]

    def fits(self, text: str) -> bool:
        return len(text) > len(self.head) + len(self.tail) and text.startswith(self.head) and text.endswith(self.tail)


class Encoding:
    """What the prompts of all policies have in common: constant texts encoded once, and whether they may be cut."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.cuttable: dict[Shape, bool] = {}
        self.constant = lru_cache(maxsize=256)(self._constant)

    def _constant(self, text: str, inside: bool) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode_text(text, inside=inside))


class PromptIds:
    """The ids that `TextTokenizer.encode` gives for a builder's prompts.

    The parts that do not depend on the messages are encoded once for each shape (first and last role). Whether a
    vocabulary allows that is tried with the first prompt of each shape; where it does not, all are encoded in full.
    """

    def __init__(self, builder: PromptBuilder, encoding: Encoding) -> None:
        self._builder = builder
        self._encoding = encoding
        self._frames: dict[Shape, tuple[_Frame | None, ...]] = {}

    def __call__(self, conversation: Conversation) -> tuple[int, ...]:
        """The ids of the prompt that judges the conversation."""
        prompt = self._builder.build(conversation)
        shape = conversation.messages[0].role, conversation.role
        cuttable = self._encoding.cuttable.get(shape)
        joined = self._joined(prompt, self._known(shape, conversation)) if cuttable is not False else ()
        if cuttable:
            return joined
        whole = tuple(self._encoding.tokenizer.encode(prompt))
        self._encoding.cuttable[shape] = joined == whole
        return whole

    def _known(self, shape: Shape, conversation: Conversation) -> tuple[_Frame | None, ...]:
        if shape not in self._frames:
            self._frames[shape] = self._find(conversation)
        return self._frames[shape]

    def _find(self, conversation: Conversation) -> tuple[_Frame | None, ...]:
        """One entry per segment, from two prompts whose messages have nothing in common."""
        one, other = (
            self._builder.build(Conversation(tuple(Message(m.role, text) for m in conversation.messages))).segments
            for text in ("x", "0")
        )
        return tuple(
            None if a.control else self._frame(a.text, b.text, index > 0)
            for index, (a, b) in enumerate(zip(one, other, strict=True))
        )

    def _frame(self, one: str, other: str, inside: bool) -> _Frame:
        head, tail = one, ""
        if one != other:
            start, end = _common(one, other), _common(one[::-1], other[::-1])[::-1]
            head = start[: max((match.end() for match in _CUT.finditer(start)), default=0)]
            first = _CUT.search(end)
            tail = end[first.end() :] if first else ""
        constant = self._encoding.constant
        return _Frame(head, constant(head, inside), tail, constant(tail, True))

    def _joined(self, prompt: Prompt, frames: tuple[_Frame | None, ...]) -> tuple[int, ...]:
        tokenizer = self._encoding.tokenizer
        ids: list[int] = []
        for index, segment in enumerate(prompt.segments):
            frame = frames[index] if index < len(frames) else None
            if segment.control:
                ids.append(tokenizer.control_id(segment.text))
            elif frame is not None and segment.text == frame.head:
                ids += frame.head_ids
            elif frame is not None and frame.fits(segment.text):
                middle = segment.text[len(frame.head) : len(segment.text) - len(frame.tail)]
                ids += frame.head_ids
                ids += tokenizer.encode_text(middle, inside=bool(ids))
                ids += frame.tail_ids
            else:
                ids += tokenizer.encode_text(segment.text, inside=bool(ids))
        return tuple(ids)


def _common(one: str, other: str) -> str:
    """What both begin with."""
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]
