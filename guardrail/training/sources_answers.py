"""Loaders of the sources of answers: what an assistant said is judged, in its context."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

from guardrail.training import sources_comments, sources_prompts
from guardrail.training.rows import Row
from guardrail.training.sources_prompts import LoaderContext, json_lines
from guardrail.types import Conversation, Message, Role

__all__ = ["REFUSALS"]

REFUSALS = (
    "I can't help with that.",
    "I'm sorry, but I won't assist with this. It could hurt people.",
    "I will not do that. If you are going through a hard time, please talk to someone you trust.",
    "That would be against the law and could harm others, so I won't explain how to do it.",
    "No. I can tell you about the law on this subject instead, if that is useful.",
    "Sorry, this isn't something I can write for you. Is there another way that I can help?",
    "I can't give instructions for this. I'm happy to talk about how to stay safe and how to report it.",
    "What you describe would hurt another person. I'd rather help you find a peaceful way to settle it.",
    "I'm not able to produce that kind of content.",
    "Let's not go there. If somebody is in danger right now, please call the emergency number.",
)
"""Our own wordings; a refusal is a safe answer, whatever was asked."""

_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_SPEAKER = re.compile(r"(?:^|\n)(A|B|USER|LAMDA): ")


def complying(context: LoaderContext, source: str) -> Iterator[Row]:
    file = next(iter(sorted(context.folder.glob("*prompt-response*.jsonl"))))
    for index, row in enumerate(json_lines(file)):
        yield from context.unsafe(source, [("user", row["prompt"])], 0.98)
        answer = row["response"]
        if len(answer) > 40 and not re.match(r"(?i)\s*(sorry|i'?m sorry|i can'?t|i cannot|as an ai|i apologi)", answer):
            turns = [("user", row["prompt"]), ("assistant", answer)]
            yield from context.unsafe(source, turns[1:] if index % 3 == 0 else turns, 0.9)
        refusal = REFUSALS[index % len(REFUSALS)]
        yield from context.safe(source, [("user", row["prompt"]), ("assistant", refusal)])


def dices(context: LoaderContext, source: str) -> Iterator[Row]:
    for name in ("dices_990", "dices_350_expert"):
        data = json.loads((context.folder / f"{name}.json").read_text(encoding="utf-8"))
        for item in data["instances"]:
            votes = item["annotations"]["safety"]["individual_human_scores"]
            # In this file "Yes" means that the answer is unsafe.
            share = sum({"Yes": 1.0, "Unsure": 0.5, "No": 0.0}[vote] for vote in votes) / len(votes)
            turns = [*_dialogue(item["instance"]["user_prompt"]), ("assistant", item["instance"]["response"])]
            weight = 0.6 if len(votes) > 1 else 0.3
            if share > 0.5:
                yield from context.unsafe(source, turns, 0.3 + 0.6 * share, weight=weight)
            elif share < 0.3:
                yield from context.safe(source, turns, share / 2, weight=weight)


def _dialogue(text: str) -> list[tuple[str, str]]:
    parts = _SPEAKER.split(text.replace("\\n", "\n").strip())
    roles = {"A": "user", "USER": "user", "B": "assistant", "LAMDA": "assistant"}
    return [(roles[who], said) for who, said in zip(parts[1::2], parts[2::2], strict=False) if said.strip()]


def harmless_pairs(context: LoaderContext, source: str) -> Iterator[Row]:
    with gzip.open(context.folder / "test.jsonl.gz", "rt", encoding="utf-8") as stream:
        for line in stream:
            pair = json.loads(line)
            for name, share, weight in (("chosen", 0.3, 0.15), ("rejected", 0.6, 0.15)):
                parts = _TURN.split(pair[name])
                roles = {"Human": "user", "Assistant": "assistant"}
                turns = [(roles[who], said) for who, said in zip(parts[1::2], parts[2::2], strict=True)]
                if turns and turns[-1][0] == "assistant" and turns[-1][1].strip():
                    everything = tuple(context.hazards.names)
                    yield from context.among(source, turns[-3:], share, everything, weight=weight)


def swapped(context: LoaderContext, source: str) -> Iterator[Row]:
    """Texts of other sources as answers: comments to harmless questions, and refusals to harmful requests.

    What is judged is the answer: a toxic comment is as toxic when an assistant says it, and a refusal is harmless
    whatever was asked.
    """

    def read(folder: str, load: sources_prompts.Loader) -> Iterator[Row]:
        rows: Iterator[Row] = load(LoaderContext(context.folder / folder, context.hazards), source)
        return (row for row in rows if len(row.conversation.messages) == 1)

    questions = cycle([row.text for row in read("dolly", sources_prompts.dolly)])
    for folder, load in (
        ("surge_toxicity", sources_comments.surge_toxicity),
        ("stormfront", sources_comments.stormfront),
        ("decodingtrust", sources_comments.realtoxicity),
    ):
        for row in read(folder, load):
            # What is only known not to be hate need not be a good answer.
            if row.unsafe >= 0.85 or (0 <= row.unsafe <= 0.05 and not row.possible):
                turns = (Message(Role.USER, next(questions)), Message(Role.ASSISTANT, row.text))
                yield replace(row, conversation=Conversation(turns))
    refusals = cycle(REFUSALS)
    for folder, load in (
        ("red_instruct", sources_prompts.red_instruct),
        ("wildguard_aegis", sources_prompts.wildguard_aegis),
    ):
        for row in read(folder, load):
            if row.unsafe >= 0.85:
                yield from context.safe(source, [("user", row.text), ("assistant", next(refusals))])
