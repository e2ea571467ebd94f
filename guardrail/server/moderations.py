"""`POST /v1/moderations`: OpenAI's schema, field by field, with the guard's scores under its thirteen keys."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from guardrail.guard import Guard
from guardrail.server.errors import BadRequest
from guardrail.taxonomy import Taxonomy
from guardrail.taxonomy_map import mapping
from guardrail.types import Decision

__all__ = ["Moderations", "inputs"]


def inputs(body: dict[str, Any], most: int) -> list[str]:
    """The texts to judge: a string, a list of strings, or a list of text parts, which together are one text.

    Raises BadRequest for anything else; an image is refused rather than left out.
    """
    value = body.get("input")
    if not isinstance(body.get("model", ""), str):
        raise BadRequest("expected a string", "model")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise BadRequest("input is neither a string nor a list with something in it", "input")
    if len(value) > most:
        raise BadRequest(f"input has {len(value)} items; at most {most} are judged at once", "input")
    if all(isinstance(item, str) for item in value):
        return list(value)
    return ["\n".join(_part(item, f"input[{index}]") for index, item in enumerate(value))]


def _part(item: Any, place: str) -> str:
    if not isinstance(item, dict):
        raise BadRequest("input is a list of strings or a list of parts, not of both", place)
    kind = item.get("type")
    if kind != "text":
        raise BadRequest(f"parts of type {kind!r} cannot be judged; send text parts", f"{place}.type")
    if not isinstance(item.get("text"), str):
        raise BadRequest("expected a string", f"{place}.text")
    return str(item["text"])


class Moderations:
    """Answers moderation requests with one guard."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        target = Taxonomy.load("openai-moderation")
        found = mapping(guard.taxonomy, target)
        self._codes = target.codes
        self._pairs = [(pair.source, pair.target) for pair in found.pairs]
        self._input_types = {code: ["text"] for code in target.codes}
        self._own = {
            "taxonomy": guard.taxonomy.ref,
            "unmapped": list(found.without_counterpart),
            "not_shown": list(found.going_nowhere),
        }

    def response(self, decisions: Sequence[Decision | None]) -> dict[str, Any]:
        """One result per decision; None is a blank text, in which there is nothing that could be flagged."""
        return {
            "id": f"modr-{uuid.uuid4().hex}",
            "model": self._guard.backend.name,
            "results": [self._result(decision) for decision in decisions],
            "guardrail": self._own,
        }

    def _result(self, decision: Decision | None) -> dict[str, Any]:
        scores = dict.fromkeys(self._codes, 0.0)
        flags = dict.fromkeys(self._codes, False)
        if decision is not None:
            found = {category.code: category for category in decision.categories}
            # As `taxonomy_map.Mapping.convert`, which looks every code up anew.
            for source, target in self._pairs:
                scores[target] = max(scores[target], found[source].score)
                flags[target] = flags[target] or found[source].flagged
        result = {
            "flagged": decision is not None and decision.flagged,
            "categories": flags,
            "category_scores": scores,
            "category_applied_input_types": self._input_types,
        }
        if decision is not None:
            result["guardrail"] = decision.to_dict()
        return result
