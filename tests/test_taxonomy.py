from __future__ import annotations

import csv
import dataclasses
import json
import pickle
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail import resources
from guardrail.errors import TaxonomyError, UsageError
from guardrail.taxonomy import Category, Example, Taxonomy
from guardrail.taxonomy_category import known_hazards
from guardrail.types import Message, Role, is_blank

SHIPPED = resources.names("taxonomies", ".yaml")

HEAD = "format: 1\nid: mine\nname: Mine\ncategories:\n  - code: S1\n    name: Weapons\n"


def texts(minimum: int = 0) -> st.SearchStrategy[str]:
    plain = st.text(min_size=minimum, max_size=30)
    return plain.map(str.strip) if not minimum else plain.filter(lambda text: bool(text.strip()))


lines = texts(1).map(str.strip).filter(lambda text: len(text.splitlines()) == 1)
said = texts(1).filter(lambda text: not is_blank(text))
examples = st.builds(
    lambda label, said: Example(label, tuple(map(Message, (Role.USER, Role.ASSISTANT), said))),
    st.sampled_from(["safe", "unsafe"]),
    st.tuples(said) | st.tuples(st.text(max_size=9), said),
)
codes = st.text(string.ascii_letters + string.digits, min_size=1, max_size=6) | st.sampled_from(
    ["no", "1", "1.5", "null", "hate/threatening", "self-harm", "ß", "2024-01-01", "0x1F", "true"]
)
categories = st.builds(
    Category,
    codes,
    lines,
    texts(),
    st.lists(lines, max_size=3).map(tuple),
    st.lists(lines, max_size=3).map(tuple),
    st.lists(examples, max_size=3).map(tuple),
    st.lists(st.sampled_from(known_hazards()), max_size=4, unique=True).map(tuple),
)
taxonomies = st.builds(
    Taxonomy,
    st.sampled_from(["mine", "a.b-c", "9"]),
    lines,
    st.lists(categories, min_size=1, max_size=4, unique_by=lambda c: c.code).map(tuple),
    texts(),
    texts(),
)


@pytest.fixture
def llama3() -> Taxonomy:
    return Taxonomy.load("llama-guard-3")


def test_the_expected_files_ship() -> None:
    assert set(SHIPPED) >= {
        *("canonical", "default", "openai-moderation", "ailuminate", "aegis-2", "beavertails"),
        *("llama-guard-1", "llama-guard-2", "llama-guard-3", "llama-guard-3-1b", "llama-guard-4"),
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_is_complete(name: str) -> None:
    taxonomy = Taxonomy.load(name)
    assert taxonomy.id == name
    assert taxonomy.description
    assert all(category.definition for category in taxonomy)
    assert Taxonomy.load(resources.folder("taxonomies") / f"{name}.yaml") == taxonomy
    assert Taxonomy.from_yaml(taxonomy.to_yaml()) == taxonomy


def test_canonical_maps_to_itself() -> None:
    canonical = Taxonomy.load("canonical")
    assert canonical.codes == known_hazards()
    assert all(category.hazards == (category.code,) for category in canonical)


NAMES = {
    "llama-guard-1": (
        "O1 Violence and Hate, O2 Sexual Content, O3 Criminal Planning, O4 Guns and Illegal Weapons, "
        "O5 Regulated or Controlled Substances, O6 Self-Harm"
    ),
    "llama-guard-2": (
        "S1 Violent Crimes, S2 Non-Violent Crimes, S3 Sex Crimes, S4 Child Exploitation, S5 Specialized Advice, "
        "S6 Privacy, S7 Intellectual Property, S8 Indiscriminate Weapons, S9 Hate, S10 Self-Harm, S11 Sexual Content"
    ),
    "llama-guard-3-1b": (
        "S1 Violent Crimes, S2 Non-Violent Crimes, S3 Sex Crimes, S4 Child Exploitation, S5 Defamation, "
        "S6 Specialized Advice, S7 Privacy, S8 Intellectual Property, S9 Indiscriminate Weapons, S10 Hate, "
        "S11 Self-Harm, S12 Sexual Content, S13 Elections"
    ),
}
NAMES["llama-guard-3"] = NAMES["llama-guard-4"] = NAMES["llama-guard-3-1b"] + ", S14 Code Interpreter Abuse"


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_that_the_checkpoints_were_trained_on(name: str) -> None:
    assert ", ".join(f"{category.code} {category.name}" for category in Taxonomy.load(name)) == NAMES[name]


def test_openai_codes_are_the_keys_of_its_response() -> None:
    assert Taxonomy.load("openai-moderation").codes == (
        *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
        *("self-harm", "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors"),
        *("violence", "violence/graphic"),
    )


def test_ailuminate_codes_are_those_of_its_prompts(data_dir: Path) -> None:
    found = set()
    for path in (data_dir / "train" / "ailuminate").glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            found |= {row["hazard"] for row in csv.DictReader(file)}
    assert set(Taxonomy.load("ailuminate").codes) == found


def test_beavertails_names_are_its_keys(data_dir: Path) -> None:
    with (data_dir / "eval" / "beavertails" / "beavertails_30k_test.jsonl").open(encoding="utf-8") as file:
        keys = list(json.loads(file.readline())["category"])
    names = [category.name for category in Taxonomy.load("beavertails")]
    assert [re.sub("[ -]", "_", name.lower().replace(", ", ",")) for name in names] == keys


def test_aegis_names_are_its_labels(data_dir: Path) -> None:
    with (data_dir / "train" / "aegis2_sample" / "aegis_900.csv").open(encoding="utf-8-sig", newline="") as file:
        labels = {row["category"] for row in csv.DictReader(file)}
    assert labels <= {category.name for category in Taxonomy.load("aegis-2")}


@given(taxonomies)
def test_round_trips(taxonomy: Taxonomy) -> None:
    again = Taxonomy.from_dict(json.loads(json.dumps(taxonomy.to_dict())))
    assert again == taxonomy
    assert Taxonomy.from_yaml(taxonomy.to_yaml()) == taxonomy
    assert pickle.loads(pickle.dumps(taxonomy)) == taxonomy
    assert again.digest == taxonomy.digest


def test_digest_is_over_the_meaning(llama3: Taxonomy) -> None:
    assert re.fullmatch("[0-9a-f]{12}", llama3.digest)
    assert llama3.ref == f"llama-guard-3@{llama3.digest}"
    assert dataclasses.replace(llama3, id="other", name="Other", description="", source="").digest == llama3.digest
    first = llama3.categories[0]
    changes: list[Category] = [
        dataclasses.replace(first, code="S99"),
        dataclasses.replace(first, name="Other"),
        dataclasses.replace(first, definition="Other."),
        dataclasses.replace(first, include=("one",)),
        dataclasses.replace(first, exclude=("one",)),
        dataclasses.replace(first, examples=(Example("safe", (Message(Role.USER, "one"),)),)),
        dataclasses.replace(first, hazards=()),
    ]
    digests = {dataclasses.replace(llama3, categories=(c, *llama3.categories[1:])).digest for c in changes}
    assert len(digests | {llama3.digest, llama3.reorder(reversed(llama3.codes)).digest}) == len(changes) + 2


@given(taxonomies)
def test_operations_leave_the_original_alone(taxonomy: Taxonomy) -> None:
    before = taxonomy.to_dict()
    taxonomy.reorder(reversed(taxonomy.codes))
    taxonomy.renumber("Q")
    taxonomy.rename(dict.fromkeys(taxonomy.codes, "x"))
    taxonomy.with_examples({taxonomy.codes[0]: ()})
    taxonomy.add(Category("new-one", "New"))
    assert taxonomy.to_dict() == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        taxonomy.name = "x"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        taxonomy.categories[0].code = "x"  # type: ignore[misc]


def test_lists_are_copied_into_tuples() -> None:
    include = ["one"]
    category = Category("S1", "Name", include=include)  # type: ignore[arg-type]
    include.append("two")
    assert category.include == ("one",)
    with pytest.raises(TaxonomyError, match="include: expected a tuple, got text"):
        Category("S1", "Name", include="one")  # type: ignore[arg-type]


def test_select_and_exclude_keep_order_and_codes(llama3: Taxonomy) -> None:
    assert llama3.select(["S10", "S2", "S10"]).codes == ("S2", "S10")
    assert llama3.exclude(["S1", "S14"]).codes == tuple(f"S{n}" for n in range(2, 14))
    assert llama3.select(["S5"]).category("S5") is llama3.category("S5")
    assert len(llama3.select(["S5"])) == 1
    with pytest.raises(TaxonomyError, match="has no category"):
        llama3.exclude(llama3.codes)


def test_reorder_takes_a_permutation(llama3: Taxonomy) -> None:
    backwards = llama3.reorder(reversed(llama3.codes))
    assert backwards.codes == llama3.codes[::-1]
    assert set(backwards) == set(llama3)
    with pytest.raises(TaxonomyError, match="leaves out S14"):
        llama3.reorder(llama3.codes[:-1])
    with pytest.raises(TaxonomyError, match="names a category twice"):
        llama3.reorder([*llama3.codes, "S1"])


def test_rename_recode_renumber(llama3: Taxonomy) -> None:
    assert llama3.rename({"S5": "Libel"}).category("S5").name == "Libel"
    assert llama3.rename({"S5": "Libel"}).codes == llama3.codes
    assert llama3.recode({"S5": "X"}).codes[4] == "X"
    assert llama3.recode({"S1": "S2", "S2": "S1"}).category("S1").name == "Non-Violent Crimes"
    numbered = llama3.select(["S9", "S3"]).renumber("O", 0)
    assert [(c.code, c.name) for c in numbered] == [("O0", "Sex Crimes"), ("O1", "Indiscriminate Weapons")]
    with pytest.raises(TaxonomyError, match="duplicate code 'S1'"):
        llama3.recode({"S2": "S1"})


def test_add_and_examples(llama3: Taxonomy) -> None:
    new = Category("X", "Spoilers")
    assert llama3.add(new).codes[-1] == "X"
    assert llama3.add(new, before="S2").codes[:3] == ("S1", "X", "S2")
    with pytest.raises(TaxonomyError, match="duplicate code 'S1'"):
        llama3.add(Category("S1", "Again"))
    example = Example("unsafe", (Message(Role.USER, "one"),))
    assert llama3.with_examples({"S2": [example]}).category("S2").examples == (example,)


@pytest.mark.parametrize("operation", ["select", "exclude", "reorder"])
def test_unknown_codes_are_answered_with_the_nearest(llama3: Taxonomy, operation: str) -> None:
    with pytest.raises(TaxonomyError, match="has no category 'S1O'") as caught:
        getattr(llama3, operation)(["S1O"])
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean 'S1")
    with pytest.raises(TaxonomyError, match="expected a list of codes"):
        getattr(llama3, operation)("S1")


def test_unknown_codes_in_other_operations(llama3: Taxonomy) -> None:
    for call in (
        lambda: llama3.category("s1"),
        lambda: llama3.rename({"s1": "x"}),
        lambda: llama3.recode({"s1": "x"}),
        lambda: llama3.with_examples({"s1": ()}),
        lambda: llama3.add(Category("X", "x"), before="s1"),
    ):
        with pytest.raises(TaxonomyError, match="has no category 's1'"):
            call()


def test_load_takes_names_paths_and_taxonomies(tmp_path: Path, llama3: Taxonomy) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(llama3.to_yaml(), encoding="utf-8-sig")
    assert Taxonomy.load(path) == Taxonomy.load(str(path)) == llama3
    assert Taxonomy.load(llama3) is llama3
    with pytest.raises(UsageError, match="there is no 'llama-guard-5'") as unknown:
        Taxonomy.load("llama-guard-5")
    assert unknown.value.hint is not None
    assert "did you mean 'llama-guard-" in unknown.value.hint
    with pytest.raises(TaxonomyError, match=r"missing\.yaml: cannot be read: No such file"):
        Taxonomy.load(tmp_path / "missing.yaml")


ERRORS = [
    ("    colour: red\n", 7, "categories[0].colour", "unknown key"),
    ("    includes: []\n", 7, "categories[0].includes", "unknown key"),
    ("    definition: 12\n", 7, "categories[0].definition", "expected text, got a number"),
    ("    definition: [a]\n", 7, "categories[0].definition", "expected text, got a list"),
    ("    include: a\n", 7, "categories[0].include", "expected a list, got text"),
    ("    include:\n    - a\n    - yes\n", 9, "categories[0].include[1]", "expected text, got true or false"),
    ("    include:\n    - a\n    - ' '\n", 9, "categories[0].include[1]", "the text is empty"),
    ("    hazards:\n      - fraud\n      - frauds\n", 9, "categories[0].hazards[1]", "there is no hazard 'frauds'"),
    ("    hazards: [hate, hate]\n", 7, "categories[0].hazards[1]", "the hazard 'hate' is listed twice"),
    ("  - name: B\n", 7, "categories[1]", "the key 'code' is missing"),
    ("  - code: S2\n", 7, "categories[1]", "the key 'name' is missing"),
    ("  - code: 2\n    name: B\n", 7, "categories[1].code", "expected text, got a number"),
    ("  - code: S 2\n    name: B\n", 7, "categories[1].code", "'S 2' cannot be a code"),
    ("  - code: S2\n    name: ''\n", 8, "categories[1].name", "the text is empty"),
    ("  - code: S2\n    name: |\n      a\n      b\n", 8, "categories[1].name", "the text has more than one line"),
    ("  - name: B\n    code: S1\n", 8, "categories[1].code", "duplicate code 'S1', first given in categories[0]"),
    ("  - S2\n", 7, "categories[1]", "expected a mapping, got text"),
    ("description: [a]\n", 7, "description", "expected text, got a list"),
    ("categorys: []\n", 7, "categorys", "unknown key"),
    ("    examples:\n    - label: bad\n      text: x\n", 8, "categories[0].examples[0].label", "the label is 'bad'"),
    (
        "    examples:\n    - {label: safe, prompt: x}\n",
        8,
        "categories[0].examples[0]",
        "the key 'response' is missing",
    ),
    ("    examples:\n    - {label: safe}\n", 8, "categories[0].examples[0]", "the key 'prompt' is missing"),
    (
        "    examples:\n    - {label: safe, text: x, response: y}\n",
        8,
        "categories[0].examples[0].response",
        "unknown key",
    ),
    (
        "    examples:\n    - label: safe\n      text: ''\n",
        9,
        "categories[0].examples[0].text",
        "the judged text is empty",
    ),
    (
        '    examples:\n    - label: unsafe\n      prompt: x\n      response: "\\u200b\\ufeff"\n',
        10,
        "categories[0].examples[0].response",
        "the judged text is empty",
    ),
]


@pytest.mark.parametrize(("more", "line", "field", "reason"), ERRORS)
def test_errors_name_file_line_and_field(tmp_path: Path, more: str, line: int, field: str, reason: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(HEAD + more, encoding="utf-8")
    with pytest.raises(TaxonomyError) as caught:
        Taxonomy.load(path)
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(path), line, field)
    assert caught.value.reason == reason
    assert str(caught.value) == f"{path}:{line}: {field}: {reason}"


@pytest.mark.parametrize(
    ("text", "line", "field", "reason"),
    [
        (HEAD.replace("1", "2", 1), 1, "format", "the format is 2"),
        (HEAD.replace("1", "true", 1), 1, "format", "the format is True"),
        (HEAD.replace("1", "1.0", 1), 1, "format", "the format is 1.0"),
        (HEAD.replace("format: 1\n", ""), 1, None, "the key 'format' is missing"),
        (HEAD.replace("mine", "my own"), 2, "id", "'my own' cannot be an id"),
        (HEAD.replace("Mine", "''"), 3, "name", "the text is empty"),
        (HEAD.partition("  -")[0] + "  []\n", 4, "categories", "the taxonomy 'mine' has no category"),
        (HEAD.partition("  -")[0], 4, "categories", "expected a list, got nothing"),
        ("- a\n", 1, None, "expected a mapping, got a list"),
    ],
)
def test_errors_of_the_header(text: str, line: int, field: str | None, reason: str) -> None:
    with pytest.raises(TaxonomyError) as caught:
        Taxonomy.from_yaml(text, "own.yaml")
    assert (caught.value.line, caught.value.field, caught.value.reason) == (line, field, reason)


def test_errors_without_a_file_name_the_field() -> None:
    with pytest.raises(TaxonomyError, match=r"^categories\[0\]\.definition: expected text, got a number$"):
        Taxonomy.from_dict(
            {"format": 1, "id": "a", "name": "A", "categories": [{"code": "S1", "name": "N", "definition": 3}]}
        )


@pytest.mark.parametrize(
    "messages",
    [
        (),
        (Message(Role.ASSISTANT, "a"),),
        (Message(Role.USER, "a"), Message(Role.USER, "b")),
        (Message(Role.USER, "a"), Message(Role.ASSISTANT, "b"), Message(Role.USER, "c")),
    ],
)
def test_an_example_is_a_text_or_an_exchange(messages: tuple[Message, ...]) -> None:
    with pytest.raises(TaxonomyError, match="the messages are not an example"):
        Example("safe", messages)


def test_a_cold_start_loads_nothing_heavy() -> None:
    code = (
        "import sys; from guardrail.taxonomy import Taxonomy; Taxonomy.load('default'); "
        "print([name for name in ('torch', 'numpy', 'rich', 'jinja2', 'typer') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
