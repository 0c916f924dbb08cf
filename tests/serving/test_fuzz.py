"""Fuzz the API from its own description: no reply may be 500, and every reply must be as described."""

from __future__ import annotations

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection
from serving_kit import LocalEndpoint, ServeEndpoint

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.nested_given]


def fuzz(url: str, examples: int, repeatable: bool) -> Counter[tuple[str, int]]:
    """Send valid and invalid requests, `examples` of each to each operation; return how often each operation answered with which status."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    answered: Counter[tuple[str, int]] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in GenerationMode:
            # Some operations take no input, so no request to them can be invalid.
            if mode == GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
                continue

            @settings(max_examples=examples, deadline=None, derandomize=repeatable, suppress_health_check=SLOW,
                      phases=[Phase.explicit, Phase.generate], database=None)  # fmt: skip
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                reply = case.call(timeout=30)
                answered[case.operation.label, reply.status_code] += 1
                # In a form, a list of one value equals that value, and an empty list equals a missing field, so nobody can tell
                # whether the request was invalid.
                form = case.media_type == "multipart/form-data"
                case.validate_response(reply, excluded_checks=[negative_data_rejection] if form else [])

            ask()
    return answered


def test_some_cases(local: LocalEndpoint) -> None:
    answered = fuzz(local.url, 15, repeatable=True)
    assert answered["POST /v1/assign", 200]
    assert answered["POST /v1/assign", 422]
    assert {status for _, status in answered} <= {200, 404, 413, 415, 422}


@pytest.mark.torture
@pytest.mark.ray
def test_thousands_of_cases_on_serve(endpoint: ServeEndpoint) -> None:
    answered = fuzz(endpoint.url, 1000, repeatable=False)
    print(dict(answered))
    assert answered.total() > 5000
    assert max(status for _, status in answered) < 500 or {s for _, s in answered if s >= 500} == {503}
