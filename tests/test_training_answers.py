"""Answers: the tokens that training teaches are the tokens that inference reads."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.code_trie import code_logprobs
from guardrail.errors import TemplateError
from guardrail.prompting import PromptBuilder, Template
from guardrail.taxonomy import Taxonomy
from guardrail.tokens import TextTokenizer, code_trie, verdict_tokens
from guardrail.training.answers import Answer, AnswerWriter, Placement
from guardrail.training.rows import UNKNOWN
from tests.checkpoints import FAMILIES, TOKENIZERS, tokenizer_of

END = {
    "llama-guard-1": "</s>",
    "llama-guard-2": "<|end_of_text|>",
    "llama-guard-3": "<|eot_id|>",
    "llama-guard-3-1b": "<|eot_id|>",
    "llama-guard-4": "<|eot|>",
}


@lru_cache(maxsize=3)
def tokenizer_for(kind: str, tokenizers: Path) -> TextTokenizer:
    family = next(family for family in FAMILIES if TOKENIZERS[family] == kind)
    return TextTokenizer.from_transformers(tokenizer_of(family, tokenizers))


def text_tokenizer(family: str, tokenizers: Path) -> TextTokenizer:
    return tokenizer_for(TOKENIZERS[family], tokenizers)


def writer(family: str, tokenizers: Path, codes: tuple[str, ...], explanation: Placement = "none") -> AnswerWriter:
    tokenizer = text_tokenizer(family, tokenizers)
    return AnswerWriter(tokenizer, Template.load(family), codes, explanation)


def text(answer: Answer, family: str, tokenizers: Path) -> str:
    return text_tokenizer(family, tokenizers).decode(answer.ids)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("taxonomy", ["llama-guard-1", "llama-guard-3", "default", "canonical"])
def test_inference_reads_back_what_is_written(family: str, taxonomy: str, tokenizer_files: Path) -> None:
    template = Template.load(family)
    tokenizer = text_tokenizer(family, tokenizer_files)
    codes = PromptBuilder(template, Taxonomy.load(taxonomy)).codes
    write = AnswerWriter(tokenizer, template, codes).write
    verdict, trie = verdict_tokens(tokenizer, template), code_trie(tokenizer, template, codes)
    end = tokenizer.control_id(END[family])
    (safe,) = write(0.0, [0.0] * len(codes))
    assert safe.ids == (*verdict.prefix, verdict.safe[0], end)
    start = (*verdict.prefix, verdict.unsafe[0])
    last = len(codes) - 1
    for violated in [{index} for index in range(len(codes))] + [{0, last}, set(range(len(codes))), {1, 9, last}]:
        (answer,) = write(1.0, [float(index in violated) for index in range(len(codes))])
        assert answer.ids[: len(start)] == start
        assert answer.ids[-1] == end
        assert [step.verdict for step in answer.steps].index(True) == len(verdict.prefix)
        # A model that gives this answer for certain: its logits are 0 for the answer's tokens and far below for others.
        logits = []
        for node in trie.nodes:
            on_path = answer.ids[: len(node.path)] == node.path
            logits.append([0.0 if on_path and answer.ids[len(node.path)] == token else -99.0 for token in node.ids])
        values = code_logprobs(trie, logits)
        assert max(range(len(codes)), key=values.__getitem__) == min(violated)
        assert math.isclose(values[min(violated)], 0.0, abs_tol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_codes_stand_in_the_taxonomys_order(family: str, tokenizer_files: Path) -> None:
    codes = tuple(f"S{number}" for number in range(1, 15))
    (answer,) = writer(family, tokenizer_files, codes).write(1.0, [float(n in {2, 9, 10, 14}) for n in range(1, 15)])
    assert text(answer, family, tokenizer_files).strip() == f"unsafe\nS2,S9,S10,S14{END[family]}"


def test_every_category_at_once_and_other_orders(tokenizer_files: Path) -> None:
    codes = ("S3", "S1", "S10", "S2")
    (answer,) = writer("llama-guard-3", tokenizer_files, codes).write(1.0, [1.0] * 4)
    assert text(answer, "llama-guard-3", tokenizer_files) == "\n\nunsafe\nS3,S1,S10,S2<|eot_id|>"


def test_a_soft_label_gives_both_answers(tokenizer_files: Path) -> None:
    one = writer("llama-guard-3", tokenizer_files, ("S1", "S2"))
    safe, unsafe = one.write(0.7, [0.7, 0.0])
    assert (safe.weight, unsafe.weight) == pytest.approx((0.3, 0.7))
    assert (safe.ids, unsafe.ids) == (one.write(0.0, [0, 0])[0].ids, one.write(1.0, [1, 0])[0].ids)
    with pytest.raises(ValueError, match="-1"):
        one.write(UNKNOWN, [0.0, 0.0])


@pytest.mark.parametrize("family", FAMILIES)
def test_unknown_categories_are_neither_named_nor_denied(family: str, tokenizer_files: Path) -> None:
    codes = tuple(f"S{number}" for number in range(1, 15))
    one = writer(family, tokenizer_files, codes)

    def ids(*violated: int) -> tuple[int, ...]:
        return one.write(1.0, [float(number in violated) for number in range(1, 15)])[0].ids

    values = [0.0] * 14
    values[1] = values[3] = 1.0
    for number in (1, 3, 10, 14):
        values[number - 1] = UNKNOWN
    (answer,) = one.write(1.0, values)
    assert answer.ids == ids(2, 4)
    others = {number: ids(*sorted({2, 4, number})) for number in (1, 3, 10, 14)}
    for at, step in enumerate(answer.steps):
        possible = {other[at] for other in others.values() if other[:at] == answer.ids[:at]} - {answer.ids[at]}
        assert set(step.targets[1:]) == possible
    assert sum(len(step.targets) > 1 for step in answer.steps) == 3


def test_without_a_known_category_only_the_verdict_is_learnt(tokenizer_files: Path) -> None:
    one = writer("llama-guard-3", tokenizer_files, ("S1", "S2"))
    (answer,) = one.write(1.0, [UNKNOWN, UNKNOWN])
    assert answer.ids == (*one.verdict.prefix, one.verdict.unsafe[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_explanation_behind_the_codes(family: str, tokenizer_files: Path) -> None:
    one = writer(family, tokenizer_files, ("S1", "S2"), "after")
    (answer,) = one.write(1.0, [1.0, 0.0], "It names <|eot_id|> and </s>.")
    assert text(answer, family, tokenizer_files).strip() == f"unsafe\nS1\nIt names <|eot_id|> and </s>.{END[family]}"
    assert answer.ids.count(one.end) == 1
    (safe,) = one.write(0.0, [0.0, 0.0], "A recipe.")
    assert text(safe, family, tokenizer_files).strip() == f"safe\nA recipe.{END[family]}"
    (bare,) = one.write(1.0, [1.0, 0.0])
    assert bare.ids == answer.ids[: len(bare.ids)]
    assert one.end not in bare.ids
    unlikely, likely = one.write(0.6, [0.6, 0.0], "Why.")
    assert "Why" not in text(unlikely, family, tokenizer_files)
    assert "Why" in text(likely, family, tokenizer_files)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_explanation_before_the_verdict_leaves_the_direct_reading(family: str, tokenizer_files: Path) -> None:
    one = writer(family, tokenizer_files, ("S1", "S2"), "before")
    told, direct = one.write(1.0, [0.0, 1.0], "It asks for a bomb.")
    plain = writer(family, tokenizer_files, ("S1", "S2")).write(1.0, [0.0, 1.0])[0]
    assert direct.ids == plain.ids
    assert [step.closed for step in direct.steps] == [step.verdict for step in direct.steps]
    assert not any(step.closed for step in told.steps)
    shown = text(told, family, tokenizer_files).strip()
    assert shown.startswith("It asks for a bomb.\n")
    assert shown.endswith(f"unsafe\nS2{END[family]}")


@given(p=st.floats(0, 1), values=st.lists(st.sampled_from([0.0, 1.0, UNKNOWN]), min_size=4, max_size=4))
def test_weights_add_up_and_only_known_codes_are_written(p: float, values: list[float], tokenizer_files: Path) -> None:
    one = writer("llama-guard-4", tokenizer_files, ("S1", "S2", "S3", "S10"))
    answers = one.write(p, values)
    assert sum(answer.weight for answer in answers) == pytest.approx(1.0)
    for answer in answers:
        shown = text(answer, "llama-guard-4", tokenizer_files)
        known = [code for code, value in zip(one.codes, values, strict=True) if value == 1.0]
        if answer.ids[len(one.verdict.prefix)] == one.verdict.unsafe[0] and known:
            assert shown == f"\n\nunsafe\n{','.join(known)}<|eot|>"
        else:
            assert "S" not in shown


def test_a_template_without_an_end_is_refused(tmp_path: Path, tokenizer_files: Path) -> None:
    source = Template.load("llama-guard-3").source.replace('stop: ["<|eot_id|>", "<|end_of_text|>"]\n', "")
    (tmp_path / "endless.jinja").write_text(source)
    tokenizer = text_tokenizer("llama-guard-3", tokenizer_files)
    with pytest.raises(TemplateError, match="ends an answer"):
        AnswerWriter(tokenizer, Template.load(tmp_path / "endless.jinja"), ("S1",))


def test_the_question_ends_where_the_verdict_is_read(tokenizer_files: Path) -> None:
    one = writer("llama-guard-3", tokenizer_files, ("S1",))
    question = one.question()
    assert question.ids == (*one.verdict.prefix, one.verdict.unsafe[0])
    assert [step.learnt for step in question.steps] == [False] * len(one.verdict.prefix) + [True]
