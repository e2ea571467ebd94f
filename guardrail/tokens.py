"""Prompt to token ids. Control tokens go in by id; text is encoded by a vocabulary that does not contain them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer

from guardrail.code_trie import CodeEdge, CodeNode, CodeTrie, build_trie, code_logprobs
from guardrail.errors import ModelError
from guardrail.prompting import Prompt, Template
from guardrail.tokenizer_file import plain, separate, unknown_id

__all__ = [
    "CodeEdge",
    "CodeNode",
    "CodeTrie",
    "TextTokenizer",
    "VerdictTokens",
    "byte_tokenizer",
    "code_logprobs",
    "code_trie",
    "encodable",
    "plain",
    "verdict_tokens",
]

_EXPECTED = "expected a tokenizer.json"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class TextTokenizer:
    """Encodes prompts for one vocabulary. Thread-safe.

    Text cannot become a control token, by construction: no control token is in the vocabulary that text is encoded
    with, neither as a special token nor under its name nor as the result of a merge.
    """

    token_characters = 16
    """Above the characters of most tokens."""

    def __init__(self, config: dict[str, Any]) -> None:
        """`config` is a parsed tokenizer.json; prefer `from_json`. It is altered."""
        try:
            self._ordinary = unknown_id(config["model"])
            self._control = separate(config)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            lacks = f"lacks {error}" if isinstance(error, KeyError) else "has a vocabulary or tokens of another kind"
            raise ModelError(f"the tokenizer {lacks}", hint=_EXPECTED) from None
        self._names = {number: token for token, number in self._control.items()}
        try:
            self._first = Tokenizer.from_str(json.dumps(config))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"cannot read the tokenizer: {error}") from None
        for token in config["added_tokens"]:
            if self._first.token_to_id(token["content"]) != token["id"]:
                raise ModelError(f"the tokenizer's token {token['content']!r} would get another id")
        self._later = _inside(self._first, config.get("pre_tokenizer"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From the contents of a tokenizer.json."""
        try:
            config = json.loads(text)
        except ValueError as error:
            raise ModelError(f"the tokenizer is not JSON: {error}") from None
        if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
            raise ModelError("the tokenizer file holds no model", hint=_EXPECTED)
        return cls(config)

    @classmethod
    def read(cls, file: Path) -> Self:
        """From a tokenizer.json, which errors name; an OSError or UnicodeDecodeError when it cannot be read."""
        text = file.read_text(encoding="utf-8")
        try:
            return cls.from_json(text)
        except ModelError as error:
            raise ModelError(f"{file}: {error}", hint=error.hint) from None

    @classmethod
    def from_transformers(cls, tokenizer: Any) -> Self:
        """From a fast transformers tokenizer."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{type(tokenizer).__name__} has no fast tokenizer", hint="the checkpoint needs a tokenizer.json"
            )
        return cls.from_json(backend.to_str())

    @property
    def control(self) -> frozenset[int]:
        """The ids that no text can give."""
        return frozenset(self._names) - {self._ordinary}

    @property
    def unknown(self) -> int | None:
        """The id of what the vocabulary cannot express, where it has one."""
        return self._ordinary

    def control_id(self, token: str) -> int:
        """The id of one control token; `ModelError` when the vocabulary does not have it."""
        try:
            return self._control[token]
        except KeyError:
            raise ModelError(
                f"the tokenizer has no control token {token!r}",
                hint="template and checkpoint are of different families",
            ) from None

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt: those that the whole string gives when it is encoded with special tokens parsed."""
        ids: list[int] = []
        for segment in prompt.segments:
            if segment.control:
                ids.append(self.control_id(segment.text))
            else:
                ids += self.encode_text(segment.text, inside=bool(ids))
        return ids

    def encode_text(self, text: str, *, inside: bool = True) -> list[int]:
        """The ids of a text: as it stands inside a prompt, behind a token, or at the very start of one."""
        tokenizer = self._later if inside else self._first
        found: list[int] = tokenizer.encode(encodable(text), add_special_tokens=False).ids
        return found

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of `encode_text(text)` begins and ends in the text, in characters."""
        found: list[tuple[int, int]] = self._later.encode(encodable(text), add_special_tokens=False).offsets
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, control tokens visible; for people, not for encoding again."""
        parts: list[str] = []
        run: list[int] = []
        for token in ids:
            if token not in self._names:
                run.append(token)
                continue
            parts += [self._later.decode(run, skip_special_tokens=False), self._names[token]]
            run = []
        return "".join([*parts, self._later.decode(run, skip_special_tokens=False)])

    def inner_text(self, ids: Sequence[int]) -> str:
        """The text of ids that stand behind another text: with the space that they begin with, if any."""
        before = self.encode_text(".")
        return self.decode([*before, *ids]).removeprefix(self.decode(before))

    def piece(self, token: int) -> str:
        """A token as the vocabulary writes it."""
        name: str | None = self._names.get(token) or self._first.id_to_token(token)
        return name or ""


def byte_tokenizer(control: Sequence[str] = ()) -> TextTokenizer:
    """One token per byte of UTF-8, for classifiers whose limit is in bytes."""
    whole = Tokenizer(
        BPE(vocab={letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])
    )
    whole.pre_tokenizer = ByteLevel(add_prefix_space=False)
    whole.add_special_tokens([*control])
    tokenizer = TextTokenizer.from_json(whole.to_str())
    tokenizer.token_characters = 1
    return tokenizer


def encodable(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which no encoding can express."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def _inside(tokenizer: Tokenizer, settings: Any) -> Tokenizer:
    """The tokenizer for text that is not at the start of the prompt.

    SentencePiece vocabularies may put a space before the first text only; the two differ in nothing else, and share
    the vocabulary.
    """
    changed = json.loads(json.dumps(settings), object_hook=_without_prefix)
    if changed == settings:
        return tokenizer
    later = Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        later.normalizer = tokenizer.normalizer
    later.decoder = tokenizer.decoder
    later.pre_tokenizer = _pre_tokenizer(changed)
    return later


def _without_prefix(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "prepend_scheme": "never"} if settings.get("prepend_scheme") == "first" else settings


def _pre_tokenizer(settings: Any) -> PreTokenizer:
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    loaded = Tokenizer.from_str(json.dumps({"model": empty, "added_tokens": [], "pre_tokenizer": settings}))
    found: PreTokenizer = loaded.pre_tokenizer
    return found


@dataclass(frozen=True, slots=True)
class VerdictTokens:
    """Where and how a generative family says its verdict."""

    safe: tuple[int, ...]
    """The single tokens that say safe; their probabilities add up."""
    unsafe: tuple[int, ...]
    prefix: tuple[int, ...]
    """What stands between the prompt and the verdict: append it, then read the verdict's logits."""


def verdict_tokens(tokenizer: TextTokenizer, template: Template) -> VerdictTokens:
    """The verdict's tokens in this vocabulary; `ModelError` when a verdict word is not one token."""
    if template.encoder:
        raise ModelError(f"the template {template.id!r} has no verdict words", hint="it belongs to an encoder")
    safe, unsafe = (tuple(_single(tokenizer, word) for word in words) for words in (template.safe, template.unsafe))
    if shared := set(safe) & set(unsafe):
        raise ModelError(f"the tokenizer writes safe and unsafe with the same token {min(shared)}")
    return VerdictTokens(safe, unsafe, tuple(tokenizer.encode_text(template.answer_prefix)))


def _single(tokenizer: TextTokenizer, word: str) -> int:
    ids = tuple(tokenizer.encode_text(word))
    if len(ids) != 1:
        # A vocabulary that puts a space before every text: read the word behind another text instead.
        ids = _behind(tokenizer, "]", word)
    if len(ids) != 1:
        raise ModelError(
            f"the tokenizer writes the verdict word {word!r} with {len(ids)} tokens instead of one",
            hint="the checkpoint is not of the template's family; choose another template",
        )
    return ids[0]


def _behind(tokenizer: TextTokenizer, before: str, text: str) -> tuple[int, ...]:
    start, whole = tokenizer.encode_text(before), tokenizer.encode_text(before + text)
    if whole[: len(start)] != start:
        raise ModelError(f"the tokenizer writes {text!r} and what comes before it as one")
    return tuple(whole[len(start) :])


def code_trie(tokenizer: TextTokenizer, template: Template, codes: Sequence[str]) -> CodeTrie:
    """The codes' tokens behind the verdict `unsafe` and a newline; `codes` are those that the prompt shows."""
    verdict = verdict_tokens(tokenizer, template)
    word = template.unsafe[0]
    line = f"{word}\n"
    paths = [_behind(tokenizer, word, f"\n{code}") for code in codes]
    ends = {
        index: _ends(tokenizer, template, line, codes, index)
        for index, path in enumerate(paths)
        if any(len(other) > len(path) and other[: len(path)] == path for other in paths)
    }
    return build_trie(codes, paths, (*verdict.prefix, verdict.unsafe[0]), ends)


def _ends(tokenizer: TextTokenizer, template: Template, line: str, codes: Sequence[str], index: int) -> tuple[int, ...]:
    """The tokens that show that a code ends here: the forms of the comma, and the end of the answer."""
    commas = {_behind(tokenizer, line + codes[index], text)[0] for text in (",", f",{codes[0]}")}
    return (*sorted(commas), *(tokenizer.control_id(token) for token in template.stop))
