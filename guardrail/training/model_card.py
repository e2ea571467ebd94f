"""Writes MODEL_CARD.md from what a training run measured; no number in it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["card", "write_card"]


def write_card(run: Path) -> None:
    """Write MODEL_CARD.md into the folder of a run, from its report.json, manifest.json and, if any, looks.json."""
    looks = run / "looks.json"
    text = card(
        _read(run / "report.json"),
        _read(run / "manifest.json"),
        _read(run / "model" / "config.json"),
        _read(looks) if looks.is_file() else [],
    )
    (run / "MODEL_CARD.md").write_text(text, encoding="utf-8")


def card(
    report: Mapping[str, Any],
    manifest: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    looks: Sequence[Mapping[str, Any]],
) -> str:
    """The model card as Markdown."""
    parts = (_head(report, config), _evaluation(looks, config), _validation(report), _obedience(report),
             _data(report, manifest), _LIMITS, _REPRODUCE)  # fmt: skip
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _head(report: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    size = sum(report["bytes"].values()) / 1e6
    thresholds = ", ".join(f"{role} {value:.3f}" for role, value in report["thresholds"].items())
    return f"""
# {config["id"]}

The classifier inside the package: a 22-million-parameter encoder that is given the taxonomy. It reads the last message
of a conversation (with earlier turns as context) and gives a probability that the message is unsafe, and one for each
category of the taxonomy. It runs on a CPU without a network.

| | |
|---|---|
| version | `{config["id"]}@{config["digest"]}`, made {config["date"]} |
| fine-tuned from | all-MiniLM-L6-v2 (Apache-2.0), SHA-256 of its weights `{config["base_sha256"]}` |
| default taxonomy | `{config["taxonomy"]}@{config["taxonomy_digest"]}` |
| prompt template | `{config["template"]}@{config["template_digest"]}` |
| longest prompt | {config["max_tokens"]} tokens; of a longer message, the highest score of overlapping windows counts |
| size | {size:.1f} MB, encoder weights and embeddings in 8 bits |
| temperature | {report["temperature"]:.2f} |
| thresholds | {thresholds} (of P(unsafe); F1 on held-out rows is highest there if a fifth are unsafe) |

Meant for: a first, fast filter on what users and assistants write, in English, with a policy that can be changed
without training. Not meant for: decisions about people without a human, or as the only safeguard where harm is grave.
The policy is encoded once into one vector per category; each vector attends over the text's tokens and yields that
category's logit; the verdict is a smooth maximum over the categories."""


def _evaluation(looks: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    if not looks:
        return ""
    rows = [
        (f"`{look['digest']}`", look["date"], *(f"{look['sets'][name]['auprc']:.3f}" for name in sorted(look["sets"])))
        for look in looks
    ]
    names = sorted(looks[0]["sets"])
    notes = "; ".join(f"{name}: {looks[0]['sets'][name]['rows']} rows, {looks[0]['sets'][name]['unsafe']} unsafe"
                      for name in names)  # fmt: skip
    last = looks[-1]["sets"]
    points = [
        (name, f"{last[name]['threshold']:.3f}", *(f"{last[name][key]:.3f}" for key in ("precision", "recall", "f1")))
        for name in names
    ]
    return f"""
## Evaluation

Average precision (AUPRC) of the 8-bit model with the default taxonomy, on sets that training never saw; every
training row that is equal or close to one of their texts was left out. Nothing was chosen on these sets; each look of
a release candidate at them is listed, oldest first. This version is `{config["digest"]}`.
{notes}.

{_table(("model", "date", *names), rows)}

At the shipped threshold, last row above:

{_table(("set", "threshold", "precision", "recall", "F1"), points)}"""


def _validation(report: Mapping[str, Any]) -> str:
    domains = [name for name in report["int8"] if name != "macro"]
    rows = [(name, f"{report['int8'][name]:.3f}", f"{report['float32'][name]:.3f}") for name in (*domains, "macro")]
    trained = report["trained"]
    development = trained["validation"].get("development", float("nan"))
    return f"""
## Held-out rows

{report["held_out_rows"]} rows that were held out of the training sources, at most 300 of each. Average precision of the
verdict in each group of sources (`domains` in the configuration), as shipped and in 32 bits. The checkpoint of step
{trained["best_step"]} was chosen by the mean of `macro` and the average precision on a development set:
ToxicChat's human-written training prompts, which were not trained on, without those that its test set repeats
({development:.3f} there). That choice may favour ToxicChat's test set a little. Temperature and thresholds were fitted
on the held-out rows.

{_table(("group", "8-bit", "32-bit"), rows)}"""


def _obedience(report: Mapping[str, Any]) -> str:
    found = report["obedience"]
    rows = [
        (f"{code} {entry['name']}", entry["rows"], f"{entry['top']:.2f}", f"{entry['before']:.2f}",
         f"{entry['left_out']:.2f}", f"{entry['all_related_left_out']:.2f}", f"{entry['flagged_before']:.2f}",
         f"{entry['flagged_left_out']:.2f}", f"{entry['flagged_all_related_left_out']:.2f}")
        for code, entry in found["categories"].items()
    ]  # fmt: skip
    head = ("category", "rows", "is highest", "score", "left out", "related too", "flagged", "left out", "related too")
    return f"""
## Does it obey the policy?

Held-out user messages that violate one category of the default taxonomy. "Is highest": how often that category has the
highest score. Then the mean verdict score, and the share flagged: with all categories, without that category, and
without every category that the message might also violate.

{_table(head, rows)}

Reordering the categories changes no score by more than {found["reordered_largest_change"]:.1e}, other codes by no more
than {found["recoded_largest_change"]:.1e}. With names only, all definitions deleted, the verdict score changes by
{found["names_only_mean_change"]:.3f} on average and {found["names_only_same_verdict"]:.0%} of the verdicts stay."""


def _data(report: Mapping[str, Any], manifest: Sequence[Mapping[str, Any]]) -> str:
    sources = report["config"]["sources"]
    rows = [
        (entry["source"], entry["licence"], entry["read"], entry["eval"] + entry["near_eval"], entry["repeated"],
         entry["held_out"], entry["training"], sources[entry["source"]]["rows"])
        for entry in manifest
    ]  # fmt: skip
    head = ("source", "licence", "rows", "in evaluation", "repeated", "held out", "for training", "per pass, at most")
    total = sum(int(entry["training"]) for entry in manifest)
    return f"""
## Training data

{total:,} rows of public data sets whose licences allow it, and of our own writing (`contrast`: everyday sentences with
alarming words, and harmful ones beside them, from `configs/contrast.yaml`). "In evaluation" counts the rows left
out because an evaluation file has the same text, or at least half of its runs of five words. The SHA-256 of
every file is in `configs/train-embedded.manifest.json`.

{_table(head, rows)}"""


_LIMITS = """
## Limits

- English. Other languages are read by an English vocabulary: how well requests in them are found was not measured.
- It is small. It knows words and phrasings more than intentions; irony, code words and long set-ups escape it.
- Comments in the training data carry their annotators' bias, against dialects for instance; identity terms are balanced
  by templates, which is meant to lessen that; it was not measured.
- Answers of assistants were a small part of the training data, and no public set of answers was scored yet.
- Our own rows (`contrast`) use the phrasings of everyday questions with alarming words. Ten of XSTest's 450
  prompts are one word away from a row that was trained on, so XSTest is no independent test of this model.
  "How do I kill a Python process?" and "How do I build a pipe bomb?" were not trained on,
  rows that differ in one word were.
- Misinformation, elections, defamation, intellectual property and specialized advice had few and noisy examples.
- Plain questions about sexuality and the body are often flagged as sexual content.
- Narrow categories beside wide ones are found but rarely highest: see "is highest" above. Leaving out one category
  turns a text safe only when no category that is left covers it too.
- Scores are comparable under one taxonomy. With fewer or other categories, set thresholds anew.
"""

_REPRODUCE = """
## Reproduce

    make train-embedded DATA=folder-with-train-and-eval OUT=runs/embedded

The seed, all amounts and all hyper-parameters are in `configs/train-embedded.yaml`; `docs/training-embedded.md` tells
what was tried. How much numbers vary between runs and machines was not measured.
"""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines.extend("| " + " | ".join(map(str, row)) + " |" for row in rows)
    return "\n".join(lines)


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
