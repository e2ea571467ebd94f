"""`guardrail export --onnx`: the best weights of an encoder's run so far, as a folder that its backend opens."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from guardrail.backends.encoder import EncoderBackend
from guardrail.errors import InputError, UsageError
from guardrail.training.config import read_config
from guardrail.training.encoder_run import export_trained, open_start
from guardrail.training.model_folder import replaced

__all__ = ["export_encoder"]

_CHECKPOINT: Final = Path("checkpoints") / "encoder.pt"


def export_encoder(run: Path, output: Path) -> str:
    """Write the folder from a run of `guardrail train`, finished or not; returns the model's `id@digest`.

    Raises UsageError for a folder of no such run, InputError for a checkpoint that cannot be read.
    """
    config_file, checkpoint = run / "config.yaml", run / _CHECKPOINT
    if not config_file.is_file() or not checkpoint.is_file():
        raise UsageError(f"{run}: is no run of an encoder", hint="name the folder that 'guardrail train -o' wrote")
    config = read_config(config_file)
    if config.base is None or config.kind != "encoder":
        raise UsageError(f"{run}: --onnx is for encoders, this is a {config.kind}", hint="leave --onnx out")
    start = open_start(config.base)
    try:
        best = torch.load(checkpoint, weights_only=True)["best"]
        start.model.load_state_dict(best["weights"], strict=False)
    except Exception as error:  # torch raises errors of many kinds for a file that is not its own
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot be read: {reason}", file=str(checkpoint)) from None
    replaced(output, lambda new: export_trained(start, start.model.eval(), config, new))
    return EncoderBackend(output).name
