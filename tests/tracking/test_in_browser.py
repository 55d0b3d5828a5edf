"""TensorBoard as a person meets it: started by `finetune tensorboard`, drawn by Chromium."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from finetune.config.loader import load_config
from finetune.train.wire import build_trainer

pytestmark = [pytest.mark.browser, pytest.mark.slow]

DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"
RUN = "digits"
CURVE = (255, 112, 67)
"""The colour TensorBoard draws its first run in."""
CHART = (slice(220, 420), slice(370, 670))
"""Rows and columns of the page that hold the first chart, which the filter makes the loss."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two epochs of the digits that ship."""
    folder = tmp_path_factory.mktemp("runs")
    build_trainer(
        load_config(DIGITS, overrides=["train.epochs=2", "train.log_every=1"]), folder / "digits"
    ).fit()
    return folder


@pytest.fixture(scope="module")
def server(runs):
    """Start `finetune tensorboard` on a port of its choice; return it once it shows the run."""
    # A port that is looked up first can be taken by another test before the server listens.
    command = [sys.executable, "-m", "finetune", "tensorboard", str(runs), "--port", "0"]
    said = runs.with_name("tensorboard.txt")
    with (
        said.open("wb") as output,
        subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            yield port_that_shows(RUN, process, said)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)


@pytest.fixture(scope="module")
def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.fail("this test needs Chromium; on Debian: apt-get install chromium", pytrace=False)


def fetch(port, path):
    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


def port_that_shows(run, process, said, seconds=240):
    """Return the port that a server names in the file `said`, as soon as it shows a run."""
    end, answer = time.monotonic() + seconds, "nothing was asked"
    while time.monotonic() < end and process.poll() is None:
        if named := re.search(r"http://127\.0\.0\.1:(\d+)/", said.read_text()):
            port = int(named[1])
            try:
                answer = fetch(port, "/data/plugin/scalars/tags")
                if run in json.loads(answer):
                    return port
            except OSError as error:
                answer = repr(error)
        time.sleep(0.2)
    ended = "" if process.poll() is None else f"; it ended with {process.returncode}"
    said = f"{ended}; last answer: {answer[:500]}\n{said.read_text()}"
    pytest.fail(f"TensorBoard does not show {run!r} within {seconds} s{said}")


def screenshot(chromium, url, folder):
    """Return the page as red, green and blue, `(rows, columns, 3)`."""
    picture = folder / "page.png"
    flags = ["headless", "no-sandbox", "disable-gpu", "no-first-run", "window-size=1200,700"]
    flags += ["disable-background-networking", "disable-component-update", "disable-sync"]
    flags += [f"user-data-dir={folder / 'profile'}", f"screenshot={picture}"]
    # Time of its own, which waits for the network: the page is drawn before the picture is taken.
    flags += ["virtual-time-budget=20000"]
    command = [chromium, *(f"--{flag}" for flag in flags), url]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


def test_the_page_is_served(server):
    assert "<title>TensorBoard</title>" in fetch(server, "/")


def test_the_loss_of_every_step_is_served(server):
    tags = json.loads(fetch(server, "/data/plugin/scalars/tags"))[RUN]
    assert {"train/loss", "train/lr/all", "validation/accuracy", "test/accuracy"} <= tags.keys()
    query = f"run={quote(RUN, safe='')}&tag={quote('train/loss', safe='')}"
    points = json.loads(fetch(server, f"/data/plugin/scalars/scalars?{query}"))
    assert [step for _, step, _ in points] == list(range(1, 81))
    assert points[-1][2] < points[0][2] / 2


def test_the_browser_draws_the_loss_falling(server, chromium, tmp_path):
    address = f"http://127.0.0.1:{server}/#scalars&tagFilter={quote('train/loss', safe='')}"
    chart = screenshot(chromium, address, tmp_path)[CHART]
    rows, columns = np.nonzero((chart == CURVE).all(axis=-1))
    assert len(columns) > 0
    assert np.ptp(columns) > 150
    middle = (columns.min() + columns.max()) / 2
    assert rows[columns < middle].mean() < rows[columns > middle].mean()


def test_other_machines_cannot_reach_it(server):
    """On Linux all of 127.0.0.0/8 is this machine: a server on every address answers there."""
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", server), timeout=5).close()
