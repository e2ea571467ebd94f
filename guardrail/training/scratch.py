"""A small Llama from nothing: its tokenizer, its weights, and a language-model phase on the training texts."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from guardrail.errors import ModelError
from guardrail.training import processes
from guardrail.training.scratch_spec import ScratchSpec

__all__ = ["Blocks", "language_phase", "new_model"]

# The size of a mark's vector beside a word's.
_MARK = 0.1


def new_model(spec: ScratchSpec, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights; with `words_from`, its word vectors start from those of a BERT checkpoint."""
    set_seed(spec.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden,
        intermediate_size=spec.inner,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        max_position_embeddings=spec.positions,
        # One matrix for both would have to be small for the logits and large beside what the layers add to a word.
        tie_word_embeddings=False,
        # The usual 0.02 is made for wider models: here it leaves attention flat for hundreds of steps.
        initializer_range=spec.hidden**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    if spec.words_from is not None:
        _start_from_words(model, tokenizer, Path(spec.words_from))
    _balance(model, tokenizer, spec)
    return model


def _balance(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, spec: ScratchSpec) -> None:
    """Words as large as what all layers together add to them, so that they are still told apart behind those.

    Control tokens and marks are small: the verdict is read at one of them, where what was said before has to show.
    """
    with torch.no_grad():
        vectors = model.get_input_embeddings().weight
        vectors.div_(vectors.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6))
        special = set(tokenizer.all_special_ids)
        for token in range(len(tokenizer)):
            if token in special or not any(char.isalnum() for char in tokenizer.decode([token])):
                vectors[token] *= _MARK
        for layer in model.model.layers:
            for branch in (layer.self_attn.o_proj, layer.mlp.down_proj):
                branch.weight.mul_((2 * spec.layers) ** -0.5)


def _start_from_words(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Each token's vector: the mean of the word vectors that the checkpoint has for its text, at one common spread."""
    try:
        words = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vectors = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(
            f"{folder}: holds no word vectors: {error}", hint="words_from names the folder of a BERT checkpoint"
        ) from None
    target = model.get_input_embeddings().weight
    if vectors.shape[1] != target.shape[1]:
        raise ModelError(
            f"{folder}: its word vectors have {vectors.shape[1]} numbers, the model's {target.shape[1]}",
            hint=f"set hidden: {vectors.shape[1]}",
        )
    words.no_truncation()
    words.no_padding()
    # What all words have in common tells none of them apart.
    vectors = vectors - vectors.mean(dim=0)
    with torch.no_grad():
        for token in range(len(tokenizer)):
            text = tokenizer.decode([token]).strip()
            if text and token not in tokenizer.all_special_ids:
                found = words.encode(text, add_special_tokens=False).ids
                if found:
                    target[token] = vectors[found].mean(dim=0)


class _Progress(TrainerCallback):  # type: ignore[misc]
    """The loss now and then, for people."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            print(f"language step {state.global_step}/{state.max_steps} loss {logs['loss']:.3f}", file=sys.stderr)


class Blocks(Dataset[dict[str, Any]]):
    """Texts one after the other, each behind the first token of a sequence, cut into blocks of equal length."""

    def __init__(self, texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, length: int, seed: int) -> None:
        shuffled = sorted(set(texts))
        random.Random(seed).shuffle(shuffled)
        ids: list[int] = []
        for start in range(0, len(shuffled), 1000):
            for row in tokenizer(shuffled[start : start + 1000], add_special_tokens=False)["input_ids"]:
                ids += [tokenizer.bos_token_id, *row]
        self.tokens = len(ids)
        self._blocks = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self._blocks[index], "labels": self._blocks[index]}


def language_phase(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], spec: ScratchSpec, folder: Path
) -> dict[str, float]:
    """Next-token training on the texts for `language_steps`; returns the number of tokens and the last mean loss."""
    length = min(spec.positions, 512)
    blocks = Blocks(texts, tokenizer, length, spec.seed)
    if not len(blocks):
        raise ModelError(
            f"the training texts have {blocks.tokens} tokens, fewer than one block of {length}",
            hint="give more texts, or set language_steps: 0",
        )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=spec.language_steps,
        per_device_train_batch_size=max(1, spec.language_tokens // length // processes.count()),
        learning_rate=spec.language_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, spec.language_steps // 20),
        weight_decay=0.1,
        optim="adamw_torch_fused",
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_steps=20,
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        seed=spec.seed,
        remove_unused_columns=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=blocks)
    trainer.remove_callback(PrinterCallback)  # it writes to standard output
    trainer.add_callback(_Progress())
    result = trainer.train()
    return {"tokens": float(blocks.tokens), "steps": float(spec.language_steps), "loss": result.training_loss}
