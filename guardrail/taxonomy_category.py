"""Categories and their few-shot examples: what they may hold, and how they are read from a file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from guardrail import resources, taxonomy_yaml
from guardrail.errors import TaxonomyError, suggestion
from guardrail.taxonomy_yaml import Field
from guardrail.types import Message, Role, is_blank

__all__ = ["Category", "Example", "known_hazards", "one_line", "placed", "read_category"]

# A code is answered by the classifier inside a comma-separated list and shown as "CODE: name".
_CODE = re.compile(r"\w[\w./-]*")


@dataclass(frozen=True, slots=True)
class Example:
    """A few-shot example of a category: one user text, or a prompt with the response that is judged."""

    label: Literal["safe", "unsafe"]
    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        if self.label not in ("safe", "unsafe"):
            raise TaxonomyError(f"the label is {self.label!r}", field="label", hint="write safe or unsafe")
        if tuple(message.role for message in self.messages) not in ((Role.USER,), (Role.USER, Role.ASSISTANT)):
            hint = "an example is one user message, or a user message and the assistant's response"
            raise TaxonomyError("the messages are not an example", field="messages", hint=hint)
        if is_blank(self.messages[-1].text):
            raise TaxonomyError("the judged text is empty", field="response" if len(self.messages) > 1 else "text")

    def to_dict(self) -> dict[str, Any]:
        """`{label, text}` or `{label, prompt, response}`."""
        keys = ("text",) if len(self.messages) == 1 else ("prompt", "response")
        return {"label": self.label, **{key: message.text for key, message in zip(keys, self.messages, strict=True)}}


@dataclass(frozen=True, slots=True)
class Category:
    """One risk. Surrounding white space of its texts is not kept."""

    code: str
    name: str
    definition: str = ""
    include: tuple[str, ...] = ()
    """What belongs to it, one short line each."""
    exclude: tuple[str, ...] = ()
    """What does not, although one might think so."""
    examples: tuple[Example, ...] = ()
    hazards: tuple[str, ...] = ()
    """The canonical hazards that it covers; scores are converted between taxonomies through them."""

    def __post_init__(self) -> None:
        for name in ("include", "exclude", "examples", "hazards"):
            if isinstance(getattr(self, name), str):
                raise TaxonomyError("expected a tuple, got text", field=name)
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not _CODE.fullmatch(self.code):
            hint = "use letters, digits and _ . / - only, and begin with a letter or digit"
            raise TaxonomyError(f"{self.code!r} cannot be a code", field="code", hint=hint)
        object.__setattr__(self, "definition", self.definition.strip())
        object.__setattr__(self, "name", one_line(self.name, "name"))
        for key in ("include", "exclude"):
            lines = (one_line(line, f"{key}[{index}]") for index, line in enumerate(getattr(self, key)))
            object.__setattr__(self, key, tuple(lines))
        for index, hazard in enumerate(self.hazards):
            if hazard not in known_hazards():
                hint = suggestion(hazard, known_hazards(), "'guardrail taxonomy show canonical' lists them")
                raise TaxonomyError(f"there is no hazard {hazard!r}", field=f"hazards[{index}]", hint=hint)
            if hazard in self.hazards[:index]:
                raise TaxonomyError(f"the hazard {hazard!r} is listed twice", field=f"hazards[{index}]")

    def to_dict(self) -> dict[str, Any]:
        """The category as plain values; what is empty is left out."""
        values: dict[str, Any] = {"code": self.code, "name": self.name, "definition": self.definition}
        values |= {key: list(getattr(self, key)) for key in ("include", "exclude")}
        values |= {"examples": [example.to_dict() for example in self.examples], "hazards": list(self.hazards)}
        return {key: value for key, value in values.items() if value}


def read_category(field: Field) -> Category:
    """A category from a file; errors name the line and the field."""
    values = field.fields(("code", "name"), ("definition", "include", "exclude", "examples", "hazards"))
    texts = {key: values[key].text() for key in ("code", "name", "definition") if key in values}
    lines = {key: values[key].texts() for key in ("include", "exclude", "hazards") if key in values}
    examples = tuple(_read_example(item) for item in values["examples"].items()) if "examples" in values else ()
    with placed(field):
        return Category(**texts, **lines, examples=examples)  # type: ignore[arg-type]  # texts and lists by their key


def _read_example(field: Field) -> Example:
    keys = ("text",) if isinstance(field.value, Mapping) and "text" in field.value else ("prompt", "response")
    values = field.fields(("label", *keys))
    roles = (Role.USER, Role.ASSISTANT)
    messages = tuple(Message(role, values[key].text()) for role, key in zip(roles, keys, strict=False))
    with placed(field):
        return Example(values["label"].text(), messages)  # type: ignore[arg-type]  # the example checks it


@contextmanager
def placed(field: Field) -> Iterator[None]:
    """Give errors about the parts of a value the file and line of those parts."""
    try:
        yield
    except TaxonomyError as error:
        raise field.error(error.reason, error.hint, inside=error.field) from None


@cache
def known_hazards() -> tuple[str, ...]:
    """The canonical hazards: the codes of the shipped taxonomy `canonical`."""
    path = resources.shipped("taxonomies", "canonical", ".yaml")
    return tuple(category["code"] for category in taxonomy_yaml.read(path).data["categories"])


def one_line(text: str, field: str) -> str:
    """The text without surrounding white space; an error when that is nothing, or more than one line."""
    text = text.strip()
    if not text:
        raise TaxonomyError("the text is empty", field=field)
    if len(text.splitlines()) > 1:
        raise TaxonomyError("the text has more than one line", field=field)
    return text
