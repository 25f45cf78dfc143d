"""Requests generated from the service's own OpenAPI schema: none makes it fail."""

from collections import Counter

import hypothesis
import pytest
import schemathesis
from service import Served

ray = pytest.importorskip("ray")
N_VALID = 20  # of the requests are as the schema asks
STEPS = {"/stories": "steps", "/v1/images/generations": "num_inference_steps"}


@pytest.fixture(scope="module")
def served(cluster):
    with Served(2, max_waiting=1000) as one:
        yield one


def shortened(body, path: str):
    """A body that may be accepted asks for one step: the jobs are to end soon."""
    if not isinstance(body, dict):
        return body
    steps = body.get(STEPS[path], 20)
    return body | {STEPS[path]: 1} if steps in range(1, 201) else body


def fuzz(served, n: int) -> Counter:
    """Send n generated requests, to each route that takes jobs the same number; the answers by status."""
    schema = schemathesis.openapi.from_dict(served.client.get("/openapi.json").json())
    answers = Counter()

    def send(case):
        case.body = shortened(case.body, case.operation.path)
        answer = served.client.request(**case.as_transport_kwargs(base_url=served.url))
        assert answer.status_code < 500, (case, answer.text)
        answers[answer.status_code] += 1

    for path in STEPS:
        operation = schema[path]["POST"]
        for mode, share in ((schemathesis.GenerationMode.NEGATIVE, n // 2 - N_VALID // 2),
                            (schemathesis.GenerationMode.POSITIVE, N_VALID // 2)):
            settings = hypothesis.settings(max_examples=share, deadline=None, derandomize=True, database=None,
                                           suppress_health_check=list(hypothesis.HealthCheck))
            settings(hypothesis.given(operation.as_strategy(generation_mode=mode))(send))()
    return answers


def test_two_hundred_generated_requests(served):
    answers = fuzz(served, 200)
    assert sum(answers.values()) >= 150 and answers[422] > 100
    assert served.queue()["failed"] == 0 and served.queue()["replicas"] == 2


@pytest.mark.slow
def test_a_thousand_generated_requests(served):
    assert sum(fuzz(served, 1000).values()) >= 800
    assert served.queue()["failed"] == 0 and served.queue()["replicas"] == 2
