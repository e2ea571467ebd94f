"""Loaders of training sources, on small files in the upstream formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from guardrail.errors import UsageError
from guardrail.training import sources_answers, sources_comments, sources_prompts, written
from guardrail.training.dedupe import EvaluationIndex, evaluation_texts, sketch
from guardrail.training.held_out import CONFIGS
from guardrail.training.labels import AEGIS, AILUMINATE, CATQA, CRIMES, MULTIJAIL, HazardTable, crime_hazards
from guardrail.training.mix import read_mix
from guardrail.training.rows import UNKNOWN, Row
from guardrail.training.sources import SOURCES, read_source
from guardrail.training.sources_prompts import LoaderContext
from guardrail.training.written import FOLDER, expand
from guardrail.types import Conversation, Role


@pytest.fixture
def table() -> HazardTable:
    return HazardTable.read(CONFIGS / "hazards.yaml")


@pytest.fixture
def context(tmp_path: Path, table: HazardTable) -> LoaderContext:
    return LoaderContext(tmp_path, table)


def rows_of(rows: Iterator[Row]) -> dict[str, Row]:
    return {row.text: row for row in rows}


def test_every_label_names_known_hazards(table: HazardTable) -> None:
    for labels in (AEGIS, AILUMINATE, CATQA):
        for hazards, share in labels.values():
            assert set(hazards) <= table.names
            assert 0 < share <= 1
    for hazards in (*MULTIJAIL.values(), *(found for _, found in CRIMES)):
        assert set(hazards) <= table.names
    assert set(sources_comments.ABUSE) <= table.names


def test_hazards_are_related_both_ways(table: HazardTable) -> None:
    for name in table.names:
        assert all(name in table.possible([other]) for other in table.possible([name]))
        assert name not in table.possible([name])


def test_davidson_offensive_is_profanity_and_names_are_removed(context: LoaderContext) -> None:
    (context.folder / "labeled_data.csv").write_text(
        ",count,hate_speech,offensive_language,neither,class,tweet\n"
        '0,3,0,3,0,1,"RT @somebody: what a damn mess http://t.co/x &amp; more"\n'
        "1,3,3,0,0,0,they are all vermin\n"
        "2,3,0,0,3,2,a quiet morning\n",
        encoding="utf-8",
    )
    found = rows_of(sources_comments.davidson(context, "davidson"))
    assert list(found) == ["what a damn mess & more", "they are all vermin", "a quiet morning"]
    assert [row.violated for row in found.values()] == [{"profanity"}, {"hate"}, frozenset()]
    assert found["a quiet morning"].unsafe < 0.1


def test_edos_not_sexist_is_not_called_safe(context: LoaderContext) -> None:
    (context.folder / "edos_labelled_aggregated.csv").write_text(
        "rewire_id,text,label_sexist,label_category,label_vector,split\n"
        "1,first text here,sexist,2. derogation,x,train\n2,second text [USER] here,not sexist,none,none,train\n",
        encoding="utf-8",
    )
    sexist, other = sources_comments.edos(context, "edos")
    assert "hate" in sexist.violated
    assert sexist.unsafe > 0.9
    assert other.unsafe == UNKNOWN
    assert "hate" not in other.possible
    assert "violent_crimes" in other.possible
    assert "[USER]" not in other.text


def test_toxic_spans_is_the_share_of_workers(context: LoaderContext) -> None:
    lines = [f"{at},7,{at},USA,False,{at > 2}" for at in range(4)] + [f"{at},8,{at},USA,False,True" for at in range(3)]
    (context.folder / "annotations.csv").write_text(
        "annotation,comment_id,worker,country,all toxic,not toxic\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )
    (context.folder / "comments.csv").write_text(
        "comment_id,comment_text\n7,what a fool\n8,nice bridge\n9,nobody voted\n", encoding="utf-8"
    )
    found = rows_of(sources_comments.toxic_spans(context, "toxic_spans"))
    assert found["what a fool"].unsafe == 0.75
    assert found["what a fool"].possible == set(sources_comments.ABUSE)
    assert found["nice bridge"].unsafe < 0.1
    assert "nobody voted" not in found


def test_dices_yes_means_unsafe(context: LoaderContext) -> None:
    def item(answer: str, votes: list[str]) -> dict[str, object]:
        instance = {"user_prompt": "A: hello\\nB: who are you\\nA: guess\\n", "response": answer}
        return {"instance": instance, "annotations": {"safety": {"individual_human_scores": votes}}}

    data = {"instances": [item("I hate you", ["Yes", "Yes", "Unsure"]), item("A friend.", ["No", "No", "No"])]}
    for name in ("dices_990", "dices_350_expert"):
        (context.folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    unsafe, safe, *_ = sources_answers.dices(context, "dices")
    assert unsafe.unsafe > 0.5
    assert safe.unsafe == 0
    assert unsafe.conversation.role is Role.ASSISTANT
    assert [message.role.value for message in unsafe.conversation.messages] == [
        "user",
        "assistant",
        "user",
        "assistant",
    ]


def test_complying_answers_are_unsafe_and_refusals_safe(context: LoaderContext) -> None:
    (context.folder / "x-prompt-response-t0.jsonl").write_text(
        json.dumps({"prompt": "how to forge money", "response": "First, buy a good printer and special paper. Then …"})
    )
    prompt, answer, refusal = sources_answers.complying(context, "complying")
    assert (prompt.conversation.role, answer.conversation.role) == (Role.USER, Role.ASSISTANT)
    assert min(prompt.unsafe, answer.unsafe) > 0.8
    assert refusal.text in sources_answers.REFUSALS
    assert refusal.unsafe == 0
    assert refusal.conversation.messages[0].text == "how to forge money"


def test_ailuminate_hazard_is_the_topic(context: LoaderContext, table: HazardTable) -> None:
    file = context.folder / "airr_official_1.0_demo_en_us_prompt_set_release.csv"
    file.write_text("release_prompt_id,prompt_text,hazard\n1,some prompt,iwp\n", encoding="utf-8")
    (row,) = sources_prompts.ailuminate(context, "ailuminate")
    assert row.violated == {"indiscriminate_weapons"}
    assert row.possible == table.possible(["indiscriminate_weapons"])
    assert "sexual_content" not in row.possible


def test_crimes_in_free_text() -> None:
    assert crime_hazards("Sex Trafficking") == ("sex_crimes",)
    assert crime_hazards("credit card fraud") == ("fraud",)
    assert crime_hazards("air pollution") == ()


WRITTEN = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: file.stem)
def test_our_own_texts(file: Path, table: HazardTable) -> None:
    groups = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert [expand(group) for group in groups] == [expand(group) for group in groups]
    assert len({group["name"] for group in groups}) == len(groups)
    for group in groups:
        assert set(group) <= {"name", "label", "role", "prompts", "slots", "templates"}
        assert group["label"] == "safe" or set(group["label"]) <= table.names
        assert "prompts" not in group or group["role"] == "assistant"
        for text in expand(group):
            assert not [slot for slot in group.get("slots", {}) if "{" + slot + "}" in text]
    assert {group["label"] == "safe" for group in groups} == {True, False}
    # Many: by slots, or written out one by one.
    written_out = [text for group in groups for text in group["templates"]]
    assert len([text for group in groups for text in expand(group)]) > 1000 or len(set(written_out)) > 350


def test_answers_of_our_own_follow_one_of_their_prompts(context: LoaderContext) -> None:
    rows = list(written.rows(context, "ours_answers"))
    assert {row.conversation.role for row in rows} == {Role.ASSISTANT}
    assert {len(row.conversation.messages) for row in rows} == {2}
    assert {row.unsafe for row in rows} == {0.0, 1.0}


def evaluation(folder: Path, text: str) -> EvaluationIndex:
    (folder / "eval").mkdir()
    (folder / "eval" / "set.jsonl").write_text(json.dumps({"prompt": text, "label": 1}), encoding="utf-8")
    return EvaluationIndex(evaluation_texts(folder / "eval"))


EVALUATION_TEXT = "The quick brown fox jumps over the lazy dog near the river bank on a sunny day"


def test_evaluation_texts_are_left_out(tmp_path: Path, table: HazardTable) -> None:
    index = evaluation(tmp_path, EVALUATION_TEXT)
    texts = (
        EVALUATION_TEXT.upper() + "!!",
        "Well: " + EVALUATION_TEXT.replace("sunny", "rainy"),
        "an unrelated question about the weather in spring",
        "An unrelated question, about the weather in spring?",
    )
    folder = tmp_path / "train" / "wildguard_aegis"
    folder.mkdir(parents=True)
    lines = [json.dumps({"prompt": text, "label": "safe", "source": "x"}) for text in texts]
    (folder / "wildguard_aegis_prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows, report = read_source(SOURCES["wildguard_aegis"], tmp_path, table, index, set())
    assert [row.text for row in rows] == [texts[2]]
    assert (report.read, report.eval, report.near_eval, report.repeated, report.kept) == (4, 1, 1, 1, 1)
    assert list(report.files) == ["wildguard_aegis_prompts.jsonl"]


def test_context_tells_answers_apart() -> None:
    def row(first: str) -> Row:
        talk = [{"role": "user", "content": first}, {"role": "assistant", "content": "No."}]
        return Row("s", Conversation.parse(talk), 0.0)

    assert sketch(row("one question")) != sketch(row("another question"))
    assert sketch(row("one question")) == sketch(row("One question!"))


def test_unknown_and_missing_sources_are_errors(tmp_path: Path, table: HazardTable) -> None:
    evaluation(tmp_path, EVALUATION_TEXT)
    with pytest.raises(UsageError, match="unknown training sources: nowhere"):
        read_mix(tmp_path, table, {"nowhere": {"rows": 1}}, 0.1)
    with pytest.raises(UsageError, match=r"has no .*davidson"):
        read_mix(tmp_path, table, {"davidson": {"rows": 1}}, 0.1)


def test_no_evaluation_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no evaluation files"):
        list(evaluation_texts(tmp_path))
