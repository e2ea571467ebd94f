"""Rows to packs: each pack shows one policy, drawn for its rows, and as many of them as fit behind it."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from guardrail.errors import TemplateError, UsageError
from guardrail.training.answers import Answer
from guardrail.training.llama_view import LEAST_ROOM, Filling, Format, View
from guardrail.training.packing import Branch, Pack, pack
from guardrail.training.policies import PolicySampler
from guardrail.training.rows import UNKNOWN, Row, targets
from guardrail.training.teacher import Teaching
from guardrail.types import Role

__all__ = ["Draft", "PackStream"]

# A row that does not go with a pack's policy waits for the next one, this often.
_TRIES = 4
# Rows tried in vain before a pack counts as full.
_MISSES = 4
# Only for deciding how many rows to have at hand.
_CHARACTERS_PER_TOKEN = 4
_TURN = 24
# Draws of a policy that leaves so much.
_DRAWS = 50
_UNDECIDED = 0.5

Draft = Callable[[], Pack]
"""Makes a pack."""


@dataclass(slots=True)
class _Waiting:
    row: Row
    tries: int = 0
    note: str = ""
    """What happened to its text, or why it did not go with the last policy."""
    taught: bool = False
    """Whether a teacher has a say in its answers."""

    @property
    def tokens(self) -> int:
        """About how many tokens it takes."""
        characters = sum(len(message.text) for message in self.row.conversation.messages)
        return _TURN + characters // _CHARACTERS_PER_TOKEN


class PackStream:
    """The packs of any pass over the rows; the same seed and pass give the same packs.

    The rows of one pack are judged in the same role, because the role stands before the policy in the prompts. A row
    whose verdict is unknown under the policy of one pack waits for the next one. A text that is too long is cut as at
    inference: of a harmless one a window is drawn, whereas a harmful one is left out, because its windows' labels are
    not known; where the judged message stays whole and only its context is cut, either is kept. `counts` tells what
    became of the rows.
    """

    def __init__(
        self,
        format: Format,
        rows_of_pass: Callable[[int], Sequence[Row]],
        sampler: PolicySampler,
        *,
        seed: int,
        teaching: Teaching | None = None,
    ) -> None:
        """`rows_of_pass(n)` gives the rows of pass n, always the same ones."""
        self.counts: Counter[str] = Counter()
        """Rows `shown`, of them `shortened` (their context) or `cut` (their text); how often a row was `put_back`; rows
        left out: `unlabelled`, `unknown` (the verdict, under every policy tried), `too_long`, `no_prompt` (the template
        cannot show such a conversation). And `long_policy`: policies drawn anew because they left too little room."""
        self._format = format
        self._rows_of_pass = rows_of_pass
        self._sampler = sampler
        self._seed = seed
        self._teaching = teaching

    def __iter__(self) -> Iterator[Draft]:
        """Pass after pass without an end; UsageError when a pass has no pack."""
        number = 0
        while True:
            empty = True
            for each in self.drafts(number):
                empty = False
                yield each
            if empty:
                counts = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
                raise UsageError(
                    f"no row can be shown to the model ({counts or 'there is none'})",
                    hint="are the rows labelled, and is pack_tokens more than the policy takes?",
                )
            number += 1

    def packs(self, number: int) -> Iterator[Pack]:
        """The packs of one pass."""
        return (draft() for draft in self.drafts(number))

    def drafts(self, number: int) -> Iterator[Draft]:
        """The packs of one pass, each still to be made: a process makes its own ones, and all agree on all of them."""
        chosen = random.Random(f"{self._seed} {number}")
        rows = list(self._rows_of_pass(number))
        chosen.shuffle(rows)
        waiting: dict[Role, deque[_Waiting]] = {role: deque() for role in Role}
        tokens = dict.fromkeys(Role, 0)
        for row in rows:
            if row.unsafe < 0:
                self.counts["unlabelled"] += 1
                continue
            each = _Waiting(row)
            role = row.conversation.role
            waiting[role].append(each)
            tokens[role] += each.tokens
            if tokens[role] >= 2 * self._format.pack_tokens:
                yield from self._next(waiting[role], chosen)
                tokens[role] = sum(each.tokens for each in waiting[role])
        for queue in waiting.values():
            while queue:
                yield from self._next(queue, chosen)

    def _next(self, queue: deque[_Waiting], chosen: random.Random) -> Iterator[Draft]:
        """The next pack of the queue's rows; none when no row goes with the policy that was drawn."""
        view = self._view(queue, chosen)
        filling = Filling(self._format.pack_tokens)
        taught: list[Row | None] = []
        later: list[_Waiting] = []
        misses = 0
        while queue and misses < _MISSES:
            each = queue.popleft()
            branch = self._branch(each, view, chosen)
            if branch is None:
                self._put_back(each, later)
            elif filling.add(branch):
                taught.append(each.row if each.taught else None)
                self.counts.update(["shown", *([each.note] if each.note else [])])
            else:
                later.append(each)
                misses += 1
        queue.extendleft(reversed(later))
        if filling.branches:
            yield partial(self._pack, filling.branches, taught, view)

    def _view(self, queue: deque[_Waiting], chosen: random.Random) -> View:
        candidates = self._candidates(queue)
        for _ in range(_DRAWS):
            view = View(self._format, self._sampler.draw(chosen, candidates))
            if view.leaves_room(queue[0].row.conversation.role):
                return view
            self.counts["long_policy"] += 1
        raise UsageError(
            f"{_DRAWS} policies in a row take more than {self._format.row_tokens - LEAST_ROOM} tokens",
            hint="raise pack_tokens, or show fewer examples",
        )

    def _candidates(self, queue: deque[_Waiting]) -> list[Row]:
        """The first rows, about as many as a pack holds."""
        room = self._format.pack_tokens
        rows: list[Row] = []
        for each in queue:
            room -= each.tokens
            if rows and room < 0:
                break
            rows.append(each.row)
        return rows

    def _put_back(self, each: _Waiting, later: list[_Waiting]) -> None:
        each.tries += 1
        if each.tries < _TRIES:
            self.counts["put_back"] += 1
            later.append(each)
        else:
            self.counts[each.note] += 1

    def _branch(self, each: _Waiting, view: View, chosen: random.Random) -> Branch | None:
        """The row's prompt and answers; None, and a note, when it does not go with this policy."""
        row, each.note = each.row, "unknown"
        verdict, _ = targets(row, view.policy.labels)
        if verdict == UNKNOWN:
            return None
        each.taught = self._teaching is not None and self._teaching.teacher.sees_whole(row.conversation)
        # What the teacher says changes the answers' weights alone; it is asked when the pack is made.
        answers = self._answers(row, view, _UNDECIDED if each.taught else None)
        lengths = [len(answer.steps) for answer in answers]
        room = min(self._format.row_tokens - max(lengths), self._format.pack_tokens - sum(lengths))
        try:
            ids = view.ids(row.conversation)
            if len(ids) <= room:
                each.note = ""
            else:
                ids, each.note = _shortened(row, view, room, verdict, chosen)
                each.taught, answers = False, self._answers(row, view, None)
        except TemplateError:
            each.note = "no_prompt"
            return None
        return Branch(ids, answers, row.weight) if ids else None

    def _answers(self, row: Row, view: View, unsafe: float | None) -> tuple[Answer, ...]:
        """The answers under the policy, with the teacher's P(unsafe) where it has a say."""
        verdict, categories = targets(row, view.policy.labels)
        own = verdict == row.unsafe
        # An explanation tells why the row has its own label, not why another policy allows it.
        explanation = row.explanation if own else None
        # What a policy allows because it leaves categories out, the label knows; a teacher may go on flagging it.
        if own and self._teaching is not None and unsafe is not None:
            verdict = self._teaching.mixed(verdict, unsafe)
        return view.writer.write(verdict, categories, explanation)

    def _pack(self, branches: Sequence[Branch], taught: Sequence[Row | None], view: View) -> Pack:
        """The pack of these branches; where there is a row, the teacher has its say."""
        if self._teaching is None:
            return pack(branches)
        found = list(branches)
        for at, row in enumerate(taught):
            if row is not None:
                unsafe, vector = self._teaching.teacher.judge(row.conversation, view.policy.taxonomy)
                answers = self._answers(row, view, unsafe)
                found[at] = replace(found[at], answers=answers, vector=vector if self._teaching.vectors else None)
        return pack(found)


def _shortened(row: Row, view: View, room: int, verdict: float, chosen: random.Random) -> tuple[tuple[int, ...], str]:
    """A prompt within `room` whose verdict is that of the whole row, empty when there is none; and a note."""
    windows = view.windows(row.conversation, room)
    if len(windows) == 1 and windows[0].judged == row.conversation.judged:
        return view.ids(windows[0]), "shortened"
    if verdict >= 0.5:
        return (), "too_long"
    return view.ids(chosen.choice(windows)), "cut"
