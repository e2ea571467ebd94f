"""Safety moderation in the style of Llama Guard.

    import guardrail

    guard = guardrail.load()
    decision = guard.check("How do I kill a Python process?")
    decision.flagged, decision.score

Names are imported on first use, so `import guardrail` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "BackendError": "errors",
    "Cascade": "cascade",
    "Category": "taxonomy",
    "CategoryScore": "types",
    "Conversation": "types",
    "ConversationError": "errors",
    "Decision": "types",
    "Example": "taxonomy",
    "Guard": "guard",
    "GuardrailError": "errors",
    "InputError": "errors",
    "Message": "types",
    "MissingExtraError": "errors",
    "ModelError": "errors",
    "Policy": "policy",
    "PromptBuilder": "prompting",
    "Role": "types",
    "Taxonomy": "taxonomy",
    "TaxonomyError": "errors",
    "Template": "prompting",
    "Thresholds": "policy",
    "UsageError": "errors",
    "Verdict": "types",
    "load": "loading",
}

__all__ = [
    "BackendError",
    "Cascade",
    "Category",
    "CategoryScore",
    "Conversation",
    "ConversationError",
    "Decision",
    "Example",
    "Guard",
    "GuardrailError",
    "InputError",
    "Message",
    "MissingExtraError",
    "ModelError",
    "Policy",
    "PromptBuilder",
    "Role",
    "Taxonomy",
    "TaxonomyError",
    "Template",
    "Thresholds",
    "UsageError",
    "Verdict",
    "load",
]

if TYPE_CHECKING:
    from guardrail.cascade import Cascade
    from guardrail.errors import (
        BackendError,
        ConversationError,
        GuardrailError,
        InputError,
        MissingExtraError,
        ModelError,
        TaxonomyError,
        UsageError,
    )
    from guardrail.guard import Guard
    from guardrail.loading import load
    from guardrail.policy import Policy, Thresholds
    from guardrail.prompting import PromptBuilder, Template
    from guardrail.taxonomy import Category, Example, Taxonomy
    from guardrail.types import CategoryScore, Conversation, Decision, Message, Role, Verdict


def __getattr__(name: str) -> Any:
    try:
        module = import_module(f"guardrail.{_HOME[name]}")
    except KeyError:
        raise AttributeError(f"module 'guardrail' has no attribute {name!r}") from None
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
