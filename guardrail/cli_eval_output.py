"""What `guardrail eval` prints: plain tables on stdout, aligned, the same in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from guardrail.evaluation.report_format import summary_metric

__all__ = ["calibration_lines", "comparison_lines", "summary_lines"]

_SHOWN = ("auprc", "auroc", "f1", "precision", "recall", "fpr", "ece")
_COMPARED = ("auprc", "auroc", "f1", "precision", "recall", "fpr", "mcc", "recall_at_fpr_1", "recall_at_fpr_5", "ece")
_UNDEFINED = "-"
_TEXT = 70


def table(rows: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """The rows with aligned columns: the first `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def summary_lines(results: Iterable[Mapping[str, Any]], folder: Path) -> Iterator[str]:
    """One row for each run, and where the report is."""
    results = list(results)
    head = ("run", "items", "unsafe", "errors", *_SHOWN, "95 % of AUPRC")
    yield from table([head, *(_summary_row(result) for result in results)])
    for result in results:
        if result["counts"]["errors"]:
            worst = result["pessimistic"]
            reason = result["failures"][0]
            yield (
                f"{_name(result)}: {result['counts']['errors']} items could not be judged and are in no metric; "
                f"with each of them as a mistake: auprc {_number(worst['auprc'])}, f1 {_number(worst['f1'])}; "
                f"{reason['items']} times: {_printable(reason['error'])}"
            )
    for result in results:
        if second := result.get("second"):
            yield f"{_name(result)}: {second['items']} items were judged by the second model, {second['model']}"
    for name, caveat in {result["suite"]["id"]: result["suite"]["caveat"] for result in results}.items():
        if caveat:
            yield f"{name}: {caveat}"
    yield f"report: {folder / 'report.html'}"


def _name(result: Mapping[str, Any]) -> str:
    name: str = result["suite"]["id"]
    return name if result["adaptation"] == "none" else f"{name}, {result['adaptation']}"


def _summary_row(result: Mapping[str, Any]) -> tuple[str, ...]:
    counts = result["counts"]
    auprc = summary_metric(result, "auprc")
    return (
        _name(result),
        *(str(counts[name]) for name in ("items", "unsafe", "errors")),
        *(_number(found["value"] if (found := summary_metric(result, name)) else None) for name in _SHOWN),
        f"{auprc['low']:.3f} to {auprc['high']:.3f}" if auprc else _UNDEFINED,
    )


def _number(value: float | None) -> str:
    return _UNDEFINED if value is None else f"{value:.3f}"


def comparison_lines(entry: Mapping[str, Any], rows: int) -> Iterator[str]:
    """The metrics of both sides with the difference, and the first of the rows that changed."""
    left_out = f"; {entry['left_out']} that not both sides judged are left out" if entry["left_out"] else ""
    yield f"{entry['run']}: {entry['items']} items{left_out}"
    for side in ("a", "b"):
        about = entry[side]
        yield f"  {side}: {about['model']} · {about['taxonomy']} · threshold: {about['thresholds']}"
    head = ("", "a", "b", "b - a", "95 %", "p")
    yield from table([head, *(_difference(name, entry["metrics"][name]) for name in _COMPARED)])
    changed = entry["changed"]
    better = sum(row["better"] == "b" for row in changed)
    yield f"decided differently: {len(changed)} items; b is right on {better}, a on {len(changed) - better}"
    for row in changed[:rows]:
        label = "unsafe" if row["unsafe"] else "safe"
        text = " ".join((row["text"] or "").split())
        shown = text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"
        name = _printable(str(row["id"]))
        yield f"  {row['better']} right  {label:<6}  {row['a']:.3f} -> {row['b']:.3f}  {name}  {_printable(shown)}"


def _difference(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    if "p" not in entry:
        return (name, _number(entry["a"]), _number(entry["b"]), _UNDEFINED, _UNDEFINED, _UNDEFINED)
    ends = f"{entry['low']:+.3f} to {entry['high']:+.3f}"
    return (name, _number(entry["a"]), _number(entry["b"]), f"{entry['value']:+.3f}", ends, f"{entry['p']:.3f}")


def _printable(text: str) -> str:
    """The text without characters that would steer a terminal."""
    return "".join(char if char.isprintable() else "�" for char in text)


def calibration_lines(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One row for each part that was fitted, or why it was not."""
    head = (
        "role",
        "part",
        "unsafe",
        "safe",
        "threshold",
        "precision",
        "recall",
        "f1",
        "fpr",
        "loss before",
        "loss",
        "5 folds",
    )
    shown = ("threshold", "precision", "recall", "f1", "fpr", "loss_before", "loss", "loss_unseen")
    rows = [
        (line["role"], line["part"], str(line["unsafe"]), str(line["safe"]), *(_number(line[name]) for name in shown))
        for line in lines
        if line["fitted"]
    ]
    yield from table([head, *rows], left=2)
    for line in lines:
        if not line["fitted"] and line["unsafe"] + line["safe"]:
            counts = f"{line['unsafe']} unsafe and {line['safe']} safe rows"
            yield f"{line['role']} {line['part']}: left as it was, {counts} are too few"
