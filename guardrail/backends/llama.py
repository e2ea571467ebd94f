"""Guard models that are causal language models: Llama Guard checkpoints and whatever was fine-tuned from them.

One forward pass answers a prompt: the verdict's logits are read behind the prompt, the category codes' behind a
forced `unsafe`. Nothing is generated. What all prompts of a policy begin with is computed once and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any, Final

from guardrail.calibration import Calibration
from guardrail.errors import BackendError, MissingExtraError, ModelError, UsageError
from guardrail.prompting import Template
from guardrail.tokens import TextTokenizer

try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ModuleNotFoundError as missing:
    raise MissingExtraError(missing.name or "transformers", "llm") from None

from guardrail.backends.causal import FORCED, CausalBackend
from guardrail.backends.causal_rows import Answer, Group
from guardrail.backends.llama_family import default_taxonomy, template_for
from guardrail.backends.llama_folder import read_facts
from guardrail.backends.llama_forward import Forward
from guardrail.backends.llama_loading import Checkpoint, Quantize, load_checkpoint
from guardrail.backends.llama_runner import Runner

__all__ = ["LlamaBackend"]

TOKEN_BUDGET: Final = {"cpu": 1024, "mps": 8192, "cuda": 8192}
"""Tokens per batch by device. Larger batches are no faster on a CPU, and slower where they outgrow its caches."""
MAX_TOKENS: Final = 8192
CACHE_BYTES: Final = 2**30


class LlamaBackend(CausalBackend):
    """A causal language model read as a guard. Thread-safe: one thread at a time uses the model."""

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
        chosen = facts.template if facts and template is None else _template(template, checkpoint.tokenizer)
        super().__init__(
            name=f"{facts.id}@{checkpoint.name.rpartition('@')[2]}" if facts else checkpoint.name,
            numerics=checkpoint.numerics,
            tokenizer=TextTokenizer.from_transformers(checkpoint.tokenizer),
            template=chosen,
            taxonomy=facts.taxonomy if facts else default_taxonomy(chosen),
            max_tokens=min(max_tokens, checkpoint.positions - FORCED),
            calibration=_calibration(checkpoint),
        )
        self._check_tokens(checkpoint.vocabulary)
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
        (default: float32 on the CPU, else the checkpoint's own); `quantize` is `8bit`, or on CUDA `4bit`. `template`
        overrides the family that is found from tokenizer and chat template. `token_budget` bounds a batch, padding
        included (default: by device), `max_tokens` a prompt, and `cache_bytes` the memory of the policy prefixes.
        """
        checkpoint = load_checkpoint(model, device=device, dtype=dtype, quantize=quantize, revision=revision)
        return cls(
            checkpoint, template=template, token_budget=token_budget, max_tokens=max_tokens, cache_bytes=cache_bytes
        )

    @property
    def token_budget(self) -> int:
        """Tokens per batch, padding included; it was lowered when the device ran out of memory."""
        return self._runner.token_budget if self._runner else 0

    def close(self) -> None:
        """Free the model and the cached prefixes."""
        with self._lock:
            self._runner = None

    def _run(self, groups: Sequence[Group]) -> list[Answer | BackendError]:
        with self._lock:
            if self._runner is None:
                raise BackendError("the model was closed")
            return self._runner.run(groups)


def _template(name: str | None, tokenizer: Any) -> Template:
    """The template to use with a transformers tokenizer, which may carry several chat templates."""
    chat_template = tokenizer.chat_template
    if isinstance(chat_template, dict):
        chat_template = chat_template.get("default")
    return template_for(name, tokenizer.get_added_vocab(), chat_template)


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
