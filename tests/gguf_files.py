"""GGUF files with the weights and the vocabulary of a small Llama that transformers runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

__all__ = ["write_gguf"]

_TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    model: Any,
    tokenizer: Any,
    path: Path,
    dtype: Literal["f32", "f16"] = "f32",
    *,
    chat: str | None = None,
    space: bool = True,
) -> Path:
    """Write a Llama as a GGUF file; returns the path.

    `model` is a LlamaForCausalLM or the folder of one, `tokenizer` its fast transformers tokenizer: byte-level as
    Llama 3's and 4's, or with byte fallback as Llama 2's. `chat` is the chat template to write along. Without `space`
    llama.cpp puts no space before a text of a SentencePiece vocabulary, as transformers puts none behind `<s>`.
    """
    if isinstance(model, str | Path):
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM.from_pretrained(model)
    writer = gguf.GGUFWriter(path, "llama")
    try:
        _write_shape(writer, model.config, dtype)
        _write_vocabulary(writer, tokenizer, model.config.vocab_size)
        if not space:
            writer.add_add_space_prefix(False)
        if chat is not None:
            writer.add_chat_template(chat)
        _write_weights(writer, model, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return path


def _write_shape(writer: gguf.GGUFWriter, config: Any, dtype: str) -> None:
    if config.rope_parameters["rope_type"] != "default":
        raise ValueError("only plain rotary positions are written")
    writer.add_name("test")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if dtype == "f32" else gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _write_vocabulary(writer: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    config = json.loads(tokenizer.backend_tokenizer.to_str())
    model = config["model"]
    added = {token["id"]: token for token in config["added_tokens"]}
    names = {number: token for token, number in model["vocab"].items()}
    names.update({number: token["content"] for number, token in added.items()})
    ids = range(size)
    tokens = [names.get(number, f"[PAD{number}]") for number in ids]
    writer.add_token_list(tokens)
    kinds = [
        _kind(number, name, names, added, tokenizer.unk_token_id) for number, name in zip(ids, tokens, strict=True)
    ]
    writer.add_token_types(kinds)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if model["byte_fallback"]:
        # The vocabulary of a SentencePiece model; pieces are joined by score, which falls with the merge's rank.
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(merges):
            ranks.setdefault(merge.replace(" ", ""), rank)
        writer.add_token_scores([-float(ranks.get(name, len(merges))) for name in tokens])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama4" if "<|header_start|>" in tokens else "llama-bpe")
        writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def _kind(number: int, name: str, names: dict[int, str], added: dict[int, Any], unknown: int | None) -> gguf.TokenType:
    if number not in names:
        return gguf.TokenType.UNUSED
    if number == unknown:
        return gguf.TokenType.UNKNOWN
    if number in added:
        return gguf.TokenType.CONTROL if added[number]["special"] else gguf.TokenType.USER_DEFINED
    if len(name) == len("<0x00>") and name.startswith("<0x") and name.endswith(">"):
        return gguf.TokenType.BYTE
    return gguf.TokenType.NORMAL


def _write_weights(writer: gguf.GGUFWriter, model: Any, dtype: str) -> None:
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for key, value in model.state_dict().items():
        module, _, kind = key.rpartition(".")
        if module == "lm_head" and config.tie_word_embeddings:
            continue
        layer, block = "", module
        if module.startswith("model.layers."):
            number, block = module.removeprefix("model.layers.").split(".", 1)
            layer = f"blk.{number}."
        name = _TENSORS[block]
        weights = value.detach().float().numpy()
        if name in heads:
            weights = _interleaved(weights, heads[name])
        narrow = dtype == "f16" and weights.ndim > 1
        writer.add_tensor(f"{layer}{name}.{kind}", np.ascontiguousarray(weights, np.float16 if narrow else np.float32))


def _interleaved(weights: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """The rows of each head in the order of the original Llama: pairs that rotate together side by side."""
    rows = weights.shape[0]
    halves = weights.reshape(heads, 2, rows // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)
