"""Whether a kernel's sockets want keys is asked of the sockets, before anything is said there."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from jupyter_client.kernelspec import KernelSpec

from remoter_kernel.evaluator.kernel_curve import (
    SIGNATURE,
    KernelCurveProbe,
    can_offer_keys,
    read_keys,
    remove_keys,
    write_keys,
)
from remoter_kernel.evaluator.kernel_process import KernelProcess
from remoter_kernel.protocol.reactor import Reactor
from tests.real_jupyter import READY_WITHIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

IPYKERNEL = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """Something that waits."""
    with closing(Reactor()) as reactor:
        yield reactor


@pytest.fixture
def bound() -> Iterator[Callable[..., int]]:
    """Bind sockets as a kernel does; each call returns a port."""
    handles: list[zmq.Socket[bytes]] = []
    context = zmq.Context()

    def bind(kind: int, *, has_keys: bool, port: int = 0) -> int:
        handles.append(handle := context.socket(kind))
        if has_keys:
            handle.curve_publickey, handle.curve_secretkey = zmq.curve_keypair()
            handle.curve_server = True
        if not port:
            return int(handle.bind_to_random_port("tcp://127.0.0.1"))
        handle.bind(f"tcp://127.0.0.1:{port}")
        return port

    yield bind
    for handle in handles:
        handle.close(linger=0)
    context.term()


def limit() -> float:
    """Return when it has taken too long."""
    return time.monotonic() + READY_WITHIN


@pytest.mark.parametrize("kind", [zmq.ROUTER, zmq.XPUB])
@pytest.mark.parametrize("has_keys", [True, False])
def test_a_socket_says_whether_it_wants_keys(reactor, bound, kind, has_keys):
    """It does so at once, and hears nothing of who asks."""
    heard: list[bool] = []
    KernelCurveProbe(reactor, ("127.0.0.1", bound(kind, has_keys=has_keys)), heard.append)
    reactor.run_until(lambda: bool(heard), limit())
    assert heard == [has_keys]


def test_a_socket_that_is_not_there_yet_is_waited_for(reactor, bound):
    """So is one behind somebody who hangs up, or says nothing that anybody understands."""
    heard: list[bool] = []
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    greeting = KernelCurveProbe(reactor, ("127.0.0.1", port), heard.append)
    rude, _ = server.accept()
    rude.close()
    server.close()
    reactor.call_later(0.1, lambda: bound(zmq.ROUTER, has_keys=True, port=port) and None)
    reactor.run_until(lambda: bool(heard), limit())
    assert heard == [True]
    greeting.close()


def test_somebody_who_is_silent_at_the_port_is_left(reactor, bound):
    """A stranger has come before the kernel, and keeps the connection."""
    heard: list[bool] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        greeting = KernelCurveProbe(reactor, ("127.0.0.1", port), heard.append)
        silent, _ = server.accept()
    with silent:
        bound(zmq.ROUTER, has_keys=True, port=port)
        reactor.run_until(lambda: bool(heard), limit())
    assert heard == [True]
    greeting.close()


def test_somebody_who_is_at_the_port_first_takes_no_keys_away(reactor, tmp_path: Path):
    """Who says there, before the kernel does, that it has none, would hear all that it prints."""
    file = tmp_path / "connection.json"
    child = KernelProcess(reactor, tmp_path, "python3", b"session")
    ready: list[object] = []
    child.on_ready = lambda _head, info: ready.append(info)
    child.manager.connection_file = str(file)
    child.manager.write_connection_file()
    write_keys(file)
    with socket.create_server(("127.0.0.1", child.manager.shell_port)) as stranger:
        child._connector.connect()
        wire, _ = stranger.accept()
        with wire:
            wire.sendall(SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
            reactor.run_until(lambda: child.client.is_open, limit())
    words = [sys.executable, "-m", "ipykernel_launcher", "-f", str(file)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as kernel:
        try:
            reactor.run_until(lambda: bool(ready), limit())
        finally:
            child.close()
            kernel.kill()
    assert child.is_encrypted
    assert read_keys(file)


def test_who_asks_no_more_hears_nothing(reactor, bound):
    """A kernel that has ended meanwhile needs no sockets."""
    heard: list[bool] = []
    KernelCurveProbe(reactor, ("127.0.0.1", bound(zmq.ROUTER, has_keys=True)), heard.append).close()
    until = []
    reactor.call_later(0.1, lambda: until.append(1))
    reactor.run_until(lambda: bool(until), limit())
    assert heard == []


@pytest.mark.parametrize(
    ("argv", "metadata", "is_offered"),
    [
        (IPYKERNEL, {"supported_encryption": "curve"}, True),
        (IPYKERNEL, {"supported_encryption": ["CURVE"]}, True),
        (IPYKERNEL, {}, True),  # written by an older ipykernel than the one that is there
        (IPYKERNEL, {"supported_encryption": []}, False),
        (["R", "--slave", "-e", "IRkernel::main()"], {}, False),
        (["xpython"], {"supported_encryption": ["curve"]}, True),
        (["xpython"], {"supported_encryption": None}, False),
        (["xpython"], {"supported_encryption": {"curve": False}}, False),
    ],
)
def test_keys_are_offered_to_who_may_know_them(argv, metadata: dict[str, Any], is_offered):
    """A kernelspec's word counts; ipykernel is known to pass over what it does not know."""
    assert can_offer_keys(KernelSpec(argv=argv, metadata=metadata)) is is_offered


def test_keys_come_and_go_and_the_rest_of_the_file_stays(tmp_path: Path):
    """Only its owner can read it, before and after."""
    file = tmp_path / "connection.json"
    file.touch(0o600)
    file.write_text(json.dumps({"shell_port": 1}))
    assert read_keys(file) is None
    write_keys(file)
    keys = read_keys(file)
    assert len(keys.public) == len(keys.secret) == 40
    assert file.stat().st_mode & 0o777 == 0o600
    remove_keys(file)
    assert read_keys(file) is None
    assert json.loads(file.read_text()) == {"shell_port": 1}
