"""The model that is trained: a checkpoint with all of its weights, with adapters, or with adapters in 4 bits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from guardrail.backends.llama_loading import DTYPES, load_checkpoint
from guardrail.errors import MissingExtraError, ModelError, UsageError
from guardrail.training.llama_hyper import LlamaHyper

__all__ = ["base_model", "merged", "prepared"]


def base_model(base: str, hyper: LlamaHyper) -> tuple[Any, Any]:
    """The model and the transformers tokenizer of a checkpoint, a folder or a hub id, ready to be trained.

    The model is on the CPU, from where the trainer moves it; in 4 bits it is on the GPU, where there is one. ModelError
    when it cannot be loaded, MissingExtraError for QLoRA without bitsandbytes.
    """
    if hyper.method == "qlora":
        return prepared(*_in_4_bits(base, hyper.dtype), hyper)
    dtype = hyper.weights or ("float32" if hyper.method == "full" else "bfloat16")
    checkpoint = load_checkpoint(base, device="cpu", dtype=dtype)
    return prepared(checkpoint.model, checkpoint.tokenizer, hyper)


def prepared(model: Any, tokenizer: Any, hyper: LlamaHyper) -> tuple[Any, Any]:
    """The model in training mode, with adapters and checkpointing as the hyper-parameters say, and its tokenizer."""
    if hyper.gradient_checkpointing:
        # Older versions of transformers have the second name only.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    model.config.use_cache = False
    if hyper.method != "full":
        model = _with_adapters(model, hyper)
    elif hyper.fixed_words:
        model.get_input_embeddings().requires_grad_(False)
    return model.train(), tokenizer


def merged(model: Any, base: str | None = None) -> Any:
    """The model with its adapters added into its weights, to be saved as an ordinary checkpoint.

    Weights in 4 bits cannot take them up without loss: `base` is then loaded anew, in bfloat16. A model without
    adapters is returned as it is.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    if not getattr(model, "is_loaded_in_4bit", False):
        return model.merge_and_unload()
    if base is None:
        raise UsageError("a base in 4 bits cannot take up its adapters", hint="name the base")
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    whole = load_checkpoint(base, device="cpu", dtype="bfloat16").model
    fresh: Any = PeftModel(whole, model.peft_config["default"])
    set_peft_model_state_dict(fresh, get_peft_model_state_dict(model))
    return fresh.merge_and_unload()


def _with_adapters(model: Any, hyper: LlamaHyper) -> Any:
    try:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    except ModuleNotFoundError:
        raise MissingExtraError("peft", "train") from None
    if hyper.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if hyper.gradient_checkpointing:
        model.enable_input_require_grads()
    lora = hyper.lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    # Adapters start from random numbers; the seed makes them the same in every process and on every start.
    torch.manual_seed(hyper.seed)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(f"lora.targets: {error}") from None


def _in_4_bits(base: str, compute: str) -> tuple[Any, Any]:
    try:
        import bitsandbytes  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtraError("bitsandbytes", "qlora") from None
    from transformers import AutoTokenizer

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[compute],
    )
    source = str(Path(base).expanduser()) if Path(base).expanduser().is_dir() else base
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            quantization_config=config,
            dtype=DTYPES["bfloat16"],
            device_map={"": int(os.environ.get("LOCAL_RANK", "0")) if torch.cuda.is_available() else "cpu"},
        )
        return model, AutoTokenizer.from_pretrained(source)
    except Exception as error:
        raise ModelError(f"cannot load {base!r}: {' '.join(str(error).split())[:300]}") from error
