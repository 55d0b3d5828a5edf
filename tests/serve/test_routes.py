"""What the service answers, and what it tells those whom it refuses."""

import json
import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from finetune import load_predictor
from finetune.serve.refusal import Refusal, safe_json
from finetune.serve.request_queue import Answered, Waiting

ROW = [0.5, -1.0, 2.0, 0.0]


def rows(run, inputs):
    return [one.row() for one in load_predictor(run)(inputs)]


def test_the_answer_has_the_bits_of_the_predictors(client, two_runs):
    inputs = torch.randn(7, 4).tolist()
    answer = client().post("/predict", json={"inputs": inputs})
    assert answer.status_code == 200
    assert answer.json() == {
        "predictions": {run.name: rows(run, inputs) for run in two_runs},
        "notes": [],
    }
    assert answer.headers["content-type"] == "application/json"


def test_a_request_may_name_runs_and_columns(client):
    service = client()
    named = service.post("/predict", json={"inputs": [{"x": ROW}], "runs": ["two"]})
    column = next(iter(service.get("/runs").json()["runs"][0]["inputs"]))
    assert (named.status_code, named.json()["error"]) == (
        422,
        f"sample 1 has no {column!r}; it has 'x'",
    )
    named = service.post("/predict", json={"inputs": [{column: ROW}], "runs": ["two"]})
    assert list(named.json()["predictions"]) == ["two"]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not UTF-8"),
        (b'{"inputs": [[NaN, 0, 0, 0]]}', 400, "no NaN"),
        (b'{"inputs": [{"x": 1, "x": 2}]}', 400, "the key 'x' twice"),
        (b'{"inputs": [[1e999, 0, 0, 0]]}', 422, "too large"),
        (b'{"inputs": [[1e39, 0, 0, 0]]}', 422, "too large"),
        (b'{"inputs": [[' + b"9" * 5000 + b"]]}", 400, "not JSON"),
        (b"[" * 100_000, 400, "nested too deep"),
        (b"[]", 422, "needs an object"),
        (b'{"inputs": {}}', 422, "inputs is no list"),
        (b'{"inputs": "a text"}', 422, "inputs is no list"),
        (b'{"runs": ["one"]}', 422, "inputs is no list"),
        (b'{"input": [1]}', 422, "unknown key 'input'"),
        (b'{"inputs": []}', 422, "no samples"),
        (b'{"inputs": [1], "run": []}', 422, "unknown key"),
        (b'{"inputs": [1], "runs": "one"}', 422, "not a list"),
        (b'{"inputs": [1], "runs": ["on"]}', 404, "no run 'on'"),
        (b'{"inputs": [1], "runs": [{}]}', 404, "no run"),
        (b'{"inputs": ["text"]}', 422, "no number"),
        (b'{"inputs": [true]}', 422, "no number"),
        (b'{"inputs": [null]}', 422, "no number"),
        (b'{"inputs": [[1, 2]]}', 422, ""),
        (b'{"inputs": [[1, 2, 3, 4], [1]]}', 422, ""),
        (b'{"inputs": [{"strange": 1}]}', 422, "; it has 'strange'"),
        (b'{"inputs": [[[[[1]]]]]}', 422, ""),
    ],
)
def test_what_cannot_be_read_is_told_why(client, body, status, told):
    answer = client().post("/predict", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, told in answer.json()["error"]) == (status, True), answer.text


def test_limits_are_told(client):
    service = client(items=2, body_bytes=200)
    assert service.post("/predict", json={"inputs": [ROW] * 3}).status_code == 413
    large = service.post("/predict", content=b" " * 201)
    assert (large.status_code, large.json()["error"]) == (413, "the body has more than 200 bytes")
    large = client(body_bytes=3 << 19).post("/predict", content=b" " * (3 << 19 | 1))
    assert large.json()["error"] == "the body has more than 1.5 MiB"
    plain = service.post("/predict", content=b"{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    assert "the header content-type: application/json" in plain.json()["hint"]
    assert service.post("/predict/files", content=b"{}").status_code == 415
    assert service.get("/predict").status_code == 405
    lost = {"error": "no such route", "hint": "GET / tells all routes"}
    assert service.get("/etc/passwd").json() == lost


def test_a_page_of_a_stranger_is_refused(client):
    service = client(hosts=("127.0.0.1", "testserver"))
    asked = {"inputs": [ROW]}
    rebound = service.post("/predict", json=asked, headers={"host": "evil.example:8000"})
    assert rebound.status_code == 421
    foreign = service.post("/predict", json=asked, headers={"origin": "https://evil.example"})
    assert foreign.status_code == 403
    own = service.post("/predict", json=asked, headers={"origin": "http://testserver"})
    assert own.status_code == 200


@pytest.fixture
def held(monkeypatch):
    """Two events: the network has begun to run; and it may go on."""
    begun, may_go_on = threading.Event(), threading.Event()
    own = torch.nn.Tanh.forward

    def slow(self, value):
        begun.set()
        assert may_go_on.wait(20)
        return own(self, value)

    def hold():
        monkeypatch.setattr("torch.nn.Tanh.forward", slow)

    yield begun, may_go_on, hold
    may_go_on.set()


def test_too_many_requests_and_late_ones_are_told(two_runs, client, held):
    begun, may_go_on, hold = held
    hold()
    # The trials at loading go through the network too.
    may_go_on.set()
    service = client(requests=1, timeout_s=1.0)
    may_go_on.clear()
    begun.clear()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(service.post, "/predict", json={"inputs": [ROW]})
        assert begun.wait(20)
        second = service.post("/predict", json={"inputs": [ROW]})
        assert (second.status_code, second.headers["retry-after"]) == (429, "1")
        assert first.result().status_code == 504
        may_go_on.set()
    assert service.post("/predict", json={"inputs": [ROW]}).status_code == 200


def test_requests_share_a_batch_and_a_bad_one_does_not_spoil_the_others(client, two_runs):
    service = client(batch_wait_ms=300.0)
    asked = [[ROW], [[1.0, 2.0]], [[0.0] * 4]]
    with ThreadPoolExecutor() as pool:
        answers = list(
            pool.map(lambda inputs: service.post("/predict", json={"inputs": inputs}), asked)
        )
    assert [one.status_code for one in answers] == [200, 422, 200]
    assert answers[0].json()["predictions"]["one"] == rows(two_runs[0], [ROW])
    # alike ones are one batch
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: service.post("/predict", json={"inputs": [ROW]}), range(4)))
    text = service.get("/metrics").text
    counts = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in text.splitlines()}
    assert int(counts["finetune_batch_samples_count"]) <= 6
    assert counts['finetune_predictions_total{run="one"}'] == "6"
    assert counts['finetune_requests_total{route="/predict",status="422"}'] == "1"


def test_a_service_that_stops_refuses_and_says_so(client):
    service = client()
    assert service.get("/ready").json() == {"status": "ready", "runs": 2}
    service.service.app.is_stopping = True
    refused = service.post("/predict", json={"inputs": [ROW]})
    assert (refused.status_code, refused.json()["error"]) == (503, "the service stops")
    assert service.get("/ready").status_code == 503
    assert service.get("/health").status_code == 200


def test_the_pages_load_nothing(client):
    service = client()
    document = service.get("/openapi.json").json()
    assert {"/predict", "/runs", "/health"} <= document["paths"].keys()
    answer = service.get("/docs")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    assert "://" not in answer.text.replace("http://json-schema.org", "")
    assert "POST /predict" in answer.text
    assert service.get("/runs").json()["runs"][0]["shares_its_pass_with"] == ["two"]


def test_json_shows_hostile_values_as_values():
    text = safe_json({"</script><b>": ["\u2028", "\x1b[2J", float("nan"), float("inf")]})
    assert text.isascii()
    assert b"<" not in text
    assert json.loads(text) == {"</script><b>": ["\u2028", "\x1b[2J", None, None]}
    assert Refusal(422, "\ud800").as_data() == {"error": "\ud800"}
    assert safe_json("\ud800") == b'"\\ud800"'


def test_inputs_of_another_width_are_told(client):
    answer = client().post("/predict", json={"inputs": [[1.0] * 5]})
    assert answer.status_code == 422
    assert "column 'features' has 5 numbers a sample in row 1" in answer.json()["error"]


def test_no_route_needs_the_folder_of_a_run(client, two_runs):
    service = client()
    for run in two_runs:
        shutil.rmtree(run)
    for route in ("/docs", "/openapi.json", "/runs", "/ready", "/metrics"):
        assert service.get(route).status_code == 200, route
    assert service.post("/predict", json={"inputs": [ROW]}).status_code == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_only_a_post_has_its_body_read(client, method):
    answer = client(body_bytes=200).request(method, "/predict", content=b" " * 300)
    assert (answer.status_code, answer.json()["error"]) == (405, "not by this method")


def test_an_answer_in_the_moment_in_which_the_time_is_over_is_a_late_one(client):
    service = client(timeout_s=0.05)

    class Late(Future):
        def cancel(self):
            self.set_result(Answered({}, ()))
            return False

    service.service.queue.put = lambda asked: Waiting(asked, 0.0, Late())
    answer = service.post("/predict", json={"inputs": [ROW]})
    assert (answer.status_code, "not answered within" in answer.json()["error"]) == (504, True)
