"""The table of training sources, and reading them into rows without evaluation texts or repetitions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from guardrail.errors import UsageError
from guardrail.training import sources_answers, sources_comments, sources_prompts, written
from guardrail.training.dedupe import EvaluationIndex, sketch
from guardrail.training.labels import HazardTable
from guardrail.training.rows import Row
from guardrail.training.sources_prompts import LoaderContext

__all__ = ["SOURCES", "Source", "SourceReport", "read_source"]


@dataclass(frozen=True, slots=True)
class Source:
    """One upstream data set: its folder under `train/`, its licence, and how it is read."""

    name: str
    folder: str
    licence: str
    load: Callable[[LoaderContext, str], Iterator[Row]]


_TABLE = (
    ("aegis2", "aegis2_sample", "CC-BY-4.0", sources_prompts.aegis2),
    ("ailuminate", "ailuminate", "CC-BY-4.0", sources_prompts.ailuminate),
    ("red_instruct", "red_instruct", "Apache-2.0", sources_prompts.red_instruct),
    ("aart", "aart", "CC-BY-4.0", sources_prompts.aart),
    ("wildguard_aegis", "wildguard_aegis", "ODC-BY, CC-BY-4.0", sources_prompts.wildguard_aegis),
    ("red_team", "hh_rlhf_red_team", "MIT", sources_prompts.red_team),
    ("jailbreaks", "jailbreak_llms", "MIT", sources_prompts.jailbreaks),
    ("xsafety", "xsafety", "Apache-2.0", sources_prompts.xsafety),
    ("multijail", "multijail", "MIT", sources_prompts.multijail),
    ("dolly", "dolly", "CC-BY-SA-3.0", sources_prompts.dolly),
    ("oasst", "oasst", "Apache-2.0", sources_prompts.oasst),
    ("t0_prompts", "t0_prompts", "Apache-2.0", sources_prompts.t0_prompts),
    ("gsm8k", "gsm8k", "MIT", sources_prompts.gsm8k),
    ("truthful_qa", "truthful_qa", "Apache-2.0", sources_prompts.truthful_qa),
    ("sql_create_context", "sql_create_context", "CC-BY-4.0", sources_prompts.sql_create_context),
    ("fuzzyai_benign", "fuzzyai", "Apache-2.0", sources_prompts.fuzzyai_benign),
    ("cyberseceval", "cyberseceval", "MIT", sources_prompts.cyberseceval),
    ("books", "public_domain_books", "public domain", sources_prompts.books),
    ("udhr", "udhr", "public domain", sources_prompts.udhr),
    ("toxic_spans", "toxic_spans", "CC0-1.0", sources_comments.toxic_spans),
    ("edos", "edos", "CC0-1.0", sources_comments.edos),
    ("davidson", "davidson", "MIT", sources_comments.davidson),
    ("stormfront", "stormfront", "CC-BY-SA-3.0", sources_comments.stormfront),
    ("convabuse", "convabuse", "CC-BY-4.0", sources_comments.convabuse),
    ("surge_toxicity", "surge_toxicity", "MIT", sources_comments.surge_toxicity),
    ("madlibs", "unintended_bias", "Apache-2.0", sources_comments.madlibs),
    ("wikipedia_comments", "unintended_bias", "Apache-2.0", sources_comments.wikipedia_comments),
    ("realtoxicity", "decodingtrust", "CC-BY-SA-4.0", sources_comments.realtoxicity),
    ("wikipedia_talk", "cat_wikipedia", "Apache-2.0, text CC-BY-SA-3.0", sources_comments.wikipedia_talk),
    ("complying", "fuzzyai", "Apache-2.0", sources_answers.complying),
    ("dices", "dices", "CC-BY-4.0", sources_answers.dices),
    ("harmless_pairs", "hh_rlhf_harmless", "MIT", sources_answers.harmless_pairs),
    ("swapped", "", "as the sources named there", sources_answers.swapped),
    *(
        (f"{written.PREFIX}{file.stem}", "", "ours, Apache-2.0", written.rows)
        for file in sorted(written.FOLDER.glob("*.yaml"))
    ),
)

SOURCES: Mapping[str, Source] = {entry[0]: Source(*entry) for entry in _TABLE}


@dataclass(slots=True)
class SourceReport:
    """What became of one source's rows."""

    source: str
    licence: str
    read: int = 0
    eval: int = 0
    near_eval: int = 0
    repeated: int = 0
    kept: int = 0
    files: dict[str, str] = field(default_factory=dict)
    """File name → SHA-256."""


def read_source(
    source: Source, data: Path, hazards: HazardTable, index: EvaluationIndex, seen: set[tuple[object, ...]]
) -> tuple[list[Row], SourceReport]:
    """The rows of one source that are neither evaluation texts nor repetitions of rows `seen` so far (extended)."""
    folder = data / "train" / source.folder
    if not folder.is_dir():
        raise UsageError(
            f"the data folder has no {folder}", hint="leave the source out of the configuration, or fetch it"
        )
    report = SourceReport(source.name, source.licence)
    if source.folder:
        report.files = {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
    rows: list[Row] = []
    for row in source.load(LoaderContext(folder, hazards), source.name):
        report.read += 1
        key = sketch(row)
        if (reason := index.reason(row)) is not None:
            setattr(report, reason, getattr(report, reason) + 1)
        elif key in seen:
            report.repeated += 1
        else:
            seen.add(key)
            rows.append(row)
    report.kept = len(rows)
    return rows, report
