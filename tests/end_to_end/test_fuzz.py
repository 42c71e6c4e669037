"""Every route, fuzzed from our own OpenAPI document: no server error, no answer that the document does not describe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests import plain_http
from tests.end_to_end.forked import ForkedServer
from tests.end_to_end.processes import ServerProcess

ROUTES = 19


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[ServerProcess]:
    with ForkedServer(environment={"AUTOSTEER_DEFAULT_MAX_TOKENS": "4"}) as server:
        yield server


def fuzz(server: ServerProcess, cases: int) -> int:
    """Send about so many cases to all routes, most of them to those with a body. How many were sent.

    A request that fits the document may be refused all the same: for the order of its roles, an image that is none,
    a prompt that is too long.
    """
    document = plain_http.get(f"{server.url}/openapi.json").json()
    for path in document["paths"].values():
        for operation in path.values():
            operation.pop("security", None)  # a server without keys takes any, and none
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=server.url)
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) == ROUTES
    sent = 0
    for operation in operations:
        share = cases // 4 if operation.method == "post" else cases // 30
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            with suppress(Unsatisfiable):  # a route that takes nothing has no wrong requests
                sent += send(operation, mode, max(1, share // 2), server.model)
    return sent


def send(operation: Any, mode: GenerationMode, cases: int, model: str) -> int:
    """Send at most so many cases that fit the document, or that do not; how many were sent."""
    sent = 0

    @settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def send_one(case: Any) -> None:
        nonlocal sent
        sent += 1
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = model  # any other name ends in 404, and nothing behind that is met
        case.call_and_validate(timeout=120, excluded_checks=[positive_data_acceptance])

    send_one()
    return sent


def test_a_few_hundred_cases(fuzzed: ServerProcess) -> None:
    assert fuzz(fuzzed, 120) >= 100


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_thousand_cases(fuzzed: ServerProcess) -> None:
    sent = fuzz(fuzzed, 5500)
    print(f"{sent} cases")
    assert sent >= 5000
