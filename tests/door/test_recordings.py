"""Recordings: folders of classes, tables that name them, a hub's data set; each also predicted."""

import io
import json
import subprocess

import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError
from scipy.signal import resample_poly

from finetune import load_predictor
from finetune.config.data import DataConfig
from finetune.config.task_keys import ClassificationTask
from finetune.data.media.waveforms import SoundRules, read_waveform
from finetune.data.prepare import open_data, prepare_data
from finetune.errors import DataError, FinetuneError
from finetune.models.preprocessing import Preprocessing
from finetune.train.after.trained import evaluate_run
from finetune.train.wire import build_trainer

RATE = 4000
LAYERS = [
    {"type": "Unflatten", "dim": 1, "unflattened_size": [1, -1]},
    {"type": "Conv1d", "out_channels": 8, "kernel_size": 32, "stride": 4},
    {"type": "ReLU"},
    {"type": "AdaptiveMaxPool1d", "output_size": 1},
    {"type": "Flatten"},
    {"name": "head", "type": "Linear", "out_features": "classes"},
]


def tone(number, rate=RATE, seconds=0.25, channels=1):
    """Return a low tone for even numbers, a high one for odd ones, with some noise."""
    draw = np.random.default_rng(number)
    time = np.arange(round(rate * seconds)) / rate
    pitch = (200, 900)[number % 2] * draw.uniform(0.9, 1.1)
    wave = 0.5 * np.sin(2 * np.pi * pitch * time + draw.uniform(0, 6))
    return np.stack([wave + draw.normal(0, 0.02, len(wave))] * channels, axis=1)


def encoded(number, form="wav", rate=RATE, **keywords):
    file = io.BytesIO()
    soundfile.write(file, tone(number, rate, **keywords), rate, format=form)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Write 24 recordings of every form in two classes."""
    root = tmp_path / "sounds"
    for number in range(24):
        form = ("wav", "flac", "ogg", "mp3")[number // 2 % 4]
        place = root / ("low", "high")[number % 2] / f"{number}.{form}"
        place.parent.mkdir(parents=True, exist_ok=True)
        # neither mp3 nor vorbis has a rate of 4 kHz in common with it
        place.write_bytes(encoded(number, form, 8000))
    return root


def source(path, **keys):
    return {"type": "audiofolder", "path": str(path), "sample_rate": RATE, "seconds": 0.25, **keys}


def prepared(source, **keys):
    config = DataConfig.model_validate({"source": source, **keys})
    task = ClassificationTask(type="classification")
    opened = open_data(config, task, seed=0, trust=())
    return prepare_data(opened, config, Preprocessing(None, None), seed=0, trust=())


@pytest.fixture
def build(small_config, tmp_path):
    def make(source, run="run", **keys):
        config = small_config(
            model={"layers": LAYERS},
            data={"source": source, "split": {"validation": 0.25, "stratify": True}, **keys},
            task={"type": "classification"},
            optimizer={"type": "Adam", "lr": 0.02},
            train={"epochs": 10, "batch_size": 6, "checkpoint": {"every": {"steps": 1}}},
        )
        return build_trainer(config, tmp_path / run)

    return make


def test_a_network_learns_from_a_folder_of_recordings_and_predicts_new_ones(
    build, folder, predict, tmp_path
):
    trainer = build(source(folder))
    trainer.fit()
    assert trainer.progress.metrics["validation/accuracy"] > 0.8
    new = tmp_path / "new"
    new.mkdir()
    (new / "a.wav").write_bytes(encoded(100))
    (new / "b.flac").write_bytes(encoded(101, "flac"))
    assert predict(str(new)) == (["low", "high"], "")
    assert predict(str(new / "b.flac"))[0] == ["high"]
    (tmp_path / "names.csv").write_text("audio\nnew/b.flac\nnew/a.wav\n")
    assert predict(str(tmp_path / "names.csv"))[0] == ["high", "low"]
    predictor = load_predictor(tmp_path / "run")
    assert [one.label for one in predictor([new / "a.wav", encoded(101)])] == ["low", "high"]
    assert evaluate_run(tmp_path / "run", source=str(folder))["accuracy"] > 0.8


def test_a_table_may_name_recordings_in_a_column_of_any_name(build, folder, predict, tmp_path):
    rows = [f"sounds/{f.parent.name}/{f.name},{f.parent.name}" for f in sorted(folder.rglob("*.*"))]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["clip,label", *rows]) + "\n")
    csv = {"type": "csv", "path": str(table), "sample_rate": RATE, "seconds": 0.25}
    trainer = build(csv, inputs=["clip"], target="label")
    trainer.fit()
    notes = json.loads((tmp_path / "run/data.json").read_text())["notes"]
    assert any("its texts name recordings" in note for note in notes)
    assert trainer.progress.metrics["validation/accuracy"] > 0.8
    labels, _ = predict(str(table))
    assert sum(a == row.rpartition(",")[2] for a, row in zip(labels, rows, strict=True)) > 20


def test_recordings_of_a_data_set_of_the_hub_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"audio": {"bytes": encoded(n), "path": "x"}, "label": "ab"[n % 2]} for n in range(4)]
    plain = datasets.Dataset.from_list(rows)
    plain.cast_column("audio", datasets.Audio()).save_to_disk(str(tmp_path / "hub"))
    made = prepared({"type": "huggingface", "path": str(tmp_path / "hub"), "sample_rate": RATE})
    batch = made.train.fetch([0, 3]).inputs["audio"]
    assert torch.equal(batch[1], read_waveform(encoded(3), SoundRules(RATE)))


def test_what_is_converted_is_told(folder, tmp_path):
    (folder / "low/two.wav").write_bytes(encoded(0, channels=2, seconds=0.5))
    notes = "\n".join(prepared(source(folder)).notes_on_all)
    assert "24 of 25 recordings are resampled to 4000 Hz (key: sample_rate) from 8000 Hz" in notes
    assert "1 of 25 recordings have several channels, their mean is read, such as " in notes
    assert "1 of 25 recordings are cut to 0.25 seconds, the longest has 0.50" in notes


def test_a_waveform_is_the_mean_of_channels_resampled_and_padded():
    raw = encoded(1, rate=8000, channels=2, seconds=0.1)
    frames = soundfile.read(io.BytesIO(raw), dtype="float32")[0].mean(axis=1)
    expected = resample_poly(frames, 1, 2)
    whole = read_waveform(raw, SoundRules(RATE))
    assert torch.equal(whole, torch.from_numpy(expected))
    padded = read_waveform(raw, SoundRules(RATE, 0.25))
    assert padded.shape == (1000,)
    assert not padded[len(expected) :].any()
    assert read_waveform(raw, SoundRules(RATE, 0.05)).shape == (200,)


def test_recordings_of_unequal_length_need_a_length(folder):
    (folder / "low/long.wav").write_bytes(encoded(0, seconds=0.5))
    with pytest.raises(
        DataError, match=r"differ in length: 0\.25 seconds of .*, 0\.50 of"
    ) as caught:
        prepared(source(folder, seconds=None))
    assert "seconds: 0.5" in caught.value.hint


def test_a_file_that_changes_after_the_start_is_refused(folder):
    made = prepared(source(folder))
    # not the first one, which is made as the data is opened, and kept
    sorted((folder / "high").iterdir())[5].write_bytes(encoded(5, "wav", 8000))
    with pytest.raises(DataError, match="has changed since the data was opened"):
        made.train.fetch([5])


@pytest.fixture
def listed(monkeypatch, hashed):
    """Let files be listed, however few they are; return the names of those that are hashed."""
    monkeypatch.setattr("finetune.data.identify.identified_files._READ_AT_START_BYTES", 0)
    return hashed


def test_many_recordings_are_listed_and_hashed_when_they_are_first_read(listed, folder):
    data = prepared(source(folder), workers=0)
    assert len(set(listed)) < 5
    (note,) = [note for note in data.notes_on_all if "identified by name" in note]
    assert note.startswith("24 recordings (0.00 GiB) are identified by name and size: ")
    data.train.fetch(range(24))
    data.train.fetch(range(24), epoch=1)
    assert len(listed) == len(set(listed)) == 24
    assert not any("copies" in note and "not looked" not in note for note in data.notes_on_all)


def test_a_listed_recording_that_changes_is_refused_before_and_after_its_first_reading(
    listed, folder
):
    data = prepared(source(folder), workers=0, memory_gb=0)
    places = [int(data.train.place(row).split()[1]) for row in (22, 23)]
    files = sorted(folder.rglob("*.*"), key=lambda file: (file.parent.name, file.name))
    before, after = (files[place - 1] for place in places)
    before.write_bytes(encoded(5, seconds=0.5))
    with pytest.raises(DataError, match=r"the recording .* has changed since the data was opened"):
        data.train.fetch([22])
    data.train.fetch([23])
    raw = after.read_bytes()
    after.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(DataError, match=r"the recording .* has changed since the data was opened"):
        data.train.fetch([23])


@pytest.mark.slow
def test_listed_recordings_end_with_the_same_weights_and_a_run_goes_on_whatever_the_limit(
    build, folder, request
):
    read = build(source(folder), "read")
    read.fit(quiet=True)
    names = request.getfixturevalue("listed")
    listed = build(source(folder), "listed")
    listed.fit(quiet=True)
    for name, tensor in read.model.state_dict().items():
        assert torch.equal(tensor, listed.model.state_dict()[name])
    names.clear()
    # This run knows contents, so they are compared, however many the files are.
    assert build(source(folder), "read").progress.step == read.progress.step
    assert len(set(names)) == 24


def test_a_missing_recording_of_a_table_is_told_with_its_row_where_files_are_listed(
    listed, folder, tmp_path
):
    (tmp_path / "t.csv").write_text("audio,label\nsounds/low/0.wav,a\nsounds/low/99.wav,b\n")
    table = {"type": "csv", "path": str(tmp_path / "t.csv"), "seconds": 0.25}
    with pytest.raises(DataError, match=r"no such recording .*99\.wav', which row 2 of .* names"):
        prepared(table)


def test_where_exact_copies_matter_all_recordings_are_read(listed, folder):
    prepared(source(folder), split={"validation": 0.25, "copies": "together"})
    assert len(set(listed)) == 24


def test_skipping_is_refused_where_there_are_recordings_and_no_images(folder):
    with pytest.raises(DataError, match="has no effect: only images are skipped") as caught:
        prepared(source(folder), on_error="skip")
    assert caught.value.key == ("data", "on_error")


def test_other_files_are_counted_and_links_that_leave_are_refused(folder, tmp_path):
    (folder / "low/readme.txt").write_text("hello")
    notes = "\n".join(prepared(source(folder)).notes_on_all)
    assert "1 file of" in notes
    assert "passed over: 1 .txt" in notes
    (tmp_path / "outside.wav").write_bytes(encoded(0))
    (folder / "low/link.wav").symlink_to(tmp_path / "outside.wav")
    with pytest.raises(DataError, match="leaves the folder"):
        prepared(source(folder))
    assert prepared(source(folder, within=str(tmp_path)))


@pytest.mark.parametrize("name", ["../outside.wav", "/etc/passwd.wav"])
def test_a_table_names_no_recording_outside_of_its_folder(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "outside.wav").write_bytes(encoded(0))
    (tmp_path / "in/t.csv").write_text(f"audio,label\n{name},a\n{name},b\n")
    with pytest.raises(DataError, match="leaves the folder"):
        prepared({"type": "csv", "path": str(tmp_path / "in/t.csv")})


def test_a_pipe_among_recordings_is_refused_at_once(folder):
    subprocess.run(["mkfifo", folder / "low/pipe.wav"], check=True)
    table = folder.parent / "t.csv"
    table.write_text("audio,label\nsounds/low/pipe.wav,a\nsounds/low/0.wav,b\n")
    with pytest.raises(DataError, match=r"recording .*pipe\.wav': it is no regular file"):
        prepared({"type": "csv", "path": str(table)})


def test_keys_for_recordings_without_recordings_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("x,label\n1,a\n2,b\n")
    table = {"type": "csv", "path": str(tmp_path / "t.csv"), "seconds": 2}
    with pytest.raises(DataError, match="no input column holds recordings"):
        prepared(table, inputs=["x"], target="label")


def test_number_of_processes_and_keeping_change_no_bit(folder):
    batches = []
    for workers, memory in ((0, "auto"), (1, "auto"), (2, 0)):
        made = prepared(source(folder), workers=workers, memory_gb=memory)
        rows = torch.arange(len(made.train)).split(5)
        for epoch in (0, 1):
            found = [batch.inputs["audio"] for batch in made.train.fetches(rows, epoch)]
            batches.append(torch.cat(found))
        made.train.close()
    assert all(torch.equal(batch, batches[0]) for batch in batches)


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "mp3"])
def test_a_recording_that_was_cut_off_is_refused(form, tmp_path):
    raw = encoded(1, form, 8000, seconds=1)
    path = tmp_path / f"x.{form}"
    path.write_bytes(raw[: len(raw) * 2 // 3])
    with pytest.raises(DataError, match="cannot read the recording"):
        read_waveform(path, SoundRules(8000))
    path.write_bytes(raw)
    assert len(read_waveform(path, SoundRules(8000))) == 8000


def test_a_wav_of_unknown_size_that_came_through_a_pipe_is_read():
    raw = bytearray(encoded(1))
    raw[4:8] = raw[40:44] = b"\xff\xff\xff\xff"
    assert torch.equal(
        read_waveform(bytes(raw), SoundRules(RATE)), read_waveform(encoded(1), SoundRules(RATE))
    )


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_a_recording_that_grows_beyond_memory_when_resampled_is_refused(form):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(70_000, np.int16), 100, format=form)
    with pytest.raises(DataError, match=r"it has 700 seconds, too many for .* cut it into pieces"):
        read_waveform(file.getvalue(), SoundRules(384_000))
    # The rest is cut off, so that it takes no memory.
    assert read_waveform(file.getvalue(), SoundRules(384_000, 0.01)).shape == (3840,)


@pytest.mark.parametrize("kind", ["audiofolder", "csv", "huggingface"])
def test_seconds_that_no_memory_holds_are_refused_with_their_key(kind):
    keys = {"type": kind, "path": "x", "seconds": 17_000}
    with pytest.raises(
        ValidationError, match=r"17000 seconds at a sample_rate of 16,000"
    ) as caught:
        DataConfig.model_validate({"source": keys})
    assert caught.value.errors()[0]["loc"] == ("source", kind, "seconds")
    assert DataConfig.model_validate({"source": keys | {"seconds": 16_000}})


def test_a_rate_that_no_recording_has_is_refused_before_memory_is_taken():
    raw = bytearray(encoded(1))
    raw[24:28] = (4_000_000_007).to_bytes(4, "little")
    with pytest.raises(DataError, match=r"4,000,000,007 frames a second|cannot read"):
        read_waveform(bytes(raw), SoundRules(RATE, 0.05))


def test_values_that_are_not_finite_are_refused():
    file = io.BytesIO()
    wave = np.array([0.0, np.nan, 0.5], np.float32)
    soundfile.write(file, wave, RATE, format="wav", subtype="FLOAT")
    with pytest.raises(DataError, match="not finite"):
        read_waveform(file.getvalue(), SoundRules(RATE))


def damaged(number, draw):
    """Return the bytes of a recording with a random damage, and the form it was."""
    form = ("wav", "flac", "ogg", "mp3")[number % 4]
    raw = bytearray(encoded(number, form, 8000, seconds=0.05))
    match draw.integers(6):
        case 0:
            return bytes(raw[: draw.integers(len(raw))])
        case 1:
            for place in draw.integers(0, len(raw), 8):
                raw[place] = draw.integers(256)
        case 2:
            start = draw.integers(min(64, len(raw)))
            raw[start : start + 4] = draw.bytes(4)
        case 3:
            return draw.bytes(int(draw.integers(200)))
        case 4:
            place = int(draw.integers(len(raw)))
            del raw[place : place + int(draw.integers(1, 50))]
        case _:
            raw[:0] = draw.bytes(int(draw.integers(1, 16)))
    return bytes(raw)


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_recordings_are_read_or_refused_in_one_line(count, tmp_path, capfd):
    draw = np.random.default_rng(7)
    refused = []
    for number in range(count):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(damaged(number, draw))
        try:
            waveform = read_waveform(path, SoundRules(RATE, 0.05))
        except FinetuneError as error:
            refused.append((f"cannot read the recording {str(path)!r}: ", error.message))
            continue
        assert waveform.shape == (200,)
        assert bool(torch.isfinite(waveform).all())
    assert count / 4 < len(refused) < count
    for told, message in refused:
        assert message.startswith(told)
        assert "\n" not in message.removeprefix(told)
        assert "0x" not in message.removeprefix(told)
        assert len(message) > len(told) + 4
