"""The validation rows of a run as suites of the evaluation harness, in the run's folder.

FOLDER/validation.jsonl, FOLDER/taxonomy.yaml, FOLDER/validation-prompts.yaml, FOLDER/validation-answers.yaml: with them
`guardrail calibrate` and `guardrail eval` can be run again by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from guardrail.evaluation.suite import Suite
from guardrail.evaluation.suite_rows import LoadedSuite, load_items
from guardrail.jsonl import encode
from guardrail.taxonomy_yaml import dump
from guardrail.training.policies import TrainingPolicy
from guardrail.training.rows import Row, targets
from guardrail.types import Role

__all__ = ["validation_suites"]

_FILE: Final = "validation.jsonl"
_PARTS: Final = {Role.USER: ("validation-prompts", "user messages"), Role.ASSISTANT: ("validation-answers", "answers")}


def validation_suites(rows: Sequence[Row], policy: TrainingPolicy, folder: Path) -> list[LoadedSuite]:
    """One suite for each judged role that the rows have, labelled under a policy; a soft label counts by its half."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _FILE).open("wb") as stream:
        for number, row in enumerate(rows, 1):
            stream.write(encode(_line(row, number, policy)))
    (folder / "taxonomy.yaml").write_text(policy.taxonomy.to_yaml(), encoding="utf-8")
    found = []
    for role, (name, title) in _PARTS.items():
        if any(row.conversation.role is role for row in rows):
            file = folder / f"{name}.yaml"
            file.write_text(dump(_suite(role, name, title, policy)), encoding="utf-8")
            found.append(load_items(Suite.load(file), folder))
    return found


def _suite(role: Role, name: str, title: str, policy: TrainingPolicy) -> dict[str, Any]:
    codes = {code: code for code in policy.taxonomy.codes}
    return {
        "format": 1,
        "id": name,
        "name": f"Validation rows: {title}",
        "description": "Rows that were held out of training, on which the run was watched and calibrated.",
        "licence": "that of the data",
        "citation": "the data of the training run",
        "use": "validation",
        "judged": role.value,
        "source": {"files": [_FILE]},
        "where": {"column": "role", "is": [role.value]},
        "fields": {"id": "id", "messages": "messages"},
        "label": {"column": "unsafe", "unsafe": ["true"], "safe": ["false"], "unknown": [""]},
        "taxonomy": {"id": "./taxonomy.yaml"},
        "categories": {"object": {"column": "categories", "codes": codes}},
        "slices": {"source": "source"},
    }


def _line(row: Row, number: int, policy: TrainingPolicy) -> dict[str, Any]:
    verdict, categories = targets(row, policy.labels)
    return {
        "id": str(number),
        "source": row.source,
        "role": row.conversation.role.value,
        "messages": [{"role": turn.role.value, "content": turn.text} for turn in row.conversation.messages],
        "unsafe": _label(verdict),
        "categories": {code: _label(value) for code, value in zip(policy.taxonomy.codes, categories, strict=True)},
    }


def _label(target: float) -> bool | None:
    return None if target < 0 else target >= 0.5
