"""What a guard shall answer, as tokens: verdict, codes in the taxonomy's order, explanation, end of turn.

The tokens are those that inference reads: `verdict_tokens` and `code_trie` of `guardrail.tokens`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from guardrail.errors import ModelError, TemplateError
from guardrail.prompting import Template
from guardrail.tokens import TextTokenizer, verdict_tokens
from guardrail.training.rows import UNKNOWN

__all__ = ["Answer", "AnswerWriter", "Placement", "Step"]

Placement = Literal["none", "before", "after"]
"""Where an explanation stands: nowhere, before the verdict, or behind the codes."""


@dataclass(frozen=True, slots=True)
class Step:
    """One token of an answer."""

    targets: tuple[int, ...]
    """The right token, behind which the answer goes on; then those that would also be right if more were known."""
    verdict: bool = False
    closed: bool = False
    """Whether only the verdict tokens compete, instead of the whole vocabulary."""
    learnt: bool = True
    """Whether the token counts in the loss; else it is given."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a prompt, and how likely it is the right one."""

    steps: tuple[Step, ...]
    weight: float = 1.0

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens."""
        return tuple(step.targets[0] for step in self.steps)


class AnswerWriter:
    """Writes the answers under one list of codes, as a prompt shows them.

    - A verdict with 0 < P(unsafe) < 1 gives two answers, weighted by their probabilities.
    - A category of which nothing is known is probably, not certainly, not violated: where its code would stand, it and
      others like it are to get a small part of the probability (`packing.log_likelihoods`), divided as the model likes.
    - An unsafe text of which no violated category is known is told to be unsafe, and nothing behind that is learnt.
    - With explanations `after`, a row without one is learnt up to its codes. With `before`, a row has two answers: the
      explanation, then the verdict; and the verdict at once, where inference reads it, learnt as the choice between
      safe and unsafe alone, so that the model still begins with an explanation when it writes freely.
    """

    def __init__(
        self, tokenizer: TextTokenizer, template: Template, codes: Sequence[str], explanation: Placement = "none"
    ) -> None:
        if not template.stop:
            raise TemplateError("the template names no token that ends an answer", field=template.id, hint="add `stop`")
        self.codes = tuple(codes)
        self.explanation = explanation
        self.verdict = verdict_tokens(tokenizer, template)
        self.end = tokenizer.control_id(template.stop[0])
        self._tokenizer = tokenizer
        self._word = template.unsafe[0]
        self._start = tokenizer.encode_text(self._word)
        self._code_steps = lru_cache(maxsize=4096)(self._uncached_code_steps)

    def write(self, unsafe: float, categories: Sequence[float], explanation: str | None = None) -> tuple[Answer, ...]:
        """The answers to one prompt.

        `unsafe` is P(unsafe), `categories` are the targets in the order of the codes, UNKNOWN where nothing is known
        (`rows.targets`). The explanation is that of the likelier verdict.
        """
        if not 0 <= unsafe <= 1:
            raise ValueError(f"the probability of unsafe is {unsafe}")
        text = None if self.explanation == "none" else explanation
        answers: list[Answer] = []
        for side, weight in ((False, 1 - unsafe), (True, unsafe)):
            if weight > 0:
                own = text if side == (unsafe >= 0.5) else None
                answers += (replace(answer, weight=weight) for answer in self._answers(side, categories, own))
        return tuple(answers)

    def question(self) -> Answer:
        """The place where the verdict is read, for evaluation: everything before it is given."""
        given = (replace(step, learnt=False) for step in self._prefix())
        return Answer((*given, Step(self.verdict.unsafe[:1], verdict=True)))

    def _answers(self, unsafe: bool, categories: Sequence[float], text: str | None) -> Iterator[Answer]:
        verdict = Step((self.verdict.unsafe if unsafe else self.verdict.safe)[:1], verdict=True)
        end: tuple[int, ...] = (self.end,)
        if self.explanation == "after":
            end = (*self._tokens(f"\n{text}"), self.end) if text is not None else ()
        closing = self._closing(categories, end) if unsafe else tuple(Step((token,)) for token in end)
        if self.explanation == "before" and text is not None:
            told = (Step((token,)) for token in self._tokens(f"{text}\n"))
            yield Answer((*self._prefix(), *told, verdict, *closing))
            verdict = replace(verdict, closed=True)
        yield Answer((*self._prefix(), verdict, *closing))

    def _prefix(self) -> tuple[Step, ...]:
        return tuple(Step((token,)) for token in self.verdict.prefix)

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer.encode_text(text)

    def _closing(self, categories: Sequence[float], end: tuple[int, ...]) -> tuple[Step, ...]:
        """What stands behind `unsafe`: the codes, as far as they are known, and the end."""
        violated = tuple(at for at, value in enumerate(categories) if value > 0)
        if not violated:
            return ()
        unknown = tuple(at for at, value in enumerate(categories) if value == UNKNOWN)
        codes, instead_of_end = self._code_steps(violated, unknown)
        return (*codes, *(Step((token, *(instead_of_end if at == 0 else ()))) for at, token in enumerate(end)))

    def _uncached_code_steps(
        self, violated: tuple[int, ...], unknown: tuple[int, ...]
    ) -> tuple[tuple[Step, ...], tuple[int, ...]]:
        """The steps of the codes' line, and the tokens that may stand behind it besides the end."""
        line = self._line(violated)
        right: list[dict[int, None]] = [{token: None} for token in line]
        instead: dict[int, None] = {}
        for index in unknown:
            other = self._line(sorted((*violated, index)))
            at = next((at for at, (a, b) in enumerate(zip(line, other, strict=False)) if a != b), len(line))
            (right[at] if at < len(line) else instead)[other[at]] = None
        return tuple(Step(tuple(tokens)) for tokens in right), tuple(instead)

    def _line(self, codes: Sequence[int]) -> list[int]:
        """The tokens of a newline and these codes, behind `unsafe`."""
        text = ",".join(self.codes[at] for at in codes)
        whole = self._tokenizer.encode_text(f"{self._word}\n{text}")
        if whole[: len(self._start)] != self._start:
            raise ModelError(f"the tokenizer writes {self._word!r} and the codes behind it as one")
        return whole[len(self._start) :]
