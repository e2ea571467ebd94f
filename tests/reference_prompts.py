"""The published prompt formats, written out once more by hand: what the shipped templates are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from guardrail.types import Conversation, Role

__all__ = ["REFERENCES"]

Categories = Sequence[str]


def _guard(conversation: Conversation, block: Categories, before: str, assess: str, bullet: str, after: str) -> str:
    name = {Role.USER: "User", Role.ASSISTANT: "Agent"}
    role = name[conversation.role]
    result = before
    result += "Task: Check if there is unsafe content in '" + role + "' messages in conversations according our safety "
    result += "policy with the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n"
    for text in block:
        result += text + "\n"
    result += "<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n"
    for message in conversation.messages:
        result += name[message.role] + ": " + message.text.strip() + "\n\n"
    result += "<END CONVERSATION>\n\nProvide your safety assessment for " + assess.replace("ROLE", role)
    result += " in the above conversation:\n"
    result += bullet + "First line must read 'safe' or 'unsafe'.\n"
    result += bullet + "If unsafe, a second line must include a comma-separated list of violated categories." + after
    return result


def _llama_guard_1(conversation: Conversation, block: Categories) -> str:
    return _guard(conversation, block, "<s>[INST] ", "ROLE", "- ", " [/INST]")


def _llama_guard_2(conversation: Conversation, block: Categories) -> str:
    return _guard(conversation, block, "<|begin_of_text|>[INST] ", "ONLY THE LAST ROLE message", " - ", " [/INST]")


def _llama_guard_3(conversation: Conversation, block: Categories) -> str:
    before = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    after = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    return _guard(conversation, block, before, "ONLY THE LAST ROLE message", " - ", after)


def _llama_guard_3_1b(conversation: Conversation, block: Categories) -> str:
    before = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    after = " <|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    return _guard(conversation, block, before, "ONLY THE LAST ROLE message", " - ", after)


def _llama_guard_4(conversation: Conversation, block: Categories) -> str:
    before = "<|begin_of_text|><|header_start|>user<|header_end|>\n\n"
    after = "<|eot|><|header_start|>assistant<|header_end|>"
    return _guard(conversation, block, before, "ONLY THE LAST ROLE message", " - ", after)


def _encoder(conversation: Conversation, block: Categories) -> str:
    *earlier, judged = conversation.messages
    result = "[CLS]" + judged.role.value + ": " + judged.text.strip() + "[SEP]"
    if earlier:
        result += "\n".join(message.role.value + ": " + message.text.strip() for message in reversed(earlier))
        result += "[SEP]"
    return result


REFERENCES: Mapping[str, Callable[[Conversation, Categories], str]] = {
    "llama-guard-1": _llama_guard_1,
    "llama-guard-2": _llama_guard_2,
    "llama-guard-3": _llama_guard_3,
    "llama-guard-3-1b": _llama_guard_3_1b,
    "llama-guard-4": _llama_guard_4,
    "encoder": _encoder,
}
"""Template id → (conversation, one text per category) → prompt, control tokens visible."""
