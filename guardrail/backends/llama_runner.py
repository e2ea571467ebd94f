"""Runs rows in batches within a token budget; what fails, fails for its own rows only."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Sequence

import torch

from guardrail.backends.causal_rows import Answer, Row
from guardrail.backends.llama_batching import batch_cost, batch_end
from guardrail.backends.llama_forward import Forward, Prefix
from guardrail.backends.llama_prefix import PrefixCache
from guardrail.errors import BackendError, OutOfMemoryError

__all__ = ["Runner", "out_of_memory"]

_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
_log = logging.getLogger("guardrail")


class Runner:
    """A model with its cached prefixes. Not thread-safe."""

    def __init__(self, forward: Forward, token_budget: int, cache_bytes: int) -> None:
        self.token_budget = token_budget
        """Tokens per batch, padding included; lowered when the device runs out of memory."""
        self.prefixes = PrefixCache(forward, cache_bytes)
        self._forward = forward

    def run(
        self, key: Hashable, prompts: Sequence[tuple[int, ...]], rows: Sequence[Row]
    ) -> list[Answer | BackendError]:
        """The answer of each row, in order.

        `prompts` are the rows without what was forced behind the verdict; `key` is the same for prompts that are
        expected to begin alike.
        """
        prefix = self._prefix(key, prompts)
        length = len(prefix.ids) if prefix else 0
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        ordered = [rows[index] for index in order]
        done: list[Answer | BackendError] = []
        while len(done) < len(ordered):
            end = batch_end(ordered, len(done), length, self.token_budget, pads=self._forward.pads)
            done += self._batch(ordered[len(done) : end], prefix)
        answers = dict(zip(order, done, strict=True))
        return [answers[index] for index in range(len(rows))]

    def _prefix(self, key: Hashable, prompts: Sequence[tuple[int, ...]]) -> Prefix | None:
        try:
            return self.prefixes.find(key, prompts)
        except Exception as error:  # whatever the model library raises; the rows can do without a prefix
            _log.warning("the policy is computed anew for this batch: %s: %s", type(error).__name__, error)
        self.prefixes.clear()
        self._free()
        return None

    def _batch(self, rows: Sequence[Row], prefix: Prefix | None) -> list[Answer | BackendError]:
        result = self._attempt(rows, prefix)
        if isinstance(result, list):
            return result
        if not out_of_memory(result) or len(rows) == 1:
            return [_failure(result, rows)] * len(rows)
        self.token_budget = max(1, batch_cost(rows, len(prefix.ids) if prefix else 0, pads=self._forward.pads) // 2)
        _log.warning(
            "out of memory with %d rows of up to %d tokens: the batch is halved, the token budget is now %d",
            len(rows),
            len(rows[-1].ids),
            self.token_budget,
        )
        middle = len(rows) // 2
        done: list[Answer | BackendError] = []
        for half in (rows[:middle], rows[middle:]):
            self._free()
            result = self._attempt(half, prefix)
            done += result if isinstance(result, list) else [_failure(result, half)] * len(half)
        return done

    def _attempt(self, rows: Sequence[Row], prefix: Prefix | None) -> list[Answer | BackendError] | Exception:
        """The answers, or what was raised: returned, because a traceback would keep the batch's memory."""
        try:
            return self._answers(rows, prefix)
        except Exception as error:  # whatever the model library raises
            if not out_of_memory(error):
                _log.exception("the classifier failed on a batch of %d rows", len(rows))
            return error.with_traceback(None)

    def _answers(self, rows: Sequence[Row], prefix: Prefix | None) -> list[Answer | BackendError]:
        start = len(prefix.ids) if prefix else 0
        tokens = sorted({token for row in rows for read in row.reads for token in read.tokens})
        column = {token: index for index, token in enumerate(tokens)}
        places = [(index, read.position - start) for index, row in enumerate(rows) for read in row.reads]
        logits = iter(self._forward.read([row.ids[start:] for row in rows], prefix, places, tokens))
        answers: list[Answer | BackendError] = []
        for row in rows:
            answer = {}
            for read in row.reads:
                line = next(logits)
                answer[read.question] = [line[column[token]] for token in read.tokens]
            answers.append(answer if _finite(answer) else self._not_finite())
        return answers

    def _not_finite(self) -> BackendError:
        return BackendError(
            f"the model's logits are not finite numbers in {self._forward.dtype}",
            hint="float16 overflows in some models: use dtype='bfloat16' or 'float32'",
        )

    def _free(self) -> None:
        if self._forward.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._forward.device.type == "mps":
            torch.mps.empty_cache()


def _finite(answer: Answer) -> bool:
    return all(math.isfinite(value) for values in answer.values() for value in values)


def out_of_memory(error: Exception) -> bool:
    """Whether the device had too little memory, in the words of whatever library raised it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def _failure(error: Exception, rows: Sequence[Row]) -> BackendError:
    if out_of_memory(error):
        return OutOfMemoryError(
            f"out of memory with {len(rows)} rows of up to {len(rows[-1].ids)} tokens",
            hint="use a lower token_budget, dtype='bfloat16' or quantize",
        )
    return BackendError(f"{type(error).__name__}: {error}")
