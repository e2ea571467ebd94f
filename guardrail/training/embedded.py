"""Trains, exports and describes the embedded model: `python -m guardrail.training.embedded --help`."""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from guardrail.tokens import TextTokenizer
from guardrail.training.embedded_config import merged, read_config
from guardrail.training.encoder_batches import DEFAULT, EncoderPolicies, Renderer
from guardrail.training.encoder_finish import finish, read_recipe
from guardrail.training.encoder_hyper import Hyper
from guardrail.training.encoder_model import EncoderConfig, EncoderModel
from guardrail.training.encoder_run import Start, open_start
from guardrail.training.encoder_trainer import Trainer
from guardrail.training.encoder_validation import Validation
from guardrail.training.held_out import CONFIGS
from guardrail.training.labels import HazardTable
from guardrail.training.mix import Mix, configured_mix
from guardrail.training.model_card import write_card
from guardrail.training.policies import PolicyChanges, PolicySampler
from guardrail.training.withheld import remaining_labels, withheld_hazards, withhold

__all__ = ["average_runs", "load_checkpoint", "main", "train"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the data, trains, exports; everything it writes lies in the output folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and eval/")
    parser.add_argument("--base", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--config", type=Path, default=CONFIGS / "train-embedded.yaml")
    parser.add_argument("--start", type=Path, help="folder of a run to go on from, instead of a new head on the base")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the run's files")
    parser.add_argument("--run", type=int, metavar="N", help="make the Nth run only, beside other processes")
    parser.add_argument("--export-only", action="store_true", help="export the output folder's checkpoint again")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    config = _config(options.config, options.output / "config.json", again=options.export_only)
    if options.run is not None and not 1 <= options.run <= len(config["runs"]):
        parser.error(f"--run {options.run}: the configuration has the runs 1 to {len(config['runs'])}")
    table = HazardTable.read(CONFIGS / "hazards.yaml")
    without = withheld_hazards(config.get("without", ()))
    mix = withhold(configured_mix(options.data, table, config), without)
    _write(options.output / "manifest.json", mix.manifest)
    validation = Validation.make(mix.held_out, config["domains"], options.data)
    begin = None if options.start is None else _start(options.start)
    if not options.export_only:
        numbers = range(1, len(config["runs"]) + 1)
        for number in numbers if options.run is None else [options.run]:
            if not (options.output / _checkpoint(number)).is_file():
                model = _first_weights(config, options.base, begin)
                train(mix, table, validation, model, options.base, config, number, options.output)
        if options.run is not None:
            return
        files = [options.output / _checkpoint(number) for number in numbers]
        average_runs(files, options.output, None if begin is None else begin.model, config.get("start_share", 0.0))
    _describe(options, config, mix, validation, begin)


def _first_weights(config: Mapping[str, Any], base: Path, begin: Start | None) -> EncoderModel:
    """Where every run starts: only from the same weights does the mean of what they end at make sense."""
    torch.manual_seed(config["runs"][0]["seed"])
    return EncoderModel.from_base(base) if begin is None else copy.deepcopy(begin.model)


def _describe(
    options: argparse.Namespace, config: Mapping[str, Any], mix: Mix, validation: Validation, begin: Start | None
) -> None:
    """Exports the checkpoint, measures it, and writes the report and the card."""
    table = HazardTable.read(CONFIGS / "hazards.yaml")
    model = load_checkpoint(options.output / "checkpoint.pt", EncoderConfig() if begin is None else begin.model.config)
    renderer, sampler = _policies(table, config, Hyper(**config["hyper"]), options.base)
    trained = json.loads((options.output / "training.json").read_text(encoding="utf-8"))
    trained["start"] = None if begin is None else begin.base.name
    trained["earlier"] = None if begin is None else _earlier(options.start)
    trained["validation"] = validation.measure(model, renderer, sampler.shipped[DEFAULT])
    date = datetime.now(UTC).date().isoformat()
    recipe = read_recipe(config["calibration"])
    tokenizer = options.base / "tokenizer.json"
    origin = None if begin is None else begin.base
    report = finish(model, tokenizer, mix, validation, options.output, config["id"], date, recipe, origin)
    report["config"] = config
    report["trained"] = trained
    _write(options.output / "report.json", report)
    write_card(options.output)


def _earlier(run: Path) -> dict[str, Any]:
    """What was measured of the training that a run went on from: its core-seconds, and whether that is all of it."""
    report = run / "report.json"
    if not report.is_file():
        return {"core_seconds": 0, "whole": False}
    trained = json.loads(report.read_text(encoding="utf-8"))["trained"]
    before = trained.get("earlier") or {"core_seconds": 0, "whole": trained.get("start") is None}
    return {"core_seconds": before["core_seconds"] + trained["core_seconds"], "whole": before["whole"]}


def train(
    mix: Mix, table: HazardTable, validation: Validation, model: EncoderModel, base: Path, config: Mapping[str, Any],
    number: int, output: Path,
) -> None:  # fmt: skip
    """Makes run N of the configuration; writes validation-N.jsonl and, at the end, checkpoint-N.pt: the best step.

    Whatever a run says besides its seed takes the place of what the configuration says for all.

    With `without` in the configuration the mix is expected to be without these hazards too (`withheld.withhold`).
    """
    own = dict(config["runs"][number - 1])
    seed = own.pop("seed")
    config = merged(config, own)
    mix = mix.with_amounts(config["sources"])
    torch.manual_seed(seed)
    hyper = Hyper(**config["hyper"], seed=seed)
    renderer, sampler = _policies(table, config, hyper, base)
    trainer = Trainer(model, renderer, sampler, hyper)
    best: dict[str, Any] = {"found": {"goal": 0.0}}
    log = output / f"validation-{number}.jsonl"
    log.unlink(missing_ok=True)
    started = time.monotonic()

    def evaluate(step: int) -> bool:
        found = validation.measure(trainer.averaged(), renderer, sampler.shipped[DEFAULT])
        if found["goal"] > best["found"]["goal"]:
            weights = {name: value.clone() for name, value in trainer.average.items()}
            best.update(weights=weights, step=step, found=found)
        line = json.dumps({"step": step, **{name: round(value, 4) for name, value in found.items()}})
        with log.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        print(f"run {number} {line}", file=sys.stderr, flush=True)
        return True

    trainer.train(lambda turn: mix.sample(turn, seed), evaluate)
    took = {"seconds": round(time.monotonic() - started), "threads": torch.get_num_threads()}
    torch.save({**best, **took}, output / _checkpoint(number))


def average_runs(files: Sequence[Path], output: Path, start: EncoderModel | None = None, share: float = 0.0) -> None:
    """Writes the mean of the runs' weights as checkpoint.pt, and training.json with their steps, scores and times.

    Of the model that the runs went on from, `share` is mixed in (Wortsman et al. 2022, weight-space ensembles).
    """
    runs = [torch.load(file, weights_only=True) for file in files]
    weights = {
        name: torch.stack([run["weights"][name].float() for run in runs]).mean(dim=0) for name in runs[0]["weights"]
    }
    if start is not None:
        weights = {name: value.lerp(weights[name], 1 - share) for name, value in start.state_dict().items()}
    torch.save({"weights": weights}, output / "checkpoint.pt")
    steps = [{"best_step": run["step"], "validation": run["found"], "seconds": run["seconds"]} for run in runs]
    trained = {
        "runs": steps, "seconds": sum(run["seconds"] for run in runs),
        "core_seconds": sum(run["seconds"] * run["threads"] for run in runs), "cores": os.cpu_count(),
    }  # fmt: skip
    _write(output / "training.json", trained)


def _policies(
    table: HazardTable, config: Mapping[str, Any], hyper: Hyper, base: Path
) -> tuple[Renderer, EncoderPolicies]:
    renderer = Renderer(TextTokenizer.from_json((base / "tokenizer.json").read_text(encoding="utf-8")))
    space = remaining_labels(withheld_hazards(config.get("without", ())))
    wordings = {name: texts for name, texts in table.wordings.items() if name in space.everything}
    policies = PolicySampler(space, config["policies"], PolicyChanges(**config["changes"]), wordings)
    return renderer, EncoderPolicies(policies, renderer, hyper.category_tokens)


def _start(run: Path) -> Start:
    """What a run ended at: its weights in 32 bits where it still has them, else those of the model that it exported."""
    exported = open_start(str(run / "model"))
    weights = run / "checkpoint.pt"
    return replace(exported, model=load_checkpoint(weights, exported.model.config)) if weights.is_file() else exported


def _checkpoint(number: int) -> str:
    return f"checkpoint-{number}.pt"


def load_checkpoint(file: Path, config: EncoderConfig) -> EncoderModel:
    """The model of a training run, with these sizes and as many positions as it has: an export keeps fewer."""
    weights = torch.load(file, weights_only=True)["weights"]
    model = EncoderModel(replace(config, positions=len(weights["embedder.positions.weight"])))
    model.load_state_dict(weights)
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
