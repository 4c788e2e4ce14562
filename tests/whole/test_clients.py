"""Who is at the proxy's sockets: several clients at once, with CURVE keys, over files."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file
from jupyter_client.manager import KernelManager

from tests.real_jupyter import client_of, wait_for
from tests.whole.talk import Talk
from tests.whole.test_sessions import a_front

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.whole.test_sessions import Front

DEAF = 1.0  # seconds in which a stranger would have been answered


@pytest.fixture(scope="module")
def remote(here: JupyterHere, python_remote: dict[str, Any]) -> Iterator[str]:
    """The name of a remote of this module's own."""
    name = f"clients-{os.getpid()}"
    here.add_remote(name, **python_remote)
    yield name
    here.remoter("stop", "--all", name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A connection file, as Jupyter writes one."""
    path = tmp_path / "kernel.json"
    write_connection_file(str(path), key=secrets.token_hex(16).encode())
    return path


@contextlib.contextmanager
def another(file: Path) -> Iterator[Talk]:
    """Connect one more client to the kernel of a connection file."""
    with client_of(file) as client:
        yield Talk(client)


def of(talk: Talk, channel: str, request: str) -> list[dict[str, Any]]:
    """List what came on a channel for a request."""
    return [
        message
        for where, message in talk.heard
        if where == channel and message["parent_header"].get("msg_id") == request
    ]


def printed(talk: Talk, request: str) -> str:
    """Return the text of a cell, whoever has run it."""
    told = [message["content"] for message in of(talk, "iopub", request)]
    return "".join(each.get("text", "") for each in told)


def all_printed(talk: Talk, requests: list[str]) -> bool:
    """Has this client seen text of all these cells?"""
    return all(printed(talk, each) for each in requests)


# --------------------------------------------------------------- many at once


def test_each_gets_its_own_and_all_hear_all(file: Path, remote: str) -> None:
    """Replies and questions go to who has asked, outputs to all; one leaves in the middle."""
    with a_front(file, remote) as front, another(file) as second:
        first = front.talk
        first.run("1")
        with another(file) as third:
            cells = [
                talk.queue(f"print('cell of {name}')")
                for talk, name in ((first, "one"), (second, "two"), (third, "three"))
            ]
            for talk, cell in zip((first, second, third), cells, strict=True):
                talk.done(cell)
                talk.listen(partial(all_printed, talk, cells))
                own = [bool(of(talk, "shell", each)) for each in cells]
                assert own == [each == cell for each in cells]
            gone = third.queue("import time; time.sleep(0.5); print('nobody asks any more')")
            third.listen(lambda: third.has_begun(gone))
        second.listen(lambda: "nobody asks" in printed(second, gone))
        asks = second.queue("print('Hello,', input('who? '))")
        second.listen(lambda: bool(of(second, "stdin", asks)))
        second.send("input_reply", {"value": "two"}, channel="stdin")
        second.done(asks)
        first.listen(lambda: "Hello, two" in printed(first, asks))
        assert not of(first, "stdin", asks)
        assert not of(first, "shell", asks)
        first.done(first.queue("2"))


# --------------------------------------------------------------- how they are reached


def test_jupyter_may_demand_encryption(here: JupyterHere, remote: str, tmp_path: Path) -> None:
    """With keys in the connection file all five sockets answer who has them, and no one else."""
    manager = KernelManager(kernel_name=f"remoter-{remote}", transport_encryption="required")
    manager.start_kernel()
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=30)
        talk = Talk(client)
        talk.run("print('in', 'secret')")
        talk.until_said("in secret")
        wait_for(client.is_alive, seconds=10, what="it has a heartbeat")
        open_file = tmp_path / "without-keys.json"
        about = json.loads(Path(manager.connection_file).read_text())
        assert about.pop("curve_secretkey")
        assert about.pop("curve_publickey")
        open_file.write_text(json.dumps(about))
        assert not answers_a_stranger(open_file)
        assert not beats(about)
        talk.run("print('still', 'there')")
        talk.until_said("still there")
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
        manager.context.destroy(linger=0)


def answers_a_stranger(file: Path) -> bool:
    """Does the kernel say anything to a client with this connection file?"""
    client = BlockingKernelClient(connection_file=str(file))
    client.load_connection_file()
    try:
        client.start_channels(hb=False)
        talk = Talk(client)
        talk.send("kernel_info_request", {})
        talk.send("kernel_info_request", {}, channel="control")
        with contextlib.suppress(AssertionError):
            talk.listen(lambda: bool(talk.heard), seconds=DEAF)
        return bool(talk.heard)
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)


def beats(about: dict[str, Any]) -> bool:
    """Does the heartbeat answer without any key?"""
    with zmq.Context() as context, context.socket(zmq.REQ) as asker:
        asker.linger = 0
        asker.connect(f"tcp://{about['ip']}:{about['hb_port']}")
        asker.send(b"ping")
        return bool(asker.poll(int(DEAF * 1000)))


def test_a_stranger_is_heard_where_there_are_no_keys(front: Front, file: Path) -> None:
    """What the test before this one looks for would be seen."""
    assert answers_a_stranger(file)
    assert beats(json.loads(file.read_text()))


@pytest.fixture
def front(file: Path, remote: str) -> Iterator[Front]:
    """A proxy on plain TCP."""
    with a_front(file, remote) as front:
        yield front


def test_sockets_may_be_files(here: JupyterHere, remote: str, tmp_path: Path) -> None:
    """With `transport: ipc` all is as over TCP; no file of a socket is left."""
    manager = KernelManager(
        kernel_name=f"remoter-{remote}", transport="ipc", ip=str(tmp_path / "sockets")
    )
    manager.start_kernel()
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=30)
        talk = Talk(client)
        talk.run("print('Hello,', input('who? '))", answers=["Ada"])
        talk.until_said("Hello, Ada")
        wait_for(client.is_alive, seconds=10, what="it has a heartbeat")
        assert len(list(tmp_path.glob("sockets-*"))) == 5
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
        manager.context.destroy(linger=0)
    assert not list(tmp_path.glob("sockets-*"))


# --------------------------------------------------------------- what is said before all that


def test_a_kernel_that_was_exchanged_does_not_speak_for_the_new_one(
    here: JupyterHere, python_remote: dict[str, Any], tmp_path: Path
) -> None:
    """From Python to R by hand: the first reply is of R and promises nothing, the next is R's."""
    name = f"exchanged-{os.getpid()}"
    spec = here.add_remote(name, **python_remote)
    told = [first_and_later(spec)]
    here.add_remote(name, language="python", kernel="ir", **python_remote)
    told.append(first_and_later(spec))
    (_, python), (before, after) = told
    assert {"debugger", "kernel subshells"} <= set(python["supported_features"])
    for info in (before, after):
        assert info["language_info"]["name"] == "R"
        assert not info.get("debugger")
        assert not info.get("supported_features")
    assert before["implementation"] == "remoter"
    assert after["implementation"] == "IRkernel"


def first_and_later(spec: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Start a kernel; return what it says of itself at once, and after its first cell."""
    manager = KernelManager(kernel_name=spec)
    manager.start_kernel()
    client = manager.client()
    try:
        client.start_channels()
        first = client.kernel_info(reply=True, timeout=30)["content"]
        talk = Talk(client)
        talk.run("1")
        return first, talk.ask("kernel_info_request")
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
        manager.context.destroy(linger=0)
