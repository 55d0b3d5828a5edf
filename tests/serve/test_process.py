"""The service as a process: signals under load, clients by the hundred, large and slow requests."""

import contextlib
import gc
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune.process import Interrupted, answered, interrupt
from finetune.serve.refusal import ServiceLimits
from finetune.serve.served_runs import Loading, ServedRuns
from finetune.serve.server import bound_socket, serve

ROW = [0.5, -1.0, 2.0, 0.0]
SCRIPT = Path(__file__).parents[2] / "scripts" / "ask_service.py"


def test_the_client_that_ships_says_in_one_line_that_no_service_answers(monkeypatch):
    with socket.socket() as taken:  # bound and not listening: refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "a text", "--url", url])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(SCRIPT))
    assert str(caught.value).startswith(f"no service answers at {url}: ")


class Process:
    """A running service; its lines are collected as they come."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "finetune", "serve", *map(str, arguments), "--port", "0"]
        environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
        self.running = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.lines = []
        threading.Thread(target=self._read, daemon=True).start()
        self.url = re.search(r"http://\S+", self.wait_for("serving "))[0]

    def _read(self):
        for line in self.running.stdout:
            self.lines.append(line)

    def wait_for(self, beginning):
        until = time.monotonic() + 90
        while time.monotonic() < until:
            for line in list(self.lines):
                if beginning in line:
                    return line
            assert self.running.poll() is None, "".join(self.lines)
            time.sleep(0.05)
        raise AssertionError("".join(self.lines))

    def ask(self, inputs, body=None, **more):
        data = body or json.dumps({"inputs": inputs} | more).encode()
        header = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}/predict", data, header)
        try:
            with urllib.request.urlopen(request, timeout=180) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@pytest.fixture
def process():
    """Start a service; it is killed when the test is over."""
    made = []

    def start(*arguments):
        made.append(Process(*arguments))
        return made[-1]

    yield start
    for one in made:
        one.running.kill()
        one.running.wait()
        one.running.stdout.close()


@pytest.mark.slow
def test_a_service_through_its_life(process, two_runs, tmp_path):
    """One process for all of it: each start costs the import of torch."""
    folder = tmp_path / "served"
    folder.mkdir()
    shutil.copytree(two_runs[0], folder / "one")
    service = process(folder, "--read-timeout", "1", "--max-requests", "400")
    assert service.ask([ROW])[1]["predictions"].keys() == {"one"}

    # SIGHUP: a new run is served, a gone one is not
    shutil.copytree(two_runs[1], folder / "two")
    os.kill(service.running.pid, signal.SIGHUP)
    service.wait_for("one, two share one pass up to act")
    assert service.ask([ROW])[1]["predictions"].keys() == {"one", "two"}
    shutil.rmtree(folder / "one")
    os.kill(service.running.pid, signal.SIGHUP)
    service.wait_for("one is gone")
    service.wait_for("two runs alone")
    assert service.ask([ROW], runs=["one"])[0] == 404

    # a body of 100 MB, a slow one, and the client that ships
    status, told = service.ask([], body=b" " * 100_000_000)
    assert (status, "more than 16 MiB" in told["error"]) == (413, True)
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as slow:
        head = f"POST /predict HTTP/1.1\r\nhost: {host}\r\ncontent-length: 9\r\n\r\n"
        slow.sendall(head.encode())
        assert b"408" in slow.recv(1000)
    asked = subprocess.run(
        [sys.executable, str(SCRIPT), "a text", "--url", service.url],
        capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    assert (asked.returncode, "not a text" in asked.stderr or "no number" in asked.stderr) == (
        1,
        True,
    )

    # 200 clients at once, and SIGTERM in the middle: each is answered, or told why not
    def client(number):
        try:
            return service.ask([ROW] * (1 + number % 3))
        except (urllib.error.URLError, ConnectionError) as error:
            return type(error).__name__, None

    with ThreadPoolExecutor(200) as pool:
        answers = [pool.submit(client, number) for number in range(200)]
        while sum(one.done() for one in answers) < 20:
            time.sleep(0.01)
        os.kill(service.running.pid, signal.SIGTERM)
        found = [one.result() for one in answers]
    assert service.running.wait(60) == 0, "".join(service.lines)
    service.wait_for("stopped")
    # Those whose connection was never accepted see that nobody listens.
    assert {status for status, _ in found} <= {200, 503, "URLError", "ConnectionResetError"}
    good = [answer for status, answer in found if status == 200]
    assert len(good) >= 20
    assert all(answer["predictions"]["two"] for answer in good)


def test_another_address_of_this_machine_is_answered(two_runs):
    served = ServedRuns([two_runs[0]], Loading(), lambda _: None)
    served.load_all()
    bound, answers = bound_socket("127.0.0.2", 0), []

    def ask(url):
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=180) as answer:
                answers.append(answer.status)
        except urllib.error.HTTPError as error:
            answers.append(error.read())
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def tell(line):
        if (url := re.search(r"http://\S+", line)) is not None:
            threading.Thread(target=ask, args=[url[0]]).start()

    serve(served, bound, ServiceLimits(), is_public=False, tell=tell)
    assert answers == [200]


@pytest.mark.slow
def test_headers_that_come_letter_by_letter_are_cut_and_others_are_answered(two_runs):
    served = ServedRuns([two_runs[0]], Loading(), lambda _: None)
    served.load_all()
    bound, found = bound_socket("127.0.0.1", 0), {}

    def talk(url):
        host, port = url.removeprefix("http://").split(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as slow:
            # One after another, for ever: only the service ends this.
            slow.settimeout(0.05)
            slow.sendall(b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\nx-long: ")
            found["slow"] = dripped(slow)
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as silent:
            silent.settimeout(180)
            found["silent"] = silent.recv(1000)
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{url}/metrics", timeout=180) as answer,
        ):
            found["metrics"] = answer.read().decode()
        os.kill(os.getpid(), signal.SIGTERM)

    def tell(line):
        if (url := re.search(r"http://\S+", line)) is not None:
            threading.Thread(target=talk, args=[url[0]]).start()

    # Longer than a busy machine may take between a connection and its first bytes.
    serve(served, bound, ServiceLimits(read_timeout_s=3), is_public=False, tell=tell)
    for name in ("slow", "silent"):
        assert found[name].startswith(b"HTTP/1.1 408 ")
        assert b"the headers did not come within 3 s" in found[name]
    assert 'route="other",status="408"} 2' in found["metrics"]


def dripped(connection):
    """Send a letter now and then, until the other side answers; return what it says."""
    until = time.monotonic() + 180
    while time.monotonic() < until:
        try:
            return connection.recv(1000)
        except TimeoutError:
            connection.sendall(b"x")
    return b"never cut"


def test_a_signal_that_a_library_caught_while_runs_loaded_ends_the_service():
    try:
        with contextlib.suppress(Interrupted):
            interrupt(signal.SIGTERM)
        served = ServedRuns([], Loading(), lambda _: None)
        with (
            bound_socket("127.0.0.1", 0) as bound,
            pytest.raises(Interrupted, match="interrupted by SIGTERM"),
        ):
            serve(served, bound, ServiceLimits(), is_public=False, tell=lambda _: None)
    finally:
        answered()


def test_a_public_address_is_refused_unless_it_is_meant(command_line, two_runs):
    refused = command_line("serve", two_runs[0], "--host", "0.0.0.0")
    assert refused.code == 2
    assert "can be reached by other machines" in refused.err
    assert "--public" in refused.err


def test_what_cannot_be_served_is_told(command_line, two_runs, tmp_path):
    gc.collect()
    left_open = []
    (tmp_path / "empty").mkdir()
    empty = command_line("serve", tmp_path / "empty")
    assert (empty.code, "no run" in empty.err) == (2, True)
    shutil.copytree(two_runs[0], tmp_path / "copies" / "one")
    double = command_line("serve", two_runs[0], tmp_path / "copies" / "one")
    assert (double.code, "two runs are named 'one'" in double.err) == (2, True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        used = command_line("serve", two_runs[0], "--port", port)
    assert (used.code, "cannot listen" in used.err) == (2, True)
    # Sockets that nobody closed are warnings here, and warnings are errors.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", lambda found: left_open.append(found.object))
        gc.collect()
    assert not left_open


def test_a_service_tells_that_a_run_has_not_reached_its_end(two_runs):
    # a run that was killed has no summary
    (two_runs[1] / "summary.json").unlink()
    said = []
    ServedRuns(two_runs, Loading(), said.append).load_all()
    told = [line for line in said if line.startswith("note: ")]
    assert len(told) == 1
    assert told[0].startswith("note: two: the run has not reached its end: it was killed at step")
