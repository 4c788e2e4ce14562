"""Jupyter is answered before anything that may be slow: a disk, `ssh -G`, the keeper."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import KernelManager

from remoter_kernel.local.config import kernelspec
from remoter_kernel.local.config.kernelspec import RemoteLookup
from remoter_kernel.local.config.remotes import Remote, remember_kernel_info
from remoter_kernel.local.login.keeper import endpoint
from tests.real_jupyter import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jupyter_client.blocking.client import BlockingKernelClient

    from tests.real_jupyter import JupyterHere

HERE = Remote(name="here", host="this machine")
LIMIT = 60.0  # seconds, on a busy machine


# --- what is known before any login ---


class Disk:
    """A disk from which the remote is read; it can hang."""

    def __init__(self) -> None:
        self.remote = Remote(name="box", host="first")
        self.answers = threading.Event()
        self.answers.set()

    def find(self, name: str | None) -> Remote | None:
        assert name == "box"
        assert self.answers.wait(LIMIT)
        return self.remote


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    disk = Disk()
    yield disk
    disk.answers.set()


def test_a_remote_is_found_as_it_is_configured_now(disk: Disk) -> None:
    known = RemoteLookup("box", HERE, disk.find)
    assert known.find().host == "first"
    disk.remote = Remote(name="box", host="second")
    assert known.find().host == "second"


def test_while_the_disk_hangs_a_remote_is_as_it_was_read_last(disk: Disk) -> None:
    known = RemoteLookup("box", HERE, disk.find)
    known.find()
    disk.remote = Remote(name="box", host="second")
    disk.answers.clear()
    threads = threading.active_count()
    assert [known.find().host for _ in range(100)] == ["first"] * 100
    assert threading.active_count() <= threads + 1
    disk.answers.set()
    wait_for(lambda: known.find().host == "second", what="the new one")


def test_what_has_never_been_read_has_its_name(disk: Disk) -> None:
    disk.answers.clear()
    assert RemoteLookup("box", HERE, disk.find).find() == Remote(name="box", host="")


def test_without_a_remote_it_is_this_machine(disk: Disk) -> None:
    del disk
    assert RemoteLookup(None, HERE, lambda _name: None).find() is HERE


def test_what_a_kernel_has_said_last_is_known(disk: Disk) -> None:
    info = {"status": "ok", "language_info": {"name": "R"}}
    remember_kernel_info(disk.remote, info)
    assert RemoteLookup("box", HERE, disk.find).recall() == (info, "python")


def test_a_disk_that_hangs_holds_up_no_first_answer(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernelspec, "RECALL_WITHIN", 0.01)
    disk.answers.clear()
    assert RemoteLookup("box", HERE, disk.find).recall() == (None, "python")


# --- the process that Jupyter starts ---


@contextlib.contextmanager
def begun(spec: str, **changes: str) -> Iterator[BlockingKernelClient]:
    """Start a kernel in this environment, and wait for nothing; it is killed in the end."""
    manager = KernelManager(kernel_name=spec)
    errors = subprocess.DEVNULL
    manager.start_kernel(env={**os.environ, **changes}, stdout=errors, stderr=errors)
    client = manager.client()
    try:
        client.start_channels()
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.context.destroy(linger=0)


def answered(client: BlockingKernelClient) -> dict[str, Any]:
    """Ask what kernel it is, and return the answer."""
    name = client.kernel_info()
    while (reply := client.get_shell_msg(timeout=LIMIT))["parent_header"].get("msg_id") != name:
        pass
    return dict(reply["content"])


def test_a_configuration_that_cannot_be_read_yet_holds_up_no_answer(
    here: JupyterHere, tmp_path: Path
) -> None:
    spec = here.add_remote("unread", "nowhere.invalid")
    silent = tmp_path / "remotes.toml"
    os.mkfifo(silent)  # whoever opens it waits, as at a disk that hangs
    with begun(spec, REMOTER_CONFIG=str(silent)) as client:
        assert answered(client)["status"] == "ok"


def test_a_broken_configuration_is_told_in_the_first_cell(
    here: JupyterHere, tmp_path: Path
) -> None:
    spec = here.add_remote("broken", "nowhere.invalid")
    broken = tmp_path / "remotes.toml"
    broken.write_text("[remotes.broken\n")
    with begun(spec, REMOTER_CONFIG=str(broken)) as client:
        assert answered(client)["status"] == "ok"
        reply = client.execute("1", reply=True, timeout=LIMIT)["content"]
        assert reply["ename"] == "BadConfiguration"
        assert "line 1" in reply["evalue"]


def test_ssh_is_asked_once_for_its_configuration_and_nobody_waits_for_that(
    here: JupyterHere, tmp_path: Path
) -> None:
    """`ssh -G` may take as long as a `Match exec` in it does."""
    ssh = shutil.which("ssh")
    if not ssh:
        pytest.skip("no OpenSSH client here")
    (tmp_path / "ssh_config").write_text("Host box\n HostName 127.0.0.1\n Port 1\n User ada\n")
    calls, gate, program = tmp_path / "calls", tmp_path / "gate", tmp_path / "ssh"
    os.mkfifo(gate)
    program.write_text(f'#!/bin/sh\necho "$*" >> {calls}\nread x < {gate}\nexec {ssh} "$@"\n')
    program.chmod(0o755)
    spec = here.add_remote("slow", "box", ssh_config=tmp_path / "ssh_config")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    opened = os.open(gate, os.O_RDWR)
    try:
        with begun(spec, PATH=path) as client:
            assert answered(client)["status"] == "ok"
            os.write(opened, b"go\n" * 10)
            reply = client.execute("1", reply=True, timeout=LIMIT)["content"]
            assert "refuses connections" in reply["evalue"]
    finally:
        os.close(opened)
        endpoint.end_logins()
    asked = calls.read_text().splitlines()
    assert len([words for words in asked if words.endswith("-- box")]) == 1, asked
    assert len(asked) <= 2, asked  # once more for what it does where no file says anything
