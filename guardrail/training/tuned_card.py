"""MODEL_CARD.md of a model that `guardrail train` made; every number in it comes from the run."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from guardrail import __version__
from guardrail.taxonomy_yaml import dump
from guardrail.training.comparison import cells
from guardrail.training.config import TrainingConfig
from guardrail.training.data import Training
from guardrail.training.llama_hyper import LlamaHyper
from guardrail.training.outcome import Outcome

__all__ = ["CARD", "tuned_card"]

CARD: Final = "MODEL_CARD.md"


def tuned_card(config: TrainingConfig, data: Training, outcome: Outcome) -> str:
    """The card as Markdown; it quotes no row of the data."""
    parts = (
        _head(config, data, outcome),
        _comparison(config, outcome),
        _thresholds(config, outcome),
        _data(data),
        _policy(config),
        _limits(config, outcome),
        _reproduce(config, outcome),
    )
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _head(config: TrainingConfig, data: Training, outcome: Outcome) -> str:
    taxonomy = config.result.taxonomy
    trained = outcome.trained
    rows = (
        ("version", f"`{outcome.name}`, made {datetime.now(UTC).date().isoformat()}"),
        ("trained from", _start(config, outcome)),
        ("default taxonomy", f"`{taxonomy.ref}`, {len(taxonomy)} categories"),
        ("labels", f"codes of `{config.taxonomy.ref}`"),
        ("data", f"{len(data.rows):,} rows for training, {len(data.validation):,} for validation"),
        ("weights", f"of step {trained.best_step} of {trained.steps}, the best on the validation rows"),
        *((f"validation {name}", f"{value:.4f}") for name, value in trained.metrics.items()),
        *(((f"rows, {name}", f"{count:,}") for name, count in trained.counts.items())),
    )
    return f"# {config.id}\n\nA safety classifier that is given its policy.\n\n{_table(('', ''), rows)}"


def _start(config: TrainingConfig, outcome: Outcome) -> str:
    if config.scratch is not None:
        spec = config.scratch
        words = ", its word vectors from another checkpoint" if spec.words_from else ""
        return f"nothing: {spec.layers} layers of {spec.hidden}, {spec.vocabulary:,} tokens{words}"
    return f"`{config.base}`" + (f" (`{outcome.before}`)" if outcome.before else "")


def _comparison(config: TrainingConfig, outcome: Outcome) -> str:
    rows = [
        (entry["run"], entry["items"], entry["unsafe"], name, *cells(found))
        for entry in outcome.comparison
        for name, found in entry["metrics"].items()
    ]
    head = ("suite", "items", "unsafe", "metric", "before", "after", "change", "95 % of the change")
    before = (
        "Before is the model that training started from, under the same taxonomy, at its own thresholds."
        if outcome.before
        else "There was no guard to compare with."
    )
    last = isinstance(config.train, LlamaHyper) and config.train.keep == "last"
    use = "The calibration was fitted" if last else "The best step was chosen and the calibration fitted"
    return f"""
## Evaluation

{before} F1, precision, recall and FPR are at the calibrated thresholds; AUPRC and AUROC do not depend on them. The
suites `validation-…` are the rows that were held out of training. {use}
on them, so they flatter the model somewhat; on other suites nothing was chosen, unless the run's author did.

{_table(head, rows)}"""


def _thresholds(config: TrainingConfig, outcome: Outcome) -> str:
    rows = [
        (line["role"], line["part"], line["unsafe"], line["safe"], f"{line['threshold']:.3f}")
        for line in outcome.calibration
        if line["fitted"]
    ]
    if not rows:
        return "## Thresholds\n\nNo calibration was fitted: scores are the model's own, and 0.5 flags."
    recipe = config.calibration
    prior = "as in the data" if recipe.prior is None else f"{recipe.prior:.0%}"
    head = ("role", "part", "unsafe", "safe", "threshold")
    return f"""
## Thresholds

Fitted on the validation rows: {recipe.method}, thresholds for {recipe.target}, share of unsafe messages {prior}.

{_table(head, rows)}"""


def _data(data: Training) -> str:
    checks = data.checks
    rows = [(name, *(getattr(part, key) for key in _BALANCE)) for name, part in checks.sources.items()]
    return f"""
## Training data

{checks.read:,} rows read, {checks.left:,} left (validation rows that were taken from them included). Left out:
{checks.contradicting} with contradicting labels, {checks.repeated} repeated, {checks.evaluation} evaluation texts,
{checks.near_evaluation} nearly so, {checks.validation} validation texts.

{_table(("source", "unsafe", "safe", "no verdict", "no category"), rows)}

{_table(("category", "unsafe rows"), checks.categories.items())}"""


_BALANCE: Final = ("unsafe", "safe", "unlabelled", "unknown_category")


def _policy(config: TrainingConfig) -> str:
    rows = [(category.code, category.name) for category in config.result.taxonomy]
    shares = ", ".join(f"{name} {share:g}" for name, share in config.policies.items())
    return f"""
## Policy

The default taxonomy is in `taxonomy.yaml`. Training showed these policies, by weight: {shares}.

{_table(("code", "category"), rows)}"""


def _limits(config: TrainingConfig, outcome: Outcome) -> str:
    few = [f"`{entry['run']}` has {entry['unsafe']} unsafe rows" for entry in outcome.comparison
           if entry["unsafe"] < _FEW]  # fmt: skip
    lines = [
        "It learnt these rows' labels, with whatever was wrong or one-sided about them.",
        "Languages, topics and kinds of text that the data lacks were not tested.",
        *([f"Few rows say little: {'; '.join(few)}."] if few else []),
        *(f"{note[:1].upper()}{note[1:]}." for note in outcome.notes),
    ]
    if config.scratch is not None:
        lines.insert(0, "It is a small model that has read only these texts: it knows phrasings more than intentions.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


_FEW: Final = 100


def _reproduce(config: TrainingConfig, outcome: Outcome) -> str:
    return f"""
## Reproduce

    guardrail train config.yaml -o OUT

with guardrail {__version__}, Python {platform.python_version()}, and this configuration:

```yaml
{dump(dict(config.raw)).strip()}
```"""


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(map(str, head)) + " |", "|" + "---|" * len(head)]
    lines.extend("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
    return "\n".join(lines)
