"""TensorBoard as a person meets it: started by `finetune tensorboard`, drawn by Chromium."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from finetune.config.loader import load_config
from finetune.train.wire import build_trainer

pytestmark = [pytest.mark.browser, pytest.mark.slow]

DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"
RUN = "digits"
OTHER = "thawed"
PHASES = (
    "freeze={phases: [{name: head, train: [head], until: {epochs: 1}}, {name: all, freeze: []}]}"
)
CURVE = (255, 112, 67)
"""The colour TensorBoard draws its first run in."""
WAIT = 240_000
"""Milliseconds: the machine of a test may be busy."""
CHART = (slice(220, 420), slice(370, 670))
"""Rows and columns of the page that hold the first chart, which the filter makes the loss."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two epochs of the digits that ship; and once more at another rate, with two phases."""
    folder = tmp_path_factory.mktemp("runs")
    changed = ["optimizer.lr=0.025", "tracking.projector=true", PHASES]
    for name, changes in ((RUN, []), (OTHER, changed)):
        overrides = ["train.epochs=2", "train.log_every=1", *changes]
        build_trainer(load_config(DIGITS, overrides=overrides), folder / name).fit()
    return folder


@pytest.fixture(scope="module")
def server(runs):
    """Start `finetune tensorboard` on a port of its choice; return it once it shows the runs."""
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
            yield port_that_shows_all(process, said)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)


def fetch(port, path, sent=None):
    """Return what the server answers; `sent` goes to it as JSON."""
    data = None if sent is None else json.dumps(sent).encode()
    asked = Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urlopen(asked, timeout=120) as answer:
        return answer.read().decode()


def page_of(port, page, what, **query):
    """Return what a page of TensorBoard asks its server for."""
    asked = f"?{urlencode(query)}" if query else ""
    return json.loads(fetch(port, f"/data/plugin/{page}/{what}{asked}"))


ASKED = {"experimentName": "", "colParams": [], "startIndex": 0, "sliceSize": 10}
ASKED["allowedStatuses"] = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]


def port_that_shows_all(process, said, seconds=240):
    """Return the port that a server names in the file `said`, as soon as it shows both runs."""
    end, answer = time.monotonic() + seconds, "nothing was asked"
    while time.monotonic() < end and process.poll() is None:
        if named := re.search(r"http://127\.0\.0\.1:(\d+)/", said.read_text()):
            port = int(named[1])
            try:
                # Settings beside results are the end of a run, which is read last.
                answer = fetch(port, "/data/plugin/hparams/session_groups", ASKED)
                ended = [one["sessions"][0]["name"] for one in json.loads(answer)["sessionGroups"]]
                if {RUN, OTHER} <= set(ended):
                    return port
            except OSError as error:
                answer = repr(error)
        time.sleep(0.2)
    ended = "" if process.poll() is None else f"; it ended with {process.returncode}"
    said = f"{ended}; last answer: {answer[:500]}\n{said.read_text()}"
    pytest.fail(f"TensorBoard does not show both runs within {seconds} s{said}")


def test_the_page_is_served(server):
    assert "<title>TensorBoard</title>" in fetch(server, "/")


def test_the_loss_of_every_step_is_served(server):
    tags = json.loads(fetch(server, "/data/plugin/scalars/tags"))[RUN]
    assert {"train/loss", "train/lr/all", "validation/accuracy", "test/accuracy"} <= tags.keys()
    query = f"run={quote(RUN, safe='')}&tag={quote('train/loss', safe='')}"
    points = json.loads(fetch(server, f"/data/plugin/scalars/scalars?{query}"))
    assert [step for _, step, _ in points] == list(range(1, 81))
    assert points[-1][2] < points[0][2] / 2


def test_other_machines_cannot_reach_it(server):
    """On Linux all of 127.0.0.0/8 is this machine: a server on every address answers there."""
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", server), timeout=5).close()


def charts(port):
    """Return the titles of the charts of each group, in their order."""
    groups = page_of(port, "custom_scalars", "layout")["category"]
    return {one["title"]: [chart["title"] for chart in one["chart"]] for one in groups}


def test_scalars_come_in_the_order_of_a_persons_questions(server):
    tags = page_of(server, "scalars", "tags")
    assert set(tags) == {RUN, OTHER}
    groups = sorted({tag.partition("/")[0] for tag in tags[OTHER]})
    assert groups == ["test", "train", "validation", "what_is_frozen", "what_it_costs"]
    # A run of one phase has no chart of a single point.
    assert "what_is_frozen/phase" not in tags[RUN]
    points = page_of(server, "scalars", "scalars", run=OTHER, tag="what_is_frozen/phase")
    values = [value for _, _, value in points]
    assert (values[0], values[-1]) == (0, 1)


def test_custom_scalars_group_training_freezing_and_cost(server):
    found = charts(server)
    assert list(found) == ["Training", "Freezing", "Cost"]
    assert found["Training"] == ["loss", "accuracy", "f1", "rates", "gradient norm"]
    # TensorBoard joins the layouts of all runs, in the order in which it has found them.
    assert {"phase", "trained parameters"} < set(found["Freezing"])
    assert found["Cost"][:3] == ["seconds of a step", "samples per second", "peak memory (GiB)"]
    tag = "^(train|validation)/loss$"
    drawn = page_of(server, "custom_scalars", "scalars", run=OTHER, tag=tag)
    counts = {name: len(points) for name, points in drawn["tag_to_events"].items()}
    assert counts == {"train/loss": 80, "validation/loss": 2}


def test_images_are_there_and_not_blank(server):
    tags = page_of(server, "images", "tags")
    pictures = ["calibration", "classes", "confusion", "least_certain", "most_wrong"]
    of_freezing = {"what_is_frozen/map", "what_is_frozen/moved"}
    of_samples = {f"validation/{name}" for name in pictures}
    assert set(tags[OTHER]) == of_samples | of_freezing
    # Nothing of the other run is ever frozen.
    assert set(tags[RUN]) == of_samples | {"what_is_frozen/moved"}
    for tag in tags[OTHER]:
        image = page_of(server, "images", "images", run=OTHER, tag=tag, sample=0)[-1]
        place = f"/data/plugin/images/individualImage?{image['query']}"
        with urlopen(f"http://127.0.0.1:{server}{place}", timeout=120) as answer:
            assert num_colours(answer.read()) > 3, tag


def test_hparams_begin_with_what_differs_and_hold_the_last_figures(server):
    experiment = json.loads(
        fetch(server, "/data/plugin/hparams/experiment", {"experimentName": ""})
    )
    names = [one["name"] for one in experiment["hparamInfos"]]
    differs = [one["differs"] for one in experiment["hparamInfos"]]
    assert differs == sorted(differs, reverse=True)
    assert names[: sum(differs)][:3] == ["Frozen", "Learning rate", "Share frozen at first"]
    (rate,) = [one for one in experiment["hparamInfos"] if one["name"] == "Learning rate"]
    assert (rate["type"], rate["domainInterval"]["maxValue"]) == ("DATA_TYPE_FLOAT64", 0.025)
    metrics = [one["name"]["tag"] for one in experiment["metricInfos"]]
    assert {"test/accuracy", "validation/loss"} <= set(metrics)


def test_pr_curves_are_those_of_the_ten_classes(server):
    tags = page_of(server, "pr_curves", "tags")
    assert set(tags[RUN]) == {f"validation/{number}" for number in range(10)}
    found = page_of(server, "pr_curves", "pr_curves", run=RUN, tag="validation/0")
    (curve,) = found[RUN]
    assert len(curve["precision"]) == len(curve["recall"]) > 10
    assert max(curve["precision"]) > 0.8


def test_texts_are_config_plan_and_the_command_that_repeats_the_run(server):
    tags = page_of(server, "text", "tags")
    shown = [f"run/{name}/text_summary" for name in ("config", "plan", "repeat")]
    assert sorted(tags[RUN]) == shown
    assert sorted(tags[OTHER]) == [*shown, "what_is_frozen/map/text_summary"]
    (config,) = page_of(server, "text", "text", run=OTHER, tag=shown[0])
    assert "lr: 0.025" in config["text"]


def num_colours(png):
    """Count the colours of an image; of many, up to a thousand."""
    found = Image.open(BytesIO(png)).convert("RGB").getcolors(1000)
    return 1000 if found is None else len(found)


def test_the_projector_has_targets_and_small_images_of_what_enters_the_head(server):
    assert page_of(server, "projector", "runs") == [OTHER]
    (shown,) = page_of(server, "projector", "info", run=OTHER)["embeddings"]
    assert shown["tensorName"].startswith("head (step ")
    of = urlencode({"run": OTHER, "name": shown["tensorName"]})
    names, *rows = fetch(server, f"/data/plugin/projector/metadata?{of}").splitlines()
    assert (names, len(rows)) == ("target\tsample", 180)
    with urlopen(f"http://127.0.0.1:{server}/data/plugin/projector/sprite_image?{of}") as answer:
        assert num_colours(answer.read()) > 3


PAGES = {
    f"scalars&tagFilter={quote('train/loss', safe='')}": ["train/loss"],
    "custom_scalars": ["Training", "gradient norm"],
    "images": ["validation/calibration", "validation/classes"],
    "hparams": ["Learning rate", OTHER],
    "pr_curves": ["validation/0", "validation/1"],
    "text": ["run/config", "run/plan"],
}
"""What each page shows at once, by its place behind the address of the server."""


def test_the_browser_draws_each_page(server, browser):
    context = browser.new_context(viewport={"width": 1200, "height": 700})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    for place, shown in PAGES.items():
        # The server stays: only the page changes, as by a click on its name.
        page.goto(f"http://127.0.0.1:{server}/#{place}")
        for words in shown:
            # Playwright looks into the shadow roots that the pages are made of.
            page.get_by_text(words).filter(visible=True).first.wait_for()
        if place == "images":
            page.wait_for_function(IMAGE_IS_THERE)
        if place.startswith("scalars"):
            loss_falls(page)
        assert num_colours(page.screenshot(clip=BELOW_THE_TABS)) > 20, place
    context.close()


def test_the_browser_draws_the_points_of_the_projector(server, browser):
    context = browser.new_context(viewport={"width": 1200, "height": 700})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.goto(f"http://127.0.0.1:{server}/#projector")
    end = time.monotonic() + WAIT / 1000
    # It is a page in a page in the page.
    while (shown := page.frame(url="**/projector_binary.html")) is None:
        assert time.monotonic() < end, "no projector"
        page.wait_for_timeout(200)
    for words in ("1 tensor found", "Points: 180", "Dimension: 1024"):
        shown.get_by_text(words).filter(visible=True).first.wait_for()
    # The small images of the samples, on white.
    assert num_colours(page.screenshot(clip=POINTS)) > 20
    context.close()


def drawn(page):
    """Return what a page shows as red, green and blue, `(rows, columns, 3)`."""
    return np.asarray(Image.open(BytesIO(page.screenshot())).convert("RGB"))


def loss_falls(page):
    """Wait until the first run's curve is drawn; it is lower in its right half."""
    end = time.monotonic() + WAIT / 1000
    while True:
        rows, columns = np.nonzero((drawn(page)[CHART] == CURVE).all(axis=-1))
        if len(columns) and np.ptp(columns) > 150:
            break
        assert time.monotonic() < end, "no curve is drawn"
        page.wait_for_timeout(500)
    middle = (columns.min() + columns.max()) / 2
    assert rows[columns < middle].mean() < rows[columns > middle].mean()


POINTS = {"x": 320, "y": 130, "width": 500, "height": 560}
BELOW_THE_TABS = {"x": 0, "y": 70, "width": 1200, "height": 630}
IMAGE_IS_THERE = """() => {
    const all = root => [...root.querySelectorAll("*")].flatMap(
        one => [one, ...(one.shadowRoot ? all(one.shadowRoot) : [])]);
    return all(document).some(one => one.localName === "img" && one.naturalWidth > 100);
}"""
