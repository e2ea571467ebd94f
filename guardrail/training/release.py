"""One look of a release candidate at the evaluation sets: `python -m guardrail.training.release --help`.

Every look is recorded in the run's looks.json, since a set that is looked at often is no longer an evaluation set.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from guardrail.backends.encoder import EncoderBackend
from guardrail.errors import UsageError
from guardrail.guard import Guard
from guardrail.training.model_card import write_card

__all__ = ["LOOKS", "evaluation_sets", "look", "main"]

LOOKS = 3
"""How often one version may look."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Scores the evaluation sets with the run's exported model, once, and adds the numbers to the model card."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with eval/")
    parser.add_argument("--run", type=Path, required=True, help="output folder of a training run")
    parser.add_argument("--looks", type=Path, required=True, help="file that records the looks, kept over all runs")
    options = parser.parse_args(arguments)
    past = json.loads(options.looks.read_text(encoding="utf-8")) if options.looks.is_file() else []
    if len(past) >= LOOKS:
        raise UsageError(f"{options.looks} already records {len(past)} looks", hint="use the development set")
    past.append(look(options.run / "model", options.data))
    for file in (options.looks, options.run / "looks.json"):
        file.write_text(json.dumps(past, indent=2) + "\n", encoding="utf-8")
    write_card(options.run)
    print(json.dumps(past[-1], indent=2))


def look(model: Path, data: Path) -> dict[str, Any]:
    """Average precision on each evaluation set, and precision, recall and F1 at the shipped threshold."""
    found = {}
    with Guard(EncoderBackend(model)) as guard:
        for name, (texts, truth) in evaluation_sets(data).items():
            decisions = list(guard.check_many(texts))
            # What could not be judged is flagged, so it ranks above all that was.
            scores = np.array([1.0 if decision.score is None else decision.score for decision in decisions])
            flagged = [decision.flagged for decision in decisions]
            precision, recall, f1, _ = precision_recall_fscore_support(truth, flagged, average="binary")
            found[name] = {
                "rows": len(texts),
                "unsafe": int(sum(truth)),
                "errors": sum(decision.error is not None for decision in decisions),
                "auprc": float(average_precision_score(truth, scores)),
                "threshold": guard.policy.user.verdict,
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
            }
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return {"digest": config["digest"], "date": datetime.now(UTC).date().isoformat(), "sets": found}


def evaluation_sets(data: Path) -> dict[str, tuple[list[str], list[bool]]]:
    """OpenAI's moderation set, unsafe when any label is 1; and ToxicChat's test set, by the toxicity of user_input."""
    with gzip.open(data / "eval" / "openai_moderation" / "samples-1680.jsonl.gz", "rt", encoding="utf-8") as stream:
        moderation = [json.loads(line) for line in stream]
    lines = (data / "eval" / "toxic_chat" / "toxicchat0124_test.jsonl").read_text(encoding="utf-8").splitlines()
    chats = [json.loads(line) for line in lines]
    labels = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
    return {
        "OpenAI Moderation": (
            [row["prompt"] for row in moderation],
            [any(row.get(label) == 1 for label in labels) for row in moderation],
        ),
        "ToxicChat test": ([row["user_input"] for row in chats], [bool(int(row["toxicity"])) for row in chats]),
    }


if __name__ == "__main__":
    main()
