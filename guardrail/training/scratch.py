"""The first weights of a small Llama that is made from nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from guardrail.errors import ModelError
from guardrail.training.scratch_spec import ScratchSpec

__all__ = ["new_model"]

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
