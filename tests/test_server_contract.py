"""The OpenAPI document holds: generated requests, valid and invalid ones, get answers of the described form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from guardrail.backends.scripted import ScriptedBackend
from guardrail.guard import Guard
from guardrail.server.app import create_app
from guardrail.server.openapi import document
from guardrail.server.settings import Settings
from guardrail.taxonomy import Taxonomy
from tests.served import running

SCHEMA = schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(create_app(Settings(page=False), Guard(ScriptedBackend.load("bomb")))) as found:
        yield found


@SCHEMA.parametrize()
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_answers_are_as_described(case: Any, url: str) -> None:
    # A conversation of the right form may have nothing to judge, and a taxonomy no category: no schema can say so.
    case.call_and_validate(base_url=url, excluded_checks=[positive_data_acceptance] if "guard" in case.path else [])


def test_every_served_path_is_described() -> None:
    app = create_app(Settings(page=False), Guard(ScriptedBackend.load()))
    served = {route.path for route in app.routes}  # type: ignore[attr-defined]
    assert served - {"/openapi.json"} == set(document()["paths"])


def test_the_thirteen_keys_are_those_of_the_taxonomy() -> None:
    result = document()["components"]["schemas"]["ModerationResponse"]["properties"]["results"]["items"]["properties"]
    assert result["category_scores"]["minProperties"] == len(Taxonomy.load("openai-moderation"))
    assert yaml.safe_dump(document())
