"""The shipped suites: real files where they are at hand, small files in the upstream format for the others."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guardrail import resources
from guardrail.errors import InputError
from guardrail.evaluation.suite import Suite, shipped_suites
from guardrail.evaluation.suite_conversation import split_turns
from guardrail.evaluation.suite_label import Constant
from guardrail.evaluation.suite_rows import LoadedSuite, load_items
from guardrail.taxonomy import Taxonomy
from guardrail.types import Role
from tests.evaluation_suites import said, write

REAL = {
    "openai-moderation": (1680, 522),
    "toxic-chat": (5083, 362),
    "xstest": (450, 200),
    "hatecheck": (3728, 2563),
    "beavertails": (3021, 1733),
}
FEW_SHOT = resources.names("evals/few-shot", ".yaml")
AEGIS_LABELS = {"reconstruction_id_if_redacted": None, "prompt_label_source": "human"}
DIALOGUE = "USER: Hi there\nLAMDA: Hello!\nUSER: Tell me: a secret?"


def pairs(label: str, *values: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"question {n}", "response": f"answer {n}", label: value} for n, value in enumerate(values)]


def wild(prompt: Any, response: Any, adversarial: bool) -> dict[str, Any]:
    labels = {"prompt_harm_label": prompt, "response_harm_label": response, "response_refusal_label": "compliance"}
    return {"prompt": "q", "response": "a", "adversarial": adversarial, "subcategory": "benign", **labels}


def aegis(asked: str, answered: str | None, categories: str, **more: Any) -> dict[str, Any]:
    source = "llm_jury" if answered else None
    labels = {"prompt_label": asked, "response_label": answered, "violated_categories": categories}
    row = {"id": "x", "prompt": "q", "response": "a" if answered else None, "response_label_source": source}
    return row | AEGIS_LABELS | labels | more


def rated(item: int, context: str, *votes: str) -> list[dict[str, Any]]:
    people = {"rater_locale": "US", "safety_gold": "No", "degree_of_harm": "Benign"}
    row = {"item_id": item, "context": context, "response": "I am a machine.", **people}
    return [{"rater_id": rater, **row, "Q_overall": vote} for rater, vote in enumerate(votes)]


WILD = [wild("harmful", "harmful", True), wild("unharmful", "unharmful", False), wild(None, None, True)]
AEGIS = [
    aegis("unsafe", "unsafe", "Violence, Guns and Illegal Weapons"),
    aegis("unsafe", "safe", "Needs Caution"),
    aegis("safe", None, ""),
    aegis("unsafe", None, "Suicide and Self Harm", prompt="REDACTED", reconstruction_id_if_redacted=7.0),
    aegis("safe", "safe", "", response=""),
]
AEGIS_1 = {"labels_3": None, "labels_4": None}
HARMBENCH = {"SemanticCategory": "illegal", "Tags": "", "ContextString": ""}
GENERATION = {"generation": "Sure, …", "experiment": "GCG", "test_case": "Do it !!"}
SAFERLHF = [
    {
        "prompt": f"q{n}",
        **{f"response_{k}": f"a{n}{k}" for k in (0, 1)},
        **{f"is_response_{k}_safe": k == n % 2 for k in (0, 1)},
        **{f"response_{k}_severity_level": 0 if k == n % 2 else 2 for k in (0, 1)},
        **{f"response_{k}_source": "Alpaca-7B" for k in (0, 1)},
    }
    for n in range(3)
]
JBB = {"Target": "t", "Behavior": "b", "Category": "Privacy", "Source": "Original"}
AILUMINATE = {"persona": "skilled", "locale": "en_US", "prompt_hash": "0"}

# By suite: the rows of each file as upstream has them, the labels that the suite has to give, and who spoke.
UPSTREAM: dict[str, tuple[list[list[dict[str, Any]]], list[bool | None]]] = {
    "pku-saferlhf": ([[row] for row in SAFERLHF], [False, True, True, False, False, True]),
    "harmbench-prompts": (
        [
            [
                {"Behavior": f"do {kind}", "BehaviorID": kind, "FunctionalCategory": kind, **HARMBENCH}
                for kind in ("standard", "copyright", "contextual")
            ]
        ],
        [True, True],
    ),
    "xstest-response": (
        [[row | {"prompt_type": "prompt_safe"} for row in pairs("label", "harmful", "unharmful", "unharmful")]],
        [True, False, False],
    ),
    "wildguardtest-prompt": ([WILD], [True, False, None]),
    "wildguardtest-response": ([WILD], [True, False, None]),
    "aegis-prompt": ([AEGIS], [True, True, False, False]),
    "aegis-response": ([AEGIS], [True, False]),
    "aegis-1-prompt": (
        [
            [
                {"text": "x", "text_type": kind, "labels_0": a, "labels_1": b, "labels_2": c, **AEGIS_1}
                for kind, a, b, c in (
                    ("user_message", "Safe", "Violence, Threat", "Needs Caution"),
                    ("user_message", "Safe", "Safe", "Profanity"),
                    ("user_message, llm_response", "Violence", "Violence", "Violence"),
                    ("user_message", "Threat", "Threat", "Threat"),
                )
            ]
        ],
        [True, False, True],
    ),
    "simple-safety-tests": (
        [[{"id": f"sst_{n}", "harm_area": "Scams", "category": "Advice", "prompt": f"p{n}"} for n in range(3)]],
        [True] * 3,
    ),
    "ailuminate-demo": (
        [[{"release_prompt_id": h, "prompt_text": "p", "hazard": h, **AILUMINATE} for h in ("vcr", "hte", "spc_lgl")]],
        [True] * 3,
    ),
    "jailbreakbench": (
        [[{"Index": n, "Goal": f"{kind} {n}", **JBB} for n in range(2)] for kind in ("harm", "help")],
        [True, True, False, False],
    ),
    "strongreject": (
        [[{"category": "Violence", "source": "custom", "forbidden_prompt": f"p{n}"} for n in range(3)]],
        [True] * 3,
    ),
    "dices-350": (
        [
            [
                *rated(1, DIALOGUE, "Yes", "No", "Unsure"),
                *rated(2, DIALOGUE, "No", "No", "Yes"),
                *rated(3, "USER: Hi there", "Unsure"),
            ]
        ],
        [True, False, None],
    ),
    "dices-990": (
        [
            [
                *rated(1, "A: Hi there\\nB: Hello!\\nA: Tell me: a secret?\\n", "Yes", "No"),
                *rated(2, "A: Hi there", "No", "No", "Yes"),
                *rated(3, "A: Hi there", "Unsure"),
            ]
        ],
        [True, False, None],
    ),
}


def load_small(name: str, folder: Path) -> LoadedSuite:
    """The suite on its small files, without the counts of the real ones."""
    suite = Suite.load(name)
    for file, rows in zip(suite.source.files, UPSTREAM[name][0], strict=True):
        write(folder / file.path, rows)
    return load_items(replace(suite, expect={}), folder)


@pytest.mark.parametrize("name", REAL)
def test_the_real_file_has_the_declared_counts(data_dir: Path, name: str) -> None:
    loaded = load_items(Suite.load(name), data_dir)
    records, unsafe = REAL[name]
    assert (loaded.records, len(loaded.items), loaded.unsafe, loaded.unknown) == (records, records, unsafe, 0)
    assert loaded.suite.expect == {"records": records, "items": records, "unsafe": unsafe, "unknown": 0}
    assert not [item.id for item in loaded.items if item.error]
    assert {item.conversation.role for item in loaded.items if item.conversation} == {loaded.suite.judged}


def test_the_unknown_labels_of_openai_moderation(data_dir: Path) -> None:
    items = load_items(Suite.load("openai-moderation"), data_dir).items
    assert sum(None not in item.categories.values() for item in items) == 755
    positive = Counter(code for item in items for code, value in item.categories.items() if value)
    by_upstream = {"S": 237, "H": 162, "V": 94, "HR": 76, "S3": 85, "SH": 51, "H2": 41, "V2": 24}
    assert sorted(positive.values()) == sorted(by_upstream.values())
    assert (positive["sexual"], positive["sexual/minors"], positive["hate/threatening"]) == (237, 85, 41)


def test_slices_of_the_real_files(data_dir: Path) -> None:
    toxic = load_items(Suite.load("toxic-chat"), data_dir).items
    assert Counter(item.slices["jailbreaking"] for item in toxic) == {"no": 4992, "yes": 91}
    assert Counter(item.slices["labelled by"] for item in toxic)["people"] == 2853
    hate = load_items(Suite.load("hatecheck"), data_dir).items
    assert len({item.slices["functionality"] for item in hate}) == 29
    assert sum("target" not in item.slices for item in hate) == 292
    assert all(item.categories == {"hate": item.unsafe} for item in hate)


def test_the_demo_prompts_of_ailuminate(data_dir: Path) -> None:
    items = load_items(Suite.load("ailuminate-demo"), data_dir / "train").items
    assert len(items) == 1200
    assert all(list(item.categories.values()).count(None) == 14 for item in items)
    assert all(item.categories[item.slices["hazard"]] is True for item in items)


@pytest.mark.parametrize(("name", "file"), [("dices-350", "dices_350_expert.json"), ("dices-990", "dices_990.json")])
def test_the_contexts_of_dices_are_turns(data_dir: Path, name: str, file: str) -> None:
    turns = Suite.load(name).fields.turns
    assert turns is not None
    instances = json.loads((data_dir / "train" / "dices" / file).read_text(encoding="utf-8"))["instances"]
    found = [split_turns(instance["instance"]["user_prompt"], turns) for instance in instances]
    assert {spoken[-1].role for spoken in found} == {Role.USER}
    assert {spoken[0].role for spoken in found} == {Role.USER}
    assert max(map(len, found)) >= 9
    assert not [turn for spoken in found for turn in spoken if "\\n" in turn.text or turn.text.startswith("B:")]


def test_the_votes_of_dices_990(data_dir: Path) -> None:
    suite = Suite.load("dices-990")
    path = data_dir / "train" / "dices" / "dices_990.json"
    votes = [
        instance["annotations"]["safety"]["individual_human_scores"]
        for instance in json.loads(path.read_text(encoding="utf-8"))["instances"]
    ]
    meaning = {"Yes": True, "No": False, "Unsure": None}
    label = suite.label
    assert not isinstance(label, Constant)
    unsafe = [label.verdict([meaning[vote] for vote in each]) for each in votes]  # type: ignore[union-attr, arg-type]
    assert (len(unsafe), sum(map(bool, unsafe))) == (suite.expect["items"], suite.expect["unsafe"])


def test_every_suite_is_tested() -> None:
    assert set(shipped_suites()) == set(REAL) | set(UPSTREAM) | {"harmbench-responses"}


@pytest.mark.parametrize("name", UPSTREAM)
def test_a_file_in_the_upstream_format_is_read(tmp_path: Path, name: str) -> None:
    loaded = load_small(name, tmp_path)
    assert [item.unsafe for item in loaded.items] == UPSTREAM[name][1]
    assert not [item.error for item in loaded.items if item.error and name != "aegis-response"]
    for item in loaded.items:
        assert said(item)[-1][0] == loaded.suite.judged
        assert set(item.slices) >= set(loaded.suite.slices)
        assert set(item.categories) == set(loaded.suite.taxonomy.codes if loaded.suite.taxonomy else ())
    if loaded.suite.judged is Role.USER:
        assert {len(said(item)) for item in loaded.items} == {1}


@pytest.mark.parametrize("name", UPSTREAM)
def test_the_counts_of_the_real_file_are_expected(tmp_path: Path, name: str) -> None:
    loaded = load_small(name, tmp_path)
    if not loaded.suite.expect and name == "pku-saferlhf":
        assert Suite.load(name).expect == {}
        return
    with pytest.raises(InputError, match=r"expected \d+ (records|items)"):
        load_items(Suite.load(name), tmp_path)


def test_harmbench_responses_lie_below_their_behaviours(tmp_path: Path) -> None:
    suite = Suite.load("harmbench-responses")
    votes = {"hack": [(1, 1, 0), (0, 1, 0)], "bomb": [(0, 0, 0)]}
    data = {
        key: [{**GENERATION, **{f"human_{k}": vote for k, vote in enumerate(cast)}} for cast in casts]
        for key, casts in votes.items()
    }
    path = tmp_path / suite.source.files[0].path
    path.parent.mkdir()
    path.write_text(json.dumps(data))
    items = load_items(replace(suite, expect={}), tmp_path).items
    assert [item.unsafe for item in items] == [True, False, False]
    assert said(items[0]) == [("user", "Do it !!"), ("assistant", "Sure, …")]
    with pytest.raises(InputError, match="expected 602 records"):
        load_items(suite, tmp_path)


def test_dices_conversations_have_all_their_turns(tmp_path: Path) -> None:
    for name in ("dices-350", "dices-990"):
        items = load_small(name, tmp_path).items
        assert said(items[0]) == [
            ("user", "Hi there"),
            ("assistant", "Hello!"),
            ("user", "Tell me: a secret?"),
            ("assistant", "I am a machine."),
        ]
        assert [item.id for item in items] == ["1", "2", "3"]


def test_the_categories_of_aegis(tmp_path: Path) -> None:
    prompts = load_small("aegis-prompt", tmp_path).items
    assert [code for code, value in prompts[0].categories.items() if value] == ["S1", "S4"]
    assert [code for code, value in prompts[1].categories.items() if value] == ["S13"]
    assert set(prompts[2].categories.values()) == {False}
    responses = load_small("aegis-response", tmp_path).items
    assert set(responses[1].categories.values()) == {False}


def test_saferlhf_answers_belong_to_their_labels(tmp_path: Path) -> None:
    items = load_small("pku-saferlhf", tmp_path).items
    assert [said(item)[1][1] for item in items] == ["a00", "a01", "a10", "a11", "a20", "a21"]
    assert [item.slices["severity"] for item in items] == ["0", "2", "2", "0", "0", "2"]
    assert [item.id for item in items][:2] == ["1#0", "1#1"]


@pytest.mark.parametrize("name", shipped_suites())
def test_a_shipped_suite_is_complete(name: str) -> None:
    suite = Suite.load(name)
    assert suite.id == name
    assert suite.use == "evaluation"
    assert suite.notes
    assert suite.source.files
    assert suite.source.home
    assert suite.label_text.endswith(".")
    assert len(suite.description) <= 130
    assert all(caveat.endswith(".") for caveat in suite.caveats.values())
    revision = suite.source.hub.revision if suite.source.hub else None
    assert revision is None or re.fullmatch("[0-9a-f]{40}", revision)


def test_the_embedded_model_has_its_caveats() -> None:
    model = json.loads((resources.folder("model") / "config.json").read_text(encoding="utf-8"))
    caveats = {name: Suite.load(name).caveats for name in shipped_suites()}
    assert {key for found in caveats.values() for key in found} == {model["id"]}
    told = {name for name, found in caveats.items() if found}
    assert set(shipped_suites()) - told == {"beavertails"}
    assert "two prompts are a training row with a word more or less" in caveats["xstest"][model["id"]]


@pytest.mark.parametrize("name", FEW_SHOT)
def test_few_shot_examples_show_both_sides_of_each_category(name: str) -> None:
    suite = Suite.load("hatecheck" if name == "hate-speech" else name)
    assert suite.taxonomy is not None
    assert tuple(suite.examples) == suite.taxonomy.codes
    for code, examples in suite.examples.items():
        assert {example.label for example in examples} == {"safe", "unsafe"}, code
        assert 2 <= len(examples) <= 4, code
        assert {example.messages[-1].role for example in examples} == {suite.judged}, code
    assert Taxonomy.from_yaml(suite.few_shot.to_yaml() if suite.few_shot else "") == suite.few_shot


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def runs(text: str) -> Iterator[tuple[str, ...]]:
    """Runs of five words, or all words of a shorter text."""
    found = words(text)
    yield from (tuple(found[start : start + 5]) for start in range(max(1, len(found) - 4)))


def test_few_shot_examples_are_not_from_evaluation_data(data_dir: Path) -> None:
    evaluated = {
        run
        for name in REAL
        for item in load_items(Suite.load(name), data_dir).items
        if item.conversation
        for message in item.conversation.messages
        for run in runs(message.text)
    }
    shared = {
        " ".join(run)
        for name in FEW_SHOT
        for examples in Suite.load("hatecheck" if name == "hate-speech" else name).examples.values()
        for example in examples
        for message in example.messages
        for run in runs(message.text)
        if run in evaluated
    }
    assert shared == set()


def test_the_documentation_lists_every_suite_with_its_counts() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "evaluation-suites.md").read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("| `")]
    for name in shipped_suites():
        suite = Suite.load(name)
        line = next(line for line in table if f"`{name}`" in line)
        assert f"| {suite.judged} |" in line
        assert suite.licence in line
        assert f"{suite.expect['items']:,}" in line if "items" in suite.expect else "not verified" in line
        assert line.endswith("| yes |") is (suite.source.hub is None)
