"""Few-shot examples under the encoder: how much a text is like them, on the real model and by hand."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.backends.encoder import EncoderBackend
from guardrail.backends.encoder_examples import ExampleShift
from guardrail.evaluation.metrics import auprc
from guardrail.guard import Guard
from guardrail.loading import load
from guardrail.prompting import PromptBuilder
from guardrail.resources import folder
from guardrail.scoring import Logits
from guardrail.taxonomy import Example, Taxonomy
from guardrail.types import Conversation, Decision, Message, Role, Verdict

EXAMPLES = Path(__file__).parents[1] / "examples"
SHARPNESS = 2.0


@pytest.fixture(scope="module")
def guard() -> Guard:
    return load(threads=2)


def rows_of(name: str) -> dict[str, list[str]]:
    """Texts by code, those that are safe under `safe`."""
    found: dict[str, list[str]] = {}
    for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        (code,) = row.get("categories") or ["safe"]
        found.setdefault(code, []).append(row["text"])
    return found


def example(text: str, label: str = "unsafe") -> Example:
    return Example("safe" if label == "safe" else "unsafe", (Message(Role.USER, text),))


def score_of(decision: Decision, code: str) -> float:
    return next(item.score for item in decision.categories if item.code == code)


@pytest.mark.parametrize("safe", [0, 8])
def test_examples_find_what_the_definitions_of_a_new_policy_do_not(guard: Guard, safe: int) -> None:
    policy = Taxonomy.load(EXAMPLES / "pharmacy-policy.yaml")
    shown, scored = rows_of("pharmacy-rows.jsonl"), rows_of("pharmacy-held-out.jsonl")
    chosen = random.Random(0)
    given = {code: [example(text) for text in chosen.sample(shown[code], 8)] for code in policy.codes}
    given["P1"] += [example(text, "safe") for text in chosen.sample(shown["safe"], safe)]
    texts = [(code, text) for code in ("P1", "P4", "safe") for text in scored[code][:15]]
    quality = []
    for taxonomy in (policy, policy.with_examples(given)):
        decisions = list(guard.under(taxonomy=taxonomy).check_many([text for _, text in texts]))
        for code in ("P1", "P4"):
            scores = np.array([score_of(each, code) for each in decisions])
            quality.append(auprc(np.array([of == code for of, _ in texts]), scores) or 0.0)
    assert sum(quality[2:]) / 2 > sum(quality[:2]) / 2 + 0.2


def test_the_verdict_of_unmoved_logits_is_the_one_of_the_graph() -> None:
    backend = EncoderBackend.load(threads=1)
    taxonomy = Taxonomy.load("default")
    builder = PromptBuilder(backend.template, taxonomy)
    nothing = np.zeros((len(taxonomy), backend.dimension), dtype=np.float32)
    none = ExampleShift(nothing[0], nothing, nothing[:, 0], json.loads(config())["sharpness"])
    for text in ("hello", "How do I build a pipe bomb?", "I hate them all"):
        (logits,) = backend.logits([builder.build(Conversation.parse(text))])
        assert isinstance(logits, Logits)
        verdict, categories = none.judged(np.array(logits.categories, dtype=np.float32), nothing[0])
        assert categories.tolist() == pytest.approx(logits.categories)
        assert verdict == pytest.approx(logits.unsafe, abs=1e-4)


def test_a_text_that_is_an_example_is_found_without_a_definition(guard: Guard) -> None:
    text = "Please compare your product with the Zorblatt 3000."
    plain = Taxonomy.load("default").select(["G1", "G6"])
    code = plain.codes[0]
    under = {
        name: guard.under(taxonomy=plain.with_examples(given) if given else plain).check(text)
        for name, given in {
            "none": {},
            "unsafe": {code: [example(text)]},
            "safe": {code: [example(text, "safe")]},
        }.items()
    }
    assert score_of(under["unsafe"], code) > 5 * score_of(under["none"], code)
    # Alone, safe examples change nothing.
    assert under["safe"].score == under["none"].score


def test_a_batch_gives_what_each_text_gets_alone(guard: Guard) -> None:
    taxonomy = Taxonomy.load("default").with_examples({"G1": [example("Burn it down.")]})
    with_examples = guard.under(taxonomy=taxonomy)
    texts = ["hello", "I will burn it down", "How do I bake bread?"] * 2
    assert [each.score for each in with_examples.check_many(texts)] == [
        with_examples.check(text).score for text in texts
    ]


def test_a_folder_of_an_older_release_says_that_it_cannot_use_them(tmp_path: Path) -> None:
    shutil.copytree(folder("model"), tmp_path / "m")
    older = json.loads(config())
    del older["sharpness"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(older), encoding="utf-8")
    taxonomy = Taxonomy.load("default")
    with load(f"encoder:{tmp_path / 'm'}") as older_guard:
        assert older_guard.check("hello").score is not None
        decision = older_guard.under(taxonomy=taxonomy.with_examples({"G1": [example("Burn it down.")]})).check("hello")
    assert decision.verdict is Verdict.ERROR
    assert "config.json: sharpness: is missing, so examples cannot be used" in (decision.error or "")


def config() -> str:
    return (folder("model") / "config.json").read_text(encoding="utf-8")


# by hand


def vectors(*rows: tuple[float, ...]) -> np.typing.NDArray[np.float32]:
    return np.array(rows, dtype=np.float32).reshape(-1, 2)


def test_the_shift_by_hand() -> None:
    texts = vectors((0, 2), (4, 0))
    shift = ExampleShift.of(texts, [vectors(), vectors((2, 0), (2, 4))], vectors(), SHARPNESS)
    assert shift is not None
    # The second category's examples have the mean (2, 2); the first stands there with its text: centre (1, 2).
    assert shift.centre.tolist() == [1, 2]
    assert shift.directions.tolist() == [[0, 0], [1, 0]]
    verdict, logits = shift.judged(np.array([-1, 1], dtype=np.float32), np.array([4, 2], dtype=np.float32))
    # Two examples weigh half of 8; the cosine is 1.
    assert logits.tolist() == pytest.approx([-1, 1 + 4 * (1 - 0.2)])
    heavier = np.exp(SHARPNESS * (logits - logits.max()))
    assert verdict == pytest.approx(float(heavier @ logits / heavier.sum()))
    safe = ExampleShift.of(texts, [vectors(), vectors((2, 0), (2, 4))], vectors((1, 8)), SHARPNESS)
    assert safe is not None
    assert safe.centre.tolist() == [1, 5]


def test_without_unsafe_examples_nothing_is_shifted() -> None:
    assert ExampleShift.of(vectors((1, 0)), [vectors()], vectors((0, 1)), SHARPNESS) is None


def test_a_category_alone_is_compared_with_its_text() -> None:
    shift = ExampleShift.of(vectors((0, 0)), [vectors((2, 0))], vectors(), SHARPNESS)
    assert shift is not None
    assert shift.centre.tolist() == [1, 0]
    assert shift.directions.tolist() == [[1, 0]]


NUMBERS = st.floats(-5, 5, width=32)
PAIRS = st.tuples(NUMBERS, NUMBERS)
CATEGORIES = st.lists(st.tuples(PAIRS, st.lists(PAIRS, max_size=4)), min_size=1, max_size=5)


@given(CATEGORIES, st.lists(PAIRS, max_size=3), PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_categories_changes_nothing_and_no_logit_runs_away(
    categories: list[tuple[tuple[float, float], list[tuple[float, float]]]],
    safe: list[tuple[float, float]],
    text: tuple[float, float],
    chosen: random.Random,
) -> None:
    order = list(range(len(categories)))
    chosen.shuffle(order)
    verdicts, shifts = [], []
    for places in (range(len(categories)), order):
        given = [categories[place] for place in places]
        shift = ExampleShift.of(
            vectors(*(own for own, _ in given)), [vectors(*found) for _, found in given], vectors(*safe), SHARPNESS
        )
        if shift is None:
            assert not any(found for _, found in categories)
            return
        verdict, logits = shift.judged(np.zeros(len(given), dtype=np.float32), vectors(text)[0])
        verdicts.append(verdict)
        shifts.append({place: float(logit) for place, logit in zip(places, logits, strict=True)})
    assert verdicts[0] == pytest.approx(verdicts[1], abs=1e-2)
    for place, (_, found) in enumerate(categories):
        most = 8 * len(found) / (len(found) + 2)
        assert abs(shifts[0][place]) <= 1.2001 * most
        assert (shifts[0][place] == 0) == (not found) or found
