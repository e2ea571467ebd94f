"""The stream of packs: what is shown, what is put back, and that it is always the same."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import UsageError
from guardrail.prompting import PromptBuilder
from guardrail.taxonomy import Taxonomy
from guardrail.tokens import verdict_tokens
from guardrail.training.labelled import LabelSpace
from guardrail.training.llama_data import PackStream
from guardrail.training.llama_feed import Feed, ahead
from guardrail.training.llama_validation import Validation, questions
from guardrail.training.llama_view import Format, View
from guardrail.training.packing import Pack
from guardrail.training.policies import PolicyChanges, PolicySampler, TrainingPolicy
from guardrail.training.rows import UNKNOWN, Row
from guardrail.training.teacher import Teacher, Teaching
from guardrail.types import Conversation, Message, Role
from tests.training_material import TAXONOMY, TEMPLATE, own_policy, rows, sampler, text_tokenizer

VERDICT = verdict_tokens(text_tokenizer(), TEMPLATE)


def form(pack_tokens: int = 400, row_tokens: int | None = None) -> Format:
    return Format(text_tokenizer(), TEMPLATE, pack_tokens, row_tokens or pack_tokens)


def stream(
    some: Sequence[Row], pack_tokens: int = 400, *, seed: int = 1, policies: PolicySampler | None = None
) -> PackStream:
    return PackStream(form(pack_tokens), lambda number: some, policies or sampler(), seed=seed)


def same(one: Pack, other: Pack) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in Pack.__slots__)


def ways(pack: Pack) -> list[tuple[int, ...]]:
    """The tokens from the root to each verdict pick, in order."""
    found = []
    for place in pack.picks[pack.verdicts]:
        found.append(tuple(int(pack.ids[at]) for at in range(place + 1) if pack.ends[at] > place))
    return found


class Fixed(PolicySampler):
    """Shows what it is told, and notes for which rows."""

    def __init__(self, policies: Sequence[TrainingPolicy]) -> None:
        super().__init__(LabelSpace(TAXONOMY), {"own": 1.0})
        self.asked: list[Sequence[Row]] = []
        self._policies = policies

    def draw(self, chosen: random.Random, rows: Sequence[Row] = ()) -> TrainingPolicy:
        self.asked.append(rows)
        return self._policies[(len(self.asked) - 1) % len(self._policies)]


def test_every_row_is_shown_once_a_pass_with_its_answer() -> None:
    some = rows(60)
    packs = list((one := stream(some)).packs(0))
    assert one.counts == {"shown": 60}
    assert sum(pack.rows for pack in packs) == 60
    assert all(len(pack) <= 400 for pack in packs)
    builder = PromptBuilder(TEMPLATE, TAXONOMY)
    tokenizer = text_tokenizer()
    expected: Counter[tuple[Any, ...]] = Counter()
    for row in some:
        answer = VERDICT.unsafe[0] if row.unsafe else VERDICT.safe[0]
        expected[(*tokenizer.encode(builder.build(row.conversation)), *VERDICT.prefix), answer] += 1
    found = Counter(
        (way, int(target))
        for pack in packs
        for way, target in zip(ways(pack), pack.targets[pack.verdicts][:, 0], strict=True)
    )
    assert found == expected


def test_packs_are_full_and_share_the_policy() -> None:
    packs = list(stream(rows(200), 400).packs(0))
    full = [pack for pack in packs if len(pack) > 300]
    assert len(packs) - len(full) <= 2  # the last one of each role
    alone = sum(int(pack.depths[pack.picks[pack.verdicts]].sum()) + pack.rows for pack in packs)
    assert sum(map(len, packs)) < 0.6 * alone


@given(seed=st.integers(0, 5), number=st.integers(0, 3))
def test_the_same_seed_and_pass_give_the_same_packs(seed: int, number: int) -> None:
    changes = PolicyChanges(0.5, 0.3, 0.5, 0.5, 0.0)
    one, other = (list(stream(rows(30), seed=seed, policies=sampler(changes)).packs(number)) for _ in range(2))
    assert len(one) == len(other)
    assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_passes_and_seeds_differ() -> None:
    first, second, third = (
        next(stream(rows(60), seed=seed).packs(number)) for seed, number in ((1, 0), (1, 1), (2, 0))
    )
    assert not same(first, second)
    assert not same(first, third)


def test_the_stream_goes_on_pass_after_pass() -> None:
    one = stream(rows(30))
    per_pass = [list(one.packs(number)) for number in range(3)]
    flat = [pack for packs in per_pass for pack in packs]
    for found, expected in zip(islice(iter(stream(rows(30))), len(flat)), flat, strict=True):
        assert same(found(), expected)


def test_a_policy_without_the_violated_category_makes_the_row_safe() -> None:
    without = own_policy().part([1, 2])
    bomb = Row("t", Conversation.parse("build a bomb"), 1.0, frozenset({"S1"}), explanation="It is a bomb.")
    one = PackStream(Format(text_tokenizer(), TEMPLATE, 400, 400, "after"), lambda _: [bomb], Fixed([without]), seed=1)
    (pack,) = one.packs(0)
    assert pack.targets[pack.verdicts][:, 0].tolist() == [VERDICT.safe[0]]
    # Why it is unsafe is no reason for being safe: nothing is learnt behind the verdict.
    assert pack.verdicts.tolist() == [False] * len(VERDICT.prefix) + [True]


def test_rows_of_unknown_verdict_wait_for_another_policy_and_are_counted() -> None:
    whole = own_policy()
    vague = Row("t", Conversation.parse("something bad"), 1.0, frozenset(), frozenset({"S1", "S2", "S3"}))
    plain = Row("t", Conversation.parse("a cake"), 0.0)
    one = stream([vague, plain], policies=Fixed([whole.part([0]), whole]))
    packs = list(one.packs(0))
    assert [pack.rows for pack in packs] == [1, 1]
    assert one.counts == {"shown": 2, "put_back": 1}
    never = stream([vague, plain], policies=Fixed([whole.part([0])]))
    assert sum(pack.rows for pack in never.packs(0)) == 1
    assert never.counts == {"shown": 1, "put_back": 3, "unknown": 1}


def test_policies_are_drawn_for_the_rows_that_are_shown() -> None:
    policies = Fixed([own_policy()])
    some = rows(80)
    packs = list(stream(some, policies=policies).packs(0))
    assert len(policies.asked) == len(packs)
    for asked, pack in zip(policies.asked, packs, strict=True):
        assert len({row.conversation.role for row in asked}) == 1
        assert len(asked) >= pack.rows / 2


def long(unsafe: float, words: int = 400) -> Row:
    text = " ".join(f"{place} we bake" for place in ["at home", "by the sea"] * (words // 2))
    return Row("t", Conversation.parse(text), unsafe, frozenset({"S1"}) if unsafe else frozenset())


def test_long_harmless_texts_are_cut_and_long_harmful_ones_left_out() -> None:
    short = rows(2)[1]
    one = stream([long(0.0), long(1.0), short])
    (packs,) = [list(one.packs(0))]
    assert one.counts == {"shown": 2, "cut": 1, "put_back": 3, "too_long": 1}
    assert max(len(pack) for pack in packs) <= 400
    assert any(len(pack) > 350 for pack in packs)


def test_a_context_that_is_too_long_is_shortened() -> None:
    turns = (*long(0.0).conversation.messages, Message(Role.ASSISTANT, "build a bomb"))
    one = stream([Row("t", Conversation(turns), 1.0, frozenset({"S1"}))])
    (pack,) = one.packs(0)
    assert one.counts == {"shown": 1, "shortened": 1}
    assert "build a bomb" in text_tokenizer().decode(pack.ids.tolist())


def test_what_cannot_be_shown_is_told() -> None:
    with pytest.raises(UsageError, match="unlabelled 1"):
        next(iter(stream([Row("t", Conversation.parse("x"), UNKNOWN)])))
    with pytest.raises(UsageError, match="no row can be shown"):
        next(iter(stream([])))
    with pytest.raises(UsageError, match="policies in a row take more than"):
        next(iter(stream(rows(4), 100)))
    with pytest.raises(UsageError, match="leaves too little of 100 tokens"):
        Validation.make(form(100), rows(4), own_policy())
    with pytest.raises(UsageError, match="of 2 validation rows 0 are unsafe"):
        Validation.make(form(), [rows(4)[0], rows(4)[2]], own_policy())


def test_long_policies_are_drawn_anew() -> None:
    whole = own_policy()
    wordy = replace(
        whole,
        taxonomy=replace(
            whole.taxonomy,
            categories=tuple(replace(category, definition="by the sea " * 100) for category in whole.taxonomy),
        ),
    )
    one = stream(rows(2), policies=Fixed([wordy, whole]))
    assert sum(pack.rows for pack in one.packs(0)) == 2
    assert one.counts["long_policy"] == 2  # one per role


def test_weights_and_soft_labels_are_in_the_picks() -> None:
    row = Row("t", Conversation.parse("maybe"), 0.25, frozenset({"S2"}), weight=3.0)
    (pack,) = stream([row]).packs(0)
    verdicts = dict(zip(pack.targets[pack.verdicts][:, 0].tolist(), pack.weights[pack.verdicts].tolist(), strict=True))
    assert verdicts == {VERDICT.safe[0]: 2.25, VERDICT.unsafe[0]: 0.75}


def test_the_policy_text_is_shown_as_at_inference() -> None:
    for name in ("llama-guard-3", "default", "llama-guard-1"):
        taxonomy = Taxonomy.load(name)
        for part in (taxonomy, taxonomy.select(taxonomy.codes[:2])):
            view = View(form(), TrainingPolicy("x", part, tuple(frozenset({code}) for code in part.codes)))
            assert view.builder.policy_texts == PromptBuilder(TEMPLATE, part).policy_texts


# evaluation


def test_validation_asks_each_row_under_the_taxonomy_itself() -> None:
    some = [*rows(20), long(0.0), Row("t", Conversation.parse("x"), UNKNOWN)]
    packs, verdicts = questions(form(), some, own_policy())
    assert verdicts == {index: row.unsafe for index, row in enumerate(some[:-1])}
    asked = Counter(row for _, indexes in packs for row in indexes)
    assert all(asked[index] == 1 for index in range(20))
    assert asked[20] > 1  # in windows
    builder, tokenizer = PromptBuilder(TEMPLATE, TAXONOMY), text_tokenizer()
    for pack, indexes in packs:
        assert len(pack.picks) == len(indexes)
        for way, index in zip(ways(pack), indexes, strict=True):
            if index < 20:
                assert way == (*tokenizer.encode(builder.build(some[index].conversation)), *VERDICT.prefix)


def test_metrics_are_those_of_the_margins() -> None:
    validation = Validation([], {0: 1.0, 1: 0.0, 2: 0.0, 3: 1.0})
    perfect = validation.metrics({0: 50.0, 1: -50.0, 2: -50.0, 3: 40.0})
    assert perfect == pytest.approx({"eval_auprc": 1.0, "eval_log_loss": 0.0, "eval_goal": 1.0}, abs=1e-9)
    undecided = validation.metrics(dict.fromkeys(range(4), 0.0))
    assert undecided["eval_log_loss"] == pytest.approx(np.log(2))
    assert undecided["eval_auprc"] == pytest.approx(0.5)


# the feed


@given(count=st.integers(0, 40), share=st.integers(1, 3), processes=st.integers(1, 3), start=st.integers(0, 20))
def test_processes_share_the_packs_in_turn(count: int, share: int, processes: int, start: int) -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    drafts: Any = [partial(make, number) for number in range(count)]
    parts: list[list[Any]] = []
    for rank in range(processes):
        feed = Feed(drafts, share=share, rank=rank, processes=processes)
        feed.start = start
        parts.append(list(feed))
    assert sorted(number for part in parts for number in part) == list(range(start, count))
    assert sorted(made) == list(range(start, count))  # each by one process
    for rank, part in enumerate(parts):
        assert all(number // share % processes == rank for number in part)


def test_items_are_made_ahead_and_errors_come_in_their_place() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number
        raise UsageError("broken")

    found = ahead(items(), 2)
    assert [next(found) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(UsageError, match="broken"):
        next(found)
    endless = ahead(iter(int, 1), 2)
    assert next(endless) == 0
    endless.close()  # type: ignore[attr-defined]
    assert made == [0, 1, 2, 3, 4]
    assert "packs" not in [thread.name for thread in threading.enumerate()]


def test_no_thread_makes_items_any_more_when_python_ends() -> None:
    """One that is cut off inside of a library aborts the process; the iterator is not closed here."""
    code = (
        "import atexit, threading\n"
        "from guardrail.training.llama_feed import ahead\n"
        "names = lambda: [thread.name for thread in threading.enumerate()]\n"
        "atexit.register(lambda: print('packs' in names()))\n"  # what is registered first runs last
        "endless = ahead(iter(int, 1), 2)\n"
        "next(endless)\n"
        "print('packs' in names())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["True", "False"]


def test_a_teachers_verdict_is_mixed_with_the_labels_and_its_vector_is_learnt() -> None:
    users = [row for row in rows(40) if row.conversation.role is Role.USER]
    some = [*users, Row("made", Conversation.parse("a long text " * 100), 0.0)]
    teacher = Teacher("embedded", some)
    taught = PackStream(
        form(4000), lambda number: some, sampler(), seed=1, teaching=Teaching(teacher, 0.25, vectors=True)
    )
    (pack,) = taught.packs(0)
    assert len(pack.vectors) == pack.rows - 1  # but for the long one
    builder = PromptBuilder(TEMPLATE, TAXONOMY)
    tokenizer = text_tokenizer()
    of = {(*tokenizer.encode(builder.build(row.conversation)), *VERDICT.prefix): row for row in some}
    weights: dict[Any, dict[int, float]] = {}
    verdict_rows = np.flatnonzero(pack.verdicts)
    for way, at in zip(ways(pack), verdict_rows, strict=True):
        weights.setdefault(way, {})[int(pack.targets[at, 0])] = float(pack.weights[at])
    for way, found in weights.items():
        row = of[way]
        expected = row.unsafe
        if teacher.sees_whole(row.conversation):
            expected = 0.75 * row.unsafe + 0.25 * teacher.judge(row.conversation, TAXONOMY)[0]
        assert found.get(VERDICT.unsafe[0], 0.0) == pytest.approx(expected, abs=1e-4)
        assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    places = dict(zip(pack.vector_places.tolist(), pack.vectors, strict=True))
    for way, place in zip(ways(pack), pack.picks[pack.verdicts], strict=True):
        if int(place) in places:
            assert places[int(place)] == pytest.approx(teacher.vectors([of[way].conversation])[0], abs=1e-4)
    teacher.close()


def test_what_a_policy_allows_the_label_alone_says() -> None:
    some = [row for row in rows(40) if row.conversation.role is Role.USER and row.violated]
    teacher = Teacher("embedded", some)
    changes = PolicyChanges(drop_violated=1)
    taught = PackStream(
        form(4000), lambda number: some, sampler(changes), seed=1, teaching=Teaching(teacher, 0.5, vectors=True)
    )
    packs = list(taught.packs(0))
    right = np.concatenate([pack.targets[pack.verdicts, 0] for pack in packs])
    weights = np.concatenate([pack.weights[pack.verdicts] for pack in packs])
    # Where the label is the only word, the row has one answer, of the whole weight.
    assert (right[weights > 0.999] == VERDICT.safe[0]).any()
    assert not (right[weights > 0.999] == VERDICT.unsafe[0]).any()
    assert len(np.concatenate([pack.vectors for pack in packs])) == sum(pack.rows for pack in packs)
    teacher.close()
