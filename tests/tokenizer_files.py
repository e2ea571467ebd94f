"""The real tokenizers of the Llama families, built by transformers from the published model files."""

from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["llama2", "llama3", "llama4", "saved"]

_LLAMA3 = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
]
# In the order of their ids, from the first id behind the ranks.
_LLAMA4 = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eom|>",
    "<|eot|>",
    "<|step|>",
]
_SPECIAL_TOKENS = 256


@lru_cache(maxsize=1)
def llama2(folder: Path) -> Any:
    """The tokenizer of Llama Guard 1; `folder` holds llama2/tokenizer.model."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        (path / "tokenizer.model").write_bytes((folder / "llama2" / "tokenizer.model").read_bytes())
        settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
        return AutoTokenizer.from_pretrained(path)


@lru_cache(maxsize=1)
def llama3(folder: Path) -> Any:
    """The tokenizer of Llama Guard 2 and 3."""
    reserved = [f"<|reserved_special_token_{n}|>" for n in range(2, 2 + _SPECIAL_TOKENS - len(_LLAMA3))]
    return _tiktoken(folder / "llama3" / "tokenizer.model", [*_LLAMA3, *reserved], _LLAMA3_PATTERN)


@lru_cache(maxsize=1)
def llama4(folder: Path) -> Any:
    """The tokenizer of Llama Guard 4."""
    return _tiktoken(folder / "llama4" / "tokenizer.model", _LLAMA4, _LLAMA4_PATTERN)


def saved(tokenizer: Any, folder: Path) -> Path:
    """Write the tokenizer as a checkpoint has it; returns the folder."""
    tokenizer.save_pretrained(folder)
    return folder


_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA4_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _tiktoken(file: Path, special: list[str], pattern: str) -> Any:
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    converter = TikTokenConverter(vocab_file=str(file), pattern=pattern, extra_special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=converter.converted(), bos_token=special[0], eos_token=special[1])
