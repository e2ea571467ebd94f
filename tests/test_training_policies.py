"""Policies for training: each change by itself, what a label says under them, and the sampler."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import UsageError
from guardrail.taxonomy import Category, Taxonomy
from guardrail.training.held_out import CONFIGS
from guardrail.training.labelled import LabelSpace
from guardrail.training.labels import HazardTable
from guardrail.training.policies import (
    MADE_UP,
    OWN,
    PolicyChanges,
    PolicySampler,
    TrainingPolicy,
    drop_unviolated,
    drop_violated,
    example_pool,
    made_up,
    rephrase,
    shuffle,
    strip,
    unname,
    with_examples,
)
from guardrail.training.rows import UNKNOWN, Row, targets
from guardrail.types import Conversation

SHOP = LabelSpace(
    Taxonomy(
        "shop", "Shop", tuple(Category(f"S{n}", f"Name {n}", f"Meaning {n}.", ("in",), ("out",)) for n in range(1, 8))
    )
)
POLICY = TrainingPolicy(OWN, SHOP.taxonomy, SHOP.labels)
CANONICAL = LabelSpace(Taxonomy.load("canonical"))
SEEDS = st.integers(0, 10_000)
CODES = st.frozensets(st.sampled_from(SHOP.names))


def row(*violated: str, possible: tuple[str, ...] = (), text: str = "a text", unsafe: float = 1.0) -> Row:
    return Row("web", Conversation.parse(text), unsafe, frozenset(violated), frozenset(possible))


def consistent(policy: TrainingPolicy) -> bool:
    """Whether the labels belong to the categories that they stand beside, by the number in the name."""
    return all(
        labels == {f"S{category.name.removeprefix('Name ')}"}
        for category, labels in zip(policy.taxonomy, policy.labels, strict=True)
    )


def test_labels_and_categories_are_as_many() -> None:
    with pytest.raises(ValueError, match="7 categories, but labels of 6"):
        TrainingPolicy(OWN, SHOP.taxonomy, SHOP.labels[:-1])


@given(st.lists(CODES, max_size=3), SEEDS)
def test_dropping_unviolated_categories_changes_no_verdict(violated: list[frozenset[str]], seed: int) -> None:
    rows = [row(*codes) if codes else row(unsafe=0.0) for codes in violated]
    found = drop_unviolated(POLICY, rows, random.Random(seed), 1.0)
    assert consistent(found)
    assert len(found) >= len(POLICY) // 3
    assert list(found.taxonomy.codes) == [code for code in POLICY.taxonomy.codes if code in found.taxonomy.codes]
    for item in rows:
        assert targets(item, found.labels)[0] == targets(item, POLICY.labels)[0]
        assert item.violated <= set(found.taxonomy.codes)


def test_dropping_takes_any_number_of_categories() -> None:
    sizes = Counter(len(drop_unviolated(POLICY, [], random.Random(seed), 1.0)) for seed in range(300))
    assert set(sizes) == {2, 3, 4, 5, 6, 7}
    parts = {drop_unviolated(POLICY, [row("S1")], random.Random(seed), 1.0).taxonomy.codes for seed in range(300)}
    assert len(parts) > 40


@given(CODES.filter(bool), CODES, SEEDS)
def test_without_its_categories_an_unsafe_row_is_safe(
    violated: frozenset[str], other: frozenset[str], seed: int
) -> None:
    unsafe = row(*violated, possible=tuple(other - violated))
    found = drop_violated(POLICY, [unsafe, row(unsafe=0.0)], random.Random(seed), 1.0)
    assert consistent(found)
    if violated | other == set(SHOP.names):
        assert found == POLICY
    else:
        assert not (violated | other) & set(found.taxonomy.codes)
        assert targets(unsafe, found.labels) == (0.0, [0.0] * len(found))


def test_dropping_violated_categories_leaves_other_rows_unsafe() -> None:
    rows = [row("S1"), row("S2", "S3"), row(possible=SHOP.names), row(unsafe=0.0)]
    verdicts = set()
    for seed in range(50):
        found = drop_violated(POLICY, rows, random.Random(seed), 1.0)
        verdicts.add(tuple(targets(item, found.labels)[0] for item in rows[:2]))
    assert verdicts == {(0.0, 1.0), (1.0, 0.0)}
    unknown = [row(possible=SHOP.names), row(unsafe=0.0)]
    assert drop_violated(POLICY, unknown, random.Random(0), 1.0) == POLICY
    elsewhere = POLICY.part([1, 2])
    assert drop_violated(elsewhere, [row("S1")], random.Random(0), 1.0) == elsewhere


@given(SEEDS, st.frozensets(st.integers(0, 6), min_size=1))
def test_shuffling_moves_the_categories_under_codes_in_order(seed: int, kept: frozenset[int]) -> None:
    before = POLICY.part(sorted(kept))
    after = shuffle(before, random.Random(seed), 1.0)
    assert consistent(after)
    assert after.taxonomy.codes == tuple(f"S{n}" for n in range(1, len(kept) + 1))
    assert {item.name for item in after.taxonomy} == {item.name for item in before.taxonomy}
    assert Counter(after.labels) == Counter(before.labels)


def test_codes_that_are_names_go_with_their_categories() -> None:
    policy = TrainingPolicy(OWN, CANONICAL.taxonomy, CANONICAL.labels)
    found = shuffle(policy, random.Random(1), 1.0)
    assert found.taxonomy.codes != policy.taxonomy.codes
    assert [{code} for code in found.taxonomy.codes] == [set(labels) for labels in found.labels]
    for prefix in ("O", ""):
        numbered = TrainingPolicy(OWN, SHOP.taxonomy.renumber(prefix), SHOP.labels)
        after = shuffle(numbered, random.Random(1), 1.0)
        assert after.taxonomy.codes == numbered.taxonomy.codes
        assert after.labels != numbered.labels


def test_orders_differ() -> None:
    orders = {tuple(c.name for c in shuffle(POLICY, random.Random(seed), 1.0).taxonomy) for seed in range(50)}
    assert len(orders) > 45


def test_other_words_for_the_same_labels() -> None:
    wordings = {"S1": ("One: The first.", "Uno")}
    texts = set()
    for seed in range(60):
        found = rephrase(POLICY, wordings, random.Random(seed), 1.0)
        assert (found.labels, found.taxonomy.codes) == (POLICY.labels, POLICY.taxonomy.codes)
        first, second = found.taxonomy.categories[:2]
        texts.add((first.name, first.definition))
        assert (second.name, second.definition, second.include, second.exclude) == ("Name 2", "", (), ())
    assert texts == {("One", "The first."), ("One", ""), ("Uno", "")}


def test_a_category_of_several_labels_is_named_only() -> None:
    both = TrainingPolicy(OWN, Taxonomy("t", "T", (Category("A", "Both", "Of them."),)), (frozenset({"S1", "S2"}),))
    found = rephrase(both, {"S1": ("One: The first.",)}, random.Random(0), 1.0)
    assert (found.taxonomy.categories[0].name, found.taxonomy.categories[0].definition) == ("Both", "")


def test_a_policy_loses_its_names_or_all_but_its_names() -> None:
    seen = set()
    for seed in range(40):
        poor = strip(POLICY, random.Random(seed), 1.0)
        assert poor.labels == POLICY.labels
        assert poor.taxonomy.codes == POLICY.taxonomy.codes
        names = tuple(category.name for category in poor.taxonomy)
        if names == tuple(category.name for category in POLICY.taxonomy):
            assert not any(category.definition or category.include or category.exclude for category in poor.taxonomy)
        else:
            assert len(set(names)) == len(names)
            assert tuple(replace(category, name="x") for category in poor.taxonomy) == tuple(
                replace(category, name="x") for category in POLICY.taxonomy
            )
        seen.add(names)
    assert len(seen) > 10
    assert tuple(category.name for category in POLICY.taxonomy) in seen


def test_names_alone_are_lost() -> None:
    whole = TrainingPolicy(OWN, CANONICAL.taxonomy, CANONICAL.labels)
    bare = tuple(replace(item, definition="") for item in POLICY.taxonomy)
    without = replace(POLICY, taxonomy=replace(POLICY.taxonomy, categories=bare))
    for seed in range(20):
        chosen = random.Random(seed)
        found = unname(whole, chosen, 1.0)
        assert found.labels == whole.labels
        pairs = list(zip(found.taxonomy, whole.taxonomy, strict=True))
        assert all((one.name == other.name) != bool(other.definition) for one, other in pairs)
        assert [replace(one, name="x") for one, _ in pairs] == [replace(other, name="x") for _, other in pairs]
        assert unname(without, chosen, 1.0) == without
    state = chosen.getstate()
    assert unname(whole, chosen, 0.0) is whole
    assert chosen.getstate() == state  # so that runs without it draw what they drew before there was it


def test_a_name_without_a_definition_stays() -> None:
    bare = replace(POLICY.taxonomy, categories=(Category("S1", "Arson"), Category("S2", "Theft", "Taking things.")))
    policy = TrainingPolicy(OWN, bare, POLICY.labels[:2])
    for seed in range(20):
        first, second = strip(policy, random.Random(seed), 1.0).taxonomy
        assert first.name == "Arson"
        assert (second.name == "Theft") == (second.definition == "")


def test_examples_violate_their_category_and_are_not_shown() -> None:
    rows = [row(f"S{n}", text=f"text {n} {at}") for n in (1, 2) for at in range(6)]
    pool = example_pool([*rows, row("S1", "S2", text="of two"), row("S1", unsafe=0.5), row("S1", text="long " * 99)])
    assert {label: len(items) for label, items in pool.items()} == {"S1": 6, "S2": 6}
    counts = set()
    for seed in range(50):
        found = with_examples(POLICY, pool, rows[:3], random.Random(seed), 1.0)
        first, second, third, *_ = found.taxonomy.categories
        counts.add(len(second.examples))
        texts = [item.messages[0].text for item in first.examples]
        assert set(texts) <= {item.text for item in rows[3:6]}
        assert all(item.messages[0].text.startswith("text 2") for item in second.examples)
        assert third.examples == ()
        assert len(set(texts)) == len(texts) <= 4
    assert counts == {1, 2, 3, 4}


def test_examples_are_single_messages_or_answers() -> None:
    long = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    answer = Row("web", Conversation.parse(long[:2]), 1.0, frozenset({"S1"}))
    pool = example_pool([answer, Row("web", Conversation.parse(long), 1.0, frozenset({"S1"}))])
    assert pool == {"S1": (answer,)}
    found = with_examples(POLICY, pool, [], random.Random(0), 1.0)
    assert found.taxonomy.categories[0].examples[0].messages == answer.conversation.messages


@pytest.mark.parametrize("seed", range(20))
def test_at_a_rate_of_zero_nothing_changes(seed: int) -> None:
    chosen = random.Random(seed)
    rows = [row("S1")]
    assert drop_unviolated(POLICY, rows, chosen, 0.0) is POLICY
    assert drop_violated(POLICY, rows, chosen, 0.0) is POLICY
    assert shuffle(POLICY, chosen, 0.0) is POLICY
    assert rephrase(POLICY, {}, chosen, 0.0) == POLICY
    assert strip(POLICY, chosen, 0.0) is POLICY
    assert with_examples(POLICY, example_pool(rows), [], chosen, 0.0) == POLICY


def test_rates_are_probabilities() -> None:
    shuffled = sum(shuffle(POLICY, random.Random(seed), 0.3) != POLICY for seed in range(1000))
    assert 240 < shuffled < 360
    with pytest.raises(UsageError, match="shuffle is 2"):
        PolicyChanges(shuffle=2)


def test_made_up_policies_are_single_labels_in_some_wording() -> None:
    table = HazardTable.read(CONFIGS / "hazards.yaml")
    for seed in range(30):
        found = made_up(table.wordings, random.Random(seed))
        assert 6 <= len(found) <= 16
        assert found.taxonomy.codes == tuple(f"S{n}" for n in range(1, len(found) + 1))
        for category, labels in zip(found.taxonomy, found.labels, strict=True):
            (label,) = labels
            assert category.hazards == (label,)
            text = f"{category.name}: {category.definition}" if category.definition else category.name
            assert any(wording.startswith(text) for wording in table.wordings[label])
    assert len(made_up(SHOP.wordings(), random.Random(0))) >= 6


def test_the_sampler_draws_by_shares_and_the_same_again() -> None:
    sampler = PolicySampler(CANONICAL, {OWN: 2, MADE_UP: 1, "default": 1, "beavertails": 0})
    names = Counter(sampler.draw(random.Random(seed)).name for seed in range(400))
    assert set(names) == {OWN, MADE_UP, "default"}
    assert 160 < names[OWN] < 240
    changes = PolicyChanges(0.5, 0.5, 0.5, 0.5, 0.5)
    rows = [Row("web", Conversation.parse(f"text {at}"), 1.0, frozenset({"hate"})) for at in range(9)]
    full = PolicySampler(CANONICAL, {OWN: 1, MADE_UP: 1}, changes, examples=example_pool(rows))
    for seed in range(20):
        assert full.draw(random.Random(seed), rows[:2]) == full.draw(random.Random(seed), rows[:2])


def test_shipped_policies_cover_hazards() -> None:
    sampler = PolicySampler(CANONICAL, {"default": 1})
    default = Taxonomy.load("default")
    assert sampler.shipped["default"].taxonomy == default
    assert sampler.shipped["default"].labels == tuple(frozenset(item.hazards) for item in default)


def test_policies_that_the_labels_cannot_reach_are_refused() -> None:
    with pytest.raises(UsageError, match="labels of 'shop' cannot be read under 'default'"):
        PolicySampler(SHOP, {OWN: 1, "default": 1})
    few = LabelSpace(CANONICAL.taxonomy.select(["code_abuse"]))
    with pytest.raises(UsageError, match="no label reaches a category of the taxonomy 'hate-speech'"):
        PolicySampler(few, {"hate-speech": 1})
    for shares in ({}, {OWN: 0}, {OWN: 1, MADE_UP: -1}):
        with pytest.raises(UsageError, match="shares of the policies"):
            PolicySampler(SHOP, shares)


@given(SEEDS, st.lists(CODES, min_size=1, max_size=4))
def test_labels_stay_beside_their_categories_through_all_changes(seed: int, violated: list[frozenset[str]]) -> None:
    """The text of a category says which label it covers; targets follow it wherever it went."""
    sampler = PolicySampler(SHOP, {OWN: 1, MADE_UP: 1}, PolicyChanges(0.5, 0.3, 0.5, 0.5))
    rows = [row(*codes) if codes else row(unsafe=0.0) for codes in violated]
    policy = sampler.draw(random.Random(seed), rows)
    assert consistent(policy)
    assert len(set(policy.taxonomy.codes)) == len(policy) >= 1
    for item in rows:
        verdict, values = targets(item, policy.labels)
        hits = [f"S{category.name.removeprefix('Name ')}" in item.violated for category in policy.taxonomy]
        assert values == [float(hit) for hit in hits]
        assert verdict == float(any(hits)) != UNKNOWN
