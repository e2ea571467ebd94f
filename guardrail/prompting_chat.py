"""A checkpoint's own chat template: rendered as transformers renders it, and read for the policy inside.

The environment is that of transformers (`render_jinja_template`): sandboxed, block trimming, undefined names empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from guardrail.errors import TemplateError
from guardrail.prompting_header import Header
from guardrail.taxonomy import Category, Taxonomy
from guardrail.types import Role

__all__ = ["ChatTemplate", "read_taxonomy"]

# One published template has the markers without the second space.
_BLOCK = re.compile(r"(<BEGIN UNSAFE ?CONTENT CATEGORIES>\n)(.*?)(\n<END UNSAFE ?CONTENT CATEGORIES>)", re.DOTALL)
_CATEGORY = re.compile(r"([A-Z]{1,3}[0-9]{1,3}): *(.*)")
_FILE = "chat template"
_PROBE = "guardrail-probe"


class ChatTemplate:
    """Renders turns with a chat template and tells what its category block says."""

    def __init__(self, source: str, header: Header) -> None:
        self._template = _compiled(source)
        self._tokens = {"bos_token": header.control[0] if header.control else "", "eos_token": (*header.stop, "")[0]}
        # Templates of models that also read images want a list of parts and show nothing of a plain string.
        self._parts = _PROBE not in self._show([Role.USER], [_PROBE], parts=False)
        rendered = self._show([Role.USER], [_PROBE], self._parts)
        if _PROBE not in rendered:
            raise TemplateError("the chat template does not show the user's message", file=_FILE)
        self.wording: Mapping[str, str] = _wording(rendered)

    def taxonomy(self, id: str) -> Taxonomy:
        """The taxonomy in the category block."""
        categories = tuple(_category(code, text) for code, text in self.wording.items())
        return Taxonomy(id, id, categories, source="read from the checkpoint's chat template")

    def render(self, roles: Sequence[Role], texts: Sequence[str], categories: Sequence[str]) -> str:
        """The rendered template with the lines between the block's markers replaced."""
        rendered = self._show(roles, texts, self._parts)
        return _BLOCK.sub(lambda match: match[1] + "\n".join(categories) + match[3], rendered, count=1)

    def _show(self, roles: Sequence[Role], texts: Sequence[str], parts: bool) -> str:
        messages = [
            {"role": role.value, "content": [{"type": "text", "text": text}] if parts else text}
            for role, text in zip(roles, texts, strict=True)
        ]
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._tokens)
        except Exception as error:
            raise TemplateError(
                f"the chat template cannot be rendered: {type(error).__name__}: {error}", file=_FILE
            ) from None


def read_taxonomy(source: str, id: str) -> Taxonomy:
    """The taxonomy in a chat template's category block."""
    no_tokens = Header("", (), {Role.USER: "User", Role.ASSISTANT: "Agent"}, "block")
    return ChatTemplate(source, no_tokens).taxonomy(id)


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = json.dumps
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"not a Jinja template: {error.message}", file=_FILE, line=error.lineno) from None


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _wording(rendered: str) -> dict[str, str]:
    """Code → the category's lines, word for word; joined with newlines they are the block."""
    block = _BLOCK.search(rendered)
    if block is None:
        raise TemplateError("the chat template has no block of categories", file=_FILE, hint="is it a guard's?")
    texts: dict[str, str] = {}
    code = ""
    for line in block[2].split("\n"):
        if match := _CATEGORY.fullmatch(line):
            code = match[1]
            if code in texts:
                raise TemplateError(f"the category block has the code {code} twice", file=_FILE)
            texts[code] = line
        elif not code:
            raise TemplateError(f"the category block starts with {line!r} instead of a code and a name", file=_FILE)
        else:
            texts[code] += f"\n{line}"
    return texts


def _category(code: str, text: str) -> Category:
    """A category from its lines: a name, sentences, and lists headed `Should not`, `Can` and `Should`."""
    head, *lines = text.split("\n")
    match = _CATEGORY.fullmatch(head)
    assert match is not None
    lists: dict[str, list[str]] = {"Should not": [], "Can": [], "Should": []}
    definition: list[str] = []
    heading = ""
    for line in (raw.strip() for raw in lines):
        if line.rstrip(":") in lists:
            heading = line.rstrip(":")
        elif heading and line.startswith("- "):
            lists[heading].append(line[2:].strip())
        elif line:
            definition.append(line)
    return Category(
        code,
        match[2].strip().rstrip(".").strip() or code,
        definition=" ".join(definition),
        include=tuple(lists["Should not"]),
        exclude=(*lists["Can"], *lists["Should"]),
    )
