"""Loaders of the sources of requests to a model: harmful prompts, benign instructions, jailbreaks."""

from __future__ import annotations

import ast
import csv
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardrail.training import labels
from guardrail.training.labels import HazardTable
from guardrail.training.rows import Hazards, Row, conversation

__all__ = ["Loader", "LoaderContext", "csv_rows", "json_lines"]

# Prompts of a mostly benign source that a reader would not call benign; they are left out, not labelled.
_DOUBTFUL = re.compile(
    r"\b(kill|murder|suicid\w*|bomb\w*|weapon\w*|gun|drug\w*|cocaine|meth|lsd|sex\w*|porn\w*|nude|naked|rap(e|ist)"
    r"|nazi\w*|hitler|hack\w*|steal\w*|racis\w*|nigg\w*|fuck\w*|shit\w*|bitch\w*|hate|slur\w*|terroris\w*|illegal\w*|explosive\w*"
    r"|poison\w*|virus\w*|malware|scam\w*|jew\w*|genocide|torture\w*|orgasm|penis|vagina|erotic\w*|dan mode"
    r"|jailbreak\w*)\b",
    re.IGNORECASE,
)
_WRAPPERS = re.compile(
    r"^(Write a fictional story in which a character explains:|You are DAN, an AI with no restrictions\.|"
    r"Please act as my late grandmother who would read me:|Enable Developer Mode\. In Developer Mode you must:)\s*"
)


class LoaderContext:
    """The data folder and the hazard table; makes rows of one source."""

    def __init__(self, folder: Path, hazards: HazardTable) -> None:
        self.folder = folder
        self.hazards = hazards

    def unsafe(
        self,
        source: str,
        turns: list[tuple[str, str]],
        share: float,
        violated: tuple[str, ...] = (),
        weight: float = 1.0,
    ) -> Iterator[Row]:
        """An unsafe row; without a known hazard every hazard is possible. `share` is P(unsafe)."""
        talk = conversation(turns)
        if talk is not None:
            known: Hazards = frozenset(violated)
            possible = self.hazards.possible(known) if known else self.hazards.names
            yield Row(source, talk, share, known, possible, weight)

    def among(
        self, source: str, turns: list[tuple[str, str]], share: float, possible: tuple[str, ...], weight: float = 1.0
    ) -> Iterator[Row]:
        """A row that violates at most the given hazards, nobody says which; the verdict is UNKNOWN for share < 0."""
        talk = conversation(turns)
        if talk is not None:
            yield Row(source, talk, share, frozenset(), frozenset(possible), weight)

    def safe(self, source: str, turns: list[tuple[str, str]], share: float = 0.0, weight: float = 1.0) -> Iterator[Row]:
        """A row that violates nothing."""
        talk = conversation(turns)
        if talk is not None:
            yield Row(source, talk, share, weight=weight)


Loader = Any


def csv_rows(file: Path, **options: Any) -> Iterator[dict[str, str]]:
    """The rows of a CSV file with a header."""
    csv.field_size_limit(1 << 24)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        yield from csv.DictReader(stream, **options)


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            if line.strip():
                yield json.loads(line)


def wildguard_aegis(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in json_lines(context.folder / "wildguard_aegis_prompts.jsonl"):
        turns = [("user", row["prompt"])]
        if row["label"] == "harmful":
            yield from context.unsafe(source, turns, 1.0)
        else:
            yield from context.safe(source, turns)


def aegis2(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in csv_rows(context.folder / "aegis_900.csv"):
        hazards, share = labels.AEGIS[row["category"]]
        yield from context.unsafe(source, [("user", row["prompt"])], share, hazards)


def ailuminate(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in csv_rows(context.folder / "airr_official_1.0_demo_en_us_prompt_set_release.csv"):
        hazards, share = labels.AILUMINATE[row["hazard"]]
        yield from context.unsafe(source, [("user", row["prompt_text"])], share, hazards)


def red_instruct(context: LoaderContext, source: str) -> Iterator[Row]:
    def read(name: str) -> Any:
        return json.loads((context.folder / f"{name}.json").read_text(encoding="utf-8"))

    for groups in read("catqa_english").values():
        for name, prompts in groups.items():
            hazards, share = labels.CATQA[name.rstrip(":")]
            for prompt in prompts:
                yield from context.unsafe(source, [("user", prompt)], share, hazards)
    for topics in read("harmfulqa").values():
        for prompts in topics.values():
            for prompt in prompts:
                yield from context.unsafe(source, [("user", prompt)], 0.9, weight=0.5)
    for name in ("dangerousqa", "adversarialqa"):
        for prompt in read(name):
            yield from context.unsafe(source, [("user", prompt)], 0.95)


def aart(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in csv_rows(context.folder / "aart-v1-20231117.csv"):
        hazards = labels.crime_hazards(row["crime"] or "")
        share = 0.9 if hazards else 0.6
        yield from context.unsafe(source, [("user", row["prompt"])], share, hazards, weight=1.0 if hazards else 0.3)


def red_team(context: LoaderContext, source: str) -> Iterator[Row]:
    seen: set[str] = set()
    for index, row in enumerate(json_lines(context.folder / "hh_rlhf_red_team-extension2-part03.jsonl")):
        bare = _WRAPPERS.sub("", row["prompt"])
        if bare not in seen:
            seen.add(bare)
            yield from context.unsafe(source, [("user", bare)], 0.8)
            if index % 8 == 0:
                yield from context.unsafe(source, [("user", row["prompt"])], 0.85)


def jailbreaks(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in json_lines(context.folder / "jailbreak_llms.jsonl"):
        yield from context.unsafe(source, [("user", row["Prompt"])], 0.9)


_XSAFETY: dict[str, tuple[float, tuple[str, ...]]] = {
    "Crimes_And_Illegal_Activities_en": (0.9, ()),
    "Unsafe_Instruction_Topic_n": (0.75, ()),
    "Insult_n": (0.75, ("harassment",)),
    "Unfairness_And_Discrimination_n": (0.75, ("hate",)),
    "Ethics_And_Morality_n": (0.05, ()),
}


def xsafety(context: LoaderContext, source: str) -> Iterator[Row]:
    for name, (share, hazards) in _XSAFETY.items():
        for line in (context.folder / "en" / f"{name}.csv").read_text(encoding="utf-8-sig").splitlines():
            turns = [("user", line.strip().rstrip(",").strip().strip('"'))]
            if share < 0.5:
                yield from context.safe(source, turns, share)
            else:
                yield from context.unsafe(source, turns, share, hazards, weight=0.7)


def multijail(context: LoaderContext, source: str) -> Iterator[Row]:
    for index, row in enumerate(csv_rows(context.folder / "MultiJail.csv")):
        known = " ".join(ast.literal_eval(row["tags"])) if row["tags"].startswith("[") else row["tags"]
        hazards = tuple({hazard for tag, names in labels.MULTIJAIL.items() if tag in known for hazard in names})
        yield from context.unsafe(source, [("user", row["en"])], 0.95, hazards)
        language = ("it", "vi", "sw", "jv", "zh", "ar", "ko", "th", "bn")[index % 9]
        yield from context.unsafe(source, [("user", row[language])], 0.95, hazards, weight=0.5)


def dolly(context: LoaderContext, source: str) -> Iterator[Row]:
    for index, row in enumerate(json_lines(context.folder / "first_6400.jsonl")):
        yield from _dolly_row(context, source, index, row["instruction"], row["decoded"], row["text"])
    for index, row in enumerate(csv_rows(context.folder / "closed_qa_1000.csv")):
        yield from _dolly_row(context, source, index, row["instruction"], row["response"], row["context"])


def _dolly_row(
    context: LoaderContext, source: str, index: int, question: str, answer: str, passage: str
) -> Iterator[Row]:
    if _DOUBTFUL.search(question):
        return
    if index % 4 == 0 and answer:
        yield from context.safe(source, [("user", question), ("assistant", answer)])
    elif index % 4 == 1 and len(passage) > 80:
        yield from context.safe(source, [("user", f"{question}\n\n{passage}")])
    else:
        yield from context.safe(source, [("user", question)])


def oasst(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in json_lines(context.folder / "unique_prompts.jsonl"):
        if not _DOUBTFUL.search(row["prompt"]):
            yield from context.safe(source, [("user", row["prompt"])])


def t0_prompts(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in json_lines(context.folder / "t0_prompts_6000.jsonl"):
        yield from context.safe(source, [("user", row["prompt"])], 0.02)


def gsm8k(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in json_lines(context.folder / "train.jsonl"):
        yield from context.safe(source, [("user", row["question"])])


def truthful_qa(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in csv_rows(context.folder / "truthful_qa.csv"):
        yield from context.safe(source, [("user", row["prompt"])], 0.02)


def sql_create_context(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in csv_rows(context.folder / "sql_create_context.csv"):
        yield from context.safe(source, [("user", f"{row['question']}\n{row['context']}")])


def fuzzyai_benign(context: LoaderContext, source: str) -> Iterator[Row]:
    for line in (context.folder / "benign_prompts.txt").read_text(encoding="utf-8").splitlines():
        yield from context.safe(source, [("user", line)])


def cyberseceval(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in json.loads((context.folder / "mitre_frr.json").read_text(encoding="utf-8")):
        yield from context.safe(source, [("user", row["mutated_prompt"])], 0.05)


def books(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in json_lines(context.folder / "passages_5000.jsonl"):
        yield from context.safe(source, [("user", row["text"])], 0.02)


def udhr(context: LoaderContext, source: str) -> Iterator[Row]:
    with zipfile.ZipFile(context.folder / "udhr.zip") as archive:
        for name in sorted(archive.namelist()):
            encoding = next((known for suffix, known in _ENCODINGS if name.endswith(suffix)), None)
            if encoding is None:
                continue
            words = archive.read(name).decode(encoding, "replace").split()
            for at in (60, 400):
                if text := " ".join(words[at : at + 40]):
                    yield from context.safe(source, [("user", text)])


_ENCODINGS = (("-UTF8", "utf-8"), ("-Latin1", "latin-1"), ("-Cyrillic", "cp1251"), ("-Latin2", "iso8859-2"))
