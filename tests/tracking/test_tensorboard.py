"""What TensorBoard itself reads back from the event files."""

import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from finetune.config.dumping import as_plain
from finetune.errors import FinetuneError, NonFiniteError
from finetune.pictures.drawing import Picture, drawn
from finetune.tracking.tensorboard import TensorBoard
from finetune.train.shown.settings_shown import settings_shown


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tensorboard"


def read(folder):
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def points(folder, tag):
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_figures_stand_under_their_tags_over_the_step(folder):
    tracker = TensorBoard(folder)
    for step in (1, 2, 3):
        place = {"epoch": 0.5, "phase": "head", "note/of": "some text"}
        tracker.scalars(step, place | {"train/loss": 1.0, "train/n": step})
    tracker.close()
    assert points(folder, "train/loss") == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert points(folder, "train/n") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert read(folder).Tags()["scalars"] == ["train/loss", "train/n"]


def test_text_and_images_are_kept(folder):
    image = drawn(Picture(6, 4, [], "nothing"))
    tracker = TensorBoard(folder)
    tracker.text("freeze/map", "head  **trained**", 0)
    tracker.image("freeze/picture", image, 2)
    tracker.close()
    events = read(folder)
    [text] = events.Tensors("what_is_frozen/map/text_summary")
    assert text.tensor_proto.string_val == [b"head  **trained**"]
    [picture] = events.Images("what_is_frozen/picture")
    assert (picture.step, picture.height, picture.width) == (2, 4, 6)


def test_settings_and_results_stand_in_the_run_itself_and_make_no_second_one(folder):
    tracker = TensorBoard(folder)
    tracker.scalars(5, {"test/accuracy": 0.5})
    tracker.scalars(6, {"test/accuracy": 0.75})
    tracker.hparams(
        {"optimizer.lr": 1e-3, "train.epochs": 3, "train.drop_last": True, "task.type": "x"},
        {"test/accuracy": 0.75, "best/loss": 0.25},
    )
    tracker.close()

    runs = EventMultiplexer().AddRunsFromDirectory(str(folder.parent)).Reload().Runs()
    assert list(runs) == ["tensorboard"]
    assert [path.is_file() for path in folder.iterdir()] == [True]
    assert points(folder, "test/accuracy") == [(5, 0.5), (6, 0.75)]
    assert points(folder, "best/loss") == [(6, 0.25)]

    plugin = read(folder).SummaryMetadata("_hparams_/session_start_info").plugin_data
    data = plugin_data_pb2.HParamsPluginData.FromString(plugin.content)
    settings = data.session_start_info.hparams
    assert settings["optimizer.lr"].number_value == 1e-3
    assert settings["train.epochs"].number_value == 3
    assert settings["train.drop_last"].string_value == "true"
    assert settings["task.type"].string_value == "x"


def test_a_run_that_diverged_shows_its_settings_too(small_run):
    run = small_run(optimizer={"type": "SGD", "lr": 1e30}, tracking={"to": ["tensorboard"]})
    with pytest.raises(NonFiniteError):
        run.fit(quiet=True)
    events = read(run.folder.path / "tensorboard")
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    data = plugin_data_pb2.HParamsPluginData.FromString(plugin.content)
    assert data.session_start_info.hparams["Learning rate"].number_value == 1e30


def test_each_setting_has_one_name(small_config, small_run):
    config = small_config(freeze=["body"])
    shown = settings_shown(as_plain(config), small_run(freeze=["body"]).timeline.plan)
    assert {shown["Learning rate"], shown["Steps"], shown["Frozen"]} == {0.05, 6, "body"}
    assert not {"optimizer.lr", "optimizer.type", "train.steps", "train.batch_size"} & set(shown)
    # What has no name of its own has its key.
    assert shown["optimizer.momentum"] == 0.9


def layout_of(folder):
    [*_, last] = read(folder).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(last.tensor_proto.string_val[0])
    return {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in layout.category
    }


def test_charts_are_laid_out_in_the_order_of_the_questions_and_none_is_empty(folder):
    tracker = TensorBoard(folder)
    tracker.scalars(1, {"time/step_seconds": 1.0, "train/loss": 1.0, "train/lr/all": 1.0})
    tracker.scalars(1, {"validation/loss": 1.0, "validation/f1/a.b": 0.5})
    tracker.close()
    assert layout_of(folder) == {
        "Training": {
            "loss": ["^(train|validation)/loss$"],
            "f1/a.b": [r"^(train|validation)/f1/a\.b$"],
            "rates": ["^train/lr/.+$"],
        },
        "Cost": {"seconds of a step": ["^what_it_costs/.+_seconds$"]},
    }
    assert list(layout_of(folder)["Training"]) == ["loss", "f1/a.b", "rates"]


def test_what_changes_between_phases_is_drawn_as_steps(folder):
    now = {"freeze/phase": 0.0, "freeze/trained_parameters": 5.0}
    tracker = TensorBoard(folder, frozen_now=lambda: now)
    tracker.scalars(0, now)
    for step in (1, 2):
        tracker.scalars(step, {"train/loss": 1.0})
    now = {"freeze/phase": 1.0, "freeze/trained_parameters": 9.0}
    tracker.scalars(2, now)
    tracker.scalars(3, {"train/loss": 1.0})
    tracker.close()
    curve = [(0, 0), (1, 0), (2, 0), (2, 1), (3, 1)]
    assert points(folder, "what_is_frozen/phase") == curve


def test_a_run_of_one_phase_has_no_charts_of_a_single_point(folder):
    tracker = TensorBoard(folder)
    tracker.scalars(0, {"freeze/phase": 0, "freeze/trained_parameters": 5})
    tracker.scalars(1, {"train/loss": 1.0})
    tracker.close()
    assert read(folder).Tags()["scalars"] == ["train/loss"]


@pytest.mark.parametrize("how", ["purge_step", "begin"])
def test_a_resumed_run_shows_every_step_once(folder, how):
    first = TensorBoard(folder)
    for step in range(1, 6):
        first.scalars(step, {"train/loss": 1.0})
    first.close()
    # TensorBoard reads files in the order of their names, which begin with whole seconds.
    time.sleep(1.1)
    second = TensorBoard(folder, purge_step=4 if how == "purge_step" else None)
    if how == "begin":
        second.begin(3, total_steps=6)
    for step in range(4, 7):
        second.scalars(step, {"train/loss": 2.0})
    second.close()
    assert points(folder, "train/loss") == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]


def test_closing_twice_does_nothing_more(folder):
    tracker = TensorBoard(folder)
    tracker.scalars(1, {"train/loss": 1.0})
    tracker.close()
    tracker.close()
    assert points(folder, "train/loss") == [(1, 1.0)]


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(FinetuneError, match="cannot write"):
        TensorBoard(tmp_path / "run" / "tensorboard").scalars(1, {"train/loss": 1.0})
