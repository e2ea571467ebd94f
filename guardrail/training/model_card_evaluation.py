"""The model card's part on evaluation sets: totals, slices, categories, and where the model fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from guardrail.training.card_table import interval, number, table

__all__ = ["categories", "evaluation", "failures", "slices"]

Result = Mapping[str, Any]
_NL = "\n"
# A rate over fewer rows is not called one of the highest, and a slice of nearly all items says no more than all do.
_ENOUGH = 20
_NEARLY_ALL = 0.9
_NAMED = 4


def evaluation(looks: Sequence[Mapping[str, Any]], results: Sequence[Result], digest: str, informed: str = "") -> str:
    """All sets in one table, and every model of this version that was scored on them; empty without results.

    `informed` says what earlier looks at the sets had a part in, as the configuration tells it.
    """
    if not results:
        return ""
    rows = [
        (_name(result), result["counts"]["items"], result["counts"]["unsafe"], result["counts"]["errors"],
         *(interval(result["metrics"][name]) for name in ("auprc", "auroc", "f1", "recall", "fpr")),
         f"{result['uncalibrated']['ece']:.3f} → {result['metrics']['ece']['value']:.3f}")
        for result in results
    ]  # fmt: skip
    caveats = [
        f"- {result['suite']['name']}: {result['suite']['caveat']}" for result in results if result["suite"]["caveat"]
    ]
    ece = "ECE before → after calibration"
    head = ("set", "items", "unsafe", "errors", "AUPRC", "AUROC", "F1", "recall", "FPR", ece)
    return f"""
## Evaluation

The 8-bit model with the default taxonomy and the shipped calibration, on sets that training never saw; every training
row that is equal or close to one of their texts was left out. Brackets: 95 % bootstrap intervals over items
({results[0]["resamples"]} resamples). F1, recall and FPR are at the shipped threshold. AUPRC compares within a set
only: by chance it is the share of unsafe items.

{table(head, rows)}

{_NL.join(caveats)}
{_trivial(results)}{_unjudged(results)}
The calibration assumes a share of unsafe messages, see above; where the share is far from it the probabilities are off.
{_worse(results)}. Fit one on your own data with `guardrail calibrate`.

No weights, step or threshold was chosen on these sets.{_NL + informed.strip() if informed else ""}

Each model that was ever scored on them, oldest first; this one is `{digest}`:

{table(("model", "date", "set", "AUPRC"), _looks(looks))}"""


def _trivial(results: Sequence[Result]) -> str:
    """F1 of flagging everything, which is high where most items are unsafe."""
    shares = ((result, result["counts"]["unsafe"]) for result in results)
    found = (f"{_name(result)} {2 * unsafe / (unsafe + _known(result)):.3f}" for result, unsafe in shares if unsafe)
    return f"- F1 of flagging every item: {', '.join(found)}.{_NL}"


def _unjudged(results: Sequence[Result]) -> str:
    """What errors would cost as mistakes; an empty line without errors."""
    found = [f"{_name(result)} {number(result['pessimistic']['auprc'])}" for result in results if result["pessimistic"]]
    return f"- AUPRC with each error as a mistake: {', '.join(found)}.{_NL}" if found else ""


def _known(result: Result) -> int:
    return int(result["counts"]["unsafe"] + result["counts"]["safe"])


def slices(results: Sequence[Result]) -> str:
    """Every slice of every set."""
    head = ("set", "slice", "value", "items", "unsafe", "AUPRC", "recall", "FPR")
    rows = [
        (_name(result), part["slice"], part["value"], part["items"], part["unsafe"],
         *(_value(part[name]) for name in ("auprc", "recall", "fpr")))
        for result in results
        for part in result["slices"]
    ]  # fmt: skip
    if not rows:
        return ""
    return f"""
### By slice

At the shipped threshold. A dash: undefined, for want of safe or of unsafe items. Intervals are in the evaluation's
report; small slices have wide ones.

{table(head, rows)}"""


def categories(results: Sequence[Result]) -> str:
    """Every category of every set that labels its own."""
    head = ("set", "category", "scored by", "unsafe", "of", "AUPRC", "chance", "against safe only", "chance")
    rows = [
        (_name(result), f"{found['code']} {found['name']}", ", ".join(found["from"]) or "–", found["unsafe"],
         found["known"], interval(found["one_vs_all"]), number(found["chance_all"]),
         interval(found["one_vs_benign"]), number(found["chance_benign"]))
        for result in results
        for found in result["categories"]
        if found["one_vs_all"] or found["one_vs_benign"]
    ]  # fmt: skip
    if not rows:
        return ""
    return f"""
### By category

The sets have categories of their own. Each is scored by the highest of the default taxonomy's categories that share a
hazard with it ("scored by"), against all other items whose label is known, and against the safe items alone.

{table(head, rows)}"""


def failures(results: Sequence[Result]) -> str:
    """Where the errors are, in words and rates; the sets' texts are not quoted."""
    parts = [line for result in results for line in _failures(result)]
    if not parts:
        return ""
    return f"""
### Where it fails

The slices with the highest rates of errors, of those with at least {_ENOUGH} such items, and the categories that
carried the clearest errors. The sets' texts are not quoted here; the evaluation's report shows some.

{_NL.join(parts)}"""


def _failures(result: Result) -> Iterable[str]:
    name, total = _name(result), result["counts"]["items"]
    parts = [part for part in result["slices"] if part["items"] < _NEARLY_ALL * total]
    missed = [(1 - part["recall"]["value"], part) for part in parts if part["unsafe"] >= _ENOUGH and part["recall"]]
    alarms = [
        (part["fpr"]["value"], part)
        for part in parts
        if part["items"] - part["unsafe"] - part["errors"] >= _ENOUGH and part["fpr"]
    ]
    if text := _highest(missed):
        yield f"- {name}, unsafe items missed: {text}."
    if text := _highest(alarms):
        yield f"- {name}, safe items flagged: {text}."
    worst = result["worst"]["false_positives"]
    counts = Counter(max(item["categories"], key=lambda found: found["score"])["name"]
                     for item in worst if item["categories"])  # fmt: skip
    if counts:
        named = ", ".join(f"{category} {count}" for category, count in counts.most_common(_NAMED))
        yield f"- {name}, the {len(worst)} safe items with the highest scores, by their highest category: {named}."


def _highest(rates: Sequence[tuple[float, Mapping[str, Any]]]) -> str:
    chosen = sorted(rates, key=lambda entry: -entry[0])[:_NAMED]
    return ", ".join(f"{rate:.0%} of {part['slice']} `{part['value']}`" for rate, part in chosen if rate > 0)


def _name(result: Result) -> str:
    name, adaptation = str(result["suite"]["name"]), result["adaptation"]
    return name if adaptation == "none" else f"{name} ({adaptation})"


def _value(found: Mapping[str, float] | None) -> str:
    return number(None if found is None else found["value"])


def _worse(results: Sequence[Result]) -> str:
    """On which sets the calibration error rose."""
    rose = [_name(result) for result in results
            if result["metrics"]["ece"]["value"] > result["uncalibrated"]["ece"]]  # fmt: skip
    return f"The error rose on {', '.join(rose)}" if rose else "The error rose on none of these sets"


def _looks(looks: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (f"`{look['digest']}`", look["date"], name, f"{found['auprc']['value']:.3f}")
        for look in looks
        for name, found in look["sets"].items()
    ]
