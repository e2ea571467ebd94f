"""A policy as the prompts of one model show it: the tokens of rows and of their answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from guardrail.backends.causal_rows import common_length
from guardrail.prompting import PromptBuilder, Template
from guardrail.taxonomy import Category, Taxonomy
from guardrail.tokens import TextTokenizer
from guardrail.training.answers import AnswerWriter, Placement
from guardrail.training.packing import Branch
from guardrail.training.policies import TrainingPolicy
from guardrail.training.prompt_ids import Encoding, PromptIds
from guardrail.types import Conversation, Message, Role
from guardrail.windows import fit

__all__ = ["LEAST_ROOM", "Filling", "Format", "View"]

LEAST_ROOM = 64
"""Tokens that a policy must leave to a conversation and its answers."""


@dataclass(frozen=True, slots=True)
class Format:
    """How rows become tokens."""

    tokenizer: TextTokenizer
    template: Template
    pack_tokens: int
    row_tokens: int
    """The longest prompt with its answer: what the model was made for, at most a pack."""
    explanation: Placement = "none"
    encoding: Encoding = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoding", Encoding(self.tokenizer))


class View:
    """One policy as the prompts of this format show it: prompts and answers of rows."""

    def __init__(self, format: Format, policy: TrainingPolicy) -> None:
        self.policy = policy
        self.builder = PromptBuilder(format.template, policy.taxonomy, policy=_policy_text(format, policy.taxonomy))
        self.writer = AnswerWriter(format.tokenizer, format.template, self.builder.codes, format.explanation)
        self.ids = PromptIds(self.builder, format.encoding)
        """Conversation → the tokens of the prompt, the same as at inference."""
        self._format = format

    def leaves_room(self, role: Role) -> bool:
        """Whether a conversation that ends with this role can be shown at all."""
        turns = [Message(role, "x")]
        if self.builder.template.alternating and role is Role.ASSISTANT:
            turns.insert(0, Message(Role.USER, "x"))
        return len(self.ids(Conversation(tuple(turns)))) + LEAST_ROOM <= self._format.row_tokens

    def windows(self, conversation: Conversation, room: int) -> tuple[Conversation, ...]:
        """The windows that inference judges with prompts of at most `room` tokens."""
        return fit(conversation, room, self.builder, self._format.tokenizer).conversations


def _policy_text(format: Format, taxonomy: Taxonomy) -> bool | None:
    """True where the builder would find so after reading the family's taxonomy, which takes longer than a prompt."""
    known = _family_categories(format.template.header.taxonomy)
    return None if all(category in known for category in taxonomy) else True


@lru_cache(maxsize=8)
def _family_categories(name: str) -> tuple[Category, ...]:
    return Taxonomy.load(name).categories if name else ()


@dataclass(slots=True)
class Filling:
    """A pack that is being filled."""

    room: int
    branches: list[Branch] = field(default_factory=list)

    def add(self, branch: Branch) -> bool:
        """Whether it fits; what it shares with the first branch costs nothing."""
        shared = common_length([self.branches[0].ids, branch.ids]) if self.branches else 0
        if branch.size - shared > self.room:
            return False
        self.room -= branch.size - shared
        self.branches.append(branch)
        return True
