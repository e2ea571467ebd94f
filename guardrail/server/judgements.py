"""`POST /v1/guard`: any conversation under any taxonomy, as the Python API has it; and what the page needs."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from guardrail.errors import GuardrailError, InputError
from guardrail.guard import Guard
from guardrail.prompting import PromptBuilder
from guardrail.resources import names, shipped
from guardrail.server.errors import BadRequest
from guardrail.taxonomy import Taxonomy
from guardrail.types import Conversation, Decision, Role

__all__ = ["Asked", "Judgements", "taxonomies"]

_MOST_GUARDS = 32
_FIELDS = frozenset({"messages", "text", "taxonomy", "threshold", "prompt"})


@dataclass(frozen=True, slots=True)
class Asked:
    """A request."""

    guard: Guard
    conversation: Conversation
    prompt: bool
    """Whether the rendered prompt is wanted as well."""

    def response(self, decision: Decision) -> dict[str, Any]:
        """The response's body."""
        judged = self.guard.judge_of(decision)
        policy = judged.policy
        thresholds = policy.user if self.conversation.role is Role.USER else policy.assistant
        body: dict[str, Any] = {
            "id": f"guard-{uuid.uuid4().hex}",
            "decision": decision.to_dict(),
            "threshold": thresholds.verdict,
            "thresholds": dict(thresholds.categories),
        }
        if self.prompt:
            body["prompt"] = PromptBuilder(judged.template, judged.taxonomy).build(self.conversation.spelled_out()).text
        return body


class Judgements:
    """Answers with guards for the taxonomies that are asked for; they share one classifier."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._guards: OrderedDict[str, Guard] = OrderedDict({guard.taxonomy.digest: guard})

    def read(self, body: dict[str, Any]) -> Asked:
        """What is asked; BadRequest names the field."""
        unknown = sorted(set(body) - _FIELDS)
        if unknown:
            raise BadRequest(f"unknown field; known: {', '.join(sorted(_FIELDS))}", unknown[0])
        if not isinstance(body.get("prompt", False), bool):
            raise BadRequest("expected true or false", "prompt")
        guard = self._for(body.get("taxonomy"), body.get("threshold"))
        return Asked(guard, _conversation(body), body.get("prompt") is True)

    def _for(self, taxonomy: Any, threshold: Any) -> Guard:
        guard = self._guard if taxonomy is None else self._under(taxonomy)
        if threshold is None:
            return guard
        if not isinstance(threshold, int | float) or isinstance(threshold, bool) or not 0 <= threshold <= 1:
            raise BadRequest("expected a number from 0 to 1", "threshold")
        return self._kept(f"{guard.taxonomy.digest} {threshold}", lambda: guard.under(threshold=float(threshold)))

    def _under(self, taxonomy: Any) -> Guard:
        try:
            found = _taxonomy(taxonomy)
            return self._kept(found.digest, lambda: self._guard.under(found))
        except GuardrailError as error:
            hint = f"; {error.hint}" if error.hint else ""
            raise BadRequest(f"{error}{hint}", "taxonomy") from None

    def _kept(self, key: str, make: Callable[[], Guard]) -> Guard:
        """The guard for this key, made if need be; the least used one goes when there are too many."""
        guard = self._guards.get(key)
        if guard is None:
            guard = self._guards[key] = make()
            if len(self._guards) > _MOST_GUARDS:
                self._guards.popitem(last=False)
        self._guards.move_to_end(key)
        return guard


def _conversation(body: dict[str, Any]) -> Conversation:
    if ("messages" in body) == ("text" in body):
        raise BadRequest("give either messages or text", "messages")
    field, kind, wanted = ("text", str, "a string") if "text" in body else ("messages", list, "a list")
    given = body[field]
    if not isinstance(given, kind):
        raise BadRequest(f"expected {wanted}", field)
    try:
        return Conversation.parse(given)
    except InputError as error:
        hint = f"; {error.hint}" if error.hint else ""
        raise BadRequest(f"{error.reason}{hint}", error.field or "messages") from None


def _taxonomy(given: Any) -> Taxonomy:
    """A shipped one by its id, or one that the request brings: YAML text, or the same as JSON."""
    if isinstance(given, dict):
        return Taxonomy.from_dict(given)
    if not isinstance(given, str):
        raise BadRequest("expected an id, YAML text or an object", "taxonomy")
    if "\n" in given:
        return Taxonomy.from_yaml(given)
    # Not Taxonomy.load: a request must not name files.
    return Taxonomy.load(shipped("taxonomies", given, ".yaml"))


def taxonomies(guard: Guard) -> dict[str, Any]:
    """The taxonomies that a request can name, with the text of their files; and the one that holds without a name."""
    found = [(name, shipped("taxonomies", name, ".yaml")) for name in names("taxonomies", ".yaml")]
    listed = [_listed(Taxonomy.load(path), path.read_text(encoding="utf-8")) for _, path in found]
    if guard.taxonomy.id not in {each["id"] for each in listed}:
        listed.insert(0, _listed(guard.taxonomy, guard.taxonomy.to_yaml()))
    return {"default": guard.taxonomy.id, "taxonomies": listed}


def _listed(taxonomy: Taxonomy, text: str) -> dict[str, Any]:
    categories = [{"code": category.code, "name": category.name} for category in taxonomy]
    return {"id": taxonomy.id, "name": taxonomy.name, "yaml": text, "categories": categories}
