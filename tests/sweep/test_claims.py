"""Trials are taken once, given back when their process dies, and never proposed twice."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState

from finetune.sweep import owners
from finetune.sweep.claims import GOES_ON, NUMBER, ended, latest
from finetune.sweep.owners import Owner, SignsOfLife

ROOT = Path(__file__).parents[2]


def numbers(claims):
    return [one.user_attrs[NUMBER] for one in claims.study.get_trials() if one.state.is_finished()]


def run_all(claims, loss=lambda params: 0.5):
    """Take every trial and end it well; return the params in order."""
    taken = []
    while (claim := claims.take()) is not None:
        taken.append(claim.params)
        claims.study.tell(claim.record, loss(claim.params))
    return taken


@pytest.mark.parametrize("kind", ["sqlite:///", "journal:"])
def test_as_many_trials_are_taken_as_are_wanted_and_another_process_finds_none_left(
    claims_of, tmp_path, kind
):
    url = f"{kind}{tmp_path / 'kept'}"
    assert len(run_all(claims_of(url, wanted=4))) == 4
    assert claims_of(url, wanted=4).take() is None
    assert len(run_all(claims_of(url, wanted=6))) == 2


def test_the_same_seed_and_history_give_the_same_values(claims_of, tmp_path):
    def values(file):
        return run_all(claims_of(f"journal:{tmp_path / file}", wanted=14), lambda p: p["x"])

    first = values("a")
    assert values("b") == first
    assert len({one["x"] for one in first}) == 14


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_finite_space_is_gone_through_once_each_and_then_the_sweep_ends(claims_of, sampler):
    search = {"a": [1, "1", [1]], "c": {"low": 0.1, "high": 0.3, "step": 0.1}}
    taken = run_all(claims_of(wanted=None, sampler=sampler, search=search))
    assert len(taken) == 3 * 3
    assert len({repr(sorted(one.items())) for one in taken}) == 9
    if sampler == "grid":
        assert taken[:2] == [{"a": 1, "c": 0.1}, {"a": 1, "c": 0.2}]


def test_a_trial_that_is_given_back_goes_on_under_its_number_with_its_values(claims_of):
    claims = claims_of()
    first, second = claims.take(), claims.take()
    claims.give_back(first, died=True)
    again = claims.take()
    assert (again.number, again.params, again.deaths) == (first.number, first.params, 1)
    assert second.number == 1
    assert claims.take().number == 2


def test_a_trial_of_a_dead_process_is_taken_up_and_one_of_a_living_process_is_not(claims_of):
    claims = claims_of()
    living, dead = claims.take(), claims.take()
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, check=True, text=True)  # fmt: skip
    me = Owner.this_process()
    dead.record.set_user_attr("owner", {"host": me.host, "pid": int(gone.stdout), "started": "1"})
    other = claims_of()
    again = other.take()
    assert (again.number, again.params) == (dead.number, dead.params)
    assert other.take().number == 2
    other.owner = Owner("elsewhere", 1, "1")
    assert other.num_with_others() == 3
    assert living.sign_of_life()
    assert not dead.sign_of_life()


def test_a_killed_process_that_nobody_has_waited_for_is_gone():
    with subprocess.Popen(["sleep", "60"]) as process:
        owner = Owner(Owner.this_process().host, process.pid, owners._started(process.pid))
        assert owner.is_gone() is False
        process.kill()
        # It has ended, and stays in the system's list until it is waited for.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert owner.is_gone() is True


@pytest.mark.parametrize("moment", ["before the old record is closed", "before it has an owner"])
def test_a_kill_while_the_lock_is_held_loses_no_trial_and_doubles_none(claims_of, moment):
    claims = claims_of(wanted=3)
    claim = claims.take()
    if moment == "before it has an owner":
        claim.record.set_user_attr("owner", None)
    else:
        claim.record.set_user_attr("owner", None)
        claims.study.enqueue_trial(claim.params, {NUMBER: 0, "deaths": 0, GOES_ON: 0})
    run_all(claims)
    assert ended(claims.study.get_trials()) == {TrialState.COMPLETE: 3}
    states = Counter((one.user_attrs[NUMBER], one.state.name) for one in claims.study.get_trials())
    assert states == {(0, "FAIL"): 1, **{(n, "COMPLETE"): 1 for n in range(3)}}


def test_a_process_of_another_machine_is_gone_when_its_sign_has_not_changed_for_long(
    claims_of, monkeypatch
):
    claims = claims_of()
    claim = claims.take()
    claim.record.set_user_attr("owner", {"host": "elsewhere", "pid": 1, "started": "1"})
    assert claim.sign_of_life()
    other = claims_of()
    assert other.take().number == 1
    now = owners.time.monotonic()
    monkeypatch.setattr(owners.time, "monotonic", lambda: now + 100)
    assert claim.sign_of_life()
    assert other.take().number == 2
    monkeypatch.setattr(owners.time, "monotonic", lambda: now + 215)
    assert other.take().number == 3
    monkeypatch.setattr(owners.time, "monotonic", lambda: now + 225)
    assert other.take().number == claim.number


def test_a_sign_that_changes_is_a_sign_of_life():
    signs = SignsOfLife()
    assert not any(signs.are_over(0, sign) for sign in (None, 1, 2))


def test_a_trial_that_a_person_enqueues_is_run_under_the_next_number(claims_of):
    claims = claims_of(wanted=2)
    claims.study.enqueue_trial({"x": 0.25, "k": "1"})
    assert run_all(claims)[0] == {"x": 0.25, "k": "1"}
    assert sorted(numbers(claims)) == [0, 1]


SHARE = """
import json, sys, time
sys.path.insert(0, {tests!r})
from conftest import claims_of
claims = claims_of.__wrapped__(None)({url!r}, wanted=12)
done = []
while (claim := claims.take()) is not None:
    time.sleep(0.02)
    done.append(claim.number)
    claims.study.tell(claim.record, claim.params["x"])
print(json.dumps(done))
"""


def shared(url):
    """Let two processes share a study; return the numbers that each has run."""
    code = SHARE.format(tests=str(Path(__file__).parent), url=url)
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(2)
    ]
    return [json.loads(one.communicate(timeout=120)[0]) for one in both]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite:///", "journal:"])
def test_two_processes_share_a_study_and_none_runs_what_the_other_runs(claims_of, tmp_path, kind):
    url = f"{kind}{tmp_path / 'kept'}"
    first, second = shared(url)
    assert sorted(first + second) == list(range(12))
    records = claims_of(url, wanted=12).study.get_trials()
    assert len(records) == len(latest(records)) == 12


@pytest.fixture(scope="module")
def server():
    """A PostgreSQL server of this test's own, on a socket in a scratch folder."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
    runuser = shutil.which("runuser")
    if not programs or runuser is None or os.geteuid() != 0:
        pytest.skip("no PostgreSQL of Debian's packages, or not the user who may start it")
    pytest.importorskip("psycopg")
    # Not below pytest's own folder, which the server's user may not enter.
    home = Path(tempfile.mkdtemp(prefix="postgres-"))
    shutil.chown(home, "postgres", "postgres")
    as_postgres = [runuser, "-u", "postgres", "--"]
    pg = programs[0]
    subprocess.run([*as_postgres, pg / "initdb", "-A", "trust", "-D", home / "data"], check=True,
                   capture_output=True)  # fmt: skip
    control = [*as_postgres, pg / "pg_ctl", "-D", home / "data", "-w"]
    options = f"-c listen_addresses= -c unix_socket_directories={home}"
    subprocess.run([*control, "-o", options, "-l", home / "log", "start"], check=True,
                   capture_output=True)  # fmt: skip
    yield f"postgresql+psycopg://postgres@/postgres?host={home}"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True)
    shutil.rmtree(home)


@pytest.mark.slow
def test_two_processes_share_a_study_of_a_postgresql_server(claims_of, server):
    first, second = shared(server)
    assert sorted(first + second) == list(range(12))
    claims = claims_of(server, wanted=13)
    claim = claims.take()
    claims.give_back(claim, died=True)
    assert claims.take().number == claim.number == 12
