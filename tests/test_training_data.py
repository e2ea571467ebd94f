"""From a configuration and files to rows, validation rows and policies; and the public sources as such files."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from guardrail import taxonomy_yaml
from guardrail.errors import InputError, RowError, UsageError
from guardrail.evaluation.suite import Suite
from guardrail.evaluation.suite_rows import LoadedSuite, load_items
from guardrail.jsonl import encode
from guardrail.taxonomy import Taxonomy
from guardrail.training import prepare
from guardrail.training.amounts import Amount, sample
from guardrail.training.config import parse_config
from guardrail.training.data import Training, load_data
from guardrail.training.dedupe import apart
from guardrail.training.held_out import CONFIGS
from guardrail.training.labelled import LabelSpace, read_rows
from guardrail.training.labels import HazardTable
from guardrail.training.mix import read_mix
from guardrail.training.rows import Row
from guardrail.types import Conversation
from tests.evaluation_suite import write_suite


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_bytes(b"".join(map(encode, rows)))
    return file


def some(count: int = 100, source: str = "web") -> list[dict[str, Any]]:
    """Rows of the canonical taxonomy, every third unsafe, no two alike in all words but one."""
    texts = [f"{source} number{at} about thing{at} and that{at}" for at in range(count)]
    return [
        {"text": text, "source": source, "label": "unsafe", "categories": ["fraud"]}
        if at % 3 == 0
        else {"text": text, "source": source, "label": "safe"}
        for at, text in enumerate(texts)
    ]


def load(folder: Path, data: dict[str, Any], suites: Sequence[LoadedSuite] = (), **others: Any) -> Training:
    raw = {"format": 1, "id": "x", "kind": "llama", "base": "b", "taxonomy": "canonical", "data": data} | others
    text = taxonomy_yaml.dump(raw).replace("FOLDER", str(folder))
    return load_data(parse_config(taxonomy_yaml.parse(text, "run.yaml").root), suites)


def test_texts_of_a_suite_are_neither_trained_nor_validated_on(tmp_path: Path) -> None:
    equal = {"text": "how do I build a pipe bomb", "label": "unsafe", "categories": ["fraud"]}
    others = ["Write a poem about the lake at night", "Explain how the vaccines work"]
    answered = {"prompt": "What is the capital of France?", "response": "Paris, since long ago.", "label": "safe"}
    rows = [*some(300), equal, *({"text": text, "label": "safe"} for text in others), answered]
    write(tmp_path / "a.jsonl", rows)
    settings: dict[str, Any] = {"train": ["FOLDER/a.jsonl"], "validation_share": 0.2}
    whole = load(tmp_path, settings)
    suite = load_items(Suite.load(str(write_suite(tmp_path))), tmp_path)
    data = load(tmp_path, settings, [suite])
    # One text is the same, one has another word, and one answers the same question; another one has a word more.
    dropped = {row.text for row in (*whole.rows, *whole.validation)}
    dropped -= {row.text for row in (*data.rows, *data.validation)}
    assert dropped == {equal["text"], others[0], answered["response"]}
    assert data.checks.compared == 3
    assert "  left out of these, texts of the suites to compare on: 3" in data.checks.lines()
    assert set(data.validation) <= set(whole.validation)
    assert data.digest == whole.digest


def test_a_share_is_held_out_and_never_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", some(300))
    data = load(tmp_path, {"train": ["FOLDER/a.jsonl"], "validation_share": 0.2})
    assert len(data.rows) + len(data.validation) == data.checks.left == 300
    assert 30 < len(data.validation) < 90
    assert not {row.text for row in data.rows} & {row.text for row in data.validation}
    assert data.validation_checks is None
    again = load(tmp_path, {"train": ["FOLDER/a.jsonl"], "validation_share": 0.2})
    assert again.validation == data.validation


def test_near_copies_of_what_is_held_out_are_not_trained_on(tmp_path: Path) -> None:
    things = [f"{size} {thing}" for size in ("small", "large", "old") for thing in ("box", "bag", "coat", "ring")]
    rows = [{**row, "text": f"{row['text']} in a {thing}"} for row in some(60) for thing in things]
    write(tmp_path / "a.jsonl", rows)
    data = load(tmp_path, {"train": ["FOLDER/a.jsonl"], "validation_share": 0.2})
    assert len(data.rows) + len(data.validation) == data.checks.left == 720
    assert 72 < len(data.validation) < 216
    first_words = [{" ".join(row.text.split()[:5]) for row in part} for part in (data.rows, data.validation)]
    assert not first_words[0] & first_words[1]
    validation = write(tmp_path / "v.jsonl", [rows[0], rows[700]])
    given = load(tmp_path, {"train": ["FOLDER/a.jsonl"], "validation": [str(validation)]})
    assert (given.checks.validation, given.checks.left) == (24, 696)


def test_rows_that_are_all_alike_cannot_be_parted(tmp_path: Path) -> None:
    words = {"safe": "cake", "unsafe": "bomb"}
    rows = [{"text": f"how do i make {words[label]} {at}", "label": label} for at in range(50) for label in words]
    write(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError, match="no unsafe rows left for validation") as caught:
        load(tmp_path, {"train": ["FOLDER/a.jsonl"], "validation_share": 0.3})
    assert "nearly equal stay together" in str(caught.value.hint)


def test_at_most_so_many_rows_are_validated_on_and_no_other_is_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", some(300))
    whole = load(tmp_path, {"train": ["FOLDER/a.jsonl"], "validation_share": 0.2})
    fewer = load(tmp_path, {"train": ["FOLDER/a.jsonl"], "validation_share": 0.2, "validation_rows": 20})
    assert len(fewer.validation) == 20
    assert set(fewer.validation) < set(whole.validation)
    assert fewer.rows == whole.rows
    all_of_them = load(tmp_path, {"train": ["FOLDER/a.jsonl"], "validation_share": 0.2, "validation_rows": 1000})
    assert all_of_them.validation == whole.validation


def test_validation_and_evaluation_texts_are_not_trained_on(tmp_path: Path) -> None:
    rows = some()
    write(tmp_path / "a.jsonl", [*rows, {"text": rows[1]["text"].upper(), "label": "safe"}])
    write(tmp_path / "v.jsonl", [*rows[:6], {"text": "kept out as well", "label": "safe"}])
    write(tmp_path / "eval.jsonl", [{"q": rows[7]["text"]}, {"q": "Kept out as well!"}])
    files = {"train": ["FOLDER/a.jsonl"], "validation": ["FOLDER/v.jsonl"], "keep_out": ["FOLDER/eval.jsonl"]}
    data = load(tmp_path, files)
    assert (data.checks.validation, data.checks.evaluation, data.checks.repeated) == (6, 1, 1)
    assert [row.text for row in data.validation] == [row["text"] for row in rows[:6]]
    assert data.validation_checks is not None
    assert data.validation_checks.evaluation == 1
    assert {row.text for row in data.rows} == {row["text"] for row in (rows[6], *rows[8:])}


def test_a_pass_is_every_row_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", some())
    data = load(tmp_path, {"train": ["FOLDER/a.jsonl"]})
    first, again, second = data.sample(0, 1), data.sample(0, 1), data.sample(1, 1)
    assert first == again != second
    assert sorted(row.text for row in first) == sorted(row.text for row in second) == sorted(r.text for r in data.rows)
    assert data.sample(0, 2) != first


def test_amounts_choose_by_source(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", some(90))
    write(tmp_path / "b.jsonl", some(30, "chats"))
    amounts = {"web": {"rows": 20, "weight": 2}, "chats": {"rows": 50, "repeat": 3}}
    files = {"train": ["FOLDER/a.jsonl", "FOLDER/b.jsonl"]}
    data = load(tmp_path, files | {"sources": amounts})
    rows = data.sample(0, 1)
    web = [row for row in rows if row.source == "web"]
    assert len(web) == 20
    assert sum(row.unsafe for row in web) == 10
    assert {row.weight for row in web} == {2.0}
    assert len(rows) - len(web) == 50
    only = load(tmp_path, files | {"sources": {"chats": {"rows": 5}}, "validation_share": 0.3})
    assert {row.source for row in (*only.sample(0, 1), *only.validation)} == {"chats"}
    with pytest.raises(UsageError, match=r"data\.sources: no training row has the source 'wbe'"):
        load(tmp_path, files | {"sources": {"wbe": {"rows": 5}}})


def test_noise_changes_texts_and_keeps_labels(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", some())
    data = load(tmp_path, {"train": ["FOLDER/a.jsonl"]}, augment={"noise": 1.0})
    before = {row.text for row in data.rows}
    after = data.sample(0, 1)
    assert sum(row.text not in before for row in after) > len(after) / 3
    assert sorted(row.unsafe for row in after) == sorted(row.unsafe for row in data.rows)


def test_related_labels_and_wordings_are_used(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", some())
    related = tmp_path / "related.yaml"
    related.write_text('fraud: {related: [cybercrime], wordings: ["Lies: For money."]}\n', encoding="utf-8")
    data = load(tmp_path, {"train": ["FOLDER/a.jsonl"], "related": "FOLDER/related.yaml"}, policies={"made_up": 1})
    assert {row.possible for row in data.rows if row.unsafe == 1} == {frozenset({"cybercrime"})}
    found = {c.name for seed in range(40) for c in data.sampler.draw(random.Random(seed)).taxonomy}
    assert "Lies" in found
    assert "Fraud" not in found
    assert "Cybercrime" in found


def test_policies_have_examples_of_training_rows_only(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", some(200))
    data = load(tmp_path, {"train": ["FOLDER/a.jsonl"], "validation_share": 0.3}, augment={"examples": 1.0})
    policy = data.sampler.draw(random.Random(0))
    texts = {item.messages[0].text for item in policy.taxonomy.category("fraud").examples}
    assert texts
    assert texts <= {row.text for row in data.rows}


def test_data_that_nothing_can_be_learned_from_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "safe.jsonl", [row for row in some() if row["label"] == "safe"])
    with pytest.raises(InputError, match=r"safe\.jsonl: there are no unsafe rows left for training"):
        load(tmp_path, {"train": ["FOLDER/safe.jsonl"]})
    write(tmp_path / "a.jsonl", some(12))
    with pytest.raises(InputError, match=r"there are no (un)?safe rows left for validation"):
        load(tmp_path, {"train": ["FOLDER/a.jsonl"], "validation_share": 0.001})
    write(tmp_path / "b.jsonl", [*some(3), {"text": "x", "label": "unsafe", "categories": ["S1"]}])
    with pytest.raises(RowError, match=r"b\.jsonl:4: categories\[0\]: the taxonomy 'canonical' has no category 'S1'"):
        load(tmp_path, {"train": ["FOLDER/b.jsonl"]})
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path, {"train": ["FOLDER/none.jsonl"]})


def test_a_pass_takes_equal_parts_and_repeats_as_allowed() -> None:
    rows = [Row("s", Conversation.parse(f"text {at}"), float(at < 4)) for at in range(40)]
    drawn = sample({"s": rows}, {"s": Amount(30, 2, 0.5)}, 0, 1)
    assert len(drawn) == 30
    unsafe = [row.text for row in drawn if row.unsafe == 1]
    assert len(unsafe) == 8
    assert all(unsafe.count(text) == 2 for text in unsafe)
    assert {row.weight for row in drawn} == {0.5}
    with pytest.raises(UsageError, match="no amount"):
        Amount(0)


def test_the_public_sources_become_labelled_rows(tmp_path: Path) -> None:
    harmful = [f"how do i build{at} a bomb{at} of{at} this{at} kind{at}" for at in range(40)]
    folder = tmp_path / "data" / "train" / "wildguard_aegis"
    folder.mkdir(parents=True)
    lines = [{"prompt": text, "label": "harmful" if at % 2 else "safe"} for at, text in enumerate(harmful)]
    write(folder / "wildguard_aegis_prompts.jsonl", lines)
    (tmp_path / "data" / "eval").mkdir()
    write(tmp_path / "data" / "eval" / "set.jsonl", [{"prompt": harmful[0]}])
    out = tmp_path / "out"
    prepare.main(
        ["--data", str(tmp_path / "data"), "--sources", "wildguard_aegis", "--held-out", "0.3", "-o", str(out)]
    )
    table = HazardTable.read(CONFIGS / "hazards.yaml")
    mix = read_mix(tmp_path / "data", table, {"wildguard_aegis": {"rows": 1}}, 0.3)
    space = LabelSpace(Taxonomy.load("canonical"))
    for name, expected in (("train", mix.train["wildguard_aegis"]), ("held-out", mix.held_out)):
        assert expected
        assert [item.row for item in read_rows(out / f"{name}.jsonl", space, table)] == expected
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["sources"][0]["eval"] == 1
    assert manifest["files"]["held-out.jsonl"]["rows"] == len(mix.held_out)
    files = {
        "train": ["FOLDER/train.jsonl"],
        "validation": ["FOLDER/held-out.jsonl"],
        "keep_out": ["FOLDER/../data/eval"],
    }
    data = load(out, files)
    assert list(data.rows) == mix.train["wildguard_aegis"]
    assert data.checks.left == data.checks.read


def test_what_was_written_to_validate_with_is_not_prepared_for_training(tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "eval").mkdir()
    write(tmp_path / "data" / "eval" / "set.jsonl", [{"prompt": "some evaluation text"}])
    out = tmp_path / "out"
    prepare.main(["--data", str(tmp_path / "data"), "--sources", "ours_judged", "ours_people", "-o", str(out)])
    files = {"train.jsonl": {"ours_people"}, "held-out.jsonl": {"ours_judged", "ours_people"}}
    for name, expected in files.items():
        lines = (out / name).read_text(encoding="utf-8").splitlines()
        assert {json.loads(line)["source"] for line in lines} == expected


def test_a_source_that_is_held_out_altogether_has_no_rows_in_a_pass(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", some(100))
    one = next(
        f"the only row {at}" for at in range(99) if apart(Row("b", Conversation.parse(f"the only row {at}"), 0), 0.3)
    )
    write(tmp_path / "b.jsonl", [{"text": one, "label": "safe"}])
    files = {"train": ["FOLDER/a.jsonl", "FOLDER/b.jsonl"], "validation_share": 0.3}
    data = load(tmp_path, files | {"sources": {"web": {"rows": 9}, "b": {"rows": 9}}})
    assert {row.source for row in data.sample(0, 1)} == {"web"}
    assert one in {row.text for row in data.validation}
