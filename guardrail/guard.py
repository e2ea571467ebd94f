"""The guard: conversation → windows → prompts → classifier → scores → decision. The one place that composes them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from guardrail.backends import EMBEDDED, load_backend
from guardrail.backends.base import Backend
from guardrail.errors import BackendError, GuardrailError, UsageError
from guardrail.policy import OnError, Policy, Thresholds, flagged_on_error
from guardrail.prompting import Prompt, PromptBuilder, Template
from guardrail.scoring import Logits, Scores, highest, scores
from guardrail.taxonomy import Taxonomy
from guardrail.types import CategoryScore, Conversation, Decision, Role, Verdict
from guardrail.windows import fit
from guardrail.workers import Workers

__all__ = ["CategoryScores", "Guard", "Judgeable", "load"]

CategoryScores = Literal["first", "each"]
Judgeable = Conversation | str | Sequence[Mapping[str, Any]]
"""What can be judged: a user prompt, chat messages in the OpenAI shape, or a conversation."""

_BATCH = 64
_log = logging.getLogger("guardrail")


@dataclass(frozen=True, slots=True)
class _Job:
    """A conversation on its way through a batch."""

    prompts: slice
    """Where its prompts are among the batch's."""
    role: Role
    truncated: bool
    markers: tuple[str, ...]


class Guard:
    """Judges conversations with one classifier under one taxonomy and one policy. Thread-safe."""

    def __init__(
        self,
        backend: Backend,
        *,
        taxonomy: Taxonomy | None = None,
        template: Template | None = None,
        policy: Policy | None = None,
        category_scores: CategoryScores = "first",
        policy_text: bool | None = None,
    ) -> None:
        if category_scores not in get_args(CategoryScores):
            raise UsageError(f"category_scores is {category_scores!r}, which is not known", hint="known: first, each")
        self.backend = backend
        self.taxonomy = taxonomy or backend.default_taxonomy
        self.policy = policy or _calibrated(backend, self.taxonomy)
        self.policy.check(self.taxonomy)
        self.category_scores = category_scores
        template = template or backend.template
        if policy_text is not None and template.header.encoder:
            raise UsageError("policy_text: an encoder always reads the policy text", hint="leave it out")
        self._builder = PromptBuilder(template, self.taxonomy, policy=policy_text)
        self._workers = Workers(min(4, os.cpu_count() or 1), "guardrail")
        singles = self.taxonomy.codes if category_scores == "each" else ()
        self._builders = [
            self._builder,
            *(PromptBuilder(template, self.taxonomy.select([code]), policy=self._builder.policy) for code in singles),
        ]

    @property
    def fingerprint(self) -> str:
        """Model, taxonomy, template and policy: guards with equal fingerprints give equal decisions, up to rounding."""
        refs = (self.backend.name, self.taxonomy.ref, self._builder.template.ref, f"policy@{self.policy.digest}")
        shown = "text" if self._builder.policy else "names"
        temperature = self.backend.calibration.temperature
        return " ".join((*refs, self.category_scores, shown, f"{temperature:g}", f"{self.backend.max_tokens}"))

    def check(self, conversation: Judgeable) -> Decision:
        """Judge a user prompt (a string) or the last message of a conversation.

        Whatever cannot be judged, by bad input or by a failing classifier, is a decision with the verdict `ERROR`,
        flagged unless the policy fails open; with `on_error="raise"` it is the exception.
        """
        return self._decide([conversation])[0]

    def check_many(self, conversations: Iterable[Judgeable], *, batch_size: int = _BATCH) -> Iterator[Decision]:
        """Judge conversations lazily, `batch_size` at a time, one decision each, in order."""
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}", hint="give a number from 1")
        if isinstance(conversations, str | bytes | Mapping | Conversation):
            raise UsageError("check_many takes many conversations, this is one", hint="use check, or a list of it")
        return self._decided(iter(conversations), batch_size)

    def _decided(self, conversations: Iterator[Judgeable], batch_size: int) -> Iterator[Decision]:
        while batch := list(islice(conversations, batch_size)):
            yield from self._decide(batch)

    async def acheck(self, conversation: Judgeable) -> Decision:
        """As `check`, on a worker thread: the event loop stays free.

        Cancelling the awaiting task returns at once; work that had not started is dropped.
        """
        import asyncio  # slow to import, and whoever awaits has done so

        return await asyncio.get_running_loop().run_in_executor(self._workers.pool, self.check, conversation)

    def close(self) -> None:
        """Stop the worker threads and free the classifier."""
        self._workers.close()
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _decide(self, batch: Sequence[Judgeable]) -> list[Decision]:
        """One decision per item; what fails the whole batch fails each of its items."""
        prompts: list[Prompt] = []
        jobs = [self._prepare(item, prompts) for item in batch]
        answers = self._logits(prompts)
        return [self._failed(job) if isinstance(job, GuardrailError) else self._decision(job, answers) for job in jobs]

    def _prepare(self, item: Judgeable, prompts: list[Prompt]) -> _Job | GuardrailError:
        """Append the item's prompts: for each window one, and in the mode `each` one more per category."""
        try:
            conversation = Conversation.parse(item)
            windows = fit(conversation, self.backend.max_tokens, self._builder, self.backend.tokenizer)
            built = [builder.build(window) for window in windows.conversations for builder in self._builders]
        except GuardrailError as error:
            return error
        except Exception as error:  # an input that nobody thought of must not take its batch along
            _log.exception("a conversation could not be prepared")
            return BackendError(f"{type(error).__name__}: {error}")
        start = len(prompts)
        prompts.extend(built)
        whole = len(windows.conversations) == 1 and not windows.truncated
        markers = built[0].markers if whole else self._builder.markers(conversation)
        return _Job(slice(start, len(prompts)), built[0].role, windows.truncated, markers)

    def _logits(self, prompts: Sequence[Prompt]) -> list[Logits | BackendError]:
        if not prompts:
            return []
        try:
            answers = self.backend.logits(prompts, categories=self.category_scores == "first")
        except Exception as error:  # whatever a model library raises: it must become an error decision, never a pass
            _log.exception("the classifier failed on a batch of %d prompts", len(prompts))
            failure = error if isinstance(error, BackendError) else BackendError(f"{type(error).__name__}: {error}")
            return [failure] * len(prompts)
        if len(answers) != len(prompts):
            failure = BackendError(f"the classifier gave {len(answers)} answers to {len(prompts)} prompts")
            return [failure] * len(prompts)
        return answers

    def _decision(self, job: _Job, answers: Sequence[Logits | BackendError]) -> Decision:
        mine = answers[job.prompts]
        logits = [answer for answer in mine if isinstance(answer, Logits)]
        if len(logits) < len(mine):
            return self._failed(next(answer for answer in mine if isinstance(answer, BackendError)), job)
        try:
            windows = [self._scores(logits[at : at + len(self._builders)]) for at in self._starts(len(logits))]
        except ValueError as error:
            return self._failed(BackendError(str(error)), job)
        result = highest(windows)
        verdict, categories = self.policy.decide(result, self.taxonomy, job.role)
        return self._result(
            job, verdict=verdict, flagged=verdict is Verdict.UNSAFE, score=result.unsafe, categories=categories
        )

    def _starts(self, count: int) -> range:
        return range(0, count, len(self._builders))

    def _scores(self, logits: Sequence[Logits]) -> Scores:
        """The scores of one window from its prompts' answers: the whole taxonomy first, then each category alone."""
        whole, *singles = logits
        if singles:
            whole = Logits(whole.safe, whole.unsafe, tuple(single.unsafe - single.safe for single in singles))
        return scores(whole, self.backend.calibration.temperature)

    def _failed(self, error: GuardrailError, job: _Job | None = None) -> Decision:
        if self.policy.on_error == "raise":
            raise error
        return self._result(
            job, verdict=Verdict.ERROR, flagged=flagged_on_error(self.policy.on_error), score=None, error=str(error)
        )

    def _result(
        self,
        job: _Job | None,
        *,
        verdict: Verdict,
        flagged: bool,
        score: float | None,
        categories: tuple[CategoryScore, ...] = (),
        error: str | None = None,
    ) -> Decision:
        return Decision(
            verdict=verdict,
            flagged=flagged,
            score=score,
            categories=categories,
            role=job.role if job else None,
            model=self.backend.name,
            taxonomy=self.taxonomy.ref,
            template=self._builder.template.ref,
            truncated=job.truncated if job else False,
            markers=job.markers if job else (),
            error=error,
        )


def _calibrated(backend: Backend, taxonomy: Taxonomy, on_error: OnError = "closed") -> Policy:
    """The policy that belongs to the weights; its category thresholds hold for the default taxonomy only."""
    user, assistant = backend.calibration.user, backend.calibration.assistant
    if taxonomy.digest != backend.default_taxonomy.digest:
        user, assistant = _verdict_only(user), _verdict_only(assistant)
    return Policy(user, assistant, on_error)


def _verdict_only(thresholds: Thresholds) -> Thresholds:
    return Thresholds(0.5 if thresholds.verdict is None else thresholds.verdict)


def _replaced(side: Thresholds, verdict: float | None, categories: Mapping[str, float] | None) -> Thresholds:
    return Thresholds(side.verdict if verdict is None else verdict, {**side.categories, **(categories or {})})


def load(
    model: str | Path = EMBEDDED,
    *,
    taxonomy: str | Path | Taxonomy | None = None,
    template: str | None = None,
    threshold: float | None = None,
    thresholds: Mapping[str, float] | None = None,
    policy: Policy | None = None,
    on_error: OnError = "closed",
    category_scores: CategoryScores = "first",
    policy_text: bool | None = None,
    **options: Any,
) -> Guard:
    """A guard, ready to check.

    `model` is `embedded` (in the package, no network), a Llama Guard checkpoint (hub id or folder), or
    `encoder:FOLDER`. `taxonomy` is the name of a shipped one or a file; without it, the one the weights were trained
    on. `template` is a prompt format other than the checkpoint's. `threshold` (for P(unsafe)) and `thresholds` (by
    category code) replace the calibrated ones for both roles; `policy` replaces all of them. `policy_text` shows or
    hides the definitions; by default as the checkpoint's family was trained, and shown for any other taxonomy.
    `options` go to the backend: `device`, `dtype`, `quantize`, `token_budget`, `revision` for a checkpoint, `threads`
    for an encoder.
    """
    if policy is not None and (threshold is not None or thresholds or on_error != "closed"):
        raise UsageError("policy: it holds thresholds and on_error already", hint="give either it or them")
    if template is not None:
        options["template"] = template
    backend = load_backend(str(model), **options)
    chosen = backend.default_taxonomy if taxonomy is None else Taxonomy.load(taxonomy)
    if policy is None:
        policy = _calibrated(backend, chosen, on_error)
        policy = Policy(
            _replaced(policy.user, threshold, thresholds), _replaced(policy.assistant, threshold, thresholds), on_error
        )
    return Guard(backend, taxonomy=chosen, policy=policy, category_scores=category_scores, policy_text=policy_text)
