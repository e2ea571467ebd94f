"""Trains, exports and describes the embedded model: `python -m guardrail.training.embedded --help`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from guardrail.tokens import TextTokenizer
from guardrail.training.embedded_config import read_config
from guardrail.training.encoder_batches import DEFAULT, EncoderPolicies, Renderer
from guardrail.training.encoder_finish import finish, read_recipe
from guardrail.training.encoder_hyper import Hyper
from guardrail.training.encoder_model import EncoderConfig, EncoderModel
from guardrail.training.encoder_trainer import Trainer
from guardrail.training.encoder_validation import Validation
from guardrail.training.held_out import CONFIGS
from guardrail.training.labels import HazardTable
from guardrail.training.mix import Mix, read_mix
from guardrail.training.model_card import write_card
from guardrail.training.policies import PolicyChanges, PolicySampler
from guardrail.training.withheld import remaining_labels, withheld_hazards, withhold

__all__ = ["main", "train"]

# How often a step sees a part of its policy only.
_DROP = 0.4


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the data, trains, exports; everything it writes lies in the output folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and eval/")
    parser.add_argument("--base", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--config", type=Path, default=CONFIGS / "train-embedded.yaml")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the run's files")
    parser.add_argument("--export-only", action="store_true", help="export the output folder's checkpoint again")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    config = _config(options.config, options.output / "config.json", again=options.export_only)
    table = HazardTable.read(CONFIGS / "hazards.yaml")
    without = withheld_hazards(config.get("without", ()))
    mix = withhold(read_mix(options.data, table, config["sources"], config["held_out"]), without)
    _write(options.output / "manifest.json", mix.manifest)
    validation = Validation.make(mix.held_out, config["domains"], options.data)
    torch.manual_seed(config["hyper"]["seed"])
    if not options.export_only:
        train(mix, table, validation, EncoderModel.from_base(options.base), options.base, config, options.output)
    model = load_checkpoint(options.output / "checkpoint.pt", EncoderConfig())
    date = datetime.now(UTC).date().isoformat()
    recipe = read_recipe(config["calibration"])
    tokenizer = options.base / "tokenizer.json"
    report = finish(model, tokenizer, mix, validation, options.output, config["id"], date, recipe)
    report["config"] = config
    report["trained"] = json.loads((options.output / "training.json").read_text(encoding="utf-8"))
    _write(options.output / "report.json", report)
    write_card(options.output)


def train(
    mix: Mix, table: HazardTable, validation: Validation, model: EncoderModel, base: Path, config: Mapping[str, Any],
    output: Path,
) -> None:  # fmt: skip
    """Trains the model; writes checkpoint.pt (the step that validated best), validation.jsonl and training.json.

    With `without` in the configuration the mix is expected to be without these hazards too (`withheld.withhold`).
    """
    hyper = Hyper(**config["hyper"])
    renderer = Renderer(TextTokenizer.from_json((base / "tokenizer.json").read_text(encoding="utf-8")))
    space = remaining_labels(withheld_hazards(config.get("without", ())))
    wordings = {name: texts for name, texts in table.wordings.items() if name in space.everything}
    policies = PolicySampler(space, config["policies"], PolicyChanges(drop_unviolated=_DROP), wordings)
    sampler = EncoderPolicies(policies, renderer, hyper.category_tokens)
    trainer = Trainer(model, renderer, sampler, hyper)
    best = [0.0]
    trained: dict[str, Any] = {}
    (output / "validation.jsonl").unlink(missing_ok=True)
    started = time.monotonic()

    def evaluate(step: int) -> bool:
        averaged = trainer.averaged()
        found = validation.measure(averaged, renderer, sampler.shipped[DEFAULT])
        if found["goal"] > best[0]:
            best[0] = found["goal"]
            torch.save({"weights": trainer.average, "step": step, "found": found}, output / "checkpoint.pt")
            trained.update({"best_step": step, "validation": found})
            _write(output / "training.json", trained)
        line = json.dumps({"step": step, **{name: round(value, 4) for name, value in found.items()}})
        with (output / "validation.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        print(line, file=sys.stderr, flush=True)
        return True

    trainer.train(lambda number: mix.sample(number, hyper.seed), evaluate)
    trained.update(
        {"seconds": round(time.monotonic() - started), "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    )
    _write(output / "training.json", trained)


def load_checkpoint(file: Path, config: EncoderConfig) -> EncoderModel:
    """The model of a training run."""
    model = EncoderModel(config)
    model.load_state_dict(torch.load(file, weights_only=True)["weights"])
    return model.eval()


def _config(file: Path, kept: Path, *, again: bool) -> dict[str, Any]:
    """The configuration: of a new run, which keeps a copy, or the copy of the run that is exported again."""
    if again:
        return json.loads(kept.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    config = read_config(file)
    _write(kept, config)
    return config


def _write(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
