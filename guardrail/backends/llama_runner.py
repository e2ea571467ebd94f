"""Runs rows in batches within a token budget; what fails, fails for its own rows only."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch

from guardrail.backends.causal_rows import Answer, Group
from guardrail.backends.llama_batching import Piece, batch_cost, batch_end
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

    def run(self, groups: Sequence[Group]) -> list[Answer | BackendError]:
        """The answer of each row, in order, one group behind the other.

        Without padding, a batch has rows of several groups: of one text under a policy of each category, say. Its
        weights are then read once for all of them.
        """
        answers: dict[int, Answer | BackendError] = {}
        waiting: list[Piece] = []
        first = 0
        for group in groups:
            prefix = self._prefix(group)
            pieces = (Piece(place, row, prefix) for place, row in enumerate(group.rows, first))
            waiting += sorted(pieces, key=lambda piece: piece.tokens)
            first += len(group.rows)
            waiting = self._batches(waiting, answers, rest=self._forward.pads)
        self._batches(waiting, answers, rest=True)
        return [answers[place] for place in range(first)]

    def _batches(self, pieces: list[Piece], answers: dict[int, Answer | BackendError], *, rest: bool) -> list[Piece]:
        """Run the full batches, and with `rest` the last one too; returns the rows that still wait."""
        start = 0
        while start < len(pieces):
            end = batch_end(pieces, start, self.token_budget, pads=self._forward.pads)
            if end == len(pieces) and not rest:
                break
            batch = pieces[start:end]
            answers.update(zip((piece.place for piece in batch), self._batch(batch), strict=True))
            start = end
        return pieces[start:]

    def _prefix(self, group: Group) -> Prefix | None:
        try:
            return self.prefixes.find(group.key, group.starts)
        except Exception as error:  # whatever the model library raises; the rows can do without a prefix
            _log.warning("the policy is computed anew for this batch: %s: %s", type(error).__name__, error)
        self.prefixes.clear()
        self._free()
        return None

    def _batch(self, pieces: Sequence[Piece]) -> list[Answer | BackendError]:
        result = self._attempt(pieces)
        if isinstance(result, list):
            return result
        if not out_of_memory(result) or len(pieces) == 1:
            return [_failure(result, pieces)] * len(pieces)
        self.token_budget = max(1, batch_cost(pieces, pads=self._forward.pads) // 2)
        _log.warning(
            "out of memory with %d rows of up to %d tokens: the batch is halved, the token budget is now %d",
            len(pieces),
            _longest(pieces),
            self.token_budget,
        )
        middle = len(pieces) // 2
        done: list[Answer | BackendError] = []
        for half in (pieces[:middle], pieces[middle:]):
            self._free()
            result = self._attempt(half)
            done += result if isinstance(result, list) else [_failure(result, half)] * len(half)
        return done

    def _attempt(self, pieces: Sequence[Piece]) -> list[Answer | BackendError] | Exception:
        """The answers, or what was raised: returned, because a traceback would keep the batch's memory."""
        try:
            return self._answers(pieces)
        except Exception as error:  # whatever the model library raises
            if not out_of_memory(error):
                _log.exception("the classifier failed on a batch of %d rows", len(pieces))
            return error.with_traceback(None)

    def _answers(self, pieces: Sequence[Piece]) -> list[Answer | BackendError]:
        tokens = sorted({token for piece in pieces for read in piece.row.reads for token in read.tokens})
        column = {token: index for index, token in enumerate(tokens)}
        places = [
            (index, read.position - piece.start) for index, piece in enumerate(pieces) for read in piece.row.reads
        ]
        rows = [piece.row.ids[piece.start :] for piece in pieces]
        logits = iter(self._forward.read(rows, [piece.prefix for piece in pieces], places, tokens))
        answers: list[Answer | BackendError] = []
        for piece in pieces:
            answer = {}
            for read in piece.row.reads:
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


def _longest(pieces: Sequence[Piece]) -> int:
    return max(len(piece.row.ids) for piece in pieces)


def _failure(error: Exception, pieces: Sequence[Piece]) -> BackendError:
    if out_of_memory(error):
        return OutOfMemoryError(
            f"out of memory with {len(pieces)} rows of up to {_longest(pieces)} tokens",
            hint="use a lower token_budget, dtype='bfloat16' or quantize",
        )
    return BackendError(f"{type(error).__name__}: {error}")
