"""Obedience to the policy: with guards of which it is known what they read, and with a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from guardrail.backends.scripted import ScriptedBackend
from guardrail.errors import BackendError
from guardrail.guard import Guard
from guardrail.prompting import Prompt
from guardrail.scoring import Logits
from guardrail.taxonomy import Category, Taxonomy
from guardrail.training.obedience import MakeGuard, obedience
from guardrail.training.policies import TrainingPolicy
from guardrail.training.rows import Row
from guardrail.types import Conversation
from tests.checkpoints import save_checkpoint, tokenizer_of

ANIMALS, DRUGS, THEFT = (
    Category("S1", "cats", definition="cats and dogs"),
    Category("S2", "pills", definition="pills and powders"),
    Category("S3", "loot", definition="loot and plunder"),
)
TAXONOMY = Taxonomy("own", "Own", (ANIMALS, DRUGS, THEFT))
POLICY = TrainingPolicy("own", TAXONOMY, (frozenset({"S1"}), frozenset({"S2"}), frozenset({"S3"})))


def row(text: str, *violated: str, possible: frozenset[str] = frozenset()) -> Row:
    return Row("test", Conversation.parse(text), 1.0, frozenset(violated), possible)


ROWS = [
    row("cats one", "S1"),
    row("cats two", "S1", possible=frozenset({"S3"})),
    row("pills", "S2"),
    row("cats and pills", "S1", "S2"),
    Row("test", Conversation.parse("good morning"), 0.0),
    Row("test", Conversation.parse([{"role": "user", "content": "x"}, {"role": "assistant", "content": "loot"}]), 1.0,
        frozenset({"S3"})),
]  # fmt: skip


def guards(script: ScriptedBackend) -> MakeGuard:
    return lambda taxonomy: Guard(script, taxonomy=taxonomy)


def by_words(fields: str) -> ScriptedBackend:
    """Unsafe in the categories of which a word of the name, the definition or the code is in the judged text."""

    def script(prompt: Prompt) -> Logits:
        text = prompt.segments[1].text
        if "unreadable" in text:
            raise BackendError("no")
        hits = [
            any(word in text for field in fields.split() for word in getattr(item, field).split() if len(word) > 3)
            for item in prompt.taxonomy
        ]
        values = tuple(3.0 if hit else -3.0 for hit in hits)
        return Logits(0.0, max(values), values)

    return ScriptedBackend(script)


def test_a_guard_that_reads_names_obeys() -> None:
    found = obedience(guards(by_words("name")), POLICY, ROWS)
    assert found["rows"] == 3  # of two categories, safe, and an answer: not meant
    first = found["categories"]["S1"]
    assert (first["name"], first["rows"], first["top"]) == ("cats", 2, 1.0)
    assert first["flagged_before"] == 1
    assert first["flagged_left_out"] == first["flagged_all_related_left_out"] == 0
    assert first["before"] == pytest.approx(0.953, abs=1e-3)
    assert set(found["categories"]) == {"S1", "S2"}
    for name in ("reordered", "recoded", "names_only"):
        assert found[f"{name}_largest_change"] == 0
        assert found[f"{name}_same_verdict"] == 1
    # Without the names nothing is found any more.
    assert found["definitions_only_same_verdict"] == 0
    assert found["definitions_only_mean_change"] == pytest.approx(0.905, abs=1e-3)


def test_a_guard_that_reads_definitions_needs_them() -> None:
    found = obedience(guards(by_words("definition")), POLICY, ROWS)
    assert found["definitions_only_largest_change"] == 0
    assert found["names_only_same_verdict"] == 0


def test_a_guard_that_reads_no_policy_is_found_out() -> None:
    found = obedience(guards(ScriptedBackend.load("cats,pills")), POLICY, ROWS)
    assert found["categories"]["S1"]["flagged_all_related_left_out"] == 1
    assert found["categories"]["S1"]["left_out"] == found["categories"]["S1"]["before"]
    assert found["names_only_mean_change"] == 0


def test_a_guard_that_goes_by_position_is_found_out() -> None:
    def script(prompt: Prompt) -> Logits:
        values = tuple(2.0 - 2 * at for at in range(len(prompt.taxonomy)))
        return Logits(0.0, 2.0 if prompt.taxonomy.codes[0] == "S1" else -1.0, values)

    found = obedience(guards(ScriptedBackend(script)), POLICY, ROWS)
    assert found["reordered_mean_change"] == found["recoded_mean_change"] == pytest.approx(0.612, abs=1e-3)
    assert found["categories"]["S2"]["top"] == 0


def test_at_most_so_many_rows_of_a_category_are_taken() -> None:
    assert obedience(guards(by_words("name")), POLICY, ROWS, most=1)["categories"]["S1"]["rows"] == 1


def test_rows_that_cannot_be_judged_are_counted_and_left_out() -> None:
    rows = [*ROWS, row("cats unreadable", "S1"), row("loot unreadable", "S3")]
    found = obedience(guards(by_words("name")), POLICY, rows)
    assert (found["rows"], found["not_judged"]) == (3, 2)
    assert found["categories"]["S1"]["flagged_before"] == 1
    assert "S3" not in found["categories"]


def test_without_rows_nothing_is_measured() -> None:
    assert obedience(guards(by_words("name")), POLICY, ROWS[4:]) == {"rows": 0, "not_judged": 0, "categories": {}}


def test_the_only_category_cannot_be_left_out() -> None:
    found = obedience(guards(by_words("name")), POLICY.part([0]), ROWS[:1])
    assert "left_out" not in found["categories"]["S1"]
    assert found["categories"]["S1"]["before"] > 0.9


def test_of_a_checkpoint(tokenizer_files: Path, tmp_path: Path) -> None:
    from guardrail.backends.llama import LlamaBackend
    from guardrail.backends.llama_loading import load_checkpoint

    folder = save_checkpoint(tmp_path / "guard", tokenizer_of("llama-guard-1", tokenizer_files))
    backend = LlamaBackend(load_checkpoint(str(folder), device="cpu"))
    found = obedience(lambda taxonomy: Guard(backend, taxonomy=taxonomy, policy_text=True), POLICY, ROWS[:3])
    assert found["rows"] == 3
    # Random weights read every token, in its place.
    for name in ("reordered", "recoded", "definitions_only", "names_only"):
        assert 0 < found[f"{name}_mean_change"] <= found[f"{name}_largest_change"] <= 1
    assert 0 <= found["categories"]["S1"]["left_out"] <= 1
