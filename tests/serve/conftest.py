"""Runs to serve, and the service over them without a socket."""

import contextlib

import pytest
from starlette.testclient import TestClient

from finetune import load_predictors
from finetune.serve.refusal import ServiceLimits
from finetune.serve.routes import Service

SGD = {"type": "SGD", "lr": 0.05}


@pytest.fixture
def trained(small_run, tmp_path):
    """Train a tiny network on numbers; return its folder."""

    def train(name, **changes):
        small_run(name, **{"freeze": ["body"], "optimizer": SGD} | changes).fit(quiet=True)
        return tmp_path / name

    return train


@pytest.fixture
def two_runs(trained):
    return [trained("one"), trained("two", optimizer={"type": "SGD", "lr": 0.2})]


@pytest.fixture
def client(two_runs):
    """Make a client of a service over two runs; keywords are its limits."""
    with contextlib.ExitStack() as opened:

        def make(runs=two_runs, hosts=(), **limits):
            service = Service(load_predictors(runs), ServiceLimits(**limits), hosts)
            opened.callback(service.close)
            made = TestClient(service.app, raise_server_exceptions=False)
            made.service = service
            return made

        yield make
