"""`guardrail calibrate`: probabilities and thresholds from labelled data of your own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from guardrail.cli_eval import Cache, Data, load_suites, open_cache
from guardrail.cli_eval_output import calibration_lines
from guardrail.cli_options import (
    CategoryScoresOption,
    Device,
    Dtype,
    Model,
    Prompts,
    QuantizeOption,
    Served,
    TaxonomyOption,
    Template,
    TokenizerOption,
)
from guardrail.errors import UsageError

__all__ = ["calibrate"]


def calibrate(
    suites: Annotated[
        list[str], typer.Argument(metavar="SUITE...", help="YAML files of suites with 'use: validation', or names.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, such as calibration.json.")],
    model: Model = "embedded",
    data: Data = None,
    method: Annotated[
        str, typer.Option(help="'temperature', 'platt', 'isotonic', or 'none': thresholds only.")
    ] = "platt",
    target: Annotated[
        str,
        typer.Option(help="What thresholds are for: max-f1, fpr<=0.01, recall>=0.9, precision>=0.8, cost=5."),
    ] = "max-f1",
    prior: Annotated[
        float | None, typer.Option(help="Share of unsafe messages in use; default: as in the data.")
    ] = None,
    categories: Annotated[bool, typer.Option("--categories", help="Also fit each category that has labels.")] = False,
    at_least: Annotated[int, typer.Option(help="Rows of either label that a fit needs.")] = 30,
    allow_evaluation_set: Annotated[
        bool, typer.Option("--allow-evaluation-set", help="Fit on a set that reports are computed on.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    taxonomy: TaxonomyOption = None,
    template: Template = None,
    category_scores: CategoryScoresOption = "first",
    served_model: Served = None,
    tokenizer: TokenizerOption = None,
    prompts: Prompts = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: QuantizeOption = None,
    cache: Cache = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Judge everything anew, and keep no judgement.")] = False,
) -> None:
    """Fit calibrated probabilities and choose thresholds on labelled data, for --calibration.

    Put the file beside a checkpoint's weights as calibration.json and it is used without being named.
    """
    from guardrail.batch_output import failures
    from guardrail.cli_options import load_guard
    from guardrail.evaluation.calibrate import Recipe, check_purpose
    from guardrail.evaluation.calibrate import calibrate as fitted
    from guardrail.evaluation.calibration_fit import Target
    from guardrail.evaluation.metrics import scikit_learn

    scikit_learn()
    recipe = Recipe(method, Target.parse(target), prior, categories, at_least)  # type: ignore[arg-type]  # fitting checks it
    if output.is_dir():
        raise UsageError(f"-o: {output} is a folder", hint="name a file in it")
    if output.exists() and not overwrite:
        raise UsageError(f"-o: {output} is there already", hint="name another file, or replace it with --overwrite")
    if not output.parent.is_dir():
        raise UsageError(f"-o: there is no folder {output.parent}", hint="make it, or name another place")
    loaded = load_suites(suites, data)
    if not allow_evaluation_set:
        check_purpose(loaded)
    guard = load_guard(
        model,
        taxonomy,
        template,
        None,
        category_scores,
        device,
        dtype,
        served=served_model,
        tokenizer=tokenizer,
        prompts=prompts,
        quantize=quantize,
    )
    with guard, open_cache(cache, no_cache) as judgements:
        calibration, lines = fitted(guard, loaded, recipe, judgements)
    new = output.with_name(f"{output.name}.new")
    with failures(str(output)):
        new.write_text(json.dumps(calibration.to_dict(), indent=2) + "\n", encoding="utf-8")
        new.replace(output)
    print("\n".join(calibration_lines(lines)))
    failed = calibration.fitted["not_judged"]
    left_out = f"; {failed} rows that could not be judged were left out" if failed else ""
    print(
        f"{output}: {recipe.method}, {recipe.target}; figures are of the rows it was fitted on{left_out}",
        file=sys.stderr,
    )
