"""What all causal language models have in common, wherever they run: questions in, verdict and category logits out.

A prompt is answered without generating text: the verdict's logits are read behind the prompt, the category codes'
behind a forced `unsafe`. Where the logits come from (transformers, llama.cpp, a server) is left to `_run`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import lru_cache, partial

from guardrail.backends.causal_rows import Answer, Group, Question, rows_for
from guardrail.calibration import Calibration
from guardrail.code_trie import logsumexp
from guardrail.errors import BackendError, ModelError
from guardrail.prompting import Prompt, PromptBuilder, Template
from guardrail.scoring import Logits
from guardrail.taxonomy import Taxonomy
from guardrail.tokens import TextTokenizer, code_logprobs, code_trie, verdict_tokens
from guardrail.types import Conversation

__all__ = ["FORCED", "CausalBackend"]

FORCED = 16
"""Positions kept free behind the longest prompt, for the answer prefix and the forced code."""
_VERDICT = 0
"""Index of the question for the verdict; the nodes of the code trie follow."""


class CausalBackend(ABC):
    """A causal language model read as a guard."""

    labels = None

    def __init__(
        self,
        *,
        name: str,
        numerics: str,
        tokenizer: TextTokenizer,
        template: Template,
        taxonomy: Taxonomy,
        max_tokens: int,
        calibration: Calibration,
    ) -> None:
        """What the protocol of the backends asks for; `ModelError` when the tokenizer cannot write the format."""
        self.name = name
        self.numerics = numerics
        self.tokenizer = tokenizer
        self.template = template
        self.default_taxonomy = taxonomy
        self.max_tokens = max_tokens
        self.calibration = calibration
        self._verdict = verdict_tokens(tokenizer, template)
        self._trie = lru_cache(maxsize=64)(partial(code_trie, tokenizer, template))

    def logits(self, prompts: Sequence[Prompt], categories: bool = True) -> list[Logits | BackendError]:
        """One answer per prompt, in order; a prompt that failed has its error as its answer.

        Categories have the form `first`. A prompt's answer does not depend on the other prompts, up to rounding.
        """
        answers: list[Answer | BackendError] = [{} for _ in prompts]
        alike: dict[Hashable, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            ids = tuple(self.tokenizer.encode(prompt))
            if len(ids) > self.max_tokens:
                answers[index] = BackendError(f"the prompt has {len(ids)} tokens, the limit is {self.max_tokens}")
            else:
                alike[prompt.template, prompt.taxonomy.digest, prompt.codes, prompt.role].append((index, ids))
        groups = [
            self._group(key, members, prompts[members[0][0]].codes if categories else ())
            for key, members in alike.items()
        ]
        rows = [row for group in groups for row in group.rows]
        for row, answer in zip(rows, self._run(groups), strict=True):
            answers[row.prompt] = _joined(answers[row.prompt], answer)
        return [
            answer if isinstance(answer, BackendError) else self._logits(answer, prompt.codes if categories else ())
            for answer, prompt in zip(answers, prompts, strict=True)
        ]

    @abstractmethod
    def close(self) -> None:
        """Free what the backend holds; it cannot be used afterwards."""

    @abstractmethod
    def _run(self, groups: Sequence[Group]) -> list[Answer | BackendError]:
        """The answer of each row, in order, one group behind the other."""

    def _group(self, key: Hashable, members: Sequence[tuple[int, tuple[int, ...]]], codes: tuple[str, ...]) -> Group:
        """The prompts of these indices and ids, with all questions about them."""
        questions = self._questions(codes)
        rows = tuple(row for index, ids in members for row in rows_for(index, ids, questions))
        return Group(key, tuple((*ids, *self._verdict.prefix) for _, ids in members), rows)

    def _check_tokens(self, vocabulary: int) -> None:
        """Refuse a tokenizer that gives tokens which the model, with so many of them, does not know."""
        builder = PromptBuilder(self.template, self.default_taxonomy)
        nodes = self._trie(builder.codes).nodes
        ids = self.tokenizer.encode(builder.build(Conversation.parse("hello")))
        highest = max(
            *ids, *self._verdict.safe, *self._verdict.unsafe, *(token for node in nodes for token in node.ids)
        )
        if highest >= vocabulary:
            raise ModelError(
                f"the tokenizer gives the token {highest}, the model knows {vocabulary}",
                hint="tokenizer and weights do not belong together",
            )

    def _questions(self, codes: tuple[str, ...]) -> list[Question]:
        """The verdict, then one question per node of the code trie."""
        verdict = Question(self._verdict.prefix, self._verdict.safe + self._verdict.unsafe)
        return [verdict, *(Question(node.path, node.ids) for node in self._trie(codes).nodes)] if codes else [verdict]

    def _logits(self, answer: Answer, codes: tuple[str, ...]) -> Logits:
        """The logits of the verdict, of which each side may have several tokens, and log P(code | unsafe)."""
        verdict = answer[_VERDICT]
        count = len(self._verdict.safe)
        safe, unsafe = logsumexp(verdict[:count]), logsumexp(verdict[count:])
        if not codes:
            return Logits(safe, unsafe, form="first")
        trie = self._trie(codes)
        nodes = [answer[node] for node in range(1, len(trie.nodes) + 1)]
        return Logits(safe, unsafe, code_logprobs(trie, nodes), form="first")


def _joined(one: Answer | BackendError, other: Answer | BackendError) -> Answer | BackendError:
    """The answers of two rows of one prompt; a failure of either is the prompt's."""
    if isinstance(one, BackendError):
        return one
    return other if isinstance(other, BackendError) else one | other
