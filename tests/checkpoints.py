"""Small random checkpoints with the real tokenizers, and chat templates in the shape that checkpoints carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import tokenizer_files

__all__ = ["FAMILIES", "TOKENIZERS", "chat_template", "random_model", "save_checkpoint", "tokenizer_of"]

TOKENIZERS = {
    "llama-guard-1": "llama2",
    "llama-guard-2": "llama3",
    "llama-guard-3": "llama3",
    "llama-guard-3-1b": "llama3",
    "llama-guard-4": "llama4",
}
FAMILIES = tuple(TOKENIZERS)

_TASK = (
    "Task: Check if there is unsafe content in '{{ role }}' messages in conversations according our safety policy "
    "with the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n"
)
_BODY = "<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n"
_TURNS = (
    "{% for message in messages %}{{ 'User' if message.role == 'user' else 'Agent' }}: {{ TEXT }}\n\n{% endfor %}"
    "<END CONVERSATION>\n\n"
)
_ASK = (
    "Provide your safety assessment for ONLY THE LAST {{ role }} message in the above conversation:\n"
    " - First line must read 'safe' or 'unsafe'.\n"
    " - If unsafe, a second line must include a comma-separated list of violated categories."
)
_ASK_FIRST = _ASK.replace("for ONLY THE LAST {{ role }} message in", "for {{ role }} in").replace("\n - ", "\n- ")
_ROLE = "{% set role = 'Agent' if messages | length % 2 == 0 else 'User' %}"
_WRAPPERS = {
    "llama-guard-1": ("{{ bos_token }}[INST] ", " [/INST]"),
    "llama-guard-2": ("{{ bos_token }}[INST] ", " [/INST]"),
    "llama-guard-3": (
        "{{ bos_token }}<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>",
    ),
    "llama-guard-3-1b": (
        "{{ bos_token }}<|start_header_id|>user<|end_header_id|>\n\n",
        " <|eot_id|><|start_header_id|>assistant<|end_header_id|>",
    ),
    "llama-guard-4": (
        "{{ bos_token }}<|header_start|>user<|header_end|>\n\n",
        "<|eot|><|header_start|>assistant<|header_end|>",
    ),
}


def chat_template(family: str, names: dict[str, str]) -> str:
    """A chat template of the family with these categories (code → name)."""
    before, after = _WRAPPERS[family]
    parts = family in {"llama-guard-3-1b", "llama-guard-4"}
    text = "message.content[0].text" if parts else "message.content"
    categories = "".join(f"{code}: {name}.\n" for code, name in names.items())
    if parts:
        listed = ", ".join(f"'{code}': '{name}.'" for code, name in names.items())
        categories = (
            "{% if categories is not defined %}{% set categories = {" + listed + "} %}{% endif %}"
            "{% if excluded_category_keys is not defined %}{% set excluded_category_keys = [] %}{% endif %}"
            "{% for key in categories if key not in excluded_category_keys %}"
            "{{ key }}: {{ categories[key] }}\n{% endfor %}"
        )
    ask = _ASK_FIRST if family == "llama-guard-1" else _ASK
    return _ROLE + before + _TASK + categories + _BODY + _TURNS.replace("TEXT", text) + ask + after


def tokenizer_of(family: str, tokenizers: Path) -> Any:
    """The real tokenizer of a family; `tokenizers` holds the published files."""
    return getattr(tokenizer_files, TOKENIZERS[family])(tokenizers)


def random_model(tokenizer: Any, *, seed: int = 0, **settings: Any) -> Any:
    """A small random Llama for a tokenizer; `settings` are added to its configuration.

    The weights are larger than usual initial ones, so that logits differ between tokens and positions.
    """
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config(len(tokenizer), **settings)).eval()


def save_checkpoint(folder: Path, tokenizer: Any, *, chat: str | None = None, **settings: Any) -> Path:
    """Write a random model and its tokenizer as a checkpoint has them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random_model(tokenizer, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if chat is not None:
        (folder / "chat_template.jinja").write_text(chat, encoding="utf-8")
    return folder


def llama_config(vocabulary: int, **settings: Any) -> Any:
    """The configuration of a two-layer Llama with grouped-query attention."""
    from transformers import LlamaConfig

    small = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
    }
    return LlamaConfig(**{**small, **settings})
