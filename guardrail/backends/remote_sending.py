"""Prompts on their way to a model server: as token ids where it takes them, else as text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final, Literal

from guardrail.backends.http import Client, Failure
from guardrail.backends.remote_answers import NoLogprobs, Position, generated, prompt_tokens
from guardrail.backends.remote_api import LOGPROBS_HINT, completion_body, explained
from guardrail.backends.remote_text import Writer
from guardrail.errors import BackendError
from guardrail.tokens import TextTokenizer

__all__ = ["Prompts", "Sender"]

Prompts = Literal["auto", "tokens", "text", "chat"]
_BUSY: Final = (408, 429)
# A text may be cut into tokens a little differently by the server; one that cut the prompt short differs by more.
_SLACK: Final = 0.01


@dataclass(frozen=True, slots=True)
class _Mode:
    """How prompts are sent."""

    ids: bool
    start: bool = True
    """As text: whether the control token at the start is written, because the server adds none."""


class Sender:
    """Asks one served model what comes behind a prompt. Thread-safe."""

    def __init__(
        self,
        client: Client,
        served: str,
        tokenizer: TextTokenizer,
        sample: tuple[Sequence[int], Sequence[int]],
        *,
        prompts: Prompts,
        top: int,
    ) -> None:
        """`sample` is a short prompt with tokens that may follow it, to try out how the server takes prompts."""
        self._client = client
        self._served = served
        self._writer = Writer(tokenizer)
        self._sample = sample
        self._prompts = prompts
        self._top = top
        self._found: _Mode | None = None
        self._lock = Lock()

    def prepare(self) -> None:
        """Find out how to send prompts, if that is not known yet. Raises BackendError when the server fails."""
        self._mode()

    def position(self, ids: Sequence[int], tokens: Sequence[int]) -> Position:
        """What the server lists behind these ids, where it was told to choose among `tokens`."""
        mode = self._mode()
        reply, expected = self._sent(mode, ids, tokens, None)
        _check_read(prompt_tokens(reply), expected, 0 if mode.ids else 2 + round(_SLACK * expected))
        try:
            positions = generated(reply)
        except NoLogprobs as error:
            raise NoLogprobs(str(error), hint=LOGPROBS_HINT) from None
        if not positions:
            raise NoLogprobs("the server's answer has no logprobs: nothing was generated", hint=LOGPROBS_HINT)
        return positions[0]

    def _sent(self, mode: _Mode, ids: Sequence[int], tokens: Sequence[int], attempts: int | None) -> tuple[Any, int]:
        """The answer to one request, and how many tokens the server should have read."""
        written = None if mode.ids else self._writer.write(ids, start=mode.start)
        prompt = ids if written is None else written.text
        reply = self._client.post(completion_body(self._served, prompt, tokens, self._top), attempts=attempts)
        if isinstance(reply, Failure):
            raise _Refused(reply)
        return reply, len(ids) if written is None else written.tokens + (not mode.start)

    def _mode(self) -> _Mode:
        """How to send prompts, found out with a short one when it is first needed."""
        with self._lock:
            if self._found is None:
                self._found = self._probe()
            return self._found

    def _probe(self) -> _Mode:
        ids = _Mode(ids=True)
        if self._prompts == "text":
            return self._probe_text()
        if self._prompts == "tokens":
            self._try(ids, None)
            return ids
        try:
            self._try_ids(ids)
            return ids
        except _Unread:
            return self._probe_text()
        except _Refused as refused:
            status = refused.failure.status
            if status is None or status in (401, 403, *_BUSY):
                raise
        text = self._probe_text()
        if status >= 500:
            # A server that fails on token ids, or one that was ill for a moment: now it is well.
            with suppress(BackendError):
                self._try(ids, 1)
                return ids
        return text

    def _try_ids(self, ids: _Mode) -> None:
        """With patience only for what says nothing about token ids: a server that is busy or not there yet."""
        try:
            self._try(ids, 1)
        except _Refused as refused:
            if not refused.failure.retryable or refused.failure.status not in (None, *_BUSY):
                raise
            self._try(ids, None)

    def _probe_text(self) -> _Mode:
        """Text, with or without the control token at the start: most servers add it."""
        try:
            added = _Mode(ids=False, start=False)
            self._try(added, None)
            return added
        except _Unread:
            written = _Mode(ids=False, start=True)
            self._try(written, None)
            return written

    def _try(self, mode: _Mode, attempts: int | None) -> None:
        """Send a short prompt; BackendError when the server fails, or reads another number of tokens."""
        reply, expected = self._sent(mode, *self._sample, attempts)
        count = prompt_tokens(reply)
        if count is None and not mode.ids:
            raise BackendError("the server does not say how many tokens it read", hint="try prompts='chat'")
        _check_read(count, expected, 0)


class _Refused(BackendError):
    """The server failed, or refused the request."""

    def __init__(self, failure: Failure) -> None:
        error = explained(failure)
        super().__init__(str(error), hint=error.hint)
        self.failure = failure


class _Unread(BackendError):
    """The server read another number of tokens than were sent."""


def _check_read(count: int | None, expected: int, slack: int) -> None:
    if count is not None and abs(count - expected) > slack:
        raise _Unread(
            f"the server read {count} tokens of a prompt of {expected}",
            hint="its tokenizer is another one, it cuts prompts short, or it puts a chat template around them: "
            "name the right tokenizer, lower max_tokens, or use prompts='chat'",
        )
