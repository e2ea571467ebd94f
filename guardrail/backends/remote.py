"""Guard models behind a model server that gives logprobs: vLLM, SGLang, TGI, llama.cpp, ollama.

The prompts are the same as for local weights, and one token is generated behind each of them: the verdict's and the
codes' logprobs are read where that token is chosen. Prompts go out as token ids where the server takes them, so that
no text can become a control token there; else as text, in which no message names a control token (see `Writer`).
With `prompts="chat"` the server renders the conversation by itself (see `RemoteChatBackend`).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Final, get_args

from guardrail.backends.base import Backend
from guardrail.backends.causal import FORCED, CausalBackend
from guardrail.backends.causal_rows import Answer, Group, Read, Row
from guardrail.backends.http import Client, Patience
from guardrail.backends.remote_answers import Position, Surfaces
from guardrail.backends.remote_api import Served, name_of, served_model, service
from guardrail.backends.remote_sending import Prompts, Sender
from guardrail.backends.remote_source import Source, read_source
from guardrail.errors import BackendError, GuardrailError, UsageError
from guardrail.prompting import PromptBuilder
from guardrail.types import Conversation
from guardrail.workers import Workers

__all__ = ["RemoteBackend"]

TOP_LOGPROBS: Final = 20
"""What vLLM and OpenAI allow; a server may be set to give more."""
MAX_TOKENS: Final = 4096
"""What the model reads where the server does not tell."""
_NEVER: Final = -1000.0
"""The logprob of what counts for nothing."""
_ROUNDING: Final = 0.01


class RemoteBackend(CausalBackend):
    """A causal language model behind a server, read as a guard. Thread-safe."""

    def __init__(
        self,
        client: Client,
        served: Served,
        source: Source,
        *,
        name: str,
        prompts: Prompts = "auto",
        top_logprobs: int,
        concurrency: int,
        max_tokens: int | None,
    ) -> None:
        """The options are those of `load`."""
        longest = (served.context or MAX_TOKENS) - FORCED
        super().__init__(
            name=name,
            numerics="remote",
            tokenizer=source.tokenizer,
            template=source.template,
            taxonomy=source.taxonomy,
            max_tokens=min(max_tokens or longest, longest) if served.context else max_tokens or longest,
            calibration=source.calibration,
        )
        builder = PromptBuilder(self.template, self.default_taxonomy)
        ids = (*self.tokenizer.encode(builder.build(Conversation.parse("hello"))), *self._verdict.prefix)
        sample = (ids, self._verdict.safe + self._verdict.unsafe)
        self._client = client
        self._sender = Sender(client, served.name, source.tokenizer, sample, prompts=prompts, top=top_logprobs)
        self._surfaces = Surfaces(source.tokenizer)
        self._workers = Workers(concurrency, "guardrail-remote")

    @classmethod
    def load(
        cls,
        address: str,
        *,
        served: str | None = None,
        tokenizer: str | None = None,
        template: str | None = None,
        revision: str | None = None,
        prompts: Prompts = "auto",
        top_logprobs: int = TOP_LOGPROBS,
        max_tokens: int | None = None,
        version: str | None = None,
        concurrency: int = 16,
        timeout: float = 60.0,
        attempts: int = 5,
        delay: float = 1.0,
    ) -> Backend:
        """`address` is the server's, up to and with `/v1`; a key is read from OPENAI_API_KEY where there is one.

        `served` is the model's name there (default: the only one that it lists), `tokenizer` a folder or hub id with
        the checkpoint's tokenizer.json (default: the served name; `revision` is of the hub's), `template` a prompt
        format in place of the one found there. `prompts` forces token ids, text or chat. `top_logprobs` is how many
        tokens the server lists, `max_tokens` the longest prompt in tokens (of a chat: bytes). `version` names the
        weights where you know that they stay; without it the day does. `concurrency` requests are under way at a
        time, each tried `attempts` times with `timeout` seconds; the first wait between them is about `delay`.

        Raises UsageError for options that make no sense, ModelError when server or tokenizer cannot be used.
        """
        _check(prompts, top_logprobs=top_logprobs, concurrency=concurrency, max_tokens=max_tokens)
        patience = Patience(timeout=timeout, attempts=attempts, delay=delay)
        client = Client(service(address), patience, kept=concurrency)
        try:
            model = served_model(client, served)
            name = name_of(model.name, address, version)
            if prompts == "chat":
                from guardrail.backends.remote_chat import RemoteChatBackend

                beside = read_source(tokenizer, template, revision) if tokenizer else None
                return RemoteChatBackend.of(
                    client,
                    model.name,
                    beside,
                    template,
                    name=name,
                    top_logprobs=top_logprobs,
                    concurrency=concurrency,
                    max_tokens=max_tokens,
                )
            return cls(
                client,
                model,
                read_source(tokenizer or model.name, template, revision),
                name=name,
                prompts=prompts,
                top_logprobs=top_logprobs,
                concurrency=concurrency,
                max_tokens=max_tokens,
            )
        except GuardrailError:
            client.close()
            raise

    def close(self) -> None:
        """Give up what is under way."""
        self._client.close()
        self._workers.close()

    def _run(self, groups: Sequence[Group]) -> list[Answer | BackendError]:
        rows = [row for group in groups for row in group.rows]
        try:
            self._sender.prepare()
            jobs = [(row, read) for row in rows for read in row.reads]
            found = iter(list(self._workers.pool.map(lambda job: self._read(*job), jobs)))
        except BackendError as error:
            return [error] * len(rows)
        answers: list[Answer | BackendError] = []
        for row in rows:
            values = {read.question: next(found) for read in row.reads}
            # In the order of the questions: what is wrong with the verdict says more than what is with a code.
            errors = [
                value for _, value in sorted(values.items(), key=itemgetter(0)) if isinstance(value, BackendError)
            ]
            read = {question: value for question, value in values.items() if not isinstance(value, BackendError)}
            answers.append(errors[0] if errors else read)
        return answers

    def _read(self, row: Row, read: Read) -> list[float] | BackendError:
        """The logprobs of the tokens of one read; the error that it comes to."""
        ids = row.ids[: read.position + 1]
        try:
            position = self._sender.position(ids, read.tokens)
            values = self._surfaces.find(position, read.tokens)
            if None in values and self._surfaces.chosen(position, read.tokens) is not None:
                values = [
                    self._alone(ids, token, position) if value is None else value
                    for value, token in zip(values, read.tokens, strict=True)
                ]
            return self._codes(values, position) if read.question else self._verdicts(values, position)
        except BackendError as error:
            return error

    def _alone(self, ids: Sequence[int], token: int, position: Position) -> float | None:
        """The logprob of a token that was not listed: biased alone, it is the one that is chosen.

        None from a server whose logprobs have the bias in them: they are then of another distribution, and higher
        than what was listed.
        """
        value = self._surfaces.chosen(self._sender.position(ids, (token,)), (token,))
        return value if value is not None and value <= position.bound + _ROUNDING else None

    def _verdicts(self, values: Sequence[float | None], position: Position) -> list[float]:
        """The verdict's logprobs with bounds for what is not listed, which never make a text look safer.

        What would say unsafe is taken at its upper bound, what would say safe is left out.
        """
        if all(value is None for value in values):
            raise BackendError(
                f"neither {self.template.safe[0].strip()} nor {self.template.unsafe[0].strip()} is among the "
                f"{len(position.entries)} most likely tokens",
                hint=f"is the served model a guard of the format {self.template.id}? {_MORE}",
            )
        safe = len(self._verdict.safe)
        missing = [_NEVER] * safe + [position.bound] * (len(values) - safe)
        return [other if value is None else value for value, other in zip(values, missing, strict=True)]

    def _codes(self, values: Sequence[float | None], position: Position) -> list[float]:
        """The codes' logprobs; those that are not listed at their upper bound."""
        if all(value is None for value in values):
            raise BackendError(f"no category code is among the {len(position.entries)} most likely tokens", hint=_MORE)
        return [position.bound if value is None else value for value in values]


_MORE: Final = "raise top_logprobs; vLLM gives more with --max-logprobs, and the biased ones with --logprobs-mode"


def _check(prompts: str, **numbers: int | None) -> None:
    if prompts not in get_args(Prompts):
        raise UsageError(f"prompts is {prompts!r}, which is not known", hint=f"known: {', '.join(get_args(Prompts))}")
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}", hint="give a number from 1")
