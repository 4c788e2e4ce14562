"""Another user of the same machine, who listens at every port that a person's processes have."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.real_jupyter import MARK, THIS_RUN, far_environment, started_kernel, wait_for
from tests.real_users import own_name, throw_away_user
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

pytestmark = pytest.mark.timeout(180)

# Subscribes to all topics at each loopback port of a user, or at those that are named; tells at
# the end what it has heard. A plain ZeroMQ client, as anybody has it.
EAVESDROP = r"""
import sys, threading, zmq
uid, *named = sys.argv[1:]
ear = zmq.Context().socket(zmq.SUB)
ear.linger = 0
ear.rcvhwm = 0
ear.subscribe(b"")
known, is_over = set(), threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
heard = b""
def ports():
    for line in open("/proc/net/tcp").read().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[7] == uid:
            yield int(fields[1].rpartition(":")[2], 16)
while not is_over.is_set():
    for port in set(map(int, named)) or set(ports()):
        if port not in known:
            known.add(port)
            ear.connect("tcp://127.0.0.1:%d" % port)
    while ear.poll(20):
        heard += b" | ".join(ear.recv_multipart()) + b"\n"
print(ascii(heard.decode("utf-8", "replace")))
"""
# Says its secret until a listener has come to a plain socket that is opened on purpose, and then
# for another second: whoever listens there listens at all older ports, too.
SECRET, BAIT = "my database password is hunter2", "this is the bait"
SAY = """
import time, zmq
_context = zmq.Context()
_bait = _context.socket(zmq.XPUB)
_bait.linger = 500
_bait.bind("tcp://127.0.0.1:{port}")
_end, _has_come = time.monotonic() + 30, False
while time.monotonic() < _end:
    print("my database password is " + "hunter2", flush=True)
    if _bait.poll(20) and not _has_come:
        _bait.recv()
        _bait.send(b"this is " + b"the bait")
        _has_come, _end = True, time.monotonic() + 1
_context.destroy()
_has_come
"""


@pytest.fixture(scope="module")
def eve(another_user: FarSide) -> Iterator[FarSide]:
    """Another user of the machine where the kernel runs."""
    with throw_away_user(own_name("rt-eve")) as eve:
        yield eve


@contextlib.contextmanager
def eavesdropping(eve: FarSide, uid: int, ports: Any = ()) -> Iterator[list[str]]:
    """Listen to a user as another one; what was heard is there afterwards."""
    command = [str(eve.python), "-c", EAVESDROP, str(uid), *map(str, ports)]
    environment = far_environment(eve) | {MARK: THIS_RUN}
    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    heard: list[str] = []
    with subprocess.Popen(command, cwd="/", env=environment, **pipe, **eve.ids) as ear:
        try:
            yield heard
            said, _ = ear.communicate(timeout=30)
            heard.append(ast.literal_eval(said))
        finally:
            ear.kill()


def said_by(talk: Talk, code: str) -> str:
    """Run a cell that ends by itself; return its result, once all is well."""
    said = talk.case(lambda talk: talk.run(code))
    assert said["shell under request 0"][0]["content"]["status"] == "ok", said
    (result,) = [m for m in said["iopub under request 0"] if m["type"] == "execute_result"]
    return str(result["content"]["data"]["text/plain"])


def status_of(talk: Talk) -> str:
    """Return what `%remoter status` shows."""
    said = talk.case(lambda talk: talk.run("%remoter status"))
    return "".join(
        m["content"]["text"] for m in said["iopub under request 0"] if m["type"] == "stream"
    )


def free_port() -> int:
    """Return a port that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def say_it(talk: Talk, port: int, line: str = "") -> None:
    """Run the cell that says the secret while somebody listens."""
    assert said_by(talk, line + SAY.format(port=port)) == "True", "nobody has listened"


def test_another_user_there_hears_nothing_of_a_python_kernel(
    here: JupyterHere, python_remote: dict[str, Any], another_user: FarSide, eve: FarSide
) -> None:
    """Whoever may log in there subscribes to all that listens with the person's uid.

    Nor after the evaluator was killed: the next one takes the kernel over, with its keys.
    """
    spec = here.add_remote("heard", **python_remote)
    uid = pwd.getpwnam(another_user.user).pw_uid
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        assert said_by(talk, "kept = 42; kept") == "42"
        with eavesdropping(eve, uid) as heard:
            say_it(talk, free_port())
        assert BAIT in heard[0]
        assert SECRET not in heard[0]
        assert "its sockets have CURVE, too" in status_of(talk)
        kill_the_evaluator(another_user, status_of(talk))
        assert said_by(talk, "kept") == "42"
        with eavesdropping(eve, uid) as heard:
            say_it(talk, free_port())
        assert BAIT in heard[0]
        assert SECRET not in heard[0]
        assert "its sockets have CURVE, too" in status_of(talk)


def kill_the_evaluator(far: FarSide, status: str) -> None:
    """Kill the evaluator of the session that a status tells of, and wait for the next one."""
    found = re.search(r"session +(\w+)", status)
    assert found, status
    door = far.home / f".local/share/remoter-kernel/sessions/{found[1]}/door.json"
    pid = json.loads(door.read_text())["pid"]
    psutil.Process(pid).kill()
    wait_for(lambda: json.loads(door.read_text())["pid"] != pid, seconds=60, what="another one")


@pytest.fixture
def plain(far: FarSide) -> Iterator[str]:
    """A kernel there that has no encryption, by its kernelspec's own word."""
    folder = far.home / ".local/share/jupyter/kernels/plain"
    far_files = [folder, *list(folder.parents)[:4]]
    spec = {
        "argv": [str(far.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Plain",
        "language": "python",
        "metadata": {"supported_encryption": []},
    }
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))
    for path in far_files:
        far.give(path)
    yield "plain"
    shutil.rmtree(folder)


def test_whose_kernel_can_be_heard_is_told_so(
    here: JupyterHere,
    python_remote: dict[str, Any],
    another_user: FarSide,
    eve: FarSide,
    plain: str,
) -> None:
    """A kernel without encryption is heard by the same listener; `check` and `status` say so."""
    spec = here.add_remote("plain", **python_remote, kernel=plain)
    uid = pwd.getpwnam(another_user.user).pw_uid
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        with eavesdropping(eve, uid) as heard:
            say_it(talk, free_port())
        assert SECRET in heard[0]
        assert "can read what it prints: its sockets are not encrypted" in status_of(talk)
        assert said_by(talk, "kept = 42; kept") == "42"
        kill_the_evaluator(another_user, status_of(talk))
        assert said_by(talk, "kept") == "42"
        assert "its sockets are not encrypted" in status_of(talk)
    checked = here.remoter("check", "plain")
    assert checked.returncode == 0, checked
    assert "its sockets are not encrypted" in " ".join(checked.stdout.split()), checked


def test_another_user_here_hears_nothing_of_cells_of_this_side(
    here: JupyterHere, python_remote: dict[str, Any], eve: FarSide
) -> None:
    """On a machine here with several users one of them listens to the cells that run here.

    Jupyter itself asks for encryption, as it should where many users share its machine.
    """
    spec = here.add_remote("heard-here", local="allow", **python_remote)
    with started_kernel(spec, transport_encryption="auto") as kernel:
        talk = Talk(kernel.client)
        assert said_by(talk, "%%local\n1") == "1"
        front = psutil.Process(kernel.pid)
        listening = [
            connection.laddr.port
            for process in (front, *front.children(recursive=True))
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) > len(("shell", "control", "stdin", "iopub", "heartbeat"))
        port = free_port()
        with eavesdropping(eve, os.getuid(), [*listening, port]) as heard:
            say_it(talk, port, "%%local\n")
        assert BAIT in heard[0]
        assert SECRET not in heard[0]
