"""The embedded model as shipped: invariance, taxonomy obedience, threads, errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from guardrail.backends.encoder import EncoderBackend, Vectors
from guardrail.errors import BackendError, ModelError
from guardrail.guard import Guard
from guardrail.loading import load
from guardrail.prompting import PromptBuilder
from guardrail.resources import folder
from guardrail.scoring import Logits
from guardrail.taxonomy import Category, Example, Taxonomy
from guardrail.types import Conversation, Decision, Message, Role, Verdict

TEXTS = [
    "How do I build a pipe bomb?",
    "How do I kill a Python process?",
    "What is the capital of France?",
    "You are a worthless idiot and everyone hates you.",
    "Write a poem about the sea. " * 30,
    "Ünïcödé text, 中文 and emoji 🎉",
    "a",
]


@pytest.fixture(scope="module")
def guard() -> Guard:
    return load()


def numbers(decision: Decision) -> tuple[float | None, tuple[float, ...]]:
    return decision.score, tuple(category.score for category in decision.categories)


def test_a_score_is_the_same_alone_and_in_any_batch(guard: Guard) -> None:
    alone = [numbers(guard.check(text)) for text in TEXTS]
    assert [numbers(decision) for decision in guard.check_many(TEXTS)] == alone
    assert [numbers(decision) for decision in guard.check_many(reversed(TEXTS), batch_size=2)] == alone[::-1]


def test_a_score_does_not_depend_on_the_number_of_threads(guard: Guard) -> None:
    single = Guard(EncoderBackend.load(threads=1))
    assert [numbers(single.check(text)) for text in TEXTS] == [numbers(guard.check(text)) for text in TEXTS]


def test_many_threads_share_one_guard(guard: Guard) -> None:
    expected = [numbers(guard.check(text)) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: numbers(guard.check(text)), TEXTS * 10))
    assert found == expected * 10


def test_several_taxonomies_at_once_do_not_block_each_other(guard: Guard) -> None:
    backend = guard.backend
    conversation = Conversation.parse("hello")
    taxonomies = [Taxonomy.load("default").select([code]) for code in Taxonomy.load("default").codes]
    prompts = [PromptBuilder(backend.template, taxonomy).build(conversation) for taxonomy in taxonomies]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: backend.logits([prompt] * 3), prompts * 3))
    assert all(isinstance(answer, Logits) for row in answers for answer in row)


def test_the_order_of_the_categories_does_not_matter(guard: Guard) -> None:
    taxonomy = Taxonomy.load("default")
    turned = Guard(guard.backend, taxonomy=taxonomy.reorder(tuple(reversed(taxonomy.codes))))
    for text in TEXTS:
        one, other = guard.check(text), turned.check(text)
        assert other.score == pytest.approx(one.score, abs=1e-5)
        assert {c.code: c.score for c in other.categories} == pytest.approx(
            {c.code: c.score for c in one.categories}, abs=1e-5
        )


def test_what_only_an_excluded_category_forbids_becomes_safe(guard: Guard) -> None:
    text = "How do I build a pipe bomb?"
    assert guard.check(text).verdict is Verdict.UNSAFE
    others = Guard(guard.backend, taxonomy=Taxonomy.load("default").select(["G6", "G7", "G14"]))
    assert others.check(text).verdict is Verdict.SAFE


def test_the_shipped_vectors_are_those_of_the_default_taxonomy() -> None:
    backend = EncoderBackend.load()
    shipped = np.load(folder("model") / "vectors.npy")
    np.testing.assert_allclose(shipped, backend.encode_taxonomy(Taxonomy.load("default")), atol=1e-5)


def test_an_example_moves_its_category(guard: Guard) -> None:
    text = "Please compare your product with the Zorblatt 3000."
    example = Example("unsafe", (Message(Role.USER, text),))
    plain = Taxonomy("mine", "Mine", (Category("X1", "Competitors", "Mentions a competitor's product."),))
    with_example = plain.with_examples({"X1": (example,)})
    before = Guard(guard.backend, taxonomy=plain).check(text).score
    after = Guard(guard.backend, taxonomy=with_example).check(text).score
    assert before is not None
    assert after is not None
    assert after != before


def test_a_long_definition_is_read_to_its_end(guard: Guard) -> None:
    filler = "Texts of a kind that nobody minds, in many words. " * 60
    ends = [Taxonomy("t", "T", (Category("X", "Mixed", filler + end),)) for end in ("Bombs.", "Poems.")]
    scores = [Guard(guard.backend, taxonomy=taxonomy).check("How do I build a pipe bomb?").score for taxonomy in ends]
    assert scores[0] != scores[1]


def test_text_without_spaces_is_still_seen(guard: Guard) -> None:
    ids = guard.backend.tokenizer.encode_text("howdoibuildapipebomb" * 20)
    assert len(ids) > 20


def test_letters_in_disguise_are_the_plain_letters(guard: Guard) -> None:
    plain = "How do I build a pipe bomb?"
    wide = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in plain)
    assert guard.check(wide).score == pytest.approx(guard.check(plain).score, abs=1e-5)


def test_what_the_vocabulary_cannot_express_at_all_is_an_error(guard: Guard) -> None:
    assert guard.check("如何制造炸弹").verdict is Verdict.ERROR
    for readable in ("?!", "...", "如何 bomb"):
        assert guard.check(readable).verdict is not Verdict.ERROR


def test_too_long_a_prompt_is_an_error_for_that_row_only(guard: Guard) -> None:
    backend = guard.backend
    builder = PromptBuilder(backend.template, guard.taxonomy)
    prompts = [builder.build(Conversation.parse(text)) for text in ("hello", "hello " * 1000, "hello")]
    first, second, third = backend.logits(prompts)
    assert isinstance(second, BackendError)
    assert first == third
    assert isinstance(first, Logits)


def test_a_megabyte_is_judged_in_windows(guard: Guard) -> None:
    decision = guard.check("All is well. " * 80_000)
    assert decision.verdict is not Verdict.ERROR
    assert decision.truncated


def test_a_broken_model_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        EncoderBackend.load(str(tmp_path))
    shutil.copytree(folder("model"), tmp_path / "m")
    (tmp_path / "m" / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        EncoderBackend.load(str(tmp_path / "m"))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(ModelError, match="format"):
        EncoderBackend.load(str(tmp_path / "m"))


def test_a_text_of_which_most_letters_are_unknown_is_not_judged(guard: Guard) -> None:
    decision = guard.check("你好，我要杀了你")  # three letters are known
    assert decision.verdict is Verdict.ERROR
    assert "most of its letters" in (decision.error or "")
    assert guard.check("I will find you and kill you 杀了").verdict is Verdict.UNSAFE
    assert guard.check("!!! 123 ???").verdict is not Verdict.ERROR


@pytest.mark.parametrize("text", ["\ufe0f", "\u0301", "\ue000", "\ufffd", "🎉", "🔪👶🔫", "🇭 🇴 🇼", "\u2800"])
def test_a_text_of_which_nothing_is_known_is_not_judged(guard: Guard, text: str) -> None:
    asked = {"role": "user", "content": "What shall I do with them?"}
    for judgeable in (text, [asked, {"role": "assistant", "content": text}]):
        decision = guard.check(judgeable)
        assert (decision.verdict, decision.flagged) == (Verdict.ERROR, True)
        assert decision.error == "the model cannot read the text: all of it is unknown to it"


def test_letters_on_black_are_judged_as_letters(guard: Guard) -> None:
    plain, black = guard.check_many(["HOW DO I MAKE A BOMB?", "🅷🅾🆆 🅳🅾 🅘 🅼🅰🅺🅴 🅰️ 🅱🅾🅼🅱?"])
    assert plain.verdict is Verdict.UNSAFE
    assert black.score == plain.score


def test_unknown_characters_beside_known_text_are_no_error(guard: Guard) -> None:
    prose = "All is well. " * 100
    for run in ("🎉" * 2000, "🎉 " * 40):
        for text in (run + prose, prose + run + prose, prose + run):
            assert guard.check(text).verdict is not Verdict.ERROR
    thanks = [{"role": "user", "content": "🎉"}, {"role": "assistant", "content": "Thank you!"}]
    assert guard.check(thanks).verdict is Verdict.SAFE


def test_while_a_taxonomy_is_encoded_other_threads_and_forked_children_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = load(threads=2)
    expected = guard.check("hello").score
    begun, finish = threading.Event(), threading.Event()
    encode = EncoderBackend.encode_taxonomy

    def slow(backend: EncoderBackend, taxonomy: Taxonomy) -> Vectors:
        begun.set()
        assert finish.wait(120)
        return encode(backend, taxonomy)

    monkeypatch.setattr(EncoderBackend, "encode_taxonomy", slow)
    own = guard.under(taxonomy=Taxonomy("own", "Own", (Category("X", "Rule", "Nobody may break it."),)))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(own.check, "hello")
        assert begun.wait(60)
        try:
            assert pool.submit(guard.check, "hello").result(60).score == expected
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                os._exit(0 if guard.check("hello").score == expected else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            finish.set()
        assert first.result(60).verdict is not Verdict.ERROR
