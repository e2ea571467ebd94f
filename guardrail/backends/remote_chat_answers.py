"""The verdict and the codes in an answer that a server generated to a chat, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guardrail.backends.remote_answers import Entry, Position
from guardrail.code_trie import logsumexp
from guardrail.errors import BackendError
from guardrail.prompting import Template

__all__ = ["ChatAnswer", "read_chat"]

_NEVER = -1000.0
_WRITTEN = {"\u2581": " ", "\u0120": " ", "\u010a": "\n"}


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """What an answer says; logprobs are natural logarithms."""

    safe: float
    unsafe: float
    codes: tuple[float, ...]
    """Upper bounds of log P(code comes first | unsafe), in the order of the codes; 0 where nothing is known."""


def read_chat(positions: Sequence[Position], template: Template, codes: Sequence[str]) -> ChatAnswer:
    """Read an answer of the form `unsafe`, newline, codes; white space before the verdict is skipped.

    Whatever is not listed is taken at its upper bound, but for the word safe, which then counts for nothing: a text
    never looks safer than it is. Raises BackendError for an answer that begins otherwise.
    """
    safe, unsafe = ({word.strip() for word in words} for words in (template.safe, template.unsafe))
    at = next((index for index, position in enumerate(positions) if _text(position.chosen).strip()), None)
    if at is None:
        raise BackendError("the served model answered nothing", hint="is it a guard model?")
    verdict = positions[at]
    word = _text(verdict.chosen).strip()
    follows = _text(positions[at + 1].chosen) if at + 1 < len(positions) else ""
    if word not in safe | unsafe or follows[:1].isalnum():
        shown = "".join(_text(position.chosen) for position in positions[at : at + 4]).strip()[:40]
        raise BackendError(
            f"the served model's answer begins with {shown!r}, which is neither safe nor unsafe",
            hint="a guard model answers with a verdict first; name its format with template=…",
        )
    says_safe, says_unsafe = _total(verdict, safe), _total(verdict, unsafe)
    unknown = (0.0,) * len(codes)
    return ChatAnswer(
        _NEVER if says_safe is None else says_safe,
        verdict.bound if says_unsafe is None else says_unsafe,
        unknown if word in safe or not codes else _codes(positions[at + 1 :], codes),
    )


def _codes(positions: Sequence[Position], codes: Sequence[str]) -> tuple[float, ...]:
    """Upper bounds of the codes' logprobs, from the first code of the answer.

    Where its tokens part from a code's, that code is at most as likely as the best listed token that it may go on
    with. Capital and small letters are the same: some tokenizers know small ones only.
    """
    codes = [code.casefold() for code in codes]
    found: dict[str, float] = {}
    done, reached = "", 0.0
    started = False
    for position in positions:
        chosen = _text(position.chosen)
        if not started and not chosen.strip():
            continue
        started = True
        chosen = (chosen if done else chosen.lstrip()).casefold()
        for code in codes:
            parts_later = code.startswith(done + chosen) and code != done + chosen
            if code not in found and code.startswith(done) and not parts_later:
                found[code] = reached + _bound(position, code[len(done) :])
        done += chosen
        reached += position.chosen.logprob
        if not any(code not in found and code.startswith(done) for code in codes):
            break
    bounds = [found.get(code, 0.0) for code in codes]
    # Codes that are all unlikely, because the model writes something else as well, share the whole among them.
    total = min(0.0, logsumexp(bounds))
    return tuple(min(0.0, bound - total) for bound in bounds)


def _bound(position: Position, rest: str) -> float:
    """The logprob of the token that goes on with `rest`, or at most that of what is not listed."""
    texts = ((_text(entry).strip().casefold(), entry.logprob) for entry in position.entries)
    ways = [logprob for text, logprob in texts if text and rest.startswith(text)]
    return max(ways, default=position.bound)


def _total(position: Position, words: set[str]) -> float | None:
    """The logprob of the words together; None where none is listed."""
    values = {(entry.text, entry.data): entry.logprob for entry in position.entries if _text(entry).strip() in words}
    return logsumexp(list(values.values())) if values else None


def _text(entry: Entry) -> str:
    """The text of a token, as people write it."""
    if entry.data is not None:
        return entry.data.decode("utf-8", "replace")
    return "".join(_WRITTEN.get(char, char) for char in entry.text)
