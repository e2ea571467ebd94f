"""Guard models as GGUF files, computed by llama.cpp in this process. What prompts have in common is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from guardrail.backends.causal import FORCED, CausalBackend
from guardrail.backends.causal_rows import Answer, Group, Row
from guardrail.backends.llama_family import default_taxonomy, template_for
from guardrail.backends.weights import sampled_digest
from guardrail.calibration import Calibration
from guardrail.errors import BackendError, MissingExtraError, ModelError, UsageError

try:
    import llama_cpp  # noqa: F401
except ModuleNotFoundError as missing:
    raise MissingExtraError("llama-cpp-python", "gguf") from missing

from guardrail.backends.gguf_model import GgufModel
from guardrail.backends.gguf_tokens import GgufTokenizer

__all__ = ["GgufBackend"]

MAX_TOKENS = 8192


class GgufBackend(CausalBackend):
    """A GGUF file read as a guard. Thread-safe: one thread at a time uses the model."""

    def __init__(self, path: Path, model: GgufModel, *, template: str | None = None) -> None:
        """`path` names the weights; `template` is the prompt format, by default that of the file's chat template."""
        tokenizer = GgufTokenizer(model)
        chosen = template_for(template, model.control, model.chat_template)
        super().__init__(
            name=f"{path.name}@{sampled_digest([path])}",
            numerics=model.numerics,
            tokenizer=tokenizer,
            template=chosen,
            taxonomy=default_taxonomy(chosen),
            max_tokens=model.positions - FORCED,
            calibration=Calibration(),
        )
        self._check_tokens(model.size)
        self._model = model
        self._lock = Lock()

    @classmethod
    def load(
        cls,
        name: str,
        *,
        template: str | None = None,
        threads: int | None = None,
        gpu_layers: int = -1,
        max_tokens: int = MAX_TOKENS,
        exact: bool = False,
    ) -> GgufBackend:
        """Load a file; of a file in parts, the first one.

        `template` is the prompt format where the file carries no chat template, or another one. `threads` are used
        for computing (default: one per core), `gpu_layers` of the layers lie on a GPU where llama.cpp was built for
        one (-1: all), and `max_tokens` bounds a prompt. `exact` keeps keys and values in float32 instead of float16.
        `ModelError` when the file cannot be used.
        """
        for option, value, least in (
            ("threads", threads, 1),
            ("max_tokens", max_tokens, 1),
            ("gpu_layers", gpu_layers, -1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{option} is {value}", hint=f"give a number from {least}")
        path = Path(name).expanduser()
        if not path.is_file():
            raise ModelError(f"there is no file {name!r}", hint="gguf:FILE names a file in the GGUF format")
        positions = max_tokens + FORCED
        model = GgufModel(path, positions=positions, threads=threads, gpu_layers=gpu_layers, exact=exact)
        try:
            return cls(path, model, template=template)
        except BaseException:
            model.close()
            raise

    def close(self) -> None:
        """Free the model."""
        with self._lock:
            self._model.close()

    def _run(self, groups: Sequence[Group]) -> list[Answer | BackendError]:
        with self._lock:
            return [_answer(self._model, row) for group in groups for row in group.rows]


def _answer(model: GgufModel, row: Row) -> Answer | BackendError:
    try:
        found = model.logits(row.ids, [(read.position, read.tokens) for read in row.reads])
    except BackendError as error:
        return error
    return {read.question: values for read, values in zip(row.reads, found, strict=True)}
