"""MLflow and Weights & Biases, the real packages: what they keep, and that nothing is sent."""

import json
import socket
import threading

import pytest

from finetune.errors import FinetuneError
from finetune.importing import refuse_if_missing
from finetune.redaction import remember
from finetune.tracking import wandb
from finetune.tracking.apart import Apart
from finetune.tracking.run_names import Identity, without_password
from finetune.tracking.tracker import Tracker

# MLflow's own use of SQLAlchemy is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore")
SECRET = "s3cret-place-of-mine"
TRAIN = {
    "steps": 6,
    "batch_size": 8,
    "log_every": 1,
    "checkpoint": {"every": {"steps": 2}, "keep_last": 9},
}
CONFIG = {
    "model": {
        "layers": [
            {"name": "body", "type": "Linear", "out_features": 6},
            {"name": "head", "type": "Linear", "out_features": 3},
        ]
    },
    "data": {
        "source": {"type": "random", "samples": 40, "features": 4, "targets": 3},
        "split": {"validation": 0.2},
    },
    "task": {"type": "regression"},
    "freeze": ["body"],
    "optimizer": {"type": "SGD", "lr": 0.05},
    "train": TRAIN,
    "cache": {"use": "off"},
    "tracking": ["mlflow", "wandb"],
}
VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_DIR")


class Killed(BaseException):
    """Ends a run as nothing else does."""


class KilledAt(Tracker):
    """Kills a run at a step, before the figures of that step reach the trackers behind it."""

    def __init__(self, step):
        self.step = step

    def scalars(self, step, values):
        if step == self.step:
            raise Killed


@pytest.fixture(scope="module")
def silence():
    """A proxy that all traffic would go through; it counts the calls that it gets."""
    calls, server = [], socket.create_server(("127.0.0.1", 0))

    def count():
        while True:
            try:
                calls.append(server.accept()[0].close())
            except OSError:
                return

    threading.Thread(target=count, daemon=True).start()
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            patch.setenv(name, address)
        patch.setenv("NO_PROXY", "")
        patch.setenv("no_proxy", "")
        patch.setattr("urllib.request._opener", None)
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        yield calls
    server.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, silence):
    """A run that is killed at step 5 and then resumed from step 4."""
    from finetune.config.loader import load_config
    from finetune.train.wire import build_trainer

    folder = tmp_path_factory.mktemp("programs")
    path = folder / "c.yaml"
    changed = CONFIG | {
        "data": CONFIG["data"] | {"source": {"type": "csv", "path": "${env:OF_MINE}"}}
    }
    rows = "".join(f"{n % 7},{n % 3}\n" for n in range(40))
    (folder / f"{SECRET}.csv").write_text(f"a,target\n{rows}")
    changed["data"] |= {"inputs": ["a"], "target": "target", "transforms": [{"type": "stack"}]}
    changed["model"]["layers"][-1]["out_features"] = 1
    path.write_text(json.dumps(changed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OF_MINE", f"{SECRET}.csv")
        with pytest.raises(Killed):
            build_trainer(load_config(path), folder / "runs" / "one", tracker=KilledAt(5)).fit(
                quiet=True
            )
        build_trainer(load_config(path), folder / "runs" / "one").fit(quiet=True)
    return folder / "runs"


@pytest.fixture(scope="module")
def in_mlflow(runs):
    """MLflow's own client, and its only run."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{runs}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("finetune")
    [run] = client.search_runs([experiment.experiment_id])
    return client, run


def own(runs, tag):
    lines = (runs / "one" / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [(entry["step"], entry[tag]) for entry in entries if tag in entry]


def kept_by_wandb(runs):
    """Return the figures of each part of the run by step, as wandb's own reader finds them."""
    from wandb.proto import wandb_internal_pb2 as records
    from wandb.sdk.internal.datastore import DataStore

    parts = []
    for path in sorted((runs / "wandb").glob("offline-run-*/*.wandb")):
        store, kept = DataStore(), {}
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = records.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                for item in record.history.item:
                    name = item.key or "/".join(item.nested_key)
                    kept.setdefault(name, {})[record.history.step.num] = json.loads(item.value_json)
        parts.append(kept)
    return parts


@pytest.mark.slow
def test_mlflow_has_each_figure_of_a_killed_and_resumed_run_once(runs, in_mlflow):
    client, run = in_mlflow
    for tag in ("train/loss", "train/lr/head", "validation/loss"):
        points = client.get_metric_history(run.info.run_id, tag)
        assert sorted((point.step, point.value) for point in points) == own(runs, tag)
    assert [step for step, _ in own(runs, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert (run.info.run_name, run.info.status) == ("one", "FINISHED")


@pytest.mark.slow
def test_mlflow_has_settings_pictures_and_the_page(runs, in_mlflow):
    client, run = in_mlflow
    assert run.data.params["Learning rate"] == "0.05"
    assert run.data.params["task.type"] == "regression"
    assert "optimizer.lr" not in run.data.params
    files = {path.name for path in (runs / "mlflow" / "files").rglob("*") if path.is_file()}
    assert {"report.html", "config.md", "step-00000006.png"} <= files
    assert "report.html" in {file.path for file in client.list_artifacts(run.info.run_id)}


@pytest.mark.slow
def test_wandb_has_both_parts_of_the_run_under_one_id(runs):
    parts = kept_by_wandb(runs)
    assert [list(part["train/loss"]) for part in parts] == [[1, 2, 3, 4, 5], [5, 6]]
    assert parts[-1]["train/loss"] == dict(own(runs, "train/loss")[4:])
    sent = {name.removesuffix("/_type") for name in parts[-1]}
    assert {"report", "validation/most_wrong"} <= sent
    # offline-run-TIME-ID, and -1 behind it where a folder of the same second is there
    names = {path.name.split("-")[3] for path in (runs / "wandb").glob("offline-run-*")}
    assert names == {json.loads((runs / "one" / "tracked.json").read_text())["id"]}


@pytest.mark.slow
def test_nothing_was_sent_anywhere_and_no_secret_is_kept(runs, silence):
    assert silence == []
    kept = [path for path in runs.rglob("*") if path.is_file()]
    assert len(kept) > 10
    assert [path for path in kept if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_a_server_that_does_not_answer_costs_one_line_and_the_run_goes_on(
    small_config, tmp_path, capsys, monkeypatch
):
    from finetune.train.wire import build_trainer

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hidden-word@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    build_trainer(small_config(tracking=["mlflow"]), tmp_path / "run").fit()
    said = capsys.readouterr().err
    assert said.count("mlflow failed, and the run goes on without it") == 1
    assert "hidden-word" not in said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "done"


class Failing(Tracker):
    def scalars(self, step, values):
        if step == 2:
            raise SystemExit("not allowed here")


class Slow(Tracker):
    def __init__(self):
        self.may_end = threading.Event()

    def scalars(self, step, values):
        self.may_end.wait()


def apart(make, said, **more):
    return Apart("it", lambda: Identity("0", "run", None), lambda _: make, said.append, **more)


def test_a_program_that_fails_or_exits_gets_no_further_call_and_is_told_once():
    said = []
    tracker = apart(Failing(), said)
    for step in range(1, 5):
        tracker.scalars(step, {})
    tracker.close()
    tracker.close()
    assert said == ["it failed, and the run goes on without it: SystemExit: not allowed here"]


def test_the_end_of_a_run_does_not_wait_for_ever():
    said, slow = [], Slow()
    tracker = apart(slow, said, closing_s=0.01)
    tracker.scalars(1, {})
    tracker.close()
    slow.may_end.set()
    assert said == [
        "it failed, and the run goes on without it: not everything was handed over within 0 s"
    ]


def test_a_package_that_is_not_there_is_named_with_its_extra():
    with pytest.raises(FinetuneError, match="needs the package 'nowhere'") as caught:
        refuse_if_missing("nowhere", extra="mlflow")
    assert caught.value.hint == "pip install 'finetune[mlflow]'"


def test_no_password_of_an_address_is_shown():
    for word in ("word", "wo@rd"):
        text = f"cannot reach https://me:{word}@host/x?y=a@b"
        assert without_password(text) == "cannot reach https://***@host/x?y=a@b"
    assert without_password("https://host/me@x") == "https://host/me@x"


@pytest.mark.parametrize("named", [None, "elsewhere"])
def test_the_line_of_wandb_tells_the_folder_that_it_writes_into(monkeypatch, tmp_path, named):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    if named:
        monkeypatch.setenv("WANDB_DIR", str(tmp_path / named))
    assert f"offline, in {tmp_path / (named or '') / 'wandb'}; " in wandb.line_on(tmp_path)


class Leaking(Tracker):
    def scalars(self, step, values):
        raise ValueError(f"{'x' * 285} {SECRET}")


def test_a_secret_at_the_cut_of_a_long_error_is_masked():
    said = []
    remember(SECRET, "${env:OF_MINE}")
    tracker = apart(Leaking(), said)
    tracker.scalars(1, {})
    tracker.close()
    assert "s3cret" not in said[0]
