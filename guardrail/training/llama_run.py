"""Trains a causal language model: from `kind: llama` in a configuration to a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from guardrail.backends.llama_folder import Facts
from guardrail.errors import UsageError
from guardrail.tokens import TextTokenizer
from guardrail.training import processes
from guardrail.training.config import TrainingConfig
from guardrail.training.data import Training
from guardrail.training.llama_average import FILE as AVERAGE
from guardrail.training.llama_average import set_weights
from guardrail.training.llama_history import write_history
from guardrail.training.llama_hyper import LlamaHyper
from guardrail.training.llama_start import Start, open_start
from guardrail.training.llama_trainer import Result, fine_tune
from guardrail.training.merge import apply_adapter
from guardrail.training.model_folder import write_folder
from guardrail.training.outcome import Say, Trained

__all__ = ["train_llama"]

_CHECKPOINTS = "checkpoints"
_METRICS = "metrics.jsonl"


def train_llama(config: TrainingConfig, data: Training, output: Path, *, resume: bool, say: Say) -> Trained:
    """Write `output/model` without calibration and card, and metrics.jsonl.

    Raises UsageError for options that do not go together here, ModelError for a base that cannot be loaded.
    """
    hyper = config.train
    if not isinstance(hyper, LlamaHyper):
        raise UsageError(f"the configuration {config.id!r} is not one of a causal language model")
    # The checkpoints name each other by their paths, also when a run is resumed from another folder.
    output = output.resolve()
    start = open_start(config, data, output, say)
    result = fine_tune(
        start.model,
        TextTokenizer.from_transformers(start.tokenizer),
        start.template,
        lambda number: data.sample(number, hyper.seed),
        data.validation,
        data.sampler,
        config.result,
        hyper,
        output / _CHECKPOINTS,
        resume=resume,
        explanation=config.explanation,
        teacher=start.teacher if hyper.vector_weight or hyper.teacher_share else None,
        metrics=output / _METRICS,
    )
    if processes.is_main():
        # A run that was killed after its last step is only read: it may have been killed at this file.
        write_history(result.history, output / _METRICS)
        _write_model(config, start, result, output)
    metrics = {name.removeprefix("eval_"): value for name, value in result.metrics.items() if name != "step"}
    return Trained(result.step, result.steps, metrics, result.counts)


def _write_model(config: TrainingConfig, start: Start, result: Result, output: Path) -> None:
    facts = Facts(config.id, start.template, config.result.taxonomy, config.explanation)
    model, adapter = start.model, None
    if processes.count() > 1:
        # The weights may be in shards; the checkpoint has all of them.
        model = _of_checkpoint(config, output / _CHECKPOINTS / f"checkpoint-{result.step}")
    if hasattr(model, "merge_and_unload"):
        # Added to the base as it is on the disk, as `guardrail export` does it: 4 bits cannot take an adapter up.
        adapter = output / _CHECKPOINTS / "adapter"
        model.save_pretrained(adapter)
        whole = apply_adapter(adapter, config.base).merge_and_unload()
    else:
        whole = model.to(_dtype(config))
    # Training turns it off; whoever opens the folder wants it.
    whole.config.use_cache = True
    write_folder(whole, start.tokenizer, facts, output / "model", adapter=adapter)


def _of_checkpoint(config: TrainingConfig, folder: Path) -> Any:
    """The model of a checkpoint, with the averaged weights where there are any: those were evaluated."""
    if (folder / "adapter_config.json").is_file():
        model = apply_adapter(folder, config.base)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    if (folder / AVERAGE).is_file():
        set_weights(model, load_file(folder / AVERAGE))
    return model


def _dtype(config: TrainingConfig) -> torch.dtype:
    """The number format that the base is kept in; training may have computed in a wider one."""
    if config.base is None:
        return torch.float32
    return AutoConfig.from_pretrained(Path(config.base).expanduser()).dtype or torch.float32
