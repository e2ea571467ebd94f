"""Text classifiers from transformers: any checkpoint with a sequence classification head, softmax or sigmoid.

Of a conversation it sees the judged text only. Its labels are the taxonomy; the labels that mean safe are guessed from
their names or named in `safe_labels`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Final

from guardrail.backends.classifier_labels import Labels, read_labels
from guardrail.backends.labels import label_taxonomy
from guardrail.calibration import Calibration
from guardrail.errors import BackendError, MissingExtraError, ModelError, OutOfMemoryError, UnreadableError, UsageError
from guardrail.prompting import Prompt, Template
from guardrail.resources import digest
from guardrail.scoring import Logits
from guardrail.tokens import TextTokenizer

try:
    import torch
    import transformers  # noqa: F401
except ModuleNotFoundError as missing:
    raise MissingExtraError(missing.name or "transformers", "llm") from None

from guardrail.backends.llama_loading import Checkpoint, load_checkpoint
from guardrail.backends.llama_runner import out_of_memory

__all__ = ["ClassifierBackend"]

TOKEN_BUDGET: Final = {"cpu": 1024, "mps": 8192, "cuda": 8192}
"""Tokens per batch by device."""
MAX_TOKENS: Final = 8192

_PROBE = "x"
_SAFE_LABELS = "?safe_labels="
# What padding may change in a logit, relative to it: rounding, and no more.
_ROUNDING: Final = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
_log = logging.getLogger("guardrail")

Ids = tuple[int, ...]
Answer = list[float] | BackendError


@dataclass(frozen=True, slots=True)
class _Frame:
    """The special tokens around a text."""

    before: Ids
    after: Ids

    @classmethod
    def of(cls, tokenizer: Any) -> _Frame:
        """What the checkpoint's tokenizer puts around a single text."""
        inner = tuple(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
        whole = tokenizer(_PROBE)
        ids = tuple(whole["input_ids"])
        at = next((at for at in range(len(ids)) if ids[at : at + len(inner)] == inner), None)
        if not inner or at is None or any(whole.get("token_type_ids", ())):
            raise ModelError("the checkpoint's tokenizer frames a text in a way that is not supported")
        return cls(ids[:at], ids[at + len(inner) :])

    def around(self, ids: Sequence[int]) -> Ids:
        """The text with its frame."""
        return (*self.before, *ids, *self.after)


class ClassifierBackend:
    """A sequence classification checkpoint. Thread-safe: one thread at a time uses the model."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        safe_labels: str | Sequence[str] | None = None,
        token_budget: int | None = None,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        """The options are those of `load`."""
        for option, value in (("token_budget", token_budget), ("max_tokens", max_tokens)):
            if value is not None and value < 1:
                raise UsageError(f"{option} is {value}", hint="give a number of tokens from 1")
        self._model: Any = checkpoint.model
        self._device = next(checkpoint.model.parameters()).device
        self._labels: Labels = read_labels(checkpoint.model.config, safe_labels)
        identity, _, weights = checkpoint.name.rpartition("@")
        # The scores depend on which labels mean safe, too.
        self.name = f"{identity}@{digest(' '.join((weights, *map(str, self._labels.safe))))}"
        self.default_taxonomy = label_taxonomy(
            Path(identity).name, identity, self._labels.unsafe, "labels of the checkpoint"
        )
        self.labels = self.default_taxonomy.codes
        self.numerics = checkpoint.numerics
        self.tokenizer = TextTokenizer.from_transformers(checkpoint.tokenizer)
        self._frame = _Frame.of(checkpoint.tokenizer)
        framing = len(self._frame.around(()))
        self.max_tokens = min(max_tokens, _longest(checkpoint)) - framing
        file = checkpoint.folder / "calibration.json"
        self.calibration = Calibration.read(file) if file.is_file() else Calibration()
        self.token_budget = token_budget or TOKEN_BUDGET[self._device.type]
        """Tokens per batch, padding included; lowered when the device runs out of memory."""
        pad = checkpoint.tokenizer.pad_token_id
        self._pad = 0 if pad is None else int(pad)
        self._lock = Lock()
        self._alone = not self._pads()

    @classmethod
    def load(
        cls,
        name: str,
        *,
        safe_labels: str | Sequence[str] | None = None,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        token_budget: int | None = None,
        max_tokens: int = MAX_TOKENS,
    ) -> ClassifierBackend:
        """Load a checkpoint from a folder or the hub; `name` may end in `?safe_labels=A,B`.

        `safe_labels` are the labels that mean safe, by default guessed; the other options are those of a Llama
        checkpoint. Raises UsageError when it is unclear which labels mean safe.
        """
        name, separator, listed = name.partition(_SAFE_LABELS)
        if safe_labels is None and separator:
            safe_labels = listed
        if not name:
            raise UsageError("classifier: names no checkpoint", hint="write 'classifier:FOLDER', or a hub id behind it")
        checkpoint = load_checkpoint(name, device=device, dtype=dtype, revision=revision, head="sequence classifier")
        return cls(checkpoint, safe_labels=safe_labels, token_budget=token_budget, max_tokens=max_tokens)

    @cached_property
    def template(self) -> Template:
        """The judged text and nothing else."""
        return Template.load("plain")

    def logits(self, prompts: Sequence[Prompt], categories: bool = True) -> list[Logits | BackendError]:
        """One answer per prompt; it does not depend on the other prompts, up to rounding. Equal texts run once."""
        rows: dict[str, Ids] = {}
        answers: dict[str, Answer] = {}
        for text, prompt in {prompt.text: prompt for prompt in prompts}.items():
            ids = self.tokenizer.encode(prompt)
            problem = self._problem(text, ids)
            if problem is None:
                rows[text] = self._frame.around(ids)
            else:
                answers[text] = problem
        with self._lock:
            answers |= self._run(rows)
        return [self._logits(answers[prompt.text], prompt, categories) for prompt in prompts]

    def close(self) -> None:
        """Free the model."""
        with self._lock:
            self._model = None

    def _logits(self, answer: Answer, prompt: Prompt, categories: bool) -> Logits | BackendError:
        if isinstance(answer, BackendError):
            return answer
        return self._labels.logits(answer, prompt.taxonomy.codes, categories)

    def _problem(self, text: str, ids: Sequence[int]) -> BackendError | None:
        """Why the model cannot judge the text."""
        if len(ids) > self.max_tokens:
            return BackendError(f"the text has {len(ids)} tokens, the model reads {self.max_tokens}")
        unknown = self.tokenizer.unknown
        if not ids or (any(map(str.isalpha, text)) and all(token == unknown for token in ids)):
            return UnreadableError("the model cannot read the text: all of its words are unknown to it")
        return None

    def _run(self, rows: dict[str, Ids]) -> dict[str, Answer]:
        """The logits of each row, in batches of similar length within the token budget."""
        if self._model is None:
            raise BackendError("the model was closed")
        ordered = sorted(rows, key=lambda text: len(rows[text]))
        answers: dict[str, Answer] = {}
        while len(answers) < len(ordered):
            start = end = len(answers)
            while end < len(ordered) and (end == start or self._fits(end + 1 - start, len(rows[ordered[end]]))):
                end += 1
            batch = ordered[start:end]
            answers.update(zip(batch, self._batch([rows[text] for text in batch]), strict=True))
        return answers

    def _fits(self, count: int, longest: int) -> bool:
        return not self._alone and count * longest <= self.token_budget

    def _batch(self, rows: Sequence[Ids]) -> list[Answer]:
        """The answers of a batch; when memory runs out, those of its halves."""
        failure: Exception | None = None
        try:
            found = self._forward(rows)
        except Exception as error:  # whatever the model library raises
            # Without its traceback, which would keep the batch's memory.
            failure = error.with_traceback(None)
        if failure is None:
            return [values if all(map(math.isfinite, values)) else _not_finite() for values in found]
        if not out_of_memory(failure):
            _log.error("the classifier failed on a batch of %d rows: %s", len(rows), failure)
            return [BackendError(f"{type(failure).__name__}: {failure}")] * len(rows)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(rows) == 1:
            return [OutOfMemoryError(f"out of memory with {len(rows[0])} tokens", hint="use dtype='bfloat16'")]
        self.token_budget = min(self.token_budget, max(1, len(rows) * len(rows[-1]) // 2))
        _log.warning("out of memory with %d rows: the token budget is now %d", len(rows), self.token_budget)
        middle = len(rows) // 2
        return [*self._batch(rows[:middle]), *self._batch(rows[middle:])]

    def _forward(self, rows: Sequence[Ids]) -> list[list[float]]:
        """Logits (rows, labels)."""
        width = max(map(len, rows))
        ids = [[*row, *[self._pad] * (width - len(row))] for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor(ids, device=self._device), attention_mask=torch.tensor(mask, device=self._device)
            ).logits
        found: list[list[float]] = logits.float().cpu().tolist()
        if {len(values) for values in found} != {len(self._labels.names)}:
            raise BackendError(f"the model gives {len(found[0])} outputs for {len(self._labels.names)} labels")
        return found

    def _pads(self) -> bool:
        """Whether a row's logits stay the same when another row makes it padded; else each row runs alone."""
        short, long = (self._frame.around(self.tokenizer.encode_text(text)) for text in ("a", "a b c d e f g h"))
        try:
            (alone,) = self._forward([short])
        except Exception as error:  # whatever an architecture that does not fit raises
            raise ModelError(f"{self.name} cannot be run: {type(error).__name__}: {error}") from error
        try:
            padded = self._forward([short, long])[0]
        except Exception:  # a model without a padding token, for example
            padded = []
        rounding = _ROUNDING.get(self._model.dtype, 0.1)
        if len(padded) == len(alone) and all(map(lambda a, b: abs(a - b) <= rounding * (1 + abs(a)), alone, padded)):
            return True
        _log.warning("%s gives other scores for padded texts: each text is run by itself", self.name)
        return False


def _longest(checkpoint: Checkpoint) -> int:
    """The longest sequence that weights and tokenizer were made for.

    Families in which positions are counted from behind the padding token's have fewer than their table is long.
    """
    longest = [
        checkpoint.positions,
        int(getattr(checkpoint.tokenizer, "model_max_length", None) or checkpoint.positions),
    ]
    for name, module in checkpoint.model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            longest.append(module.num_embeddings - module.padding_idx - 1)
    return min(longest)


def _not_finite() -> BackendError:
    hint = "float16 overflows in some models: use dtype='bfloat16' or 'float32'"
    return BackendError("the model's logits are not finite numbers", hint=hint)
