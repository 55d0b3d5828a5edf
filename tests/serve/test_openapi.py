"""What the OpenAPI page says holds, for whatever a generator of requests sends."""

import warnings

import pytest


@pytest.mark.slow
def test_requests_made_from_the_description_find_no_fault(client):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import schemathesis
        from hypothesis import HealthCheck, Phase, given, settings
    service = client(batch_wait_ms=0.0, items=8)
    schema = schemathesis.openapi.from_asgi("/openapi.json", service.app)
    statuses = set()
    for operation in schema.get_all_operations():
        made = operation.ok()

        @given(case=made.as_strategy())
        @settings(
            max_examples=10,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def check(case):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                statuses.add((case.path, case.call_and_validate().status_code))

        check()
    assert ("/predict", 200) in statuses
    assert not [status for _, status in statuses if status >= 500]
