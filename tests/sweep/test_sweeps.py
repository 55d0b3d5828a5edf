"""`finetune sweep` as a user meets it: trials in processes, kills, refusals, what is left."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml

from finetune.config.loader import load_config
from finetune.config.run import RunConfig
from finetune.errors import FinetuneError
from finetune.sweep.judging import judged_by
from finetune.sweep.outcome import make_home

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "finetune", "sweep", "c.yaml"]


def begun(folder):
    """Start the sweep in the folder as a process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        COMMAND, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip


def trials_of(finetune):
    outcome = finetune("sweep", "c.yaml", "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)["trials"]


@pytest.mark.slow
def test_a_killed_and_a_stopped_sweep_go_on_to_the_whole_number_of_trials(
    finetune, write, tmp_path
):
    write(trials=3, pruner="none")
    home = tmp_path / "runs" / "c"
    killed = begun(tmp_path)
    wait_for((home / "trial-00000" / "plan.json").exists, killed)
    killed.kill()
    killed.communicate()
    stopped = begun(tmp_path)
    wait_for((home / "trial-00001" / "plan.json").exists, stopped)
    stopped.send_signal(signal.SIGTERM)
    told = stopped.communicate(timeout=120)[1]
    assert stopped.returncode == 75, told
    assert "the same command goes on" in told
    trials = trials_of(finetune)
    assert sorted(one["number"] for one in trials) == [0, 1, 2]
    assert {one["state"] for one in trials} == {"done"}
    assert [one["evaluations"] for one in trials] == [2, 2, 2]
    assert sorted(path.name for path in home.glob("trial-*[0-9]")) == [
        f"trial-0000{number}" for number in range(3)
    ]
    best = load_config(home / "best.yaml")
    assert best.sweep is None
    assert best.optimizer.lr == trials[0]["params"]["optimizer.lr"]
    assert (home / "report.html").read_text().count("trial-0000") >= 3
    # Nothing is left to do: the command shows the same again.
    assert trials_of(finetune) == trials


def wait_for(is_so, process):
    until = time.monotonic() + 120
    while not is_so():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_trials_that_the_config_makes_impossible_end_the_sweep_with_their_reason(finetune, write):
    write(search={"freeze": [["nobody"], ["no"], ["never"], ["body"]]}, sampler="grid")
    outcome = finetune("sweep", "c.yaml")
    assert outcome.code == 2
    assert "3 trials in a row failed, the last one: " in outcome.err
    assert "trial 0 failed: -o freeze.0: 'nobody' takes no parameter" in outcome.err
    assert "trial 3" not in outcome.err


@pytest.mark.slow
def test_a_trial_that_does_badly_is_ended_early_and_told(finetune, write, tmp_path, monkeypatch):
    from finetune.sweep.asked import AskedSweep
    from finetune.sweep.prepared import prepare

    path = write(trials=6, search={"optimizer.lr": {"low": 1e-6, "high": 1e-1, "log": True}})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    said = []
    more = ["train.epochs=2000", "train.evaluate_every={epochs: 1}", "cache=off"]
    sweeping = prepare(AskedSweep.of(path, more, []), said.append, home=tmp_path / "home")
    # Five trials that did well, so that the pruner has what it compares with.
    for _ in range(5):
        claim = sweeping.claims.take()
        for evaluation in range(1, 60):
            claim.record.report(-1.0, evaluation)
        sweeping.claims.study.tell(claim.record, -1.0)
    sweeping.run()
    assert any(line.startswith("trial 5 pruned after evaluation ") for line in said), said
    assert sweeping.claims.study.trials[-1].state.name == "PRUNED"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"search": {"optimizer.rl": [1, 2]}}, "c.yaml:24: sweep.search.optimizer.rl: with 1: "),
        ({"search": {"optimizer.lr": {"low": -1.0, "high": 0.1}}}, "optimizer.lr: with -1.0: "),
        ({"search": {"freeze": [["body"], 3]}}, "sweep.search.freeze: with 3: "),
        ({"search": {"optimizer.lr": [0.1, 0.1]}}, "optimizer.lr: 0.1 is listed twice"),
        ({"search": {"train.drop_last": [1, True]}}, "train.drop_last: true is listed twice"),
        ({"search": {"name": ["a", "b"]}}, "'name' cannot be varied"),
        ({"search": {"data.source.token": ["a", "b"]}}, "a secret cannot be varied"),
        (
            {"search": {"optimizer.lr": [0.1, 0.2], "optimizer": [{"type": "SGD", "lr": 1.0}]}},
            "sweep.search.optimizer.lr: lies below 'optimizer', which is searched, too",
        ),
        ({"search": {"optimizer.lr": 3}}, "needs a range {low: ..., high: ...} or a list"),
        ({"search": {"seed": {"low": 4, "high": 9, "step": 2}}}, "is not a whole number of steps"),
        ({"sampler": "grid"}, "a grid needs a list of values or a 'step' for 'optimizer.lr'"),
        (
            {"search": {"seed": {"low": 0, "high": 10**6}}, "sampler": "grid"},
            "sweep.sampler: a grid holds at most 1,000,000 combinations, got 1,000,001",
        ),
        ({"metric": "validation/mine"}, "nothing says which way 'validation/mine' improves"),
        (
            {"metric": "test/mae"},
            "c.yaml:23: sweep.metric: trials are judged by test/mae, and there are no test samples",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_before_any_trial(
    finetune, write, tmp_path, changes, said
):
    write(**changes)
    outcome = finetune("sweep", "c.yaml")
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert len(outcome.err.splitlines()) <= 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("searched", ["optimizer.lr", "optimizer"])
def test_an_override_of_what_is_searched_is_refused(finetune, write, searched):
    values = {"optimizer.lr": [0.1, 0.2], "optimizer": [{"type": "SGD", "lr": 0.1}]}
    write(search={searched: values[searched]})
    outcome = finetune("sweep", "c.yaml", "-o", "optimizer.lr=0.1")
    assert outcome.code == 2
    assert f"-o optimizer.lr: takes no effect: the sweep searches {searched!r}" in outcome.err


@pytest.mark.slow
def test_trials_that_were_validated_on_different_samples_are_told(finetune, write):
    write(trials=2, sampler="grid", search={"data.split.validation": [0.2, 0.4]})
    outcome = finetune("sweep", "c.yaml", "--json")
    note = json.loads(outcome.out)["note"]
    assert note.startswith("validated on different samples, so figures differ for that reason too")
    assert f"note: {note}" in outcome.err


@pytest.mark.parametrize(
    ("data", "search", "told"),
    [
        ({}, {}, "by validation/mae, and there are no validation samples\n"),
        ({"split": {"test": 0.3}}, {}, "by validation/mae, and there are no validation samples\n"),
        (
            {},
            {"data.split.validation": [0.2, 0.0]},
            "no validation samples with data.split.validation=0.0 optimizer.lr=0.001\n",
        ),
        ({"split": {"validation": 0.3}}, {}, None),
        ({"split": {"folds": 3}}, {}, None),
        ({"split": {"by": "part"}}, {}, None),
        ({}, {"data.split.validation": [0.2, 0.3]}, None),
    ],
)  # fmt: skip
def test_trials_without_samples_that_judge_them_are_refused(write, data, search, told):
    from finetune.sweep.asked import AskedSweep
    from finetune.sweep.search_space import check_space

    search = {"optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True}} | search
    path = write(search=search)
    config = yaml.safe_load(path.read_text())
    config["data"] = {"source": config["data"]["source"]} | data
    path.write_text(yaml.safe_dump(config))
    asked = AskedSweep.of(path, [], [])
    if told is None:
        check_space(asked)
        return
    with pytest.raises(FinetuneError) as refused:
        check_space(asked)
    assert told in f"{refused.value}"
    assert "data.split: {validation: 0.1} sets some aside" in f"{refused.value}"


def test_a_config_with_a_source_for_each_part_is_told_of_that_of_validation(write):
    from finetune.sweep.asked import AskedSweep
    from finetune.sweep.search_space import check_space

    path = write()
    config = yaml.safe_load(path.read_text())
    config["data"] = {"train": config["data"]["source"]}
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(FinetuneError, match="no validation samples") as refused:
        check_space(AskedSweep.of(path, [], []))
    assert "data.validation: {...} is their source, beside data.train" in f"{refused.value}"
    assert "data.split" not in f"{refused.value}"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://root:hidden-word@host/base", "needs a storage that is known, got 'mysql'"),
        ("nonsense", "needs a storage that is known, got 'nonsense'"),
        ("postgresql://me@host:hidden-word/base", "is known, got 'postgresql'"),
        ("journal:", "needs a storage that is known, got 'journal'"),
        ("journal:c.yaml", "c.yaml: is no journal of a study, or is damaged"),
        ("postgresql+psycopg://me:hidden-word@127.0.0.1:1/base", "the study's database refuses"),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_without_its_password(finetune, write, url, said):
    pytest.importorskip("psycopg")
    write()
    outcome = finetune("sweep", "c.yaml", "--storage", url)
    assert outcome.code == 2
    assert said in outcome.err
    assert "hidden-word" not in outcome.err


def test_a_folder_that_holds_something_else_is_refused(finetune, write, tmp_path):
    write()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    outcome = finetune("sweep", "c.yaml", "--dir", "mine")
    assert outcome.code == 2
    assert "mine: holds something, and no sweep" in outcome.err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_processes_that_begin_a_sweep_at_the_same_moment_all_find_its_folder(tmp_path):
    context = get_context("fork")
    gate, count = context.Barrier(3), 40

    def begin():
        for number in range(count):
            gate.wait(30)
            make_home(tmp_path / str(number), "study")

    processes = [context.Process(target=begin) for _ in range(3)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(120)
    assert [one.exitcode for one in processes] == [0, 0, 0]
    assert {one.name for one in tmp_path.rglob("*") if one.is_file()} == {"sweep.json"}


def test_a_study_that_was_begun_with_another_config_is_not_gone_on_with(write, tmp_path):
    from finetune.sweep.asked import AskedSweep
    from finetune.sweep.prepared import prepare

    path = write()
    prepare(AskedSweep.of(path, [], []), print, home=tmp_path / "home")
    prepare(AskedSweep.of(path, ["sweep.trials=9"], []), print, home=tmp_path / "home")
    with pytest.raises(FinetuneError, match="begun with another config or search"):
        prepare(AskedSweep.of(path, ["train.epochs=9"], []), print, home=tmp_path / "home")


def test_a_config_without_the_section_is_refused_and_other_verbs_say_that_they_leave_it(
    finetune, write, tmp_path
):
    path = write()
    assert load_config(path).notes == ("`sweep` has an effect only in `finetune sweep`",)
    config = yaml.safe_load(path.read_text())
    del config["sweep"]
    path.write_text(yaml.safe_dump(config))
    assert load_config(path).notes == ()
    outcome = finetune("sweep", "c.yaml")
    assert outcome.code == 2
    assert outcome.err.startswith("c.yaml: has no section 'sweep'\n")


def test_a_stop_begins_no_trial_that_was_only_taken(write, tmp_path):
    from finetune.sweep.asked import AskedSweep
    from finetune.sweep.prepared import prepare

    asked = AskedSweep.of(write(), [], [])
    url = f"journal:{tmp_path / 'study.log'}"
    sweeping = prepare(asked, lambda _: None, home=tmp_path / "home", url=url, jobs=2)
    sweeping._take_trials()
    sweeping._stop_all()
    assert not list((tmp_path / "home").glob("trial-*"))
    waiting = [one for one in sweeping.claims.study.trials if one.state.name == "WAITING"]
    assert [one.user_attrs["number"] for one in waiting] == [0, 1]


def test_after_an_error_of_the_database_with_one_trial_the_others_are_given_back(write, tmp_path):
    from finetune.sweep.asked import AskedSweep
    from finetune.sweep.prepared import prepare

    asked = AskedSweep.of(write(), [], [])
    base = tmp_path / "study.db"
    sweeping = prepare(
        asked, lambda _: None, home=tmp_path / "home", url=f"sqlite:///{base}", jobs=2
    )
    sweeping._take_trials()
    done = sweeping._running[0]
    done._process = subprocess.Popen(["true"])
    done.folder.mkdir()
    line = json.dumps({"step": 1, "validation/mae": 0.5})
    (done.folder / "metrics.jsonl").write_text(line + "\n")
    with closing(sqlite3.connect(base)) as connection:
        connection.execute(
            "CREATE TRIGGER ill BEFORE INSERT ON trial_intermediate_values "
            "BEGIN INSERT INTO missing VALUES (1); END"
        )
    with pytest.raises(FinetuneError, match="database refuses: no such table"):
        sweeping._stop_all()
    waiting = [one for one in sweeping.claims.study.trials if one.state.name == "WAITING"]
    assert [one.user_attrs["number"] for one in waiting] == [1]


@pytest.mark.slow
def test_a_trial_that_was_done_when_it_was_asked_to_stop_keeps_its_evaluations(
    write, tmp_path, monkeypatch
):
    from finetune.sweep.asked import AskedSweep
    from finetune.sweep.prepared import prepare

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sweeping = prepare(AskedSweep.of(write(), [], []), lambda _: None, home=tmp_path / "home")
    sweeping._take_trials()
    (process,) = sweeping._running
    assert process.ending() is None  # it is started now
    process._process.wait()
    sweeping._stop_all()
    (record,) = sweeping.claims.study.trials
    assert (record.state.name, len(record.intermediate_values)) == ("COMPLETE", 2)


@pytest.mark.parametrize(
    ("task", "metric", "expected"),
    [
        ({"type": "classification"}, "auto", ("validation/accuracy", "maximize")),
        ({"type": "regression"}, "auto", ("validation/mae", "minimize")),
        ({"type": "regression", "metrics": ["r2"]}, "auto", ("validation/r2", "maximize")),
        ({"type": "regression", "metrics": []}, "auto", ("validation/loss", "minimize")),
        ({"type": "classification"}, "test/loss", ("test/loss", "minimize")),
        (
            {"type": "classification",
             "metrics": [{"type": "import", "path": "p:m", "better": "lower"}]},
            "auto",
            ("validation/m", "minimize"),
        ),
    ],
)  # fmt: skip
def test_the_direction_follows_from_the_metric(write, task, metric, expected):
    config = yaml.safe_load(write(metric=metric).read_text()) | {"task": task}
    config = RunConfig.model_validate(config)
    judged = judged_by(config, config.sweep)
    assert (judged.metric, judged.direction) == expected


def test_a_sweep_under_torchrun_is_refused(finetune, write, monkeypatch, tmp_path):
    write()
    told = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    for name, value in (told | {"MASTER_ADDR": "::1", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    outcome = finetune("sweep", "c.yaml")
    assert outcome.code == 2
    assert "torchrun has started several processes, and a sweep starts its own" in outcome.err
    assert not (tmp_path / "runs").exists()
