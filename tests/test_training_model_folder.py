"""A trained model's folder opens as a guard, in this package and in transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from guardrail.backends.llama_folder import Facts, read_facts, write_facts
from guardrail.errors import GuardrailError, ModelError, UsageError
from guardrail.guard import Guard
from guardrail.loading import load
from guardrail.prompting import PromptBuilder, Template
from guardrail.taxonomy import Taxonomy
from guardrail.tokens import TextTokenizer
from guardrail.training.chat_template import chat_template
from guardrail.training.model_folder import replaced, write_folder
from guardrail.types import Conversation, Message, Role, is_blank
from tests.checkpoints import FAMILIES, tokenizer_of
from tests.checkpoints import chat_template as published_template
from tests.tiny_guard import TAXONOMY, tiny_checkpoint

CONVERSATIONS = [
    [("user", " how do I\nbake {{ 'cake' }}? \"é\" 😀 ")],
    [("user", "hello"), ("assistant", "{% raw %} hi\\n")],
    [("assistant", "only an answer")],
    [("user", "one"), ("assistant", "two"), ("user", "three")],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = Template.load("llama-guard-3")
    target = tmp_path_factory.mktemp("tiny") / "model"
    write_folder(*tiny_checkpoint(template), Facts("tiny", template, TAXONOMY, "after"), target)
    return target


@pytest.fixture(scope="module")
def guard(folder: Path) -> Iterator[Guard]:
    with load(folder) as found:
        yield found


def ids_of(tokenizer: Any, turns: list[tuple[str, str]], *, parts: bool = False) -> list[int]:
    """What transformers makes of the turns."""
    messages = [{"role": role, "content": [{"type": "text", "text": text}] if parts else text} for role, text in turns]
    found = tokenizer.apply_chat_template(messages, tokenize=True)
    return list(found if isinstance(found, list) else found["input_ids"])


def conversation(turns: list[tuple[str, str]]) -> Conversation:
    return Conversation(tuple(Message(Role(role), text) for role, text in turns))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_chat_template_gives_the_ids_of_the_builder(family: str, tokenizer_files: Path) -> None:
    tokenizer = tokenizer_of(family, tokenizer_files)
    text, template = TextTokenizer.from_transformers(tokenizer), Template.load(family)
    for taxonomy in (TAXONOMY, *map(Taxonomy.load, ("default", "canonical", "llama-guard-3"))):
        tokenizer.chat_template = chat_template(template, taxonomy)
        builder = PromptBuilder(template, taxonomy)
        for turns in CONVERSATIONS:
            expected = text.encode(builder.build(conversation(turns)))
            assert ids_of(tokenizer, turns) == expected
            assert ids_of(tokenizer, turns, parts=True) == expected


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<|>")), min_size=1, max_size=4)
)
def test_the_folders_own_tokenizer_gives_the_guards_ids(texts: list[str], folder: Path, guard: Guard) -> None:
    from transformers import AutoTokenizer

    texts = ["x" if is_blank(text) else text for text in texts]
    turns = [(role, text) for role, text in zip(["user", "assistant"] * 2, texts, strict=False)]
    built = PromptBuilder(guard.backend.template, guard.backend.default_taxonomy).build(conversation(turns))
    assert ids_of(AutoTokenizer.from_pretrained(folder), turns) == guard.backend.tokenizer.encode(built)


def test_another_role_is_refused_by_the_chat_template(folder: Path) -> None:
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    with pytest.raises(TemplateError, match="user and assistant"):
        ids_of(AutoTokenizer.from_pretrained(folder), [("system", "be nice")])


def test_the_folder_opens_without_flags(guard: Guard, folder: Path) -> None:
    assert guard.taxonomy == TAXONOMY
    assert guard.taxonomy.digest == TAXONOMY.digest
    assert guard.template.ref == Template.load("llama-guard-3").ref
    assert guard.backend.name.startswith("tiny@")
    decision = guard.check("how do I get a refund")
    assert [category.code for category in decision.categories] == ["S1", "S2"]
    facts = read_facts(folder)
    assert facts is not None
    assert (facts.id, facts.explanation) == ("tiny", "after")


def test_what_is_given_goes_before_the_folders_own(folder: Path) -> None:
    with load(folder, taxonomy="hate-speech", template="llama-guard-3-1b") as other:
        assert other.taxonomy.id == "hate-speech"
        assert other.template.id == "llama-guard-3-1b"


def test_a_template_of_ones_own_travels_with_the_model(tmp_path: Path) -> None:
    source = Template.load("llama-guard-3").source.replace("Task: Check", "Please check")
    file = tmp_path / "mine.jinja"
    file.write_text(source, encoding="utf-8")
    (tmp_path / "model").mkdir()
    write_facts(Facts("x", Template.load(file), TAXONOMY), tmp_path / "model")
    file.unlink()
    facts = read_facts(tmp_path / "model")
    assert facts is not None
    assert facts.template.source == source
    assert facts.template.id == "mine"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "format: expected 1"),
        ("template", "llama-guard-3@000000000000", "template: the weights were trained with"),
        ("template", "../../x@000000000000", "cannot read the template"),
        ("taxonomy", "shop@000000000000", "taxonomy: the weights were trained with"),
        ("taxonomy", 3, "taxonomy: expected a text"),
        ("explanation", "later", "explanation: cannot be 'later'"),
        ("id", None, "id: expected a text"),
    ],
)
def test_files_that_do_not_belong_together_are_an_error(tmp_path: Path, key: str, value: Any, message: str) -> None:
    write_facts(Facts("x", Template.load("llama-guard-3"), TAXONOMY), tmp_path)
    file = tmp_path / "guardrail.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), key: value}), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        read_facts(tmp_path)


def test_a_changed_policy_is_noticed(tmp_path: Path) -> None:
    write_facts(Facts("x", Template.load("llama-guard-3"), TAXONOMY), tmp_path)
    (tmp_path / "taxonomy.yaml").write_text(TAXONOMY.rename({"S1": "Arms"}).to_yaml(), encoding="utf-8")
    with pytest.raises(ModelError, match="taxonomy: the weights were trained with shop@"):
        read_facts(tmp_path)


def test_a_missing_or_broken_record(tmp_path: Path) -> None:
    assert read_facts(tmp_path) is None
    (tmp_path / "guardrail.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"guardrail\.json: cannot be read"):
        read_facts(tmp_path)


def test_a_checkpoints_own_chat_template_is_not_written_again() -> None:
    template = Template.from_chat_template(published_template("llama-guard-3", {"S1": "Weapons"}), "llama-guard-3")
    with pytest.raises(UsageError, match="is a chat template itself"):
        chat_template(template, TAXONOMY)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    replaced(folder, lambda new: (new / "one").touch())

    def fails(new: Path) -> None:
        (new / "two").touch()
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        replaced(folder, fails)
    assert [file.name for file in folder.iterdir()] == ["one"]
    replaced(folder, lambda new: (new / "three").touch())
    assert [file.name for file in folder.iterdir()] == ["three"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("existing", [False, True])
def test_what_lies_beside_a_folder_stays(tmp_path: Path, existing: bool) -> None:
    beside = [tmp_path / name for name in ("model.old", "model.new", ".model.killed")]
    for place in beside:
        place.mkdir()
        (place / "mine").touch()
    if existing:
        (tmp_path / "model").mkdir()
    replaced(tmp_path / "model", lambda new: (new / "one").touch())
    assert all((place / "mine").is_file() for place in beside)
    assert {file.name for file in tmp_path.iterdir()} == {"model", *(place.name for place in beside)}
    # As any other new folder, not readable by its owner alone.
    (tmp_path / "other").mkdir()
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    replaced(folder, lambda new: (new / "one").touch())
    replace, calls = Path.replace, list[Path]()

    def fails(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(GuardrailError, match="No space left"):
        replaced(folder, lambda new: (new / "two").touch())
    assert len(calls) == 3
    assert [file.name for file in folder.iterdir()] == ["one"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
