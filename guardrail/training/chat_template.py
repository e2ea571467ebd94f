"""The chat template of a trained checkpoint: for programs that know transformers and not this package."""

from __future__ import annotations

import json

from guardrail.errors import UsageError
from guardrail.prompting import PromptBuilder, Template
from guardrail.prompting_header import split_header
from guardrail.taxonomy import Taxonomy
from guardrail.types import Role

__all__ = ["chat_template"]

# A template's body reads `categories`, `messages`, `role`, `judged` and `context`: they are made of what
# transformers gives, and the body follows as it is.
_HEAD = """\
{{%- set categories = {categories} -%}}
{{%- set names = {names} -%}}
{{%- set turns = namespace(all=[]) -%}}
{{%- for message in messages -%}}
{{%- if message['role'] not in names -%}}{{{{- raise_exception('the roles are user and assistant') -}}}}{{%- endif -%}}
{{%- set said = namespace(text=message['content']) -%}}
{{%- if message['content'] is not string -%}}
{{%- set said.text = '' -%}}
{{%- for part in message['content'] -%}}{{%- set said.text = said.text ~ part['text'] -%}}{{%- endfor -%}}
{{%- endif -%}}
{{%- set turns.all = turns.all + [{{'role': names[message['role']], 'text': said.text}}] -%}}
{{%- endfor -%}}
{{%- set messages = turns.all -%}}
{{%- set judged = messages[-1] -%}}
{{%- set role = judged.role -%}}
{{%- set context = messages[:-1] | reverse | list %}}
"""


def chat_template(template: Template, taxonomy: Taxonomy) -> str:
    """A Jinja chat template that gives the prompts of `PromptBuilder(template, taxonomy)`.

    It holds the taxonomy as text. Unlike the builder it cannot tell control tokens in a message from its own ones.
    Raises UsageError for a template that was read from a checkpoint's chat template: that one is there already.
    """
    if template.alternating:
        raise UsageError(f"the template {template.id!r} is a chat template itself", hint="use a shipped template")
    _, body = split_header(template.source, template.id)
    texts = PromptBuilder(template, taxonomy).policy_texts
    names = {role.value: template.roles[role] for role in Role}
    head = _HEAD.format(categories=_literal(list(texts)), names=_literal(names))
    # Of the newlines at the very end transformers drops one.
    return head + body + ("\n" if body.endswith("\n") else "")


def _literal(value: object) -> str:
    """The value in Jinja's notation, which for texts, lists and mappings is that of JSON."""
    return json.dumps(value, ensure_ascii=False)
