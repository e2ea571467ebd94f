"""A GGUF file in llama.cpp: its vocabulary, and logits of chosen tokens at chosen positions.

The functions are llama.cpp's own, by the names of its header llama.h; llama-cpp-python binds them and no more is used
of it.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as api

from guardrail.backends.causal_rows import common_length
from guardrail.errors import BackendError, ModelError, OutOfMemoryError
from guardrail.tokens import plain

__all__ = ["GgufModel"]

_BATCH = 2048  # tokens that are handed over at once
_MICRO = 512  # tokens that are computed at once
_LONGEST_TOKEN = 512  # bytes
_ERROR = 3  # GGML_LOG_LEVEL_ERROR
_log = logging.getLogger("guardrail")


@api.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]  # a ctypes callback
def _heard(level: int, text: bytes, data: Any) -> None:
    """llama.cpp's words go to the log: errors as warnings, the rest (hundreds of lines) for debugging."""
    line = text.decode(errors="replace").strip()
    if line:
        _log.log(logging.WARNING if level == _ERROR else logging.DEBUG, "llama.cpp: %s", line)


class GgufModel:
    """One model with one sequence in its memory. Not thread-safe."""

    def __init__(
        self, path: Path, *, positions: int, threads: int | None, gpu_layers: int, exact: bool = False
    ) -> None:
        """Load the file. `positions` bounds a sequence; `gpu_layers` of the layers are computed on a GPU, -1: all.
        `exact` keeps keys and values in float32. Raises ModelError.
        """
        self._model = self._context = None
        api.llama_log_set(_heard, ctypes.c_void_p(0))
        api.llama_backend_init()
        settings = api.llama_model_default_params()
        settings.n_gpu_layers = gpu_layers if gpu_layers >= 0 else 2**31 - 1
        self._model = api.llama_model_load_from_file(os.fsencode(path), settings)
        if not self._model:
            raise ModelError(f"{path}: llama.cpp cannot load it", hint="give a GGUF file of a causal language model")
        self.vocabulary = api.llama_model_get_vocab(self._model)
        self.size: int = api.llama_vocab_n_tokens(self.vocabulary)
        """Tokens of the vocabulary."""
        self.positions = min(positions, api.llama_model_n_ctx_train(self._model))
        self._context = api.llama_init_from_model(self._model, self._context_settings(threads, exact))
        if not self._context:
            raise ModelError(f"{path}: there is not enough memory for {self.positions} positions", hint="max_tokens=…")
        self._memory = api.llama_get_memory(self._context)
        self._batch = api.llama_batch_init(_BATCH, 0, 1)
        self._held: tuple[int, ...] = ()

    def _context_settings(self, threads: int | None, exact: bool) -> Any:
        settings = api.llama_context_default_params()
        settings.n_ctx = self.positions
        settings.n_batch, settings.n_ubatch = _BATCH, _MICRO
        settings.n_threads = settings.n_threads_batch = threads or len(os.sched_getaffinity(0))
        settings.n_seq_max = 1
        if exact:
            settings.type_k = settings.type_v = api.GGML_TYPE_F32
            settings.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.no_perf = True
        return settings

    @property
    def chat_template(self) -> str | None:
        """The chat template that the file carries."""
        found = api.llama_model_chat_template(self._model, None)
        return found.decode() if found else None

    @property
    def numerics(self) -> str:
        """The number format of the weights, in llama.cpp's words."""
        buffer = ctypes.create_string_buffer(256)
        api.llama_model_desc(self._model, buffer, len(buffer))
        return f"gguf {buffer.value.decode(errors='replace')}"

    @property
    def control(self) -> dict[str, int]:
        """The tokens that are no text, by name."""
        wanted = api.LLAMA_TOKEN_ATTR_CONTROL | api.LLAMA_TOKEN_ATTR_USER_DEFINED | api.LLAMA_TOKEN_ATTR_UNKNOWN
        special = [token for token in range(self.size) if api.llama_vocab_get_attr(self.vocabulary, token) & wanted]
        named = {api.llama_vocab_get_text(self.vocabulary, token).decode(errors="replace"): token for token in special}
        return {name: token for name, token in named.items() if name and not plain(name)}

    def encode(self, text: bytes) -> list[int]:
        """The ids of UTF-8 text in which no control token is looked for, as the start of a prompt."""
        self._check_open()
        room = len(text) + 8
        ids = (api.llama_token * room)()
        count = api.llama_tokenize(self.vocabulary, text, len(text), ids, room, False, False)
        if count < 0:
            raise BackendError(f"llama.cpp cannot encode a text of {len(text)} bytes")
        return list(ids[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of text that a token stands for; of a control token its name."""
        self._check_open()
        buffer = ctypes.create_string_buffer(_LONGEST_TOKEN)
        count = api.llama_token_to_piece(self.vocabulary, token, buffer, len(buffer), 0, True)
        return buffer.raw[:count] if count > 0 else b""

    def logits(self, ids: tuple[int, ...], reads: Sequence[tuple[int, Sequence[int]]]) -> list[list[float]]:
        """The logits of the wanted tokens at each read, a (position, tokens) of the sequence `ids`.

        What `ids` has in common with the sequence before is not computed again.
        """
        self._check_open()
        first = min(position for position, _ in reads)
        kept = min(common_length([self._held, ids]), first)
        self._keep(kept)
        found: dict[int, list[float]] = {}
        wanted = dict(enumerate(reads))
        for start in range(kept, len(ids), _BATCH):
            part = ids[start : start + _BATCH]
            here = {index: position - start for index, (position, _) in wanted.items()
                    if start <= position < start + len(part)}  # fmt: skip
            self._decode(part, start, set(here.values()))
            self._held = ids[: start + len(part)]
            for index, place in here.items():
                row = api.llama_get_logits_ith(self._context, place)
                found[index] = [float(row[token]) for token in wanted[index][1]]
        return [found[index] for index in range(len(reads))]

    def close(self) -> None:
        """Free model and memory."""
        if self._context:
            api.llama_batch_free(self._batch)
            api.llama_free(self._context)
        if self._model:
            api.llama_model_free(self._model)
        self._context = self._model = None

    def _check_open(self) -> None:
        """llama.cpp ends the process when a model is used that it has freed."""
        if not self._model:
            raise BackendError("the model was closed", hint="load a new one")

    def _keep(self, count: int) -> None:
        """Forget all but the first `count` tokens; all of them where the model's memory cannot be cut."""
        if not api.llama_memory_seq_rm(self._memory, 0, count, -1):
            api.llama_memory_clear(self._memory, True)
            self._held = ()
            if count:
                raise BackendError("this model's memory cannot be cut back", hint="it is not a plain transformer")
        self._held = self._held[:count]

    def _decode(self, ids: Sequence[int], start: int, read: set[int]) -> None:
        batch = self._batch
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index] = token
            batch.pos[index] = start + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index in read
        status = api.llama_decode(self._context, batch)
        if status:
            api.llama_memory_clear(self._memory, True)
            self._held = ()
            if status == 1:
                raise OutOfMemoryError(
                    f"llama.cpp has no room for {start + len(ids)} tokens", hint="a lower max_tokens"
                )
            raise BackendError(f"llama.cpp failed with status {status}")
