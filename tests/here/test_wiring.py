"""Who is to be called back has been told so: what is wired up has no call-back left unset.

A call-back that nobody sets does nothing, in silence. The real objects are made and wired here, as
they are where they run, and asked for attributes that still are what their class begins with.
"""

from __future__ import annotations

import signal
import socket
import types
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from remoter_kernel.evaluator.journal import Journal
from remoter_kernel.evaluator.kernel_process import KernelProcess
from remoter_kernel.evaluator.listener import Listener
from remoter_kernel.evaluator.registry import Session
from remoter_kernel.evaluator.supervisor import Supervisor
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.login.keeper.connected_client import ConnectedClient
from remoter_kernel.local.login.keeper.keeper_server import KeeperServer
from remoter_kernel.local.proxy import proxy as kernels
from remoter_kernel.local.proxy.proxy import KernelProxy
from remoter_kernel.local.proxy.sockets import PORTS, Sockets
from remoter_kernel.local.session.link import LinkState, _Connection
from remoter_kernel.protocol.frames import FrameHeader, MessageType, encode_message, to_json
from remoter_kernel.protocol.link_connection import LinkConnection
from remoter_kernel.protocol.reactor import Reactor
from remoter_kernel.protocol.stream import MemoryOutbox, ReliableStream

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real_jupyter import JupyterHere

OURS = "remoter_kernel."
DEFAULTS = {"ignore", "_raise_refused", "_raise_bug"}  # stand where nobody has been told
OF_THE_PROXY: dict[tuple[str, str], str] = {}
OF_AN_EVALUATOR = {
    ("Listener", "is_seen_exact"): "only where an evaluator before this one has left a journal",
}
OF_A_KEEPER = {
    ("ConnectedClient", "on_answer"): "set while a login asks it",
    ("ConnectedClient", "on_end"): "set while it waits for a login",
}


def is_default(owner: type, value: Any) -> bool:
    """Is this what a call-back is before anybody has been told?"""
    if not isinstance(value, types.FunctionType):
        return value is dict or value is tuple
    names = {each.__name__ for each in owner.__mro__}
    first = {f"{name}{place}<lambda>" for name in names for place in (".__init__.<locals>.", ".")}
    is_first = value.__qualname__ in first and not value.__closure__
    return value.__module__.startswith(OURS) and (is_first or value.__name__ in DEFAULTS)


def unset(*roots: Any) -> set[tuple[str, str]]:
    """Return class and name of each call-back that is still the default, in all that is reached."""
    found: set[tuple[str, str]] = set()
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        if isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, (list, tuple, set)):
            waiting += thing
        elif isinstance(thing, types.MethodType):
            waiting.append(thing.__self__)
        elif type(thing).__module__.startswith(OURS):
            for name, value in vars(thing).items() if hasattr(thing, "__dict__") else ():
                if is_default(type(thing), value):
                    found.add((type(thing).__name__, name))
                waiting.append(value)
    return found


def check(*roots: Any, may_stay_unset: dict[tuple[str, str], str]) -> None:
    """Fail if somebody may be told by nobody without a reason, or a reason stands for nothing."""
    assert unset(*roots) == set(may_stay_unset)


def test_a_call_back_that_was_forgotten_is_found() -> None:
    """Or this file would show nothing."""
    pump = LinkConnection(Reactor(), ReliableStream(MemoryOutbox()), lambda _frame: None)
    assert unset(pump) == {
        ("LinkConnection", "on_item"),
        ("LinkConnection", "on_refused"),
        ("LinkConnection", "on_end"),
        ("Reactor", "on_bug"),
    }
    pump.reactor.close()


def ports() -> dict[str, Any]:
    """Return what a connection file says, of ports that are free."""
    names = [*PORTS.values(), "hb_port"]
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    numbers: dict[str, Any] = {}
    for name, holder in zip(names, holders, strict=True):
        numbers[name] = holder.getsockname()[1]
        holder.close()
    return {**numbers, "transport": "tcp", "ip": "127.0.0.1", "key": "key"}


@pytest.mark.parametrize("is_under_server", [False, True])
def test_all_are_told_in_the_process_on_this_side(
    here: JupyterHere, monkeypatch: pytest.MonkeyPatch, *, is_under_server: bool
) -> None:
    """As it is once it runs and has met its session."""
    if is_under_server:
        monkeypatch.setenv("JPY_SESSION_NAME", "here.ipynb")
    monkeypatch.setattr(kernels, "find_remote", lambda _name: Remote(name="x", host="x"))
    sockets = Sockets(Reactor(), ports())
    sockets.bind()
    kernel = KernelProxy(sockets, "x")
    monkeypatch.setattr(kernel.link, "connect", lambda: None)
    looks = 0

    def look() -> None:
        nonlocal looks
        wire: Any = SimpleNamespace(send=lambda _frame, _flags: None)
        kernel.link._connection = _Connection(None, wire)  # type: ignore[arg-type]
        kernel.link._conversation.stream.begin()
        welcome = to_json({"seen": [0, 0], "begin": [0, 0]})
        kernel.link._on_welcome(encode_message(FrameHeader(MessageType.WELCOME), welcome))
        assert kernel.link.state is LinkState.UP
        assert bool(kernel.link.pacer) == is_under_server
        check(kernel, may_stay_unset=OF_THE_PROXY)
        looks += 1
        kernel.link._connection = None

    monkeypatch.setattr(kernel.reactor, "run", look)
    kernel.run()
    assert looks == 1
    kernel.link.close()
    kernel.reactor.close()


def test_all_are_told_in_an_evaluator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is once it runs, has a kernel, and a proxy has come in."""
    folder = tmp_path / "7f3a9c"
    folder.mkdir(mode=0o700)
    reactor, session = Reactor(), Session(folder)
    journal = Journal(folder / "journal", reactor.call_soon_threadsafe)
    journal.open()
    door = Listener(reactor, session, journal)
    journal.lowest_acked = door.lowest_acked
    public, secret = zmq.curve_keypair()
    door.open(secret, public)
    for name in ("signal", "pthread_sigmask"):
        monkeypatch.setattr(signal, name, lambda *_: None)
    monkeypatch.setattr(KernelProcess, "start", lambda _self, **_: None)
    monkeypatch.setattr(reactor, "wake_on_signals", lambda: None)
    supervisor = Supervisor(door, {}, umask=0o077)
    looks = 0

    def look() -> None:
        nonlocal looks
        assert supervisor.kernel is not None
        monkeypatch.setattr(door, "_send", lambda _identity, _frame: None)
        door._handshake(
            b"me",
            encode_message(
                FrameHeader(MessageType.HELLO), to_json({"front": "ab" * 8, "seen": None})
            ),
        )
        check(supervisor, reactor, may_stay_unset=OF_AN_EVALUATOR)
        looks += 1
        supervisor.kernel.close()

    monkeypatch.setattr(reactor, "run", look)
    supervisor.run()
    assert looks == 1
    reactor.close()


def test_all_are_told_in_a_keeper() -> None:
    """It calls back by threads and queues, but for what is told of a login that is being made."""
    near, far = Pipe()
    with near, far:
        check(KeeperServer(), ConnectedClient(near), may_stay_unset=OF_A_KEEPER)
