"""Trains, exports and describes the embedded model: `python -m guardrail.training.embedded --help`."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sklearn.metrics import average_precision_score

from guardrail.tokens import TextTokenizer
from guardrail.training.dedupe import EvaluationIndex
from guardrail.training.encoder_batches import PolicySampler, Renderer
from guardrail.training.encoder_model import EncoderModel
from guardrail.training.encoder_trainer import Hyper, Trainer
from guardrail.training.encoder_validation import domain_scores, logits, policy_vectors
from guardrail.training.labels import HazardTable
from guardrail.training.mix import read_mix
from guardrail.training.rows import Row
from guardrail.types import Conversation

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and eval/")
    parser.add_argument("--base", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--config", type=Path, default=CONFIGS / "train-embedded.yaml")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the run's files")
    options = parser.parse_args(arguments)
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    train(options.data, options.base, config, options.output)


def train(data: Path, base: Path, config: Mapping[str, Any], output: Path) -> None:
    """Reads the data, trains, and writes checkpoint.pt, manifest.json and validation.jsonl to the output folder."""
    output.mkdir(parents=True, exist_ok=True)
    hyper = Hyper(**config["hyper"])
    torch.manual_seed(hyper.seed)
    table = HazardTable.read(CONFIGS / "hazards.yaml")
    mix = read_mix(data, table, config["sources"], config["held_out"])
    (output / "manifest.json").write_text(json.dumps(mix.manifest, indent=2) + "\n", encoding="utf-8")
    renderer = Renderer(TextTokenizer.from_json((base / "tokenizer.json").read_text(encoding="utf-8")))
    sampler = PolicySampler(table, renderer, config["policies"], hyper.category_tokens)
    trainer = Trainer(EncoderModel.from_base(base), renderer, sampler, hyper)
    apart = validation_rows(mix.held_out)
    development = development_set(data)
    best = [0.0]

    def evaluate(step: int) -> bool:
        model = trainer.averaged()
        vectors = policy_vectors(model, sampler.shipped["default"], renderer)
        verdicts, _ = logits(model, renderer, [row.conversation for row in apart], vectors)
        found: dict[str, float] = domain_scores(apart, verdicts, config["domains"])
        if development:
            verdicts, _ = logits(model, renderer, [Conversation.parse(text) for text, _ in development], vectors)
            found["development"] = float(average_precision_score([toxic for _, toxic in development], verdicts))
        goal = found["macro"] + found.get("development", 0.0)
        if goal > best[0]:
            best[0] = goal
            torch.save({"weights": trainer.average, "step": step, "found": found}, output / "checkpoint.pt")
        line = json.dumps({"step": step, **{name: round(value, 4) for name, value in found.items()}})
        with (output / "validation.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        print(line, file=sys.stderr, flush=True)
        return True

    trainer.train(lambda number: mix.sample(number, hyper.seed), evaluate)


def validation_rows(rows: Sequence[Row], most: int = 150) -> list[Row]:
    """At most `most` unsafe and as many other held-out rows of each source, always the same ones."""
    groups: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.source, row.unsafe >= 0.5), []).append(row)
    chosen = random.Random(0)
    return [row for group in groups.values() for row in chosen.sample(group, min(most, len(group)))]


def development_set(data: Path) -> list[tuple[str, bool]]:
    """ToxicChat's human-written training prompts, without those that its test set has too; empty when absent."""
    folder = data / "eval" / "toxic_chat"
    files = [folder / f"toxicchat0124_{name}.jsonl" for name in ("train_human_only", "test")]
    if not all(file.is_file() for file in files):
        return []
    train, test = ([json.loads(line) for line in file.read_text("utf-8").splitlines()] for file in files)
    index = EvaluationIndex(row["user_input"] for row in test)
    kept = [row for row in train if row["user_input"].strip() and not index.exact(row["user_input"])]
    return [(row["user_input"], bool(int(row["toxicity"]))) for row in kept]


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
