"""The guard: conversation → windows → prompts → classifier → scores → decision. The one place that composes them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Literal, Self, get_args

from guardrail.backends.base import Backend
from guardrail.calibration import Calibration
from guardrail.errors import BackendError, GuardrailError, UsageError
from guardrail.judgement import Decider, Judgement
from guardrail.policy import Policy, flagged_on_error
from guardrail.prompting import Prompt, PromptBuilder, Template
from guardrail.scoring import Logits, Margins, highest, margins
from guardrail.taxonomy import Taxonomy
from guardrail.types import CategoryScore, Conversation, Decision, Role, Verdict
from guardrail.windows import fit
from guardrail.workers import Workers

__all__ = ["CategoryScores", "Guard", "Judgeable", "fitting_calibration"]

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
        calibration: Calibration | None = None,
        category_scores: CategoryScores = "first",
        policy_text: bool | None = None,
    ) -> None:
        if category_scores not in get_args(CategoryScores):
            raise UsageError(f"category_scores is {category_scores!r}, which is not known", hint="known: first, each")
        if not isinstance(policy, Policy | None):
            hint = "give a guardrail.Policy; policy_text says whether definitions are shown"
            raise UsageError(f"policy is {policy!r}, which holds no thresholds", hint=hint)
        self.backend = backend
        self.taxonomy = taxonomy or backend.default_taxonomy
        _check_labels(backend, self.taxonomy)
        self._given = (calibration, policy_text)
        self.calibration = fitting_calibration(backend, self.taxonomy, calibration)
        self.policy = policy or Policy(self.calibration.user.thresholds, self.calibration.assistant.thresholds)
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
    def decider(self) -> Decider:
        """From judgements to decisions, without the classifier."""
        return Decider(self.taxonomy, self.calibration, self.policy)

    @property
    def stages(self) -> tuple[Guard, ...]:
        """Those that judge, by `Judgement.stage`: this one alone, unless it is a cascade."""
        return (self,)

    def judge_of(self, decision: Decision) -> Guard:
        """Whose thresholds and prompt format a decision has come from: one of `stages`."""
        return next((guard for guard in self.stages if guard.backend.name == decision.model), self.stages[0])

    def under(self, taxonomy: Taxonomy | None = None, threshold: float | None = None) -> Guard:
        """Another guard with the same classifier, which stays this one's to close.

        Another taxonomy brings the thresholds that are calibrated for it; `threshold` replaces the one for P(unsafe).
        """
        calibration, policy_text = self._given
        sides = (self.policy.user, self.policy.assistant)
        if taxonomy is not None:
            fitting = fitting_calibration(self.backend, taxonomy, calibration)
            sides = (fitting.user.thresholds, fitting.assistant.thresholds)
        return Guard(
            self.backend,
            taxonomy=taxonomy or self.taxonomy,
            template=self.template,
            policy=Policy(sides[0].replaced(threshold), sides[1].replaced(threshold), self.policy.on_error),
            calibration=calibration,
            category_scores=self.category_scores,
            policy_text=policy_text,
        )

    @property
    def template(self) -> Template:
        """The prompt format."""
        return self._builder.template

    @property
    def policy_text(self) -> bool:
        """Whether prompts show the categories' definitions, and not their names alone."""
        return self._builder.policy

    @property
    def classifier(self) -> str:
        """All that a judgement depends on: model, taxonomy, template, and how categories are asked for and shown."""
        shown = "text" if self._builder.policy else "names"
        refs = (self.backend.name, self.taxonomy.ref, self.template.ref)
        return " ".join((*refs, self.backend.numerics, self.category_scores, shown, f"{self.backend.max_tokens}"))

    @property
    def fingerprint(self) -> str:
        """What decisions depend on: guards with equal fingerprints give equal decisions, up to rounding."""
        return f"{self.classifier} calibration@{self.calibration.digest} policy@{self.policy.digest}"

    def check(self, conversation: Judgeable) -> Decision:
        """Judge a user prompt (a string) or the last message of a conversation.

        Whatever cannot be judged, by bad input or by a failing classifier, is a decision with the verdict `ERROR`,
        flagged unless the policy fails open; with `on_error="raise"` it is the exception.
        """
        return self.decide(self._judge([conversation])[0])

    def check_many(self, conversations: Iterable[Judgeable], *, batch_size: int = _BATCH) -> Iterator[Decision]:
        """Judge conversations lazily, `batch_size` at a time, one decision each, in order."""
        return map(self.decide, self.judge_many(conversations, batch_size=batch_size))

    def judge_many(self, conversations: Iterable[Judgeable], *, batch_size: int = _BATCH) -> Iterator[Judgement]:
        """As `check_many`, before calibration and policy: what an evaluation keeps."""
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}", hint="give a number from 1")
        if isinstance(conversations, str | bytes | Mapping | Conversation):
            raise UsageError("check_many takes many conversations, this is one", hint="use check, or a list of it")
        return self._judged(iter(conversations), batch_size)

    def _judged(self, conversations: Iterator[Judgeable], batch_size: int) -> Iterator[Judgement]:
        while batch := list(islice(conversations, batch_size)):
            yield from self._judge(batch)

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

    def decide(self, judgement: Judgement) -> Decision:
        """Calibration and policy applied to a judgement; no classifier runs.

        Raises the judgement's error with `on_error="raise"`.
        """
        decided = self.decider(judgement)
        if decided.scores is None:
            return self._failed(judgement)
        return self._result(judgement, decided.verdict, decided.flagged, decided.scores.unsafe, decided.categories)

    def _judge(self, batch: Sequence[Judgeable]) -> list[Judgement]:
        """One judgement per item; what fails the whole batch fails each of its items."""
        prompts: list[Prompt] = []
        jobs = [self._prepare(item, prompts) for item in batch]
        answers = self._logits(prompts)
        return [
            Judgement(None, error=job) if isinstance(job, GuardrailError) else self._judgement(job, answers)
            for job in jobs
        ]

    def _prepare(self, item: Judgeable, prompts: list[Prompt]) -> _Job | GuardrailError:
        """Append the item's prompts: for each window one, and in the mode `each` one more per category."""
        try:
            conversation = Conversation.parse(item).spelled_out()
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

    def _judgement(self, job: _Job, answers: Sequence[Logits | BackendError]) -> Judgement:
        mine = answers[job.prompts]
        logits = [answer for answer in mine if isinstance(answer, Logits)]
        failure = next((answer for answer in mine if isinstance(answer, BackendError)), None)
        found = None
        if failure is None:
            try:
                starts = range(0, len(logits), len(self._builders))
                found = highest([self._margins(logits[at : at + len(self._builders)]) for at in starts])
            except ValueError as error:
                failure = BackendError(str(error))
        return Judgement(found, job.role, job.truncated, job.markers, failure)

    def _margins(self, logits: Sequence[Logits]) -> Margins:
        """The margins of one window from its prompts' answers: the whole taxonomy first, then each category alone."""
        whole, *singles = logits
        if singles:
            categories = tuple(single.unsafe - single.safe for single in singles)
            whole = Logits(whole.safe, whole.unsafe, categories, own=whole.own)
        return margins(whole)

    def _failed(self, judgement: Judgement) -> Decision:
        error = judgement.error or BackendError("there is no judgement")
        if self.policy.on_error == "raise":
            raise error
        return self._result(judgement, Verdict.ERROR, flagged_on_error(self.policy.on_error), error=str(error))

    def _result(
        self,
        judgement: Judgement,
        verdict: Verdict,
        flagged: bool,
        score: float | None = None,
        categories: tuple[CategoryScore, ...] = (),
        error: str | None = None,
    ) -> Decision:
        return Decision(
            verdict=verdict,
            flagged=flagged,
            score=score,
            categories=categories,
            role=judgement.role,
            model=self.backend.name,
            taxonomy=self.taxonomy.ref,
            template=self.template.ref,
            truncated=judgement.truncated,
            markers=judgement.markers,
            error=error,
        )


def fitting_calibration(backend: Backend, taxonomy: Taxonomy, given: Calibration | None) -> Calibration:
    """The given calibration, or the one that belongs to the weights, as far as it holds under the taxonomy.

    Raises UsageError when it was fitted for another model, InputError when it has codes that its taxonomy lacks.
    """
    if given is not None and given.model not in (None, backend.name):
        hint = "fit one for this model: guardrail calibrate"
        raise UsageError(f"the calibration was fitted for {given.model}, the model is {backend.name}", hint=hint)
    chosen = backend.calibration if given is None else given
    return chosen.under(taxonomy, backend.default_taxonomy.digest)


def _check_labels(backend: Backend, taxonomy: Taxonomy) -> None:
    """Refuse categories that the classifier does not know: nobody would score them."""
    known = backend.labels
    unknown = [code for code in taxonomy.codes if known is not None and code not in known]
    if known is not None and unknown:
        hint = f"it reads no policy; use a taxonomy with some of its own categories: {', '.join(known)}"
        raise UsageError(f"{backend.name} has no category {', '.join(unknown)}", hint=hint)
