"""Before and after: the model that training started from and the one that it made, on the same suites."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from guardrail.backends import load_backend
from guardrail.errors import GuardrailError
from guardrail.evaluation.cache import Cache
from guardrail.evaluation.compare import compare
from guardrail.evaluation.evaluate import Plan, by_name, evaluate
from guardrail.evaluation.report import write_report
from guardrail.evaluation.suite_rows import LoadedSuite
from guardrail.taxonomy import Taxonomy

__all__ = ["METRICS", "comparison_lines", "comparisons", "measure"]

METRICS: Final = ("auprc", "auroc", "f1", "precision", "recall", "fpr", "ece")
_UNDEFINED = "-"


def measure(
    model: str, suites: Sequence[LoadedSuite], taxonomy: Taxonomy, folder: Path, cache: Cache, **options: Any
) -> str:
    """Write the evaluation report of a model under a taxonomy into a folder; returns the model's `id@digest`.

    `options` are the backend's. Raises GuardrailError when the model cannot be read as a guard.
    """
    backend = load_backend(model, **{key: value for key, value in options.items() if value is not None})
    try:
        write_report(evaluate(backend, suites, folder, Plan(taxonomy=taxonomy), cache), folder)
    finally:
        backend.close()
    return backend.name


def comparisons(
    suites: Sequence[LoadedSuite], folder: Path, before: Callable[[Path], str] | None
) -> tuple[str | None, list[dict[str, Any]], list[str]]:
    """The name of the model before, the entries of all suites, and notes. The report of the model now is in after/.

    `before` writes the report of the model before into before/. A base that is no guard yet, such as one whose
    tokenizer cannot say the verdict, has none, and a note says so.
    """
    name, notes = None, []
    if before is not None:
        try:
            name = before(folder / "before")
        except GuardrailError as error:
            notes.append(f"the model before could not be evaluated: {error}")
    results = by_name(_results(folder / "after"))
    if name is None:
        return None, [_entry(results[loaded.suite.id]) for loaded in suites], notes
    pairs = {found["run"]: found for found in compare(folder / "before", folder / "after")}
    return name, [_entry(results[loaded.suite.id], pairs[loaded.suite.id]) for loaded in suites], notes


def _results(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))["runs"]


def _entry(after: Mapping[str, Any], pair: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One suite: what it is, and each metric before and after with the 95 % interval of the difference."""
    about = {"run": after["suite"]["id"], **{key: after["counts"][key] for key in ("items", "unsafe", "errors")}}
    metrics: dict[str, dict[str, float | None]] = {}
    for name in METRICS:
        if pair is None:
            found = after["metrics"][name]
            metrics[name] = {"before": None, "after": found["value"] if found else None}
            continue
        found = pair["metrics"].get(name) or {}
        ends = {key: found[key] for key in ("low", "high", "p") if key in found}
        metrics[name] = {"before": found.get("a"), "after": found.get("b"), **ends}
    return {**about, "metrics": metrics}


def comparison_lines(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A table in plain text: for each suite one line per metric."""
    rows = [("suite", "metric", "before", "after", "change", "95 %")]
    for entry in entries:
        for name, found in entry["metrics"].items():
            rows.append((entry["run"] if name == METRICS[0] else "", name, *cells(found)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        parts = [
            cell.ljust(w) if at < 2 else cell.rjust(w) for at, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(parts).rstrip()


def cells(found: Mapping[str, float | None]) -> tuple[str, str, str, str]:
    """Before, after, their difference and its ends, as text."""
    before, after = found["before"], found["after"]
    first, second = (_UNDEFINED if value is None else f"{value:.3f}" for value in (before, after))
    if before is None or after is None:
        return first, second, _UNDEFINED, _UNDEFINED
    low, high = found.get("low"), found.get("high")
    ends = _UNDEFINED if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
    return first, second, f"{after - before:+.3f}", ends
