"""MLflow: figures, pictures, settings and the page of a run, in a local store or on a server."""

import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from finetune import disk
from finetune.importing import require
from finetune.pictures.finished_picture import Drawn
from finetune.tracking.run_names import PROJECT, Identity
from finetune.tracking.tracker import PLACE, Tracker

URI = "MLFLOW_TRACKING_URI"
"""Variable of MLflow's own: a server. Only a person who sets it has anything sent anywhere."""
FOLDER = "mlflow"
"""Folder beside the runs, for a store on this machine."""
_ID = "finetune.id"
"""Tag of MLflow's runs that finds the run again when it is resumed."""
_STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_FLUSH_S = 5.0
_MOST_METRICS, _MOST_PARAMS = 1000, 100
"""What MLflow takes in one call."""
_LONGEST_KEY, _LONGEST_VALUE = 250, 6000


class MLflow(Tracker):
    """Sends a run to MLflow.

    Figures are collected and sent every few seconds: each call to the store is a transaction.

    Args:
        identity: Names of the run.
        settings: The settings of the run, with secrets masked.
    """

    def __init__(self, identity: Identity, settings: Mapping[str, str | float | bool]) -> None:
        # Before it is imported. A person who wants MLflow to report to its makers says so.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        self._entities: Any = require("mlflow.entities", extra="mlflow")
        tracking: Any = require("mlflow.tracking", extra="mlflow")
        # Here, not with the first picture: workers import it too, and are forked from then on.
        self._pillow: Any = require("PIL.Image", extra="mlflow")
        self._pillow.preinit()
        self._identity, self._settings = identity, settings
        self._client = tracking.MlflowClient(tracking_uri=store_of(identity.place))
        self._run = ""
        self._names = _Names()
        self._known: dict[str, int] = {}
        """Last step of each metric that an earlier process has sent."""
        self._waiting: list[Any] = []
        self._sent_at = time.monotonic()
        # Until somebody tells how the run ends: one that ends without a word was stopped.
        self._status = "stopped"

    def begin(self, step: int, total_steps: int, *, lines: int | None = None) -> None:
        """Make the run, or find that of an earlier process and what it has sent.

        MLflow removes no points: those that are there are not sent again.
        """
        # Called again where the run went back to a checkpoint: its run at MLflow stays the same.
        if self._run:
            return
        experiment = self._experiment()
        found = self._client.search_runs(
            [experiment], filter_string=f"tags.`{_ID}` = '{self._identity.id}'", max_results=1
        )
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            for name in found[0].data.metrics:
                points = self._client.get_metric_history(self._run, name)
                self._known[name] = max((point.step for point in points), default=-1)
            return
        made = self._client.create_run(
            experiment, run_name=self._identity.name, tags={_ID: self._identity.id}
        )
        self._run = made.info.run_id
        self._log_settings()

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """Queue the figures of a step."""
        now = int(time.time() * 1000)
        for tag, value in values.items():
            name = self._names.of(tag)
            if tag in PLACE or isinstance(value, str) or step <= self._known.get(name, -1):
                continue
            self._waiting.append(self._entities.Metric(name, float(value), now, step))
        if time.monotonic() - self._sent_at > _FLUSH_S:
            self._send()

    def text(self, tag: str, text: str, step: int) -> None:
        """Keep a text as a file; a later one of the same tag replaces it."""
        self._client.log_text(self._run, text, f"texts/{self._names.of(tag)}.md")

    def image(self, tag: str, image: Drawn, step: int) -> None:
        """Keep a picture as a file, whose name has the step."""
        path = f"pictures/{self._names.of(tag)}/step-{step:08d}.png"
        self._client.log_image(self._run, self._pillow.fromarray(image.pixels), path)

    def file(self, path: Path) -> None:
        """Keep a file of the run."""
        self._client.log_artifact(self._run, str(path))

    def ends(self, status: str) -> None:
        """Take how the run ends."""
        self._status = _STATUS[status]

    def close(self) -> None:
        """Send what waits, and end the run."""
        if self._run:
            self._send()
            self._client.set_terminated(self._run, _STATUS.get(self._status, self._status))

    def _experiment(self) -> str:
        """Return the id of the experiment, made if there is none of its name."""
        if named := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return named
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # A server has a place of its own for files.
        place = (
            None
            if os.environ.get(URI)
            else (self._identity.place / FOLDER / "files").resolve().as_uri()
        )
        return str(self._client.create_experiment(name, artifact_location=place))

    def _log_settings(self) -> None:
        """Send the settings in portions; MLflow takes each of them once."""
        params = [
            self._entities.Param(self._names.of(key), str(value)[:_LONGEST_VALUE])
            for key, value in self._settings.items()
        ]
        for portion in _portions(params, _MOST_PARAMS):
            self._client.log_batch(self._run, params=portion)

    def _send(self) -> None:
        """Send the figures that wait."""
        for portion in _portions(self._waiting, _MOST_METRICS):
            self._client.log_batch(self._run, metrics=portion)
        self._waiting.clear()
        self._sent_at = time.monotonic()


class _Names:
    """Names as MLflow takes them: some characters become `_`, and no two names become one."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._taken: set[str] = set()

    def of(self, name: str) -> str:
        """Return the name for a tag or key, always the same."""
        if name not in self._given:
            plain = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:_LONGEST_KEY]
            # Names are paths for MLflow, too: none may be empty, absolute or lead upwards.
            parts = [part if part.strip(".") else "_" for part in plain.split("/")]
            plain = free = "/".join(parts)
            number = 2
            while free in self._taken:
                free, number = f"{plain[: _LONGEST_KEY - 9]}_{number}", number + 1
            self._given[name] = free
            self._taken.add(free)
        return self._given[name]


def store_of(place: Path) -> str:
    """Return the address of the store: the one that the person's environment names, or a file."""
    if named := os.environ.get(URI):
        return named
    disk.make_folder(place / FOLDER)
    return _local(place)


def line_on(place: Path) -> str:
    """Return the line that tells where the run goes, and how it is looked at."""
    if os.environ.get(URI):
        return f"mlflow: to the server that {URI} names"
    store = shlex.quote(_local(place))
    return f"mlflow: nothing leaves this machine; mlflow ui --backend-store-uri {store}"


def _local(place: Path) -> str:
    """Return the address of the store beside the runs."""
    return f"sqlite:///{place.resolve() / FOLDER / 'mlflow.db'}"


def _portions(items: Sequence[Any], most: int) -> list[list[Any]]:
    """Return the items in lists of at most `most`."""
    left = iter(items)
    return list(iter(lambda: list(islice(left, most)), []))
