"""The model card: every number from a file, every section there only when it was measured, nothing quoted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import f1_score

from guardrail.errors import ModelError
from guardrail.training.card_table import interval, number, spread, table
from guardrail.training.model_card import NEW_CATEGORIES, card, write_card
from guardrail.training.model_card_evaluation import failures
from tests.evaluation_results import HOSTILE_TEXTS, results

CONFIG = {
    "id": "tiny", "digest": "0123456789ab", "date": "2026-01-01", "base": "all-MiniLM-L6-v2",
    "base_sha256": "ff" * 32, "taxonomy": "default",
    "taxonomy_digest": "aaaaaaaaaaaa", "template": "encoder", "template_digest": "bbbbbbbbbbbb", "max_tokens": 256,
}  # fmt: skip
LOOKS = [{"digest": "0123456789ab", "date": "2026-01-02", "sets": {"ToxicChat": {"auprc": {"value": 0.6543}}}}]


def manifest(*names: str) -> list[dict[str, Any]]:
    return [
        {"source": name, "licence": "MIT", "read": 100, "eval": 3, "near_eval": 4, "repeated": 5, "held_out": 8,
         "training": 80}
        for name in names
    ]  # fmt: skip


def report(*names: str) -> dict[str, Any]:
    entry = {
        "name": "Theft", "rows": 12, "top": None, "before": 0.81, "left_out": 0.52, "all_related_left_out": 0.13,
        "flagged_before": 0.92, "flagged_left_out": 0.5, "flagged_all_related_left_out": 0.07,
    }  # fmt: skip
    changes = {f"reordered_{name}": value for name, value in
               (("mean_change", 2e-8), ("largest_change", 3e-7), ("same_verdict", 1.0))}  # fmt: skip
    return {
        "bytes": {"model.onnx": 28_000_000},
        "calibration": [{"fitted": True, "part": "verdict", "role": "user", "threshold": 0.5432}],
        "config": {
            "calibration": {"method": "platt", "target": "max-f1", "prior": 0.2},
            "sources": {name: {"rows": 70} for name in names},
        },
        "held_out_rows": 321,
        "int8": {"prompts": 0.81, "macro": 0.82},
        "float32": {"prompts": 0.83, "macro": 0.84},
        "trained": {"runs": [{"best_step": 7}, {"best_step": 9}], "validation": {"development": 0.71}},
        "obedience": {"rows": 12, "not_judged": 0, "categories": {"G8": entry}, **changes},
    }


def identity() -> dict[str, Any]:
    def entry(fpr: float, fnr: float | None) -> dict[str, Any]:
        return {"fpr": fpr, "fpr_rows": 40, "fnr": fnr, "fnr_rows": 30 if fnr is not None else 0}

    summary = {"overall": 0.1, "mean_gap": 0.25, "mean_gap_by_chance": 0.04}
    terms = {"old": entry(0.6, 0.1), "blind": entry(0.102, None), "gay": entry(0.05, 0.3)}
    return {"rows": 110, "not_judged": 0, "fpr": summary, "fnr": summary, "terms": terms}


def new_categories() -> dict[str, Any]:
    def shown(value: float) -> dict[str, float]:
        return {"auprc": value, "auprc_others": value - 0.2, "flagged": 0.75, "flagged_safe": 0.05}

    def drawn(value: float) -> dict[str, Any]:
        return {
            name: {"mean": found, "low": found - 0.01, "high": found + 0.01} for name, found in shown(value).items()
        }

    entry = {
        "name": "Drugs", "hazards": ["drugs"], "unsafe": 200, "safe": 400, "others": 200, "chance": 1 / 3,
        "chance_others": 0.5, "base": shown(0.7), "definition": shown(0.8),
        "examples": {"4": drawn(0.85), "16": drawn(0.9)},
    }  # fmt: skip
    return {"model": "withheld@1234", "without": ["drugs"], "draws": 5, "categories": {"N1": entry}}


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_sections_are_there_only_when_measured() -> None:
    text = card(report("one"), manifest("one"), CONFIG, [], [])
    for missing in (
        "## Evaluation",
        "By slice",
        "## Identity terms",
        "## Categories it never saw",
        "XSTest",
        "HateCheck",
    ):
        assert missing not in text
    assert "## Time and energy\n\nNot measured." in text
    assert "This run measured no categories that it never saw" in text
    assert "balanced by templates, which is meant to lessen that: it was not measured" in text
    assert "| G8 Theft | 12 | – | 0.81 | 0.52 | 0.13 | 0.92 | 0.50 | 0.07 |" in text
    assert (
        "- the categories in reverse order: by 2e-08 on average and 3e-07 at most; 100% of the verdicts stay." in text
    )
    assert "other codes" not in text


def test_evaluation_with_slices_and_categories() -> None:
    found = results()
    told = report("one")
    told["config"]["informed"] = "The mix was told by look 3."
    text = card(told, manifest("one"), CONFIG, LOOKS, found)
    assert "was chosen on these sets.\nThe mix was told by look 3.\n" in text
    unsafe, safe = found[0]["counts"]["unsafe"], found[0]["counts"]["safe"]
    trivial = f1_score([1] * unsafe + [0] * safe, [1] * (unsafe + safe))
    assert f"- F1 of flagging every item: {found[0]['suite']['name']} {trivial:.3f}" in text
    assert "| `0123456789ab` | 2026-01-02 | ToxicChat | 0.654 |" in text
    lines = rows(text)
    for result in found:
        name = result["suite"]["name"].replace("|", "\\|")
        name = name if result["adaptation"] == "none" else f"{name} ({result['adaptation']})"
        mine = [line for line in lines if line.startswith(f"| {name} |")]
        labelled = [item for item in result["categories"] if item["one_vs_all"]]
        assert len(mine) == 1 + len(result["slices"]) + len(labelled)
        first = result["slices"][0]
        assert f"| {first['slice']} | {first['value']} | {first['items']} | {first['unsafe']} |" in mine[1]
        if labelled:
            one = labelled[0]
            assert f"{one['code']} {one['name']}".replace("|", "\\|") in mine[1 + len(result["slices"])]
            assert interval(one["one_vs_all"]) in mine[1 + len(result["slices"])]


def test_nothing_of_a_set_is_quoted() -> None:
    text = card(report("one"), manifest("one"), CONFIG, LOOKS, results())
    assert "What a day" not in text
    assert not any(hostile.splitlines()[0] in text for hostile in HOSTILE_TEXTS)


def test_failures_name_the_worst_slices_of_enough_items() -> None:
    def part(value: str, items: int, unsafe: int, recall: float, fpr: float) -> dict[str, Any]:
        rates = {"recall": {"value": recall} if unsafe else None, "fpr": {"value": fpr} if unsafe < items else None}
        return {"slice": "kind", "value": value, "items": items, "unsafe": unsafe, "errors": 0, **rates}

    worst = [{"categories": [{"name": "Hate", "score": 0.3}, {"name": "Theft", "score": 0.9}]}] * 3
    result = {
        "suite": {"name": "Set"}, "adaptation": "none", "counts": {"items": 1000},
        "slices": [part("homonyms", 50, 0, 0, 0.44), part("few", 19, 19, 0.0, 0), part("poems", 30, 30, 0.25, 0),
                   part("all of it", 950, 500, 0.1, 0.9), part("prose", 40, 20, 0.9, 0.0)],
        "worst": {"false_positives": worst},
    }  # fmt: skip
    text = failures([result])
    assert "- Set, unsafe items missed: 75% of kind `poems`, 10% of kind `prose`." in text
    assert "- Set, safe items flagged: 44% of kind `homonyms`." in text
    assert "- Set, the 3 safe items with the highest scores, by their highest category: Theft 3." in text
    assert "few" not in text
    assert "all of it" not in text


def test_identity_terms() -> None:
    text = card({**report("one"), "identity_bias": identity()}, manifest("one"), CONFIG, [], [])
    assert "harmless sentences flagged: 0.100 of all" in text
    assert "is 0.250, of which chance alone gives about 0.040." in text
    assert "old +0.50 (40), gay -0.05 (40)." in text  # that of blind would be +0.00
    assert "gay +0.20 (30)." in text
    assert "| blind | 40 | 0.102 | 0 | – |" in text
    assert 'see "Identity terms"' in text


def test_new_categories() -> None:
    text = card(report("one"), manifest("one"), CONFIG, [], [], new_categories())
    assert "`withheld@1234`" in text
    assert "| Drugs | 200 | 400 | 0.333 | 0.700 | 0.800 | 0.850 (0.840 to 0.860) | 0.900 (0.890 to 0.910) |" in text
    assert "| Drugs | 200 | 0.500 | 0.500 | 0.600 | 0.650 (0.640 to 0.660) | 0.700 (0.690 to 0.710) |" in text
    assert "| Drugs | 75%, 5% | 75%, 5% | 75%, 5% | 75%, 5% |" in text
    assert "measured no categories that it never saw" not in text


def test_own_sources_are_told_of() -> None:
    names = ("one", "swapped", "ours_pairs", "ours_hate")
    text = card(report(*names), manifest(*names), CONFIG, [], [])
    assert "Our own writing is `ours_hate`, `ours_pairs`" in text
    assert "`swapped` puts comments" in text
    assert "XSTest is no independent test" in text
    assert "one word away" in text
    assert "HateCheck" in text
    assert "| ours_pairs | MIT | 100 | 7 | 5 | 8 | 80 | 70 |" in text
    assert "320 rows" in text


def test_a_run_without_hazards_says_so() -> None:
    found = report("one")
    found["config"]["without"] = ["drugs", "privacy"]
    text = card(found, [{**manifest("one")[0], "withheld": 6}], CONFIG, [], [])
    assert "| trained without | drugs, privacy |" in text
    assert "| one | MIT | 100 | 7 | 5 | 6 | 8 | 80 | 70 |" in text


def test_cost_is_an_estimate_with_its_assumption() -> None:
    found = report("one")
    found["trained"] |= {"seconds": 5400, "core_seconds": 10800, "cores": 4}
    text = card(found, manifest("one"), CONFIG, [], [])
    assert "The runs took 90 minutes together, 3.0 core-hours,\non a CPU with 4 cores" in text
    assert "assumed 10 W" in text
    assert "0.030 kWh" in text
    found["trained"] |= {"start": "one@abc", "earlier": {"core_seconds": 7200, "whole": True}}
    text = card(found, manifest("one"), CONFIG, [], [])
    assert "With those of `one@abc`, and what was before them, it is 5.0 core-hours.\nEnergy" in text
    assert "0.050 kWh" in text
    found["trained"]["earlier"] = {"core_seconds": 0, "whole": False}
    text = card(found, manifest("one"), CONFIG, [], [])
    assert "3.0 core-hours" in text
    assert "machine.\nTraining before that was not all recorded" in text


def test_roles() -> None:
    shares = {"requests": {"items": 9, "flagged": 0.75}, "refused": {"items": 9, "flagged": None}}
    text = card({**report("one"), "judged_role": shares}, manifest("one"), CONFIG, [], [])
    assert "## Does the judged role matter?" in text
    assert "| harmful requests | 9 | 0.75 |" in text
    assert "| refusals of these requests | 9 | – |" in text
    assert "answers to the same prompts that" not in text


def test_reads_what_a_run_left(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "evaluation").mkdir()
    files = {"report.json": report("one"), "manifest.json": manifest("one"), "model/config.json": CONFIG}
    evaluated = [{**result, "model": "tiny@0123456789ab"} for result in results()]
    more = {"looks.json": LOOKS, "evaluation/report.json": {"runs": evaluated}, NEW_CATEGORIES: new_categories()}
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    write_card(tmp_path)
    before = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
    for name, value in more.items():
        (tmp_path / name).write_text(json.dumps(value))
    write_card(tmp_path)
    after = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert before == card(report("one"), manifest("one"), CONFIG, [], [])
    assert after == card(report("one"), manifest("one"), CONFIG, LOOKS, results(), new_categories())
    assert "## Evaluation" in after
    (tmp_path / "evaluation" / "report.json").write_text(json.dumps({"runs": results()}))
    with pytest.raises(ModelError, match="is of guardrail-minilm@50ca41d28a3e, not of tiny@0123456789ab"):
        write_card(tmp_path)


def test_every_table_has_cells_for_its_head() -> None:
    text = card(
        {**report("one"), "identity_bias": identity()}, manifest("one"), CONFIG, LOOKS, results(), new_categories()
    )
    width = None
    for line in text.splitlines():
        cells = line.replace("\\|", "").count("|") if line.startswith("|") else None
        assert width is None or cells is None or cells == width, line
        width = cells


@pytest.mark.parametrize(
    ("cell", "shown"), [("a|b", "a\\|b"), ("two\nlines", "two lines"), (None, "None"), (3, "3"), ("", "")]
)
def test_a_cell_stays_in_its_cell(cell: object, shown: str) -> None:
    assert table(("head",), [(cell,)]).splitlines()[2] == f"| {shown} |"


def test_what_is_undefined_is_a_dash() -> None:
    assert number(None) == interval(None) == spread(None) == "–"
    assert number(0.12345) == "0.123"
