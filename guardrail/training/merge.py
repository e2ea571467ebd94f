"""`guardrail export`: an adapter with its base, or a checkpoint, as a guard's folder that opens by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from guardrail.backends.llama_folder import Facts, read_facts
from guardrail.backends.llama_loading import load_checkpoint
from guardrail.calibration import Calibration
from guardrail.errors import MissingExtraError, ModelError, UsageError
from guardrail.loading import load
from guardrail.prompting import Template
from guardrail.taxonomy import Taxonomy
from guardrail.training.model_folder import write_folder

__all__ = ["apply_adapter", "export_checkpoint"]

_CONFIG = "adapter_config.json"
_CALIBRATION = "calibration.json"


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    base: str | None = None,
    template: str | None = None,
    taxonomy: str | None = None,
    id: str | None = None,
) -> str:
    """Write a guard's folder from a LoRA adapter or from a whole checkpoint; returns the model's `id@digest`.

    An adapter is added into the weights of its base, or of `base` in place of the one that it names. Template, taxonomy
    and id are those that are given, else those of the adapter's folder, as one trained here has them, else the base's,
    and the folder's name. Where the result has the weights of the model that the run made, its calibration comes along.

    Raises UsageError when nobody knows template and taxonomy, ModelError when adapter and base do not fit, or when the
    result is no guard.
    """
    adapter = checkpoint if (checkpoint / _CONFIG).is_file() else None
    if adapter is None and base is not None:
        raise UsageError(f"--base: {checkpoint} is no adapter: there is no {_CONFIG}", hint="leave it out")
    source = str(checkpoint) if adapter is None else _base(adapter, base)
    facts = _facts(checkpoint, source, template, taxonomy, id)
    loaded = load_checkpoint(source, device="cpu", dtype=_dtype(source) if adapter is None else "bfloat16")
    whole = loaded.model if adapter is None else _added(loaded.model, adapter).merge_and_unload()
    whole.config.use_cache = True
    write_folder(whole, loaded.tokenizer, facts, output, adapter=adapter)
    with load(output) as guard:
        name = guard.backend.name
    _take_calibration(checkpoint, output, name)
    return name


def _take_calibration(checkpoint: Path, output: Path, name: str) -> None:
    """The calibration of the model that a run made of the same adapter: these are the same weights."""
    for file in (checkpoint / _CALIBRATION, checkpoint.parent / _CALIBRATION):
        if file.is_file() and Calibration.read(file).model == name:
            shutil.copyfile(file, output / _CALIBRATION)
            return


def _dtype(source: str) -> str:
    """The number format that a checkpoint is kept in."""
    return str(AutoConfig.from_pretrained(source).dtype or "float32").removeprefix("torch.")


def apply_adapter(adapter: Path, base: str | None = None) -> Any:
    """The base in bfloat16 with the adapter beside its weights; `base` takes the place of the one that it names."""
    return _added(load_checkpoint(_base(adapter, base), device="cpu", dtype="bfloat16").model, adapter)


def _added(model: Any, adapter: Path) -> Any:
    try:
        from peft import PeftModel
    except ModuleNotFoundError:
        raise MissingExtraError("peft", "train") from None
    try:
        return PeftModel.from_pretrained(model, str(adapter))
    except Exception as error:  # the library's errors for weights that do not fit are of many kinds
        raise ModelError(
            f"{adapter}: the adapter does not fit its base: {' '.join(str(error).split())[:300]}",
            hint="was it trained on another base? name that one with --base",
        ) from None


def _base(adapter: Path, base: str | None) -> str:
    if base is not None:
        return base
    try:
        named = json.loads((adapter / _CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{adapter / _CONFIG}: cannot be read: {error!r}") from None
    if not isinstance(named, str) or not named:
        raise UsageError(f"{adapter}: the adapter names no base", hint="name it with --base")
    return named


def _facts(checkpoint: Path, source: str, template: str | None, taxonomy: str | None, id: str | None) -> Facts:
    """What goes with the result: what is given, what the checkpoint's folder says, what its base says."""
    own = read_facts(checkpoint)
    folder = Path(source).expanduser()
    start = own or (read_facts(folder) if folder.is_dir() else None)
    if start is None and (template is None or taxonomy is None):
        raise UsageError(
            f"{checkpoint}: nothing says with which template and taxonomy it was trained",
            hint="give --template and --taxonomy",
        )
    return Facts(
        id or (own.id if own else checkpoint.resolve().name),
        Template.load(template or start.template),  # type: ignore[union-attr]  # one of the two is there
        Taxonomy.load(taxonomy or start.taxonomy),  # type: ignore[union-attr]
        start.explanation if start else "none",
    )
