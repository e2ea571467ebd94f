"""Every error that this package raises, on one screen.

GuardrailError                 base: one line of message, an optional hint
├── UsageError                 a flag or argument is wrong (exit status 2)
├── InputError                 the user's data is wrong; names file, line and field where known
│   ├── ConversationError      messages that cannot be judged: empty, unknown role, an image part
│   ├── RowError               one row of a JSONL file
│   ├── TaxonomyError          a taxonomy file or an operation on a taxonomy
│   └── TemplateError          a prompt template, or a taxonomy that the template cannot express
├── MissingExtraError          an optional dependency is absent; the hint is the install command
├── ModelError                 a checkpoint cannot be loaded or cannot be read as a guard
├── BackendError               the classifier failed on a request
│   ├── UnreadableError        the text is none that the classifier can read; it does not fail on others
│   └── OutOfMemoryError       the device had too little memory, also after halving the batch
└── ResumeError                an unfinished output file does not belong to this input
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "BackendError",
    "ConversationError",
    "GuardrailError",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "OutOfMemoryError",
    "ResumeError",
    "RowError",
    "TaxonomyError",
    "TemplateError",
    "UnreadableError",
    "UsageError",
    "suggestion",
]


class GuardrailError(Exception):
    """Base of all errors; `str(error)` is one line and `hint` says what to do about it."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.hint = hint


class UsageError(GuardrailError):
    """A command-line flag or a call argument has a value that cannot be used."""

    exit_status = 2


class InputError(GuardrailError):
    """The user's data is wrong; `file`, `line` (1-based) and `field` are given where they are known."""

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        field: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.reason = " ".join(message.split())
        place = ":".join(str(part) for part in (file, line) if part is not None)
        parts = [part for part in (place, field, self.reason) if part]
        super().__init__(": ".join(parts), hint=hint)
        self.file = file
        self.line = line
        self.field = field


class ConversationError(InputError):
    """The conversation cannot be judged: empty, an unknown role, or content that is not text."""


class RowError(InputError):
    """One row of a JSONL file cannot be read as something to judge."""


class TaxonomyError(InputError):
    """A taxonomy file is malformed, or an operation names a category that is not there."""


class TemplateError(InputError):
    """A prompt template is malformed, or cannot express the taxonomy it was given."""


class MissingExtraError(GuardrailError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed",
            hint=f"pip install 'guardrail-moderation[{extra}]'",
        )
        self.package = package
        self.extra = extra


class ModelError(GuardrailError):
    """A checkpoint cannot be loaded, or its tokenizer cannot express the verdict."""


class BackendError(GuardrailError):
    """The classifier failed on a request; the rows concerned get no score."""


class UnreadableError(BackendError):
    """The classifier knows too little of the text to judge it; with other texts nothing is wrong."""


class OutOfMemoryError(BackendError):
    """The device ran out of memory, also with the batch halved."""


class ResumeError(GuardrailError):
    """The unfinished output does not belong to this input and these options."""


def suggestion(name: str, known: Sequence[str], otherwise: str) -> str:
    """A hint for an unknown name: the nearest known one, if any, and what to do when it is not the one."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f"{f'did you mean {close[0]!r}? ' if close else ''}{otherwise}"
