"""A folder belongs to one run; what is another's is neither used nor removed."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from finetune.config.source_keys import ArraysSource, CsvSource
from finetune.data.sources.open_source import open_source
from finetune.errors import CheckpointError, DataError
from finetune.runs.headers import stored_tensors
from finetune.runs.lock import read_holder
from finetune.runs.manifest import NAMES_OF_FILES
from finetune.train.after.facts import read_facts

MORE = ("-o", "train.epochs=3")


def placed(path):
    return "-o", f"train.checkpoint.path={path}"


@pytest.fixture
def theirs(attack, planted):
    """Another finished run."""
    return Path(shutil.copytree(planted, attack.folder / "theirs"))


@pytest.mark.parametrize("fresh", [(), ("--fresh",)])
@pytest.mark.parametrize(
    "place", ["../theirs/checkpoints", "../theirs", "..", ".", "checkpoints/x"]
)
@pytest.mark.parametrize("run", ["new", "runs/honest"])
def test_a_run_keeps_no_checkpoints_where_another_run_lies(attack, theirs, run, place, fresh):
    if run == "runs/honest" and place.startswith("../t"):
        place = f"../{place}"
    before = attack.tree(attack.folder)
    line = attack.refused("train", "honest.yaml", "--run", run, *placed(place), *fresh, *MORE)
    assert any(word in line for word in ("another run", "the run folder itself", "no checkpoint"))
    assert attack.tree(attack.folder) == before


def test_checkpoints_of_nobody_are_no_beginning_of_a_new_run(attack, theirs):
    (theirs / "checkpoints").rename(attack.folder / "moved")
    line = attack.refused("train", "honest.yaml", "--run", "new", *placed("../moved"))
    assert "holds checkpoints, and this run has made none" in line


def test_a_place_of_checkpoints_is_no_run_folder(attack, planted):
    assert attack.harmless("train", "honest.yaml", "--run", "a", *placed("../place")).code == 0
    before = attack.tree(attack.folder / "place")
    for more in ((), ("--fresh",)):
        line = attack.refused("train", "honest.yaml", "--run", "place", *more)
        assert "is not empty and holds no run" in line
    shutil.rmtree(attack.folder / "a")
    line = attack.refused("train", "honest.yaml", "--run", "b", *placed("../place"))
    assert "this run has made none" in line
    assert attack.tree(attack.folder / "place") == before


def test_the_usual_place_by_its_name_is_the_usual_place(attack, planted):
    assert attack.harmless("train", "honest.yaml", *MORE, *placed("checkpoints")).code == 0
    assert (planted / "checkpoints" / "step-00000009").is_dir()
    assert not (planted / "checkpoints" / ".run.lock").exists()


def test_fresh_leaves_a_report_that_no_run_wrote(attack, planted):
    (planted / "report.html").write_text("mine")
    assert attack.harmless("train", "honest.yaml", "--fresh").code == 0
    assert (planted / "report.html").read_text() == "mine"


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard/events.out.tfevents.9.x"])
def test_resume_copies_no_second_name_of_a_file(attack, planted, name):
    private = attack.write("private", "of somebody else")
    (planted / name).unlink(missing_ok=True)
    os.link(private, planted / name)
    shutil.move(planted, attack.folder / "stranger")
    outcome = attack.harmless("train", "honest.yaml", "--resume", "stranger", "--run", "my", *MORE)
    assert outcome.code == 2
    assert "bears another name elsewhere" in outcome.err
    mine = [path for path in (attack.folder / "my").rglob("*") if path.is_file()]
    assert not any("somebody else" in path.read_text(errors="replace") for path in mine)


@pytest.mark.parametrize("pid", ["1e999", "-1", str(10**400), '"7"', "true", "1.5"])
def test_a_lock_with_an_odd_number_is_no_lock_of_a_run(attack, planted, pid):
    lock = planted / ".run.lock"
    lock.write_text(f'{{"pid": {pid}, "host": "h", "since": "now", "run": ""}}')
    assert read_holder(planted) is None
    assert attack.harmless("train", "honest.yaml", *MORE).code == 0


ODD_FACTS = {
    "no inputs": {"inputs": []},
    "an input of no kind": {"kinds": {}},
    "a kind of another column": {"kinds": {"w": "numbers"}},
}


@pytest.mark.parametrize("change", ODD_FACTS.values(), ids=ODD_FACTS)
def test_facts_that_do_not_fit_each_other_are_no_facts(planted, change):
    document = json.loads((planted / "data.json").read_text())
    read_facts(document, planted / "data.json")
    with pytest.raises(CheckpointError, match="does not describe the data of a run"):
        read_facts(document | change, planted / "data.json")


@pytest.mark.parametrize("verb", [("eval",), ("predict",)])
def test_a_column_that_the_data_does_not_give_is_told(attack, planted, verb):
    document = json.loads((planted / "data.json").read_text())
    document["specs"] = {"other": next(iter(document["specs"].values()))}
    (planted / "data.json").write_text(json.dumps(document))
    attack.write("in.csv", "u,v\n1,2\n")
    line = attack.refused(*verb, planted, *(["in.csv"] if verb == ("predict",) else []))
    assert "the network takes the columns 'other', the data gives" in line


def test_a_shape_whose_product_never_ends_is_a_damaged_header(tmp_path):
    entry = {"dtype": "F32", "shape": [10**4000] * 300, "data_offsets": [0, 0]}
    header = json.dumps({"w": entry}).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    began = time.process_time()
    with pytest.raises(CheckpointError, match="damaged header"):
        stored_tensors(path)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "labels", [np.array([b"a\xff", b"b"]), np.array([0x110000, 98], "<u4").view("<U1")]
)
def test_text_in_an_array_that_is_no_text_is_one_line(tmp_path, labels):
    path = tmp_path / "a.npz"
    np.savez(path, features=np.ones((2, 2), "f4"), label=labels)
    with pytest.raises(DataError, match="column 'label' holds text that cannot be read"):
        open_source(ArraysSource(type="arrays", path=str(path)), (), ())


@pytest.mark.parametrize("source", [ArraysSource, CsvSource])
def test_a_pipe_or_a_device_is_no_data(tmp_path, source):
    kind = "arrays" if source is ArraysSource else "csv"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(DataError, match="is a pipe or a device"):
            open_source(source(type=kind, path=str(path)), (), ())


def test_what_a_kill_in_safetensors_leaves_is_known_as_ours(tmp_path):
    """The library writes aside under a name of its own, which is looked for while it does."""
    seen, ended = set(), threading.Event()

    def watch():
        while not ended.is_set():
            seen.update(path.name for path in tmp_path.iterdir())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(20):
        save_file({"w": torch.zeros(1 << 22)}, tmp_path / "weights.safetensors")
    ended.set()
    watcher.join()
    assert all(NAMES_OF_FILES.fullmatch(name) for name in seen), seen


def test_a_save_goes_on_over_what_a_kill_in_safetensors_left(attack, planted):
    left = planted / "checkpoints" / ".tmp-step-00000009"
    left.mkdir()
    (left / ".tmpA1b2C3").write_bytes(b"torn")
    assert attack.harmless("train", "honest.yaml", *MORE).code == 0
    assert (planted / "checkpoints" / "step-00000009" / "MANIFEST.json").is_file()
    assert not left.exists()


def test_a_file_in_a_folder_that_may_not_be_changed_is_written(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "out").write_text("old, and longer than what comes")
    (folder / "out").chmod(0o666)
    folder.chmod(0o555)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from finetune.outfile import output_file\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "with output_file(Path(sys.argv[1])) as file: file.write('new')\n"
    )
    for above in [*folder.parents][:-2]:
        above.chmod(above.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, folder / "out"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "out").read_text() == "new"
    folder.chmod(0o755)
