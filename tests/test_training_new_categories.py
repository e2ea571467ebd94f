"""Training without some hazards, and measuring them as new categories afterwards."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from guardrail.backends.scripted import ScriptedBackend
from guardrail.errors import BackendError, InputError, UsageError
from guardrail.guard import Guard
from guardrail.prompting import Prompt
from guardrail.scoring import Logits
from guardrail.taxonomy import Category, Taxonomy
from guardrail.training import added_categories
from guardrail.training.amounts import Amount
from guardrail.training.embedded_config import read_config
from guardrail.training.held_out import CONFIGS
from guardrail.training.labels import HazardTable
from guardrail.training.mix import Mix
from guardrail.training.new_categories import Plan, main, measure, split
from guardrail.training.policies import MADE_UP, PolicySampler
from guardrail.training.rows import Row
from guardrail.training.sources import SourceReport
from guardrail.training.withheld import (
    base_taxonomy,
    never_trained,
    remaining_labels,
    withheld_hazards,
    withhold,
)
from guardrail.types import Conversation

EXAMPLES = Path(__file__).parents[1] / "examples"
DRUGS = Category("N1", "Drugs", definition="pills", hazards=("drugs",))
BASE = Taxonomy("base", "Base", (Category("B1", "Theft", hazards=("fraud",)),))
PLAN = Plan(unsafe=10, fewest=5, safe=12, others=8, examples=(2, 4), draws=3)


def row(text: str, unsafe: float, *violated: str, possible: tuple[str, ...] = (), source: str = "one") -> Row:
    return Row(source, Conversation.parse(text), unsafe, frozenset(violated), frozenset(possible))


def mix_of(train: list[Row], held_out: list[Row]) -> Mix:
    manifest = [
        {**asdict(SourceReport(name, "MIT")), "held_out": len([item for item in held_out if item.source == name]),
         "training": len([item for item in train if item.source == name])}
        for name in ("one", "two")
    ]  # fmt: skip
    parts = {name: [item for item in train if item.source == name] for name in ("one", "two")}
    return Mix(parts, held_out, manifest, {name: Amount(10) for name in parts})


# training without them


def test_withheld_rows_leave_both_parts_and_are_counted() -> None:
    train = [
        row("a", 0.9, "drugs"),
        row("b", 0.9, "fraud", "drugs", source="two"),
        row("c", 0.9, "fraud", possible=("drugs", "privacy")),
        row("d", 0.0),
        row("e", 0.9, possible=("drugs", "fraud"), source="two"),
        row("f", 0.9, possible=("drugs",)),
        row("g", -1.0, possible=("drugs",)),
    ]
    held_out = [row("h", 0.9, "drugs"), row("i", 0.9, "fraud", source="two")]
    mix = mix_of(train, held_out)
    found = withhold(mix, frozenset({"drugs"}))
    kept = {item.text: item.possible for rows in found.train.values() for item in rows}
    assert kept == {"c": {"privacy"}, "d": set(), "e": {"fraud"}, "g": set()}
    assert [item.text for item in found.held_out] == ["i"]
    counts = [(entry["training"], entry["held_out"], entry["withheld"]) for entry in found.manifest]
    assert counts == [(3, 0, 3), (1, 1, 1)]
    assert [item.text for item in never_trained(mix, frozenset({"drugs"}))] == ["h", "i", "a", "b"]
    assert withhold(mix, frozenset()) is mix


def test_policies_without_them() -> None:
    without = withheld_hazards(["drugs", "privacy", "self_harm", "self_harm_intent", "self_harm_instructions"])
    space = remaining_labels(without)
    table = HazardTable.read(CONFIGS / "hazards.yaml")
    wordings = {name: texts for name, texts in table.wordings.items() if name in space.everything}
    shares = {"default": 1.0, "canonical": 1.0, "openai-moderation": 1.0, "beavertails": 1.0, MADE_UP: 3.0}
    sampler = PolicySampler(space, shares, wordings=wordings)
    chosen = random.Random(0)
    drawn = [sampler.draw(chosen) for _ in range(200)]
    assert {policy.name for policy in drawn} == set(shares)
    assert not any(labels & without or not labels for policy in drawn for labels in policy.labels)
    names = {category.name for policy in drawn for category in policy.taxonomy}
    withheld = {text.partition(": ")[0] for name in without for text in table.wordings[name]}
    assert "Non-Violent Crimes" in names
    assert not names & (withheld | {"Privacy", "Suicide & Self-Harm"})
    assert sampler.shipped["default"].taxonomy.codes == base_taxonomy("default", without).codes
    assert set(Taxonomy.load("default").codes) - set(base_taxonomy("default", without).codes) == {"G4", "G10"}


def test_unknown_hazards_and_all_of_them_are_refused() -> None:
    with pytest.raises(UsageError, match="there is no hazard 'drug'"):
        withheld_hazards(["drug"])
    with pytest.raises(UsageError, match="no hazard is left"):
        withheld_hazards(Taxonomy.load("canonical").codes)
    assert withheld_hazards(()) == frozenset()


def test_the_shipped_configuration_extends_the_other_one() -> None:
    base, config = (read_config(CONFIGS / name) for name in ("train-embedded.yaml", "train-embedded-withheld.yaml"))
    without = withheld_hazards(config.pop("without"))
    new = Taxonomy.load(CONFIGS / "new-categories.yaml")
    assert {hazard for item in new for hazard in item.hazards} == without
    assert sum(len(item.hazards) for item in new) == len(without)
    assert config["hyper"].pop("passes") == 1
    assert config.pop("runs") == [{"seed": 1}]
    assert config.pop("id") != base.pop("id")
    base["hyper"].pop("passes")
    base.pop("runs")
    assert config == base


# extends


def test_a_configuration_replaces_merges_and_takes_away(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "base.yaml").write_text("a: 1\nb: {c: 2, d: {e: 3, f: [4]}}\ng: 5\n")
    (tmp_path / "middle.yaml").write_text("extends: base.yaml\nb: {d: {f: [6, 7]}}\nh: {i: 8}\n")
    file = tmp_path / "folder" / "top.yaml"
    file.write_text("extends: ../middle.yaml\na: {j: 9}\ng: null\n")
    assert read_config(file) == {"a": {"j": 9}, "b": {"c": 2, "d": {"e": 3, "f": [6, 7]}}, "h": {"i": 8}}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("extends: top.yaml\n", "extend each other"),
        ("extends: other.yaml\n", "cannot be read: No such file"),
        ("extends: [a]\n", "expected the name of a file"),
        ("- a\n", "expected a mapping"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_a_broken_configuration_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "top.yaml").write_text(text)
    with pytest.raises(InputError, match=problem) as caught:
        read_config(tmp_path / "top.yaml")
    assert "\n" not in str(caught.value)


# measuring


def rows_of(drugs: int = 20) -> list[Row]:
    return [
        *(row(f"pills {at}", 0.9, "drugs") for at in range(drugs)),
        *(row(f"hello {at}", 0.0, source=f"safe{at % 3}") for at in range(30)),
        *(row(f"scam {at}", 0.9, "fraud", source="two") for at in range(20)),
        row("either", 0.9, "fraud", possible=("drugs",)),
        row("nobody knows", 0.9, possible=("drugs", "fraud")),
        row("half", 0.5, "drugs"),
    ]


def reader(prompts: list[Prompt]) -> ScriptedBackend:
    """Finds scams always, pills when a category is defined by them, and pills most surely with examples of them."""

    def script(prompt: Prompt) -> Logits:
        prompts.append(prompt)
        text = prompt.segments[1].text
        if "pills 3" in text.split("\n")[0]:
            raise BackendError("no")
        values = []
        for item in prompt.taxonomy:
            word = item.definition or "scam"
            sure = 1.0 + len(item.examples)
            values.append(sure if word in text else -1.0 if "hello" in text else 0.5)
        return Logits(0.0, max(values), tuple(values))

    return ScriptedBackend(script)


def test_measures_the_category_with_and_without_examples() -> None:
    prompts: list[Prompt] = []
    backend = reader(prompts)
    found = measure(
        lambda taxonomy: Guard(backend, taxonomy=taxonomy), BASE, DRUGS, *split(DRUGS, rows_of(), PLAN), PLAN
    )
    assert (found["name"], found["hazards"]) == ("Drugs", ["drugs"])
    assert (found["unsafe"], found["safe"], found["others"]) == (8, 12, 8)
    assert found["chance"] == 8 / 20
    assert found["chance_others"] == 0.5
    assert found["base"]["auprc_others"] < 0.6  # scams have the higher score
    assert found["definition"]["auprc"] == found["definition"]["auprc_others"] == 1
    assert found["definition"]["flagged"] == 1
    assert found["definition"]["flagged_safe"] == 0
    assert found["examples"]["4"]["auprc"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert list(found["examples"]) == ["2", "4"]

    shown = {prompt.taxonomy.digest: prompt.taxonomy for prompt in prompts}.values()
    assert sorted(len(taxonomy.categories[-1].examples) for taxonomy in shown) == [0, 0, 2, 2, 2, 4, 4, 4]
    given = {example.messages[-1].text for taxonomy in shown for item in taxonomy for example in item.examples}
    scored = {prompt.segments[1].text.partition(": ")[2].strip() for prompt in prompts}
    assert given
    assert not given & scored
    assert not {"either", "nobody knows", "half"} & scored


def test_is_the_same_every_time() -> None:
    first, second = (
        measure(
            lambda taxonomy: Guard(reader([]), taxonomy=taxonomy), BASE, DRUGS, *split(DRUGS, rows_of(), PLAN), PLAN
        )
        for _ in range(2)
    )
    assert first == second


def test_failures_are_counted_not_taken_for_safe() -> None:
    backend = ScriptedBackend(lambda prompt: _answer(prompt))

    def _answer(prompt: Prompt) -> Logits:
        if "pills" in prompt.segments[1].text and "1" in prompt.segments[1].text:
            raise BackendError("no")
        value = 2.0 if "pills" in prompt.segments[1].text else -2.0
        return Logits(0.0, value, (value,) * len(prompt.taxonomy))

    found = measure(
        lambda taxonomy: Guard(backend, taxonomy=taxonomy), BASE, DRUGS, *split(DRUGS, rows_of(), PLAN), PLAN
    )
    assert 0 < found["definition"]["not_judged"] < found["unsafe"]
    assert found["definition"]["auprc"] == found["definition"]["flagged"] == 1


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="8 rows violate Drugs"):
        split(DRUGS, rows_of(8), PLAN)
    pool, scored = split(DRUGS, rows_of(), PLAN)
    with pytest.raises(UsageError, match="3 rows can be examples of Drugs"):
        measure(lambda taxonomy: Guard(reader([]), taxonomy=taxonomy), BASE, DRUGS, pool[:3], scored, PLAN)


def test_a_run_that_withheld_nothing_is_refused(tmp_path: Path) -> None:
    config: dict[str, Any] = {"sources": {}, "held_out": 0.1, "without": ["drugs"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="does not withhold the category 'Animal Abuse'"):
        main(["--data", str(tmp_path), "--run", str(tmp_path)])


def test_is_a_command() -> None:
    command = [sys.executable, "-m", "guardrail.training.new_categories", "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "whose configuration has `without`" in found.stdout


# a policy of one's own


def write_policy(folder: Path, codes: tuple[str, ...], most: int) -> list[str]:
    """Options for some categories of the pharmacy's policy, and some of its rows to score."""
    policy = Taxonomy.load(EXAMPLES / "pharmacy-policy.yaml").select(codes)
    (folder / "policy.yaml").write_text(policy.to_yaml(), encoding="utf-8")
    for name in ("pharmacy-held-out.jsonl", "pharmacy-rows.jsonl"):
        kept: dict[str, list[str]] = {}
        for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines():
            (code,) = json.loads(line).get("categories") or ["safe"]
            if code in (*codes, "safe"):
                kept.setdefault(code, []).append(line)
        lines = [line for group in kept.values() for line in (group[:most] if "held-out" in name else group)]
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return ["embedded", "--taxonomy", str(folder / "policy.yaml"), "--rows", str(folder / "pharmacy-held-out.jsonl"),
            "--examples", str(folder / "pharmacy-rows.jsonl")]  # fmt: skip


def test_each_category_of_a_policy_is_added_to_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    added_categories.main(write_policy(tmp_path, ("P4", "P5"), 8))
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(f", {Taxonomy.load(tmp_path / 'policy.yaml').ref}")
    tricks, abuse = ([cell.strip() for cell in line.split("|")[1:-1]] for line in said[4:6])
    assert tricks[:4] == ["Refund Tricks", "8", "8", "0.500"]
    assert abuse[:4] == ["Abuse of Staff", "8", "8", "0.500"]
    assert abuse[5] == "1.000"
    # By the policy without it, by its definition, and by 16 examples besides, as the mean and the range of the draws.
    assert float(tricks[4]) < float(tricks[5])
    mean, low, high = (float(part) for part in tricks[7].replace("(", "").replace(")", "").replace("to ", "").split())
    assert 0.5 < low <= mean <= high <= 1
    assert sum(line.startswith("| Refund Tricks |") for line in said) == 3


def test_what_cannot_be_added_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"policy\.yaml: has one category"):
        added_categories.main(write_policy(tmp_path, ("P1",), 5))
    with pytest.raises(UsageError, match="--rows: 0 rows violate P1, 0 are safe"):
        added_categories.main(write_policy(tmp_path, ("P1", "P5"), 0))
