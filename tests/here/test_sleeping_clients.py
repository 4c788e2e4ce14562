"""A client that is stopped: what waits for it is bounded, and nobody else waits for it for ever."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from remoter_kernel.local.proxy import sockets
from remoter_kernel.local.proxy.sockets import PORTS, Sockets
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1024 * 1024
WITHIN = 30.0  # seconds
SIZE = 64 * 1024  # bytes of one output
LISTEN = """
import json, sys, zmq
context = zmq.Context()
handle = context.socket(zmq.SUB)
handle.subscribe(b"")
handle.connect(sys.argv[1])
while True:
    content = json.loads(handle.recv_multipart()[6])
    if "subscription" in content:
        print("here", flush=True)
    elif "text" in content:
        print(content["text"].strip(), flush=True)
    else:
        print(content["number"], flush=True)
    if content.get("number") == -1:
        break
handle.close()
context.term()
"""
ASK = """
import json, sys, zmq
context = zmq.Context()
handle = context.socket(zmq.DEALER)
handle.connect(sys.argv[1])
handle.send_multipart([b"<IDS|MSG>", b"", b"{}", b"{}", b"{}", b"{}"])
while True:
    content = json.loads(handle.recv_multipart()[5])
    print(content["number"], flush=True)
    if content["number"] == -1:
        break
handle.close()
context.term()
"""


class Client:
    """A client in a process of its own, that can be stopped."""

    def __init__(self, code: str, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True
        )

    def stop(self) -> None:
        """Suspend it, and wait until it is."""
        os.kill(self.process.pid, signal.SIGSTOP)
        until = time.monotonic() + WITHIN
        while psutil.Process(self.process.pid).status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < until

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def first(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def heard(self) -> list[str]:
        """Wait until it has heard the last number, and return what it has heard."""
        said, _ = self.process.communicate(timeout=WITHIN)
        return said.split("\n")[:-1]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=WITHIN)


class Ground:
    """Jupyter's sockets, and clients of them."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        holders = [socket.create_server(("127.0.0.1", 0)) for _ in (*PORTS, "hb_port")]
        ports = [each.getsockname()[1] for each in holders]
        for each in holders:
            each.close()
        names = [*PORTS.values(), "hb_port"]
        about: dict[str, Any] = dict(zip(names, ports, strict=True))
        self.about = {**about, "transport": "tcp", "ip": "127.0.0.1", "key": ""}
        self.sockets = Sockets(self.reactor, self.about)
        self.asked: list[list[bytes]] = []
        self.sockets.on_request = lambda _channel, identities, _parts: self.asked.append(identities)
        self.sockets.bind()
        self.clients: list[Client] = []

    def listen(self) -> Client:
        """Start a client that listens to all, and wait until it does."""
        client = Client(LISTEN, f"tcp://127.0.0.1:{self.about['iopub_port']}")
        self.clients.append(client)
        before = self.sockets._publisher.subscribers
        self.wait_for(lambda: self.sockets._publisher.subscribers > before)
        return client

    def ask(self) -> Client:
        """Start a client that asks something, and wait until that has come."""
        client = Client(ASK, f"tcp://127.0.0.1:{self.about['shell_port']}")
        self.clients.append(client)
        before = len(self.asked)
        self.wait_for(lambda: len(self.asked) > before)
        return client

    def wait_for(self, fact: Callable[[], bool], seconds: float = WITHIN) -> None:
        self.reactor.run_until(fact, time.monotonic() + seconds)
        assert fact()

    def publish(self, number: int, size: int = SIZE) -> None:
        content = {"number": number, "data": "x" * size}
        parent = {"msg_id": "cell", "msg_type": "execute_request"}
        self.sockets.publish(self.sockets.voice.compose("display_data", content, parent))

    def publish_while_there_is_room(self, count: int, begin: int = 0) -> int:
        """Say up to so many more things, as long as they are taken; return how many were."""
        for number in range(begin, begin + count):
            until = time.monotonic() + 0.5
            self.reactor.run_until(self.sockets.has_room, until)
            if not self.sockets.has_room():
                return number - begin
            self.publish(number)
        return count

    def close(self) -> None:
        for client in self.clients:
            client.end()
        self.sockets.close()
        self.reactor.close()


@pytest.fixture
def ground() -> Iterator[Ground]:
    ground = Ground()
    yield ground
    ground.close()


def test_what_waits_for_a_client_that_is_stopped_is_bounded_and_it_misses_nothing(
    ground: Ground,
) -> None:
    """However much there is to say: the rest stays where it is until the client goes on."""
    client = ground.listen()
    assert client.first() == "here"
    client.stop()
    process = psutil.Process()
    before = process.memory_info().rss
    count = 4096  # a quarter of a GiB
    said = ground.publish_while_there_is_room(count)
    assert said * SIZE < 32 * MIB
    assert process.memory_info().rss - before < 64 * MIB
    client.go_on()
    while said < count:
        said += ground.publish_while_there_is_room(count - said, said)
    ground.publish(-1)
    ground.wait_for(ground.sockets.has_room)
    assert client.heard() == [*map(str, range(count)), "-1"]
    assert process.memory_info().rss - before < 64 * MIB


def test_a_client_that_is_stopped_holds_up_another_for_a_while_and_is_told(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other one has all, in order; what the stopped one finds ends with a note of the gap."""
    monkeypatch.setattr(sockets, "STALLED_AFTER", 0.3)
    sleeper, awake = ground.listen(), ground.listen()
    assert sleeper.first() == awake.first() == "here"
    sleeper.stop()
    count = 2000
    said = 0
    until = time.monotonic() + WITHIN
    while said < count:
        assert time.monotonic() < until
        said += ground.publish_while_there_is_room(count - said, said)
    assert capsys.readouterr().err.count("takes nothing") == 1
    sleeper.go_on()
    more = count
    while sleeper.process.poll() is None:
        assert time.monotonic() < until
        ground.publish(more, size=10)
        more += 1
        ground.publish(-1, size=10)
        ground.wait_for(ground.sockets.has_room)
    heard = [line for line in awake.heard() if line.isdigit()]
    assert heard[:count] == [*map(str, range(count))]
    found = [line for line in sleeper.heard() if line != "here"]
    gap = next(place for place, line in enumerate(found) if line.startswith("[remoter]"))
    assert found[:gap] == [*map(str, range(gap))]
    assert gap < count
    assert "takes nothing" in found[gap]
    assert found[-1] == "-1"


def test_a_client_that_ends_while_it_is_stopped_holds_up_nothing(ground: Ground) -> None:
    """What waited for it goes with it."""
    client = ground.listen()
    client.first()
    client.stop()
    assert ground.publish_while_there_is_room(4096) < 4096
    client.end()
    ground.wait_for(ground.sockets.has_room)
    assert ground.publish_while_there_is_room(100) == 100


def test_replies_wait_for_the_one_who_asked_alone(ground: Ground) -> None:
    """Another client has its own at once; who was stopped has all when it goes on, in order."""
    sleeper, awake = ground.ask(), ground.ask()
    one, other = (identities for identities in ground.asked)
    sleeper.stop()

    def reply(identities: list[bytes], number: int) -> None:
        content = {"number": number, "data": "x" * SIZE}
        parts = ground.sockets.voice.compose("x_reply", content)
        ground.sockets.reply(Channel.SHELL, identities, parts)

    for number in range(500):
        reply(one, number)
    assert ground.sockets._repliers[Channel.SHELL]._waiting
    reply(other, 7)
    reply(other, -1)
    assert awake.heard() == ["7", "-1"]
    sleeper.go_on()
    reply(one, -1)
    ground.wait_for(lambda: not ground.sockets._repliers[Channel.SHELL]._waiting)
    assert sleeper.heard() == [*map(str, range(500)), "-1"]


def test_replies_that_nobody_takes_are_bounded(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The oldest go, which the log tells; a client that has ended has none."""
    monkeypatch.setattr(sockets, "MOST_WAITING", 4 * MIB)
    sleeper = ground.ask()
    sleeper.stop()
    parts = ground.sockets.voice.compose("x_reply", {"number": 1, "data": "x" * SIZE})
    replier = ground.sockets._repliers[Channel.SHELL]
    for _ in range(1000):
        ground.sockets.reply(Channel.SHELL, ground.asked[0], parts)
    assert sum(queue.size for queue in replier._waiting.values()) <= 4 * MIB
    assert "takes no replies" in capsys.readouterr().err
    sleeper.end()
    ground.wait_for(lambda: not replier._waiting)
