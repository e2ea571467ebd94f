"""Guard models that are causal language models: Llama Guard checkpoints and whatever was fine-tuned from them.

One forward pass answers a prompt: the verdict's logits are read behind the prompt, the category codes' behind a
forced `unsafe`. Nothing is generated. What all prompts of a policy begin with is computed once and kept.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache, partial
from threading import Lock
from typing import Final

from guardrail.calibration import Calibration
from guardrail.errors import BackendError, MissingExtraError, ModelError, UsageError
from guardrail.prompting import Prompt, PromptBuilder
from guardrail.scoring import Logits
from guardrail.tokens import TextTokenizer, code_logprobs, code_trie, verdict_tokens
from guardrail.types import Conversation

try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ModuleNotFoundError as missing:
    raise MissingExtraError(missing.name or "transformers", "llm") from None

from guardrail.backends.llama_batching import Question, Row, rows_for
from guardrail.backends.llama_family import default_taxonomy, template_for
from guardrail.backends.llama_folder import read_facts
from guardrail.backends.llama_forward import Forward
from guardrail.backends.llama_loading import Checkpoint, Quantize, load_checkpoint
from guardrail.backends.llama_runner import Answer, Runner

__all__ = ["LlamaBackend"]

TOKEN_BUDGET: Final = {"cpu": 1024, "mps": 8192, "cuda": 8192}
"""Tokens per batch by device. Larger batches are no faster on a CPU, and slower where they outgrow its caches."""
MAX_TOKENS: Final = 8192
CACHE_BYTES: Final = 2**30

_FORCED = 16
"""Positions kept free behind the longest prompt, for the answer prefix and the forced code."""
_VERDICT = 0
"""Index of the question for the verdict; the nodes of the code trie follow."""


class LlamaBackend:
    """A causal language model read as a guard. Thread-safe: one thread at a time uses the model."""

    labels = None

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        template: str | None = None,
        token_budget: int | None = None,
        max_tokens: int = MAX_TOKENS,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """The options are those of `load`."""
        for option, value in (("token_budget", token_budget), ("max_tokens", max_tokens)):
            if value is not None and value < 1:
                raise UsageError(f"{option} is {value}", hint="give a number of tokens from 1")
        facts = read_facts(checkpoint.folder)
        self.name = f"{facts.id}@{checkpoint.name.rpartition('@')[2]}" if facts else checkpoint.name
        self.numerics = checkpoint.numerics
        self.calibration = _calibration(checkpoint)
        self.max_tokens = min(max_tokens, checkpoint.positions - _FORCED)
        self.tokenizer = TextTokenizer.from_transformers(checkpoint.tokenizer)
        self.template = facts.template if facts and template is None else template_for(template, checkpoint.tokenizer)
        self.default_taxonomy = facts.taxonomy if facts else default_taxonomy(self.template)
        self._verdict = verdict_tokens(self.tokenizer, self.template)
        self._trie = lru_cache(maxsize=64)(partial(code_trie, self.tokenizer, self.template))
        self._check_tokens(checkpoint)
        forward = _forward(checkpoint)
        budget = token_budget or TOKEN_BUDGET[forward.device.type]
        self._runner: Runner | None = Runner(forward, budget, cache_bytes)
        self._lock = Lock()

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        template: str | None = None,
        quantize: Quantize | None = None,
        revision: str | None = None,
        token_budget: int | None = None,
        max_tokens: int = MAX_TOKENS,
        cache_bytes: int = CACHE_BYTES,
    ) -> LlamaBackend:
        """Load a checkpoint from a folder or the hub.

        `device` is `cuda`, `mps` or `cpu` (default: the first there is); `dtype` is `float32`, `bfloat16` or `float16`
        (default: float32 on the CPU, else the checkpoint's own); `quantize` is `8bit` or `4bit` and needs CUDA.
        `template` overrides the family that is found from tokenizer and chat template. `token_budget` bounds a
        batch, padding included (default: by device), `max_tokens` a prompt, and `cache_bytes` the memory of the
        policy prefixes.
        """
        checkpoint = load_checkpoint(model, device=device, dtype=dtype, quantize=quantize, revision=revision)
        return cls(
            checkpoint, template=template, token_budget=token_budget, max_tokens=max_tokens, cache_bytes=cache_bytes
        )

    @property
    def token_budget(self) -> int:
        """Tokens per batch, padding included; it was lowered when the device ran out of memory."""
        return self._runner.token_budget if self._runner else 0

    def logits(self, prompts: Sequence[Prompt], categories: bool = True) -> list[Logits | BackendError]:
        """One answer per prompt, in order; a prompt that failed has its error as its answer.

        Categories have the form `first`. A prompt's answer does not depend on the other prompts, up to rounding.
        """
        answers: list[Answer | BackendError] = [{} for _ in prompts]
        groups: dict[object, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            ids = tuple(self.tokenizer.encode(prompt))
            if len(ids) > self.max_tokens:
                answers[index] = BackendError(f"the prompt has {len(ids)} tokens, the limit is {self.max_tokens}")
            else:
                groups[prompt.template, prompt.taxonomy.digest, prompt.codes, prompt.role].append((index, ids))
        for key, members in groups.items():
            questions = self._questions(prompts[members[0][0]].codes if categories else ())
            rows = [row for index, ids in members for row in rows_for(index, ids, questions)]
            starts = [(*ids, *self._verdict.prefix) for _, ids in members]
            for row, answer in zip(rows, self._run(key, starts, rows), strict=True):
                answers[row.prompt] = _joined(answers[row.prompt], answer)
        return [
            answer if isinstance(answer, BackendError) else self._logits(answer, prompt.codes if categories else ())
            for answer, prompt in zip(answers, prompts, strict=True)
        ]

    def close(self) -> None:
        """Free the model and the cached prefixes."""
        with self._lock:
            self._runner = None

    def _run(self, key: object, starts: Sequence[tuple[int, ...]], rows: Sequence[Row]) -> list[Answer | BackendError]:
        with self._lock:
            if self._runner is None:
                raise BackendError("the model was closed")
            return self._runner.run(key, starts, rows)

    def _check_tokens(self, checkpoint: Checkpoint) -> None:
        """Refuse a tokenizer that cannot express the format, or that has tokens which the model does not know."""
        builder = PromptBuilder(self.template, self.default_taxonomy)
        nodes = self._trie(builder.codes).nodes
        ids = self.tokenizer.encode(builder.build(Conversation.parse("hello")))
        highest = max(
            *ids, *self._verdict.safe, *self._verdict.unsafe, *(token for node in nodes for token in node.ids)
        )
        if highest >= checkpoint.vocabulary:
            raise ModelError(
                f"the tokenizer gives the token {highest}, the model knows {checkpoint.vocabulary}",
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
        safe, unsafe = _logsumexp(verdict[:count]), _logsumexp(verdict[count:])
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


def _logsumexp(values: Sequence[float]) -> float:
    highest = max(values)
    return highest + math.log(sum(math.exp(value - highest) for value in values))


def _forward(checkpoint: Checkpoint) -> Forward:
    try:
        return Forward(checkpoint.model)
    except ModelError:
        raise
    except Exception as error:  # whatever an architecture that does not fit raises
        raise ModelError(f"{checkpoint.name} cannot be run: {type(error).__name__}: {error}") from error


def _calibration(checkpoint: Checkpoint) -> Calibration:
    path = checkpoint.folder / "calibration.json"
    return Calibration.read(path) if path.is_file() else Calibration()
