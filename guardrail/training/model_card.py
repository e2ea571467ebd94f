"""Writes MODEL_CARD.md from what a training run measured; no number in it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guardrail.errors import ModelError
from guardrail.training.card_table import table
from guardrail.training.export import MINILM
from guardrail.training.model_card_behaviour import (
    cost,
    identity,
    judged_role,
    new_categories,
    obedience,
    validation,
)
from guardrail.training.model_card_evaluation import categories, evaluation, failures, slices

__all__ = ["NEW_CATEGORIES", "card", "write_card"]

NEW_CATEGORIES = "new_categories.json"
"""What `guardrail.training.new_categories` leaves in a run's folder."""


def write_card(run: Path) -> None:
    """Write MODEL_CARD.md into the folder of a run, from the files that training and what came after it left there.

    Raises ModelError when the evaluation there is of another model.
    """
    looks, evaluated, new = run / "looks.json", run / "evaluation" / "report.json", run / NEW_CATEGORIES
    config = _read(run / "model" / "config.json")
    results = _read(evaluated)["runs"] if evaluated.is_file() else []
    name = f"{config['id']}@{config['digest']}"
    for result in results:
        if result["model"] != name:
            hint = f"evaluate the model in {run / 'model'}, or remove that folder"
            raise ModelError(f"{evaluated}: is of {result['model']}, not of {name}", hint=hint)
    text = card(
        _read(run / "report.json"),
        _read(run / "manifest.json"),
        config,
        _read(looks) if looks.is_file() else [],
        results,
        _read(new) if new.is_file() else None,
    )
    (run / "MODEL_CARD.md").write_text(text, encoding="utf-8")


def card(
    report: Mapping[str, Any],
    manifest: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    looks: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    new: Mapping[str, Any] | None = None,
) -> str:
    """The model card as Markdown; `results` are those of the evaluation's report, `new` is NEW_CATEGORIES."""
    parts = (
        _head(report, config),
        evaluation(looks, results, config["digest"], report["config"].get("informed", "")),
        slices(results),
        categories(results),
        failures(results),
        validation(report),
        obedience(report),
        judged_role(report),
        new_categories(new),
        identity(report),
        _data(report, manifest),
        _limits(report, manifest, measured=new is not None),
        cost(report),
        _REPRODUCE,
    )
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _head(report: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    size = sum(report["bytes"].values()) / 1e6
    fitted = [line for line in report["calibration"] if line["fitted"] and line["part"] == "verdict"]
    thresholds = ", ".join(f"{line['role']} {line['threshold']:.3f}" for line in fitted)
    recipe = report["config"]["calibration"]
    without = report["config"].get("without")
    trained = f"\n| trained without | {', '.join(without)} |" if without else ""
    return f"""
# {config["id"]}

The classifier inside the package: a 22-million-parameter encoder that is given the taxonomy. It reads the last message
of a conversation (with earlier turns as context) and gives a probability that the message is unsafe, and one for each
category of the taxonomy. It runs on a CPU without a network.

| | |
|---|---|
| version | `{config["id"]}@{config["digest"]}`, made {config["date"]} |
{_origin(config)}
| default taxonomy | `{config["taxonomy"]}@{config["taxonomy_digest"]}` |{trained}
| prompt template | `{config["template"]}@{config["template_digest"]}` |
| longest prompt | {config["max_tokens"]} tokens; of a longer message, the highest score of overlapping windows counts |
| size | {size:.1f} MB, encoder weights and embeddings in 8 bits |
| calibration | {recipe["method"]}, fitted on held-out training rows, weighed as if {recipe["prior"]:.0%} were unsafe |
| thresholds | {thresholds} (of P(unsafe); for {recipe["target"]} on the same rows) |

Meant for: a first, fast filter on what users and assistants write, in English, with a policy that can be changed
without training. Not meant for: decisions about people without a human, or as the only safeguard where harm is grave.
The policy is encoded once into one vector per category; each vector attends over the text's tokens and yields that
category's logit; the verdict is a smooth maximum over the categories."""


def _origin(config: Mapping[str, Any]) -> str:
    weights = f"SHA-256 of its weights `{config['base_sha256']}`"
    if config["base"] == MINILM.name:
        return f"| fine-tuned from | {MINILM.name} (Apache-2.0), {weights} |"
    return f"| trained on from | `{config['base']}`, {weights}, which was fine-tuned from {MINILM.name} (Apache-2.0) |"


def _data(report: Mapping[str, Any], manifest: Sequence[Mapping[str, Any]]) -> str:
    sources = report["config"]["sources"]
    withheld = any(entry.get("withheld") for entry in manifest)
    rows = [
        (entry["source"], entry["licence"], entry["read"], entry["eval"] + entry["near_eval"], entry["repeated"],
         *((entry.get("withheld", 0),) if withheld else ()), entry["held_out"], entry["training"],
         sources.get(entry["source"], {"rows": 0})["rows"])
        for entry in manifest
    ]  # fmt: skip
    head = ("source", "licence", "rows", "in evaluation", "repeated", *(("withheld",) if withheld else ()), "held out",
            "for training", "per pass, at most")  # fmt: skip
    total = sum(int(entry["training"]) for entry in manifest)
    return f"""
## Training data

{total:,} rows of public data sets whose licences allow it, and of our own making.{_own(manifest)} "In
evaluation" counts the rows left out because an evaluation file has the same text, at least half of its runs of five
words, or, for texts of three to twelve words, all words but one, or because they hold a whole evaluation text of eight
words or more. "Held out" are rows whose judged text is not trained
on in any conversation. The SHA-256 of every file is in `configs/train-embedded.manifest.json`.

{table(head, rows)}"""


def _own(manifest: Sequence[Mapping[str, Any]]) -> str:
    names = {entry["source"] for entry in manifest}
    own = ", ".join(f"`{name}`" for name in sorted(names) if name.startswith("ours_"))
    text = f" Our own writing is {own}: texts and templates with slots, from `configs/written/`." if own else ""
    if "swapped" in names:
        text += (
            " `swapped` puts comments of the other sources into an assistant's mouth, as answers to harmless questions,"
            " and refusals of our own writing after harmful requests."
        )
    return text


def _limits(report: Mapping[str, Any], manifest: Sequence[Mapping[str, Any]], *, measured: bool) -> str:
    names = {entry["source"] for entry in manifest}
    bias = 'see "Identity terms"' if report.get("identity_bias") else "it was not measured"
    lines = [
        "English. Other languages are read by an English vocabulary, and harm in them can be missed; how much was not"
        " measured. A text of which the vocabulary knows fewer than half of the letters is not judged: an error, never"
        " safe.",
        "It is small. It knows words and phrasings more than intentions; irony, code words and long set-ups escape it.",
        "Comments in the training data carry their annotators' bias, against dialects for instance. Identity terms are"
        f" balanced by templates, which is meant to lessen that: {bias}. Dialects were not measured.",
        "Answers of assistants were a smaller part of the training data than messages of users, and many of them are"
        " made: by templates, or by pairing texts of different sources.",
    ]
    if names & {"ours_pairs", "ours_contrast"}:
        lines.append(_FALSE_ALARMS)
    if "ours_hate" in names:
        lines.append(_HATE)
    lines += _GENERAL if measured else [*_GENERAL, _NOT_MEASURED]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


_FALSE_ALARMS = (
    "XSTest is no independent test of it. Rows of our own (`ours_pairs`, `ours_contrast`, `ours_words`,"
    " `ours_facts`) were written for the known kinds of false alarms, which XSTest asks for too: homonyms,"
    " figurative speech, harmless targets and contexts, definitions, history, privacy of public and made-up"
    " people, groups where nothing can be discriminated. Its wording was not used: rows equal to one of its"
    " prompts, or one word away from one of three to twelve words, were left out."
)
_HATE = (
    "Nor is HateCheck quite: `ours_hate` was written for kinds of hate and of what only looks like it (negation,"
    " counter speech, abuse of things and of people without a group, misspelling, …), many of which it has too. Rows"
    " that close to its texts were left out as well."
)
_NOT_MEASURED = (
    "This run measured no categories that it never saw; `docs/training-embedded.md` tells of those measured."
)
_GENERAL = [
    "Misinformation, elections, defamation, intellectual property and specialized advice had few and noisy examples.",
    "Plain questions about sexuality and the body are often flagged as sexual content.",
    'Narrow categories beside wide ones are found but rarely highest: see "is highest" above. Leaving out one category'
    " turns a text safe only when no category that is left covers it too.",
    "Scores are comparable under one taxonomy. With fewer or other categories, set thresholds anew.",
]

_REPRODUCE = """
## Reproduce

    make train-embedded DATA=folder-with-train-and-eval OUT=runs/embedded
    python -m guardrail.training.release --data folder-with-train-and-eval --run runs/embedded

The second line evaluates; what it measures goes into the card and is recorded, since every model counts. Categories
that the model never saw take a training of their own:

    python -m guardrail.training.embedded --config configs/train-embedded-withheld.yaml \\
        --data folder-with-train-and-eval --base folder-of-all-MiniLM-L6-v2 -o runs/withheld
    python -m guardrail.training.new_categories --data folder-with-train-and-eval \\
        --run runs/withheld --card runs/embedded

Seeds, amounts and hyper-parameters are in the configurations that `make train-embedded` names;
`docs/training-embedded.md` tells what was tried. How much numbers vary between runs and machines was not measured.
"""


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
