"""One look of a release candidate at the evaluation sets: `python -m guardrail.training.release --help`.

Every look is recorded, since a set that is looked at often is no longer an evaluation set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guardrail.backends.encoder import EncoderBackend
from guardrail.errors import UsageError
from guardrail.evaluation.cache import Cache
from guardrail.evaluation.evaluate import Plan, check_overlap, evaluate
from guardrail.evaluation.report import write_report
from guardrail.evaluation.suite import Suite
from guardrail.evaluation.suite_rows import load_items
from guardrail.training.held_out import CONFIGS
from guardrail.training.model_card import write_card

__all__ = ["LOOKS", "SUITES", "look", "main"]

LOOKS = 3
"""How many models of one version of the recipe (`version` in its configuration) may look."""
SUITES = ("openai-moderation", "toxic-chat", "xstest", "hatecheck", "beavertails")


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates the run's exported model, records the look, and adds the numbers to the run's model card."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with eval/")
    parser.add_argument("--run", type=Path, required=True, help="output folder of a training run")
    parser.add_argument("--looks", type=Path, default=CONFIGS / "looks.json", help="the record, kept over all runs")
    options = parser.parse_args(arguments)
    past = json.loads(options.looks.read_text(encoding="utf-8")) if options.looks.is_file() else []
    digest = json.loads((options.run / "model" / "config.json").read_text(encoding="utf-8"))["digest"]
    version = json.loads((options.run / "config.json").read_text(encoding="utf-8"))["version"]
    others = [entry for entry in past if entry["digest"] != digest]
    if (looked := sum(entry["version"] == version for entry in others)) >= LOOKS:
        reason = f"{options.looks} already records {looked} models of version {version}"
        raise UsageError(reason, hint="use the development set")
    found = look(options.run / "model", options.data, options.run / "evaluation")
    date = datetime.now(UTC).date().isoformat()
    past = [*others, {"digest": digest, "version": version, "date": date, "sets": found}]
    for file in (options.looks, options.run / "looks.json"):
        file.write_text(json.dumps(past, indent=2) + "\n", encoding="utf-8")
    write_card(options.run)
    print(json.dumps(past[-1], indent=2))


def look(model: Path, data: Path, folder: Path) -> dict[str, Mapping[str, Any]]:
    """The model's report on every suite, written to a folder; AUPRC and F1 with their intervals, by suite."""
    suites = [load_items(Suite.load(name), data) for name in SUITES]
    backend = EncoderBackend(model)
    check_overlap(backend.calibration, suites)
    with Cache(None) as cache:
        results = evaluate(backend, suites, folder, Plan(), cache)
    backend.close()
    write_report(results, folder)
    return {result["suite"]["name"]: {name: result["metrics"][name] for name in ("auprc", "f1")} for result in results}


if __name__ == "__main__":
    main()
