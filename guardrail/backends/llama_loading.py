"""Loads a checkpoint, from a folder or the hub, and turns whatever can go wrong there into one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.utils import cached_file

from guardrail.backends.llama_int8 import has_int8, to_int8
from guardrail.backends.weights import sampled_digest
from guardrail.errors import GuardrailError, ModelError, UsageError

__all__ = ["DTYPES", "Checkpoint", "Quantize", "check_checkpoint", "load_checkpoint", "pick_device", "pick_dtype"]

Quantize = Literal["8bit", "4bit"]
Head = Literal["causal language model", "sequence classifier"]

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_HEADS: Final = {
    "causal language model": AutoModelForCausalLM,
    "sequence classifier": AutoModelForSequenceClassification,
}
_HINTS: Final = (
    (("gated", "401", "403", "access to model"), "accept its licence on the model's page, then log in: hf auth login"),
    (("offline", "connect", "resolve"), "there is no connection: download it beforehand, or name a local folder"),
    (("out of memory", "not enough memory"), "use dtype='bfloat16', or quantize='8bit'"),
    (("not a valid model identifier", "404"), "check the spelling: a folder, or a hub id such as ORGANISATION/NAME"),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was loaded: a transformers model in evaluation mode, its tokenizer, and where it came from."""

    model: Any
    tokenizer: Any
    name: str
    """`id@digest`: the hub id or the folder's name, and a digest of configuration and weights."""
    folder: Path
    positions: int
    """The longest sequence, in tokens, that the model was made for."""
    vocabulary: int
    """How many tokens the model knows."""

    @property
    def numerics(self) -> str:
        """The number format, and whether the weights are quantized."""
        quantized = getattr(self.model.config, "quantization_config", None)
        kind = f" {'8bit' if getattr(quantized, 'load_in_8bit', False) else '4bit'}" if quantized else ""
        kind = " int8" if has_int8(self.model) else kind
        return f"{str(self.model.dtype).removeprefix('torch.')}{kind}"


def load_checkpoint(
    model: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    quantize: Quantize | None = None,
    revision: str | None = None,
    head: Head = "causal language model",
) -> Checkpoint:
    """Load tokenizer and weights; code that a checkpoint brings along is never run.

    `device` defaults to a GPU where there is one; `dtype` defaults to float32 on the CPU and to the checkpoint's own
    elsewhere. Raises `UsageError` for an option that cannot be used here, else `ModelError`.
    """
    target = pick_device(device)
    options: dict[str, Any] = {"dtype": pick_dtype(dtype, target)}
    if target.type == "cuda":
        options["device_map"] = {"": target}
    if quantize is not None and not _on_cpu(quantize, target):
        options["quantization_config"] = _quantization(quantize, target, options["dtype"])
    source = _source(model)
    with _reported(model):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        weights, info = _HEADS[head].from_pretrained(source, revision=revision, output_loading_info=True, **options)
        if target.type != "cuda":
            weights = weights.to(target)
        if quantize is not None and _on_cpu(quantize, target):
            to_int8(weights, keep=weights.get_output_embeddings())
        folder = Path(cached_file(source, "config.json", revision=revision)).parent
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{model!r} lacks {len(missing)} of the model's weights, among them {missing[0]}",
            hint=f"it is no {head}, or it is not complete",
        )
    label = Path(source).resolve().name if Path(source).is_dir() else model
    return Checkpoint(
        model=weights.eval(),
        tokenizer=tokenizer,
        name=f"{label}@{_digest(folder)}",
        folder=folder,
        positions=getattr(weights.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize,
        vocabulary=(weights.get_output_embeddings() or weights.get_input_embeddings()).weight.shape[0],
    )


def check_checkpoint(model: str) -> None:
    """Open configuration and tokenizer alone; ModelError when they cannot be."""
    source = _source(model)
    with _reported(model):
        AutoConfig.from_pretrained(source)
        AutoTokenizer.from_pretrained(source)


@contextmanager
def _reported(model: str) -> Iterator[None]:
    """Whatever goes wrong as a ModelError."""
    try:
        yield
    except GuardrailError:
        raise
    except Exception as error:
        raise ModelError(f"cannot load {model!r}: {_first_line(error)}", hint=_hint(error)) from error


def pick_device(device: str | None) -> torch.device:
    """The device by name, `cuda`, `mps` or `cpu`; by default the first of these that there is."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is None:
        return torch.device(next(name for name, there in available.items() if there))
    try:
        target = torch.device(device)
    except RuntimeError:
        target = torch.device("meta")
    if target.type not in available:
        raise UsageError(f"device {device!r} is not known", hint=f"known: {', '.join(available)}")
    if not available[target.type]:
        raise UsageError(f"device {device!r} is not available here", hint="use device='cpu'")
    return target


def pick_dtype(dtype: str | None, device: torch.device) -> torch.dtype | Literal["auto"]:
    """The floating-point type by name; by default float32 on the CPU and the checkpoint's own elsewhere."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not known", hint=f"known: {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _on_cpu(quantize: str, device: torch.device) -> bool:
    """Whether the layers are to be ours in 8 bits, which need no library."""
    return quantize == "8bit" and device.type == "cpu"


def _quantization(quantize: str, device: torch.device, dtype: torch.dtype | str) -> Any:
    if quantize not in ("8bit", "4bit"):
        raise UsageError(f"quantize is {quantize!r}, which is not known", hint="known: 8bit, 4bit")
    if device.type != "cuda":
        hint = "use 8bit on a CPU" if device.type == "cpu" else "leave it out"
        raise UsageError(f"quantize={quantize!r} needs a CUDA device, not {device.type}", hint=hint)
    try:
        import bitsandbytes  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ModuleNotFoundError:
        raise ModelError("bitsandbytes is not installed", hint="pip install bitsandbytes") from None
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute)


def _source(model: str) -> str:
    """A folder that exists, or a hub id."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{model!r} holds no checkpoint: there is no config.json")
        return str(path)
    if path.exists() or path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelError(f"there is no folder {model!r}", hint="name a checkpoint's folder, or a hub id")
    return model


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _hint(error: Exception) -> str | None:
    text = str(error).lower()
    return next((hint for signs, hint in _HINTS if any(sign in text for sign in signs)), None)


def _digest(folder: Path) -> str:
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    return sampled_digest(files, (folder / "config.json").read_bytes())
