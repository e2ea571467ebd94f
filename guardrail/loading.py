"""From a model's name to a guard: `load`, and `--model` with what goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guardrail.backends import EMBEDDED, load_backend
from guardrail.calibration import Calibration
from guardrail.errors import GuardrailError, UsageError
from guardrail.guard import CategoryScores, Guard, fitting_calibration
from guardrail.policy import OnError, Policy
from guardrail.taxonomy import Taxonomy

__all__ = ["load"]


def load(
    model: str | Path = EMBEDDED,
    *,
    taxonomy: str | Path | Taxonomy | None = None,
    template: str | None = None,
    threshold: float | None = None,
    thresholds: Mapping[str, float] | None = None,
    policy: Policy | None = None,
    calibration: str | Path | Calibration | None = None,
    on_error: OnError = "closed",
    category_scores: CategoryScores = "first",
    policy_text: bool | None = None,
    **options: Any,
) -> Guard:
    """A guard, ready to check.

    `model` is `embedded` (in the package, no network), a Llama Guard checkpoint (hub id or folder), `encoder:FOLDER`,
    `gguf:FILE` (llama.cpp in this process), `classifier:CHECKPOINT` (any Hugging Face sequence classifier),
    `openai:URL` (a guard model behind a server that gives logprobs), `openai-moderation:MODEL`, `perspective:`, or
    `cascade:FILE` (two of them, see docs/cascade.md).
    `taxonomy` is the name of a shipped one or a file; without it, the one the weights were trained on. `template` is a
    prompt format other than the checkpoint's. `threshold` (for P(unsafe)) and `thresholds` (by category code) replace
    the calibrated ones for both roles; `policy` replaces all of them. `calibration` is a file that `guardrail
    calibrate` wrote, in place of the one beside the weights. `policy_text` shows or hides the definitions; by default
    as the checkpoint's family was trained, and shown for any other taxonomy. `options` go to the backend: `device`,
    `dtype`, `quantize`, `token_budget`, `revision` for a checkpoint, `threads` for an encoder or a GGUF file,
    `served`, `tokenizer`, `prompts` for a model server.
    """
    if policy is not None and (threshold is not None or thresholds or on_error != "closed"):
        raise UsageError("policy: it holds thresholds and on_error already", hint="give either it or them")
    if str(model).startswith("cascade:"):
        own: dict[str, Any] = {
            "taxonomy": taxonomy,
            "template": template,
            "threshold": threshold,
            "thresholds": thresholds,
        }
        own |= {"policy": policy, "calibration": calibration, "policy_text": policy_text, **options}
        own["category_scores"] = None if category_scores == "first" else category_scores
        return _cascade(Path(str(model).removeprefix("cascade:")), on_error, own)
    if template is not None:
        options["template"] = template
    backend = load_backend(str(model), **options)
    try:
        chosen = backend.default_taxonomy if taxonomy is None else Taxonomy.load(taxonomy)
        if isinstance(calibration, str | Path):
            calibration = Calibration.read(Path(calibration))
        calibrated = fitting_calibration(backend, chosen, calibration)
        if policy is None:
            user, assistant = (
                s.thresholds.replaced(threshold, thresholds) for s in (calibrated.user, calibrated.assistant)
            )
            policy = Policy(user, assistant, on_error)
        return Guard(
            backend,
            taxonomy=chosen,
            policy=policy,
            calibration=calibration,
            category_scores=category_scores,
            policy_text=policy_text,
        )
    except BaseException:
        backend.close()
        raise


def _cascade(file: Path, on_error: OnError, given: Mapping[str, Any]) -> Guard:
    """The cascade in a file, which says all of it but what an error means."""
    from guardrail.cascade import Cascade
    from guardrail.cascade_file import CascadeFile

    for name in (name for name, value in given.items() if value is not None):
        hint = "write it there, or leave it out"
        raise UsageError(f"{name}: a cascade has it from its file, {file}", hint=hint)
    content = CascadeFile.read(file)
    taxonomy = content.taxonomy
    guards: list[Guard] = []
    try:
        for model in (content.first, content.second):
            guard = load(
                model.model,
                taxonomy=taxonomy,
                template=model.template,
                threshold=model.threshold,
                calibration=model.calibration,
                on_error=on_error,
                category_scores=model.category_scores,  # type: ignore[arg-type]  # the guard checks it
                **model.options,
            )
            guards.append(guard)
            model.check(guard.backend.name, file)
            taxonomy = guard.taxonomy
        return Cascade(guards[0], guards[1], content.bands)
    except GuardrailError:
        for guard in guards:
            guard.close()
        raise
