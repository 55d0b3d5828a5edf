"""TensorBoard has no authentication: it listens on 127.0.0.1 and nowhere else."""

import os
import socket
import subprocess
import sys
import time

import pytest

from finetune.cli import running


def test_the_server_is_told_to_listen_on_this_machine_alone(attack, monkeypatch):
    commands = []
    monkeypatch.setattr(running.os, "execv", lambda program, command: commands.append(command))
    (attack.folder / "runs").mkdir()
    attack.harmless("tensorboard")
    attack.harmless("tensorboard", "runs", "--port", "7007")
    assert [command[5:9] for command in commands] == [
        ["--host", "127.0.0.1", "--port", "6006"],
        ["--host", "127.0.0.1", "--port", "7007"],
    ]
    assert all(command.count("--host") == 1 for command in commands)
    assert not any("bind_all" in word for command in commands for word in command)


@pytest.mark.parametrize("extra", ["--bind_all", "--host=0.0.0.0"])
def test_no_option_opens_it_to_others(attack, extra):
    (attack.folder / "runs").mkdir()
    assert "No such option" in attack.harmless("tensorboard", "runs", extra).err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address")
def test_the_server_cannot_be_reached_by_another_address(attack):
    (attack.folder / "runs").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "finetune", "tensorboard", "runs", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ) as server:
        try:
            assert eventually_listens("127.0.0.1", port, server)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", port), timeout=5)
        finally:
            server.terminate()
            server.wait(timeout=120)


def eventually_listens(host, port, server):
    for _ in range(300):
        if server.poll() is not None:
            return False
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return True
    return False
