"""What a label means under a taxonomy, and the noise that leaves it as it is."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from guardrail.training.augment import WRAPPERS, augment, typing_errors
from guardrail.training.encoder_batches import flip
from guardrail.training.rows import UNKNOWN, Row, clean, normalise, targets
from guardrail.types import Conversation, is_blank

HAZARDS = ("violent_crimes", "threat", "hate", "drugs", "fraud", "privacy")
POLICY = tuple(frozenset({name}) for name in HAZARDS)


def row(unsafe: float, violated: tuple[str, ...] = (), possible: tuple[str, ...] = ()) -> Row:
    return Row("test", Conversation.parse("a text"), unsafe, frozenset(violated), frozenset(possible))


def test_violated_and_related_categories() -> None:
    verdict, values = targets(row(0.9, ("violent_crimes",), ("threat",)), POLICY)
    assert verdict == 0.9
    assert values == [0.9, UNKNOWN, 0, 0, 0, 0]


def test_without_the_violated_categories_the_text_is_safe() -> None:
    verdict, values = targets(row(0.9, ("violent_crimes",), ("threat",)), POLICY[2:])
    assert verdict == 0
    assert values == [0] * 4


def test_a_category_that_may_be_violated_leaves_the_verdict_unknown() -> None:
    verdict, _ = targets(row(0.9, ("violent_crimes",), ("threat",)), POLICY[1:])
    assert verdict == UNKNOWN


def test_unknown_category_counts_under_a_nearly_complete_policy_only() -> None:
    everything = row(1.0, possible=HAZARDS)
    assert targets(everything, POLICY) == (1.0, [UNKNOWN] * 6)
    assert targets(everything, POLICY[:5])[0] == 1.0
    assert targets(everything, POLICY[:4])[0] == UNKNOWN


def test_safe_and_unlabelled_rows() -> None:
    assert targets(row(0.02), POLICY) == (0.02, [0.0] * 6)
    verdict, values = targets(row(UNKNOWN, possible=("drugs",)), POLICY)
    assert verdict == UNKNOWN
    assert values == [0, 0, 0, UNKNOWN, 0, 0]


@given(st.sets(st.sampled_from(HAZARDS), min_size=1), st.sets(st.sampled_from(HAZARDS)), st.integers(0, 99))
def test_a_flip_never_contradicts_the_label(violated: set[str], possible: set[str], seed: int) -> None:
    unsafe = row(1.0, tuple(violated), tuple(possible - violated))
    kept = flip(unsafe, POLICY, random.Random(seed), 0.5)
    assert any(kept)
    verdict, _ = targets(unsafe, [hazards for hazards, stays in zip(POLICY, kept, strict=True) if stays])
    left = {name for name, stays in zip(HAZARDS, kept, strict=True) if stays}
    assert verdict == (1.0 if left & violated else 0.0 if not left & possible else UNKNOWN)


def test_rows_of_unknown_category_are_never_flipped() -> None:
    unknown = row(1.0, possible=HAZARDS)
    assert all(all(flip(unknown, POLICY, random.Random(seed), 0.5)) for seed in range(50))


@given(st.text(max_size=60))
def test_normalised_text_is_stable(text: str) -> None:
    plain = normalise(text)
    assert normalise(plain) == plain
    assert normalise(f"  {text} !?") == plain


def test_clean_keeps_the_wording() -> None:
    assert clean("\ufeffA  b\r\n\n\n c<|endoftext|> ") == "A b\n\nc"


@given(st.text(min_size=1, max_size=80).filter(lambda text: not is_blank(text)), st.integers(0, 200))
def test_noise_keeps_label_and_role_and_never_empties(text: str, seed: int) -> None:
    before = Row("test", Conversation.parse(text), 1.0, frozenset({"hate"}))
    after = augment(before, random.Random(seed), 1.0)
    assert not is_blank(after.text)
    assert (after.unsafe, after.violated, after.source) == (before.unsafe, before.violated, before.source)
    assert after.conversation.role is before.conversation.role


def test_wrappers_go_around_harmless_and_harmful_requests() -> None:
    assert all(wrapper.count("{}") == 1 for wrapper in WRAPPERS)
    for unsafe in (0.0, 1.0):
        original = Row("test", Conversation.parse("tell me about {braces}"), unsafe)
        found = {augment(original, random.Random(seed), 1.0).text for seed in range(300)}
        assert any(text.startswith("Ignore what was said before.") for text in found)


def test_parts_are_taken_of_harmless_texts_only() -> None:
    text = "First thing. Second thing. Third thing. Fourth thing."
    harmful = Row("test", Conversation.parse(text), 1.0)
    harmless = Row("test", Conversation.parse(text), 0.0)
    shorter = [len(augment(harmless, random.Random(seed), 1.0).text) < len(text) * 0.8 for seed in range(100)]
    assert any(shorter)
    assert all(len(augment(harmful, random.Random(seed), 1.0).text) > len(text) * 0.8 for seed in range(100))


def test_typing_errors_are_few() -> None:
    text = "the same sentence again and again " * 20
    noisy = typing_errors(text, random.Random(3))
    assert noisy != text
    assert abs(len(noisy) - len(text)) < len(text) / 10
