"""Requests per second of heads over one network: one shared pass, against a predictor for each.

Trains a head on MiniLM for two steps, copies the run, and asks 1, 8 and 64 of the copies for
predictions of a few texts: by `load_predictors`, by separate predictors, and over HTTP by the
service beside a bare FastAPI route around the same call. Each copy gets a head of random values of
its own, so that answers differ from head to head when their bits are compared.

Run: `python benchmarks/serve.py`, about three minutes on two cores.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune import build_trainer, load_config, load_predictor, load_predictors
from finetune.importing import require
from finetune.predict import Predictor
from finetune.serve.refusal import ServiceLimits
from finetune.serve.routes import Service

CONFIG = Path(__file__).parents[1] / "configs" / "bbc_news.yaml"
TEXTS = ["The striker scored twice in the second half.", "Shares of the bank fell by a tenth."] * 4
CHANGES = ["train.steps=2", "train.epochs=null", "data.transforms.0.max_length=32", "cache=off"]


def seconds_of(call: Callable[[], Any], rounds: int) -> list[float]:
    """Return how long each call took, sorted, after one that does not count."""
    call()
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return sorted(found)


def figures(seconds: list[float]) -> dict[str, float]:
    """Return requests per second by the median, and two quantiles of the latency in ms."""
    p99 = seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))]
    half = statistics.median(seconds)
    per_second = round(1 / half, 2)
    return {"per_second": per_second, "p50_ms": round(1e3 * half, 2), "p99_ms": round(1e3 * p99, 2)}


def over_http(app: Any, rounds: int, path: str = "/predict") -> dict[str, float]:
    """Return the figures of requests to an ASGI application by one client on loopback."""
    uvicorn, httpx = (require(name, extra="dev") for name in ("uvicorn", "httpx"))
    settings = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:

        def ask() -> None:
            client.post(path, json={"inputs": TEXTS}).raise_for_status()

        found = figures(seconds_of(ask, rounds))
    server.should_exit = True
    thread.join()
    return found


def bare(call: Callable[[list[str]], Any]) -> Any:
    """Return a FastAPI application with one route and nothing around it."""
    fastapi = require("fastapi", extra="serve")
    app = fastapi.FastAPI()

    def predict(question: dict[str, list[str]]) -> Any:
        found = call(question["inputs"])
        return {name: [one.row() for one in records] for name, records in found.items()}

    app.post("/predict")(predict)
    return app


def with_own_head(predictor: Predictor, number: int) -> Predictor:
    """Give the trained layer of a predictor random values that belong to a number."""
    draw = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in predictor.model.get_submodule("head").parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return predictor


def alone(runs: Sequence[Path], wanted: Mapping[str, list[Any]]) -> tuple[float, bool]:
    """Return seconds of one call of each run's own predictor, and whether answers have equal bits.

    Dozens of separate networks would not fit into the memory of many machines: one is loaded after
    the other.
    """
    seconds, equal = 0.0, True
    for number, run in enumerate(runs):
        predictor = with_own_head(load_predictor(run), number)
        seconds += statistics.median(seconds_of(partial(predictor, TEXTS), 3))
        equal = equal and predictor(TEXTS) == wanted[run.name]
    return seconds, equal


def measured(runs: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Return all figures of some heads."""
    began = time.perf_counter()
    together = load_predictors(runs)
    start = time.perf_counter() - began
    for number, name in enumerate(together):
        with_own_head(together[name], number)
    shared = seconds_of(partial(together, TEXTS), rounds)
    separate, equal = alone(runs, together(TEXTS))
    service = Service(together, ServiceLimits(batch_wait_ms=0.0))
    found = {
        "heads": len(runs),
        "start_seconds": round(start, 1),
        "shared": figures(shared),
        "separate": {"per_second": round(1 / separate, 2), "p50_ms": round(1e3 * separate, 2)},
        "bits_equal": equal,
        "service": over_http(service.app, rounds),
    }
    service.close()
    return found | {"bare": over_http(bare(together), rounds)}


def main() -> None:
    """Measure, and print one line of JSON for each number of heads."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder, f"head{number}") for number in range(max(given.heads))]
        config = load_config(CONFIG, overrides=CHANGES)
        build_trainer(config, run_dir=runs[0]).fit(quiet=True)
        for run in runs[1:]:
            shutil.copytree(runs[0], run)
        for count in given.heads:
            print(json.dumps(measured(runs[:count], given.rounds)), flush=True)


if __name__ == "__main__":
    main()
