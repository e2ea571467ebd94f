"""The model card's part on behaviour: held-out rows, obedience, categories never seen, identity terms, and cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guardrail.training.card_table import number, spread, table

__all__ = ["added_categories", "cost", "identity", "judged_role", "new_categories", "obedience", "validation"]

Found = Mapping[str, Any]
_WATTS = 10
"""Assumed for a busy core; not measured."""
_NAMED = 5
# A smaller gap would be written as 0.00.
_VISIBLE = 0.005


def validation(report: Found) -> str:
    """Held-out rows by group, in 8 and in 32 bits."""
    domains = [name for name in report["int8"] if name != "macro"]
    rows = [(name, number(report["int8"][name]), number(report["float32"][name])) for name in (*domains, "macro")]
    trained = report["trained"]
    development = trained["validation"].get("development", float("nan"))
    runs = _count(len(trained["runs"]), "training run")
    steps = " and ".join(str(run["best_step"]) for run in trained["runs"])
    every = report["config"].get("hyper", {}).get("evaluate_every", 0)
    # A run that was evaluated at its end alone has no best step.
    ended = all(run["best_step"] < every for run in trained["runs"])
    chosen = "" if ended else ", each the best of its run by `macro` and the development set"
    start = trained.get("start")
    share = report["config"].get("start_share")
    mixed = f", whose weights make up {share:.0%} of the mean" if share else ""
    going_on = f"Training went on from `{start}`{mixed}.\n" if start else ""
    return f"""
## Held-out rows

{report["held_out_rows"]} rows that were held out of the training sources, at most 300 of each. Average precision of the
verdict in each group of sources (`domains` in the configuration), as shipped and in 32 bits. The model is the mean of
the weights of {runs}, of {steps} steps{chosen}. The development set, which runs and mixes
were chosen by together with `macro`, is ToxicChat's human-written training prompts, which were not trained on, without
those that its test set repeats (average precision {development:.3f}). That may favour ToxicChat's test set a little.
{going_on}Calibration and thresholds were fitted on the held-out rows.

{table(("group", "8-bit", "32-bit"), rows)}"""


def obedience(report: Found) -> str:
    """What changes of the policy change."""
    found = report["obedience"]
    columns = ("top", "before", "left_out", "all_related_left_out", "flagged_before", "flagged_left_out",
               "flagged_all_related_left_out")  # fmt: skip
    rows = [
        (f"{code} {entry['name']}", entry["rows"], *(number(entry.get(name), 2) for name in columns))
        for code, entry in found["categories"].items()
    ]
    head = ("category", "rows", "is highest", "score", "left out", "related too", "flagged", "left out", "related too")
    changes = "\n".join(
        f"- {text}: by {found[f'{name}_mean_change']:.1g} on average and {found[f'{name}_largest_change']:.1g} at most;"
        f" {found[f'{name}_same_verdict']:.0%} of the verdicts stay."
        for name, text in _CHANGES.items()
        if f"{name}_same_verdict" in found
    )
    return f"""
## Does it obey the policy?

Held-out user messages that violate one category of the policy. "Is highest": how often that category has the
highest score. Then the mean verdict score, and the share flagged: with all categories, without that category, and
without every category that the message might also violate.

{table(head, rows)}

Changes of the policy that should change little change the verdict's score, from 0 to 1:

{changes}"""


_CHANGES = {
    "reordered": "the categories in reverse order",
    "recoded": "other codes",
    "definitions_only": "names without a meaning, definitions kept",
    "names_only": "names only, all definitions deleted",
}


def judged_role(report: Found) -> str:
    """Requests, refusals of them, and answers; empty when nobody measured it."""
    found = report.get("judged_role")
    if not found:
        return ""
    rows = [
        (text, found[name]["items"], number(found[name]["flagged"], 2))
        for name, text in _ROLES.items()
        if name in found
    ]
    return f"""
## Does the judged role matter?

Held-out messages and answers at the shipped thresholds. The refusals are of our own writing and none that was trained
on; each of them follows one of the requests above it. The answers are to the same prompts, safe and unsafe ones.

{table(("judged", "items", "flagged"), rows)}"""


_ROLES = {
    "requests": "harmful requests",
    "refused": "refusals of these requests",
    "harmful": "answers that do harm",
    "harmless": "answers to the same prompts that do none",
}


def new_categories(found: Found | None) -> str:
    """Categories that a model trained without them was given; empty when nobody measured it."""
    if not found:
        return ""
    return f"""
## Categories it never saw

Measured on another model, `{found["model"]}`: trained by one pass of `configs/train-embedded.yaml` without every
row that violates {len(found["without"])} hazards ({", ".join(found["without"])})
and without their categories. Each was then added to the policy. AUPRC of its score on user messages that violate it,
none of which that model was trained on, against held-out safe messages: with the definition alone, and with unsafe
examples besides (mean and range of {found["draws"]} draws; examples are not scored). "Without it": the verdict's score
under the policy without the category.

{added_categories(found["categories"])}

Unsafe rows of unknown category stayed in the training data, some of them surely about these subjects, and wider
categories such as Non-Violent Crimes, whose texts mention some of them, stayed in the policies."""


def added_categories(found: Mapping[str, Found]) -> str:
    """Tables of what `new_categories.measure` found, by code."""
    counts = sorted({int(count) for entry in found.values() for count in entry["examples"]})
    rows, others, flags = [], [], []
    for entry in found.values():
        examples = [entry["examples"][str(count)] for count in counts]
        rows.append((entry["name"], entry["unsafe"], entry["safe"], number(entry["chance"]),
                     number(entry["base"]["auprc"]), number(entry["definition"]["auprc"]),
                     *(spread(item["auprc"]) for item in examples)))  # fmt: skip
        others.append((entry["name"], entry["others"], number(entry["chance_others"]),
                       number(entry["base"]["auprc_others"]), number(entry["definition"]["auprc_others"]),
                       *(spread(item["auprc_others"]) for item in examples)))  # fmt: skip
        flags.append((entry["name"], _flagged(entry["base"]), _flagged(entry["definition"]),
                      *(_flagged({name: value and value["mean"] for name, value in item.items()})
                        for item in examples)))  # fmt: skip
    shown = ("without it", "definition", *(f"{count} examples" for count in counts))
    return f"""{table(("category", "unsafe", "safe", "chance", *shown), rows)}

Against held-out messages that violate other categories, which is harder:

{table(("category", "others", "chance", *shown), others)}

The share flagged at the model's thresholds, of the unsafe and of the safe messages:

{table(("category", *shown), flags)}"""


def _flagged(shown: Mapping[str, Any]) -> str:
    return f"{shown['flagged']:.0%}, {shown['flagged_safe']:.0%}"


def identity(report: Found) -> str:
    """Error rates by identity term; empty when they were not measured."""
    found = report.get("identity_bias")
    if not found:
        return ""
    parts = []
    for name, text in (("fpr", "harmless sentences flagged"), ("fnr", "hateful sentences missed")):
        summary = found[name]
        ranked = sorted(
            ((entry[name] - summary["overall"], term, entry) for term, entry in found["terms"].items()
             if entry[name] is not None), key=lambda item: -abs(item[0]))  # fmt: skip
        named = ", ".join(
            f"{term} {gap:+.2f} ({entry[f'{name}_rows']})"
            for gap, term, entry in ranked[:_NAMED]
            if abs(gap) >= _VISIBLE
        )
        largest = f" Largest gaps, with the number of sentences: {named}." if named else ""
        parts.append(f"- {text}: {summary['overall']:.3f} of all; the mean gap between a term and that is "
                     f"{summary['mean_gap']:.3f}, of which chance alone gives about "
                     f"{summary['mean_gap_by_chance']:.3f}.{largest}")  # fmt: skip
    rows = [
        (term, *(cell for name in ("fpr", "fnr") for cell in (entry[f"{name}_rows"], number(entry[name]))))
        for term, entry in found["terms"].items()
    ]
    lines = "\n".join(parts)
    return f"""
## Identity terms

{found["rows"]} held-out template sentences with terms for groups of people, harmless and hateful in the same forms
(Dixon et al. 2018), at the shipped threshold. Sentences of the same templates were trained on, so real comments may
show larger gaps; HateCheck's slices by target, where they are given above, are a harder test.

{lines}

{table(("term", "harmless", "flagged", "hateful", "missed"), rows)}"""


def cost(report: Found) -> str:
    """Time, cores and what they may have used."""
    trained = report["trained"]
    if "seconds" not in trained:
        return "## Time and energy\n\nNot measured."
    hours = trained["core_seconds"] / 3600
    earlier, start = trained.get("earlier"), trained.get("start")
    before = ""
    if earlier and earlier["core_seconds"]:
        hours += earlier["core_seconds"] / 3600
        before += f"\nWith those of `{start}`, and what was before them, it is {hours:.1f} core-hours."
    if earlier and not earlier["whole"]:
        before += "\nTraining before that was not all recorded, and what was not is not counted."
    return f"""
## Time and energy

The runs took {trained["seconds"] / 60:.0f} minutes together, {trained["core_seconds"] / 3600:.1f} core-hours,
on a CPU with {trained["cores"]} cores and no GPU, with whatever else ran on the machine.{before}
Energy was not measured; at an assumed {_WATTS} W for each busy core it is about {hours * _WATTS / 1000:.3f} kWh.
Runs that were tried before are not counted."""


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
