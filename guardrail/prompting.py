"""Conversation and taxonomy to prompt: text runs and control tokens that no text can break.

`Template` is a prompt format (`prompts/*.jinja`, or a checkpoint's own chat template), `PromptBuilder` a template with
a taxonomy, and `Prompt` what the builder makes of one conversation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from guardrail.errors import TemplateError
from guardrail.prompting_markers import find_markers
from guardrail.prompting_skeleton import Segment, Skeleton
from guardrail.prompting_template import Template
from guardrail.taxonomy import Taxonomy
from guardrail.types import Conversation, Message, Role

__all__ = ["Prompt", "PromptBuilder", "Segment", "Template", "compare", "taxonomy_from_chat_template"]

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# Skeletons of conversations up to this many turns are kept, up to this many of them.
_KEPT_TURNS = 32
_KEPT_SKELETONS = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a classifier is shown."""

    segments: tuple[Segment, ...]
    taxonomy: Taxonomy
    codes: tuple[str, ...]
    """The codes as shown in this prompt, in taxonomy order; the taxonomy's own wherever the format can express them."""
    role: Role
    """Whose message is judged."""
    template: str
    """The format, as `id@digest`."""
    markers: tuple[str, ...] = ()
    """Prompt markers, control tokens and forged verdicts that the messages themselves contain."""

    @property
    def text(self) -> str:
        """The prompt as one string, control tokens visible."""
        return "".join([segment.text for segment in self.segments])


class PromptBuilder:
    """Renders conversations under one taxonomy. Thread-safe; after the first conversation of a shape, no template runs.

    `policy` shows definitions and Should-not/Can lines besides the names. None decides as the family was trained:
    with the taxonomy that it was trained on, what it saw then; with any other, the text. `examples` adds the
    categories' few-shot examples. Without a taxonomy, the one in a checkpoint's own chat template is used.
    """

    def __init__(
        self,
        template: Template,
        taxonomy: Taxonomy | None = None,
        *,
        policy: bool | None = None,
        examples: bool = True,
    ) -> None:
        taxonomy = taxonomy or template.taxonomy
        if taxonomy is None:
            raise TemplateError("the template has no taxonomy of its own", field=template.id, hint="name a taxonomy")
        self.template = template
        self.taxonomy = taxonomy
        self.policy = _policy(template, taxonomy) if policy is None else policy
        self.examples = examples
        self.codes = template.codes(taxonomy)
        self._skeletons: dict[tuple[Role, ...], Skeleton] = {}

    @cached_property
    def policy_texts(self) -> tuple[str, ...]:
        """One text per category, in taxonomy order, as this format words it."""
        return tuple(
            _clean(self.template.category_text(category, code, policy=self.policy, examples=self.examples))
            for category, code in zip(self.taxonomy, self.codes, strict=True)
        )

    def build(self, conversation: Conversation) -> Prompt:
        """The prompt that judges the conversation's last message."""
        messages = conversation.messages
        roles = tuple([message.role for message in messages])
        skeleton = self._skeletons.get(roles)
        if skeleton is None:
            skeleton = self._skeleton(roles)
        texts = [_clean(message.text) for message in messages]
        return Prompt(
            skeleton.fill(texts),
            self.taxonomy,
            self.codes,
            roles[-1],
            self.template.ref,
            self.markers(conversation),
        )

    def markers(self, conversation: Conversation) -> tuple[str, ...]:
        """The prompt markers that a conversation's texts contain, also where it is too long for one prompt."""
        return find_markers((message.text for message in conversation.messages), self.template.control)

    def _skeleton(self, roles: tuple[Role, ...]) -> Skeleton:
        skeleton = self.template.skeleton(roles, self.policy_texts)
        if len(roles) <= _KEPT_TURNS:
            if len(self._skeletons) >= _KEPT_SKELETONS:
                self._skeletons.clear()
            self._skeletons[roles] = skeleton
        return skeleton


def compare(one: Template, other: Template, taxonomy: Taxonomy | None = None) -> tuple[str, ...]:
    """The lines in which two formats differ, as `- line of one` and `+ line of other`; empty when they agree.

    Both show the same taxonomy (by default each its own, with the policy text that it has) and the same two
    conversations: a user message, and a user message with an answer.
    """
    from difflib import ndiff

    turns = (Message(Role.USER, "the first message"), Message(Role.ASSISTANT, "the second message"))
    differences: dict[str, None] = {}
    for count in (1, 2):
        conversation = Conversation(turns[:count])
        left, right = (PromptBuilder(t, taxonomy).build(conversation).text.split("\n") for t in (one, other))
        lines = ndiff(left, right)
        differences.update(dict.fromkeys(line for line in lines if line[0] in "-+"))
    return tuple(differences)


def taxonomy_from_chat_template(source: str, id: str) -> Taxonomy:
    """The taxonomy in a checkpoint's chat template: codes, names and, where it has one, policy text."""
    from guardrail.prompting_chat import read_taxonomy

    return read_taxonomy(source, id)


def _policy(template: Template, taxonomy: Taxonomy) -> bool:
    """Whether to show policy text when the caller leaves it open."""
    if template.taxonomy is not None and all(category in template.taxonomy.categories for category in taxonomy):
        return True
    if not template.header.taxonomy:
        return True
    trained = Taxonomy.load(template.header.taxonomy).categories
    return template.header.policy or not all(category in trained for category in taxonomy)


def _clean(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which no encoding can express."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)
