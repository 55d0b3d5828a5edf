"""Lines of a page as a reader's shell runs them, with `finetune` in this process."""

import io
import re
import shlex
import subprocess
import sys

SERVICES = re.compile(r"finetune (serve|tensorboard) ")
"""Commands that do not end: started on a free port, asked, and stopped by the next one."""
_PRINTED = "http://127.0.0.1:8000"
"""The address that the pages ask."""


class ReaderShell:
    """A shell; `command_line` calls the command line in this process."""

    def __init__(self, monkeypatch, command_line):
        self._monkeypatch, self._command_line = monkeypatch, command_line
        self._service, self._address = None, _PRINTED

    def run(self, line, code=0):
        """Run a line, which must end with this code."""
        if SERVICES.match(line):
            self._serve(line)
        elif line.rpartition(" | ")[2].startswith("finetune "):
            self._call(line, code)
        else:
            self._other(line)

    def stop(self):
        """End the service that runs."""
        if self._service is not None:
            self._service.terminate()
            self._service.communicate(timeout=60)
            self._service = None

    def _call(self, line, code):
        before, _, command = line.rpartition(" | ")
        sent = subprocess.run(["bash", "-c", before], check=True, capture_output=True).stdout
        self._monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(sent)))
        ended = self._command_line(*shlex.split(command)[1:])
        assert ended.code == code, f"{line}\n{ended.err}"

    def _serve(self, line):
        self.stop()
        command = [sys.executable, "-m", *shlex.split(line), "--port", "0"]
        self._service = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        told = []
        for said in self._service.stderr:
            told.append(said)
            if found := re.search(r"http://[\w.]+:\d+", said):
                self._address = found[0]
                asked = subprocess.run(["curl", "-sf", found[0]], capture_output=True, check=False)
                assert asked.returncode in (0, 22), said  # 22: it answers, and has no page there
                return
        raise AssertionError("".join(told))

    def _other(self, line):
        line = line.replace(_PRINTED, self._address)
        if "ask_service.py" in line:
            line += f" --url {self._address}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert '"error"' not in done.stdout, f"{line}\n{done.stdout}"
