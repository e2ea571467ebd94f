"""Which policy a training example is shown: the taxonomy itself, another one, a made-up one, and changes of each.

The changes follow the fine-tuning of Llama Guard (Inan et al. 2023, section 3.3): categories that are not violated are
dropped, so that the model reads the list instead of knowing it by heart; violated categories are dropped and the label
becomes safe, so that it judges by the list alone; and the order is shuffled under the same codes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from guardrail.errors import UsageError
from guardrail.taxonomy import Category, Example, Taxonomy
from guardrail.taxonomy_category import known_hazards
from guardrail.training.labelled import LabelSpace
from guardrail.training.rows import Hazards, Row
from guardrail.types import Role

__all__ = [
    "MADE_UP",
    "OWN",
    "PolicyChanges",
    "PolicySampler",
    "TrainingPolicy",
    "drop_unviolated",
    "drop_violated",
    "example_pool",
    "made_up",
    "rephrase",
    "shuffle",
    "strip",
    "unname",
    "with_examples",
]

OWN = "own"
"""The share of the taxonomy that the labels use."""
MADE_UP = "made_up"
"""The share of policies that are put together from the wordings of single labels."""

# A made-up policy has this many categories, as far as there are labels.
_FEWEST, _MOST = 6, 16
# Names that say nothing, before a number.
_BLANK_NAMES = ("Category", "Rule", "Policy", "Section", "Topic", "Type", "Class", "Item")
# How often another wording is the name alone.
_NAME_ONLY = 0.3
_MOST_EXAMPLES = 4
_LONGEST_EXAMPLE = 300
_NUMBERED = re.compile(r"(\D*)\d+")


@dataclass(frozen=True, slots=True)
class TrainingPolicy:
    """A taxonomy, and what the labels of a row say about it: `rows.targets(row, policy.labels)`."""

    name: str
    """Where it came from: `own`, `made_up`, or the name of a shipped taxonomy."""
    taxonomy: Taxonomy
    labels: tuple[Hazards, ...]
    """The labels that each category covers, in the taxonomy's order."""

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.taxonomy):
            raise ValueError(f"{len(self.taxonomy)} categories, but labels of {len(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, kept: Iterable[int]) -> TrainingPolicy:
        """The categories at these positions, in the given order; their codes stay."""
        order = tuple(kept)
        categories = tuple(self.taxonomy.categories[at] for at in order)
        return replace(
            self,
            taxonomy=replace(self.taxonomy, categories=categories),
            labels=tuple(self.labels[at] for at in order),
        )


@dataclass(frozen=True, slots=True)
class PolicyChanges:
    """How likely each change of a policy is."""

    drop_unviolated: float = 0.0
    """Of a policy: that some categories are left out which no row shown violates. Of one that is drawn for no rows, as
    an encoder's are: that some are left out, whichever they are."""
    drop_violated: float = 0.0
    """Of a policy: that everything is left out which one of the rows shown violates or may violate."""
    shuffle: float = 0.0
    """Of a policy: that its categories come in another order, under the codes of that order."""
    rephrase: float = 0.0
    """Of each category: that it is worded otherwise, or only named."""
    examples: float = 0.0
    """Of each category: that it has one to four few-shot examples."""
    strip: float = 0.0
    """Of a policy: that its categories lose their names, or else all but their names."""
    unname: float = 0.0
    """Of a policy: that its categories lose their names, besides what `strip` does."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}", hint="give a probability, from 0 to 1")


def drop_unviolated(policy: TrainingPolicy, rows: Sequence[Row], chosen: random.Random, rate: float) -> TrainingPolicy:
    """With probability `rate` the policy without some categories that no row violates; at least a third stays.

    A row that may violate a category, nobody knows which, does not keep it: its verdict becomes unknown when too many
    go (`rows.targets`).
    """
    if chosen.random() >= rate:
        return policy
    violated: Hazards = frozenset().union(*(row.violated for row in rows))
    free = [at for at, labels in enumerate(policy.labels) if not labels & violated]
    fixed = len(policy) - len(free)
    fewest = max(1, len(policy) // 3)
    count = chosen.randint(max(0, fewest - fixed), len(free)) if free else 0
    dropped = set(free) - set(chosen.sample(free, count))
    return policy.part(at for at in range(len(policy)) if at not in dropped)


def drop_violated(policy: TrainingPolicy, rows: Sequence[Row], chosen: random.Random, rate: float) -> TrainingPolicy:
    """With probability `rate` the policy without all that one unsafe row violates or may violate: it becomes safe.

    The row is drawn among those with known violations. The policy is returned unchanged when nothing of it would be
    left, or when the row violates no category of it.
    """
    if chosen.random() >= rate:
        return policy
    known = [row for row in rows if row.violated and row.unsafe >= 0.5]
    if not known:
        return policy
    row = chosen.choice(known)
    touched = row.violated | row.possible
    kept = [at for at, labels in enumerate(policy.labels) if not labels & touched]
    return policy.part(kept) if kept and any(labels & row.violated for labels in policy.labels) else policy


def shuffle(policy: TrainingPolicy, chosen: random.Random, rate: float) -> TrainingPolicy:
    """With probability `rate` the categories in another order, and S1, S2, … in the order shown.

    Codes that are a common prefix and a number are written anew; codes that are names go with their categories.
    """
    if chosen.random() >= rate:
        return policy
    order = list(range(len(policy)))
    chosen.shuffle(order)
    found = policy.part(order)
    matches = [_NUMBERED.fullmatch(code) for code in found.taxonomy.codes]
    prefixes = {match[1] if match else None for match in matches}
    prefix = prefixes.pop()
    if prefixes or prefix is None:
        return found
    return replace(found, taxonomy=found.taxonomy.renumber(prefix))


def rephrase(
    policy: TrainingPolicy, wordings: Mapping[str, Sequence[str]], chosen: random.Random, rate: float
) -> TrainingPolicy:
    """Each category with probability `rate` in other words, or by its name alone; codes and labels stay.

    `wordings` are texts `NAME: DEFINITION` by label. They fit a category that covers one label; of any other the name
    alone is left.
    """
    categories = []
    for category, labels in zip(policy.taxonomy, policy.labels, strict=True):
        if chosen.random() < rate:
            texts = wordings.get(next(iter(labels)), ()) if len(labels) == 1 else ()
            text = chosen.choice(texts) if texts else category.name
            category = _worded(category, text, name_only=chosen.random() < _NAME_ONLY)
        categories.append(category)
    return replace(policy, taxonomy=replace(policy.taxonomy, categories=tuple(categories)))


def strip(policy: TrainingPolicy, chosen: random.Random, rate: float) -> TrainingPolicy:
    """With probability `rate` the policy in poorer words: names that say nothing, or names alone.

    It means the same, so the labels stay: a guard learns to go by whichever of the two a policy has. A category without
    a definition keeps its name.
    """
    if chosen.random() >= rate:
        return policy
    names_only, nameless = chosen.random() < 0.5, _nameless(policy, chosen)
    if not names_only:
        return nameless
    bare = (replace(category, definition="", include=(), exclude=()) for category in policy.taxonomy)
    return replace(policy, taxonomy=replace(policy.taxonomy, categories=tuple(bare)))


def unname(policy: TrainingPolicy, chosen: random.Random, rate: float) -> TrainingPolicy:
    """With probability `rate` the policy under names that say nothing; a category without a definition keeps its."""
    # Without it, policies are drawn as before there was it.
    return _nameless(policy, chosen) if rate and chosen.random() < rate else policy


def _nameless(policy: TrainingPolicy, chosen: random.Random) -> TrainingPolicy:
    word, first = chosen.choice(_BLANK_NAMES), chosen.randint(1, 20)
    names = {item.code: f"{word} {number}" for number, item in enumerate(policy.taxonomy, first) if item.definition}
    return replace(policy, taxonomy=policy.taxonomy.rename(names))


def with_examples(
    policy: TrainingPolicy, pool: Mapping[str, Sequence[Row]], rows: Sequence[Row], chosen: random.Random, rate: float
) -> TrainingPolicy:
    """Each category with probability `rate` with one to four unsafe examples of its labels; never of the rows shown."""
    shown = {row.conversation for row in rows}
    examples: dict[str, list[Example]] = {}
    for code, labels in zip(policy.taxonomy.codes, policy.labels, strict=True):
        if chosen.random() >= rate:
            continue
        texts = pool.get(chosen.choice(sorted(labels)), ()) if labels else ()
        count = chosen.randint(1, _MOST_EXAMPLES)
        # A few more are drawn than needed instead of comparing the whole pool with the rows.
        drawn = chosen.sample(texts, min(len(texts), count + len(rows)))
        kept = [row for row in drawn if row.conversation not in shown][:count]
        if kept:
            examples[code] = [Example("unsafe", row.conversation.messages) for row in kept]
    return replace(policy, taxonomy=policy.taxonomy.with_examples(examples)) if examples else policy


def example_pool(rows: Iterable[Row]) -> dict[str, tuple[Row, ...]]:
    """By label, the rows that are fit for few-shot examples: certainly unsafe, short, one message or an answer to one.

    A row with several violations would be an example of each, and so of none in particular: it is left out.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        roles = tuple(message.role for message in row.conversation.messages)
        if roles not in ((Role.USER,), (Role.USER, Role.ASSISTANT)) or row.unsafe < 0.85 or len(row.violated) != 1:
            continue
        if sum(len(message.text) for message in row.conversation.messages) <= _LONGEST_EXAMPLE:
            found.setdefault(next(iter(row.violated)), []).append(row)
    return {label: tuple(items) for label, items in found.items()}


def made_up(wordings: Mapping[str, Sequence[str]], chosen: random.Random) -> TrainingPolicy:
    """Some labels in random order and wording, each a category of its own, with the codes S1, S2, …"""
    names = sorted(wordings)
    labels = chosen.sample(names, chosen.randint(min(_FEWEST, len(names)), min(_MOST, len(names))))
    categories = []
    for number, label in enumerate(labels, 1):
        hazards = (label,) if label in known_hazards() else ()
        text = chosen.choice(wordings[label])
        blank = Category(f"S{number}", label, hazards=hazards)
        categories.append(_worded(blank, text, name_only=chosen.random() < _NAME_ONLY))
    taxonomy = Taxonomy("made-up", "Made up", tuple(categories))
    return TrainingPolicy(MADE_UP, taxonomy, tuple(frozenset({label}) for label in labels))


def _worded(category: Category, text: str, *, name_only: bool) -> Category:
    name, _, definition = text.partition(": ")
    return replace(category, name=name, definition="" if name_only else definition, include=(), exclude=())


class PolicySampler:
    """Draws the policy of a pack or batch of rows."""

    def __init__(
        self,
        space: LabelSpace,
        shares: Mapping[str, float],
        changes: PolicyChanges = PolicyChanges(),
        wordings: Mapping[str, Sequence[str]] | None = None,
        examples: Mapping[str, Sequence[Row]] | None = None,
    ) -> None:
        """`shares`: how often `own`, `made_up` or a shipped taxonomy is drawn, as weights.

        `wordings` and `examples` are by label; without wordings, each category of the space has its own one. Raises
        UsageError for a taxonomy that the labels say nothing about.
        """
        self.space = space
        self.changes = changes
        self.wordings = dict(wordings) if wordings else space.wordings()
        self.examples = dict(examples or {})
        self._names = tuple(name for name, share in shares.items() if share > 0)
        self._shares = tuple(shares[name] for name in self._names)
        if not self._names or min(shares.values()) < 0:
            raise UsageError("the shares of the policies are no weights", hint="give one above 0, none below")
        self.shipped = {name: self._policy(name) for name in self._names if name != MADE_UP}

    def draw(self, chosen: random.Random, rows: Sequence[Row] = ()) -> TrainingPolicy:
        """A policy to show with these rows; the same for the same state of `chosen`, rows and settings."""
        name = chosen.choices(self._names, self._shares)[0]
        policy = made_up(self.wordings, chosen) if name == MADE_UP else self.shipped[name]
        changes = self.changes
        policy = drop_unviolated(policy, rows, chosen, changes.drop_unviolated)
        policy = drop_violated(policy, rows, chosen, changes.drop_violated)
        policy = rephrase(policy, self.wordings, chosen, changes.rephrase)
        policy = unname(strip(policy, chosen, changes.strip), chosen, changes.unname)
        policy = with_examples(policy, self.examples, rows, chosen, changes.examples)
        return shuffle(policy, chosen, changes.shuffle)

    def _policy(self, name: str) -> TrainingPolicy:
        if name == OWN:
            return TrainingPolicy(OWN, self.space.taxonomy, self.space.labels)
        taxonomy = Taxonomy.load(name)
        whole = TrainingPolicy(name, taxonomy, self.space.covered(taxonomy))
        kept = [at for at, labels in enumerate(whole.labels) if labels]
        if not kept:
            raise UsageError(f"no label reaches a category of the taxonomy {name!r}")
        return whole.part(kept)
