"""`guardrail check`: judge one text or one exchange."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from guardrail.cli_options import (
    CalibrationOption,
    CategoryScoresOption,
    Device,
    Dtype,
    Model,
    Prompts,
    QuantizeOption,
    Served,
    TaxonomyOption,
    Template,
    Threshold,
    TokenizerOption,
)

if TYPE_CHECKING:
    from guardrail.types import Decision

__all__ = ["check"]

_BAR = 24
_FLAGGED = 3


def check(
    text: Annotated[str, typer.Argument(help="The user's text; '-' or nothing reads it from stdin.")] = "-",
    response: Annotated[str | None, typer.Option(help="The assistant's answer; then the answer is judged.")] = None,
    model: Model = "embedded",
    taxonomy: TaxonomyOption = None,
    template: Template = None,
    threshold: Threshold = None,
    calibration: CalibrationOption = None,
    category_scores: CategoryScoresOption = "first",
    served_model: Served = None,
    tokenizer: TokenizerOption = None,
    prompts: Prompts = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: QuantizeOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the decision as one line of JSON.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 3 when flagged.")] = False,
) -> None:
    """Judge one text, or an assistant's answer to it."""
    from guardrail.cli_options import load_guard

    if text == "-":
        if sys.stdin.isatty():
            print("reading the text from the terminal; end it with Ctrl-D", file=sys.stderr)
        text = sys.stdin.buffer.read().decode("utf-8", "replace")
    guard = load_guard(
        model,
        taxonomy,
        template,
        threshold,
        category_scores,
        device,
        dtype,
        served=served_model,
        tokenizer=tokenizer,
        prompts=prompts,
        quantize=quantize,
        calibration=calibration,
        on_error="raise",
    )
    messages = [{"role": "user", "content": text}]
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    decision = guard.check(messages)
    judged = guard.judge_of(decision)
    role = judged.policy.user if decision.role == "user" else judged.policy.assistant
    if json_:
        print(json.dumps(decision.to_dict(), ensure_ascii=False))
    else:
        own_verdict = role.own and judged.taxonomy.digest == judged.backend.default_taxonomy.digest
        _show(decision, None if own_verdict else role.verdict, role.categories)
    if exit_code and decision.flagged:
        raise typer.Exit(_FLAGGED)


def _show(decision: Decision, threshold: float | None, own: Mapping[str, float]) -> None:
    """A table for people: the verdict in words, the score as a bar with the threshold marked, the categories.

    Laid out by hand: importing rich takes longer than judging a short text.
    """
    assert decision.score is not None
    judged = "user prompt" if decision.role == "user" else "assistant answer"
    verdict = typer.style(decision.verdict.value.upper(), fg="red" if decision.flagged else "green", bold=True)
    limit = "" if threshold is None else typer.style(f"  threshold {threshold:.2f}", dim=True)
    _say(f"{verdict}  {judged}   P(unsafe) {decision.score:.3f}  {_bar(decision.score, threshold)}{limit}")
    code, name = (max(len(getattr(category, field)) for category in decision.categories) for field in ("code", "name"))
    code, name = max(code, len("code")), max(name, len("category"))
    _say(typer.style(f"   {'code':{code}}  {'category':{name}}  score", bold=True))
    for category in sorted(decision.categories, key=lambda c: -c.score):
        bar = _bar(category.score, own.get(category.code))
        line = f"{'!' if category.flagged else ' '}  {category.code:{code}}  {category.name:{name}}"
        _say(typer.style(f"{line}  {category.score:.3f}  {bar}", bold=category.flagged))
    for note in _notes(decision):
        _say(typer.style(note, dim=True))


def _say(line: str) -> None:
    typer.echo(line, color=False if os.environ.get("NO_COLOR") else None)


def _notes(decision: Decision) -> list[str]:
    notes = [f"{decision.model} · {decision.taxonomy} · {decision.template}"]
    if decision.truncated:
        notes.append("note: part of the conversation was too long and was left out")
    if decision.markers:
        notes.append(f"note: the text contains prompt markers: {', '.join(decision.markers)}")
    return notes


def _bar(score: float, threshold: float | None) -> str:
    """`####--|-----`: filled up to the score, a bar where the threshold is; no meaning is carried by colour."""
    filled = round(score * _BAR)
    cells = ["#" if cell < filled else "·" for cell in range(_BAR)]
    if threshold is not None:
        cells.insert(min(_BAR, round(threshold * _BAR)), "|")
    return "".join(cells)
