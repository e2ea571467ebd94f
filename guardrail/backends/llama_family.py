"""Which family of guard models a checkpoint belongs to: the format that it was trained on."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from guardrail.errors import ModelError
from guardrail.prompting import Template
from guardrail.taxonomy import Taxonomy

__all__ = ["FAMILIES", "default_taxonomy", "detect_family", "template_for"]

FAMILIES: Final = ("llama-guard-1", "llama-guard-2", "llama-guard-3", "llama-guard-3-1b", "llama-guard-4")
"""Ids of the shipped templates for causal language models."""

_HINT = f"name the format it was trained on with template=… or --template: one of {', '.join(FAMILIES)}"


def detect_family(control_tokens: Container[str], chat_template: str | None) -> str:
    """The family, from the tokenizer's control tokens and the chat template.

    `ModelError` when the chat template is not a guard's, or when there is none and the tokenizer alone leaves the
    choice open.
    """
    llama3, llama4 = "<|start_header_id|>" in control_tokens, "<|header_start|>" in control_tokens
    if chat_template is None:
        if llama3:
            raise ModelError("the checkpoint has no chat template, and several families use its tokenizer", hint=_HINT)
        return "llama-guard-4" if llama4 else "llama-guard-1"
    if "unsafe content" not in chat_template:
        raise ModelError("the checkpoint's chat template does not ask for a safety assessment", hint=_HINT)
    if llama4:
        return "llama-guard-4"
    if "[INST]" in chat_template:
        return "llama-guard-2" if llama3 else "llama-guard-1"
    if not llama3:
        raise ModelError("the checkpoint's chat template is of no known family", hint=_HINT)
    return "llama-guard-3-1b" if "excluded_category_keys" in chat_template else "llama-guard-3"


def template_for(name: str | None, control_tokens: Container[str], chat_template: str | None) -> Template:
    """The prompt template to use: the one named, else the checkpoint's own, else its family's shipped one."""
    if name is not None:
        return Template.load(name)
    family = detect_family(control_tokens, chat_template)
    return Template.load(family) if chat_template is None else Template.from_chat_template(chat_template, family)


def default_taxonomy(template: Template) -> Taxonomy:
    """The taxonomy in the checkpoint's own chat template, else the one that its family was trained on."""
    return template.taxonomy or Taxonomy.load(template.header.taxonomy or "default")
