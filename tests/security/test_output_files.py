"""A file that the user names to be written keeps its kind, its mode and its owner."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from finetune.errors import FinetuneError
from finetune.outfile import output_file, write_new


@pytest.fixture
def predict(planted, attack):
    """Predict for one sample into a file; return what a shell shows."""
    attack.write("in.csv", "u,v\n1,2\n")
    return lambda out: attack.harmless("predict", planted, "in.csv", "--out", out)


def written(path, text="new\n"):
    with output_file(path) as file:
        file.write(text)
    return path.read_text()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_predictions_go_through_a_link_and_the_link_stays(predict, attack):
    (attack.folder / "disk").mkdir()
    target = attack.write("disk/out.jsonl", "old")
    link = attack.folder / "out.jsonl"
    link.symlink_to("disk/out.jsonl")
    assert predict("out.jsonl").code == 0
    assert link.is_symlink()
    assert '"label"' in target.read_text()
    assert names_in(target.parent) == ["out.jsonl"]


def test_predictions_go_through_a_pipe_and_the_pipe_stays(predict, attack):
    pipe = attack.folder / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    assert predict("pipe").code == 0
    reader.join(10)
    assert '"label"' in read[0]
    assert pipe.is_fifo()


def test_a_pipe_that_nobody_reads_yet_is_waited_for_and_told(tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    later = threading.Timer(0.3, lambda: read.append(pipe.read_text()))
    later.start()
    with output_file(pipe) as file:
        file.write("new\n")
    later.join(10)
    assert read == ["new\n"]
    assert "waits for somebody to read this pipe" in capsys.readouterr().err


def test_a_device_stays_a_device(predict, attack):
    screen, device = os.openpty()
    name = os.ttyname(device)
    assert predict(name).code == 0
    assert b'"label"' in os.read(screen, 1 << 12)
    assert stat.S_ISCHR(Path(name).stat().st_mode)
    os.close(screen)
    os.close(device)
    outcome = predict("/dev/full")
    assert outcome.code == 2
    assert outcome.err == "/dev/full: cannot be written: No space left on device\n"


def test_a_log_that_the_shell_appends_to_keeps_what_it_has(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    script = (
        "import sys; from pathlib import Path; from finetune.outfile import output_file\n"
        "with output_file(Path(sys.argv[1])) as file: file.write('new\\n')\n"
        "print('after')"
    )
    (tmp_path / "alias").symlink_to("/dev/stdout")
    for name in ("/dev/stdout", "/proc/self/fd/1", tmp_path / "alias"):
        with log.open("a") as out:
            subprocess.run([sys.executable, "-c", script, name], check=True, stdout=out)
    assert log.read_text() == "before\n" + "new\nafter\n" * 3


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o777, 0o2755])
def test_a_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    path.chmod(mode)
    assert written(path) == "new\n"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_has_the_mode_that_any_new_file_has(tmp_path):
    written(tmp_path / "ours")
    (tmp_path / "theirs").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_a_file_keeps_its_owner(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    is_root = os.geteuid() == 0
    owner = (12345, 23456) if is_root else (os.getuid(), os.getgid())
    os.chown(path, *owner)
    path.chmod(0o4640)
    assert written(path) == "new\n"
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*owner, 0o4640)


def test_all_names_of_a_file_get_the_new_contents(tmp_path):
    path, other = tmp_path / "out.jsonl", tmp_path / "other"
    path.write_text("much that is old\n")
    other.hardlink_to(path)
    assert written(path) == "new\n"
    assert other.read_text() == "new\n"
    assert names_in(tmp_path) == ["other", "out.jsonl"]


def test_while_it_is_written_a_private_file_is_private(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    path.chmod(0o600)
    with output_file(path) as file:
        file.write("new")
        assert [stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()] == [0o600, 0o600]


def test_a_file_is_as_it_was_if_the_writing_fails(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), output_file(path) as file:
        file.write(f"half a li{1 // 0}")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["out.jsonl"]


def test_a_link_that_leads_to_nothing_makes_its_target(tmp_path):
    link = tmp_path / "out.jsonl"
    link.symlink_to("target")
    assert written(link) == "new\n"
    assert link.is_symlink()
    assert not (tmp_path / "target").is_symlink()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.symlink_to("nowhere/at/all"), "No such file or directory"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    ],
    ids=["folder", "link into no folder", "link to itself"],
)
def test_what_cannot_be_written_is_told_in_one_line(tmp_path, make, reason):
    path = tmp_path / "out.jsonl"
    make(path)
    with pytest.raises(FinetuneError) as caught:
        written(path)
    assert str(caught.value) == f"{path}: cannot be written: {reason}"
    assert names_in(tmp_path) == ["out.jsonl"]


def test_a_long_form_goes_through_what_is_no_file(attack, config):
    attack.write("honest.yaml", config)
    (attack.folder / "null").symlink_to("/dev/null")
    (attack.folder / "link").symlink_to("long.yaml")
    assert attack.harmless("plan", "honest.yaml", "--write", "null").code == 0
    assert attack.harmless("plan", "honest.yaml", "--write", "link").code == 0
    assert "phases:" in (attack.folder / "long.yaml").read_text()
    assert "is there already" in attack.refused("plan", "honest.yaml", "--write", "link")


def test_a_new_file_that_cannot_be_written_whole_is_not_left_behind(tmp_path, monkeypatch):
    path = tmp_path / "long.yaml"
    text = "x" * (1 << 20)
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from finetune.outfile import write_new\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "write_new(Path(sys.argv[1]), 'x' * (1 << 20))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, path], check=False, capture_output=True, text=True
    )
    assert "cannot be written: File too large" in ended.stderr
    assert not path.exists()
    write_new(path, text)
    assert path.read_text() == text
