"""At the evaluator's port: a client that sends too much loses its connection, and no other does."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, Self

import pytest
import zmq

from remoter_kernel.evaluator.journal import Journal
from remoter_kernel.evaluator.listener import Listener
from remoter_kernel.protocol.frames import (
    MOST_FRAME,
    Channel,
    FrameHeader,
    Lane,
    MessageType,
    decode_messages,
    encode_message,
    from_json,
    pack_parts,
    to_json,
)
from remoter_kernel.protocol.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WITHIN = 20_000  # milliseconds


class AnySession:
    """Lets everybody in."""

    id = "7f3a9c"

    def is_authorized(self, _key: bytes) -> bool:
        return True

    def authorized_keys(self) -> set[bytes]:
        return set()


class Behind:
    """A door in a thread of its own, and the way to it."""

    def __init__(self, folder: Path) -> None:
        self.reactor = Reactor()
        self.journal = Journal(folder / "journal", self.reactor.call_soon_threadsafe)
        self.journal.open()
        self.door = Listener(self.reactor, AnySession(), self.journal)  # type: ignore[arg-type]
        self.door.on_item = self._keep
        self.server_key, secret = zmq.curve_keypair()
        self.port = self.door.open(secret, self.server_key)
        self.items: list[bytes] = []
        self.reactor.after_pass = self.door.flush_soon
        self._thread = threading.Thread(target=self.reactor.run)
        self._thread.start()

    def _keep(self, guest: Any, head: FrameHeader, body: Any) -> None:
        if head.number < 1000:  # what comes later is kept by nobody for now
            guest.stream.ack(Lane.BULK, head.number, len(body))
            self.items.append(bytes(body))

    def publish(self, size: int) -> None:
        body = pack_parts([b"", b"{}", b"{}", b"{}", bytes(size)])

        def append() -> None:
            self.journal.append(Channel.IOPUB, body)

        self.reactor.call_soon_threadsafe(append)

    def close(self) -> None:
        self.reactor.call_soon_threadsafe(self.reactor.stop)
        self._thread.join()
        self.journal.close()
        self.door.close("It is over.")
        self.reactor.close()


class Client:
    """One client's connection."""

    def __init__(self, behind: Behind, name: str) -> None:
        self._behind, self._name = behind, name

    def __enter__(self) -> Self:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.reconnect_ivl = -1
        self.socket.sndtimeo = 2000
        self.socket.curve_publickey, self.socket.curve_secretkey = zmq.curve_keypair()
        self.socket.curve_serverkey = self._behind.server_key
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.socket.connect(f"tcp://127.0.0.1:{self._behind.port}")
        self.socket.send(
            encode_message(
                FrameHeader(MessageType.HELLO), to_json({"front": self._name, "seen": None})
            )
        )
        assert self.hear(MessageType.WELCOME) is not None
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()
        self._context.term()

    def hear(self, kind: MessageType) -> bytes | None:
        """Wait for a saying of one kind, and return its body."""
        while self.socket.poll(WITHIN):
            for head, body in decode_messages(self.socket.recv()):
                if head.type is kind:
                    return bytes(body)
        return None

    def say(self, body: bytes, number: int = 1) -> None:
        head = FrameHeader(MessageType.ITEM, Channel.SHELL, number, 0, credit=1 << 20)
        with contextlib.suppress(zmq.Again):
            self.socket.send(encode_message(head, body))


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Behind]:
    behind = Behind(tmp_path)
    yield behind
    behind.close()


def test_a_frame_of_great_size_ends_its_own_connection(behind: Behind) -> None:
    """A client sends a frame beyond the largest; another one is heard as before."""
    with Client(behind, "aa" * 8) as honest, Client(behind, "bb" * 8) as hostile:
        with contextlib.suppress(zmq.Again):
            hostile.socket.send(bytes(MOST_FRAME + 1))
        assert hostile.monitor.poll(WITHIN)
        honest.say(b"honest")
        assert honest.hear(MessageType.ACK) is not None
        while b"honest" not in behind.items:
            assert honest.hear(MessageType.ACK) is not None


def test_more_than_there_is_credit_for_ends_its_own_connection(behind: Behind) -> None:
    """A client sends without credit what nobody keeps; it is told why that is the end."""
    with Client(behind, "aa" * 8) as honest, Client(behind, "bb" * 8) as hostile:
        for number in range(1000, 1050):
            hostile.say(bytes(60_000), number)
        said = hostile.hear(MessageType.BYE)
        assert said is not None
        assert "more than it was given credit for" in from_json(said)["why"]
        honest.say(b"honest")
        while b"honest" not in behind.items:
            assert honest.hear(MessageType.ACK) is not None


def test_a_client_that_reads_slowly_gets_all_of_it(behind: Behind) -> None:
    """What is published meanwhile waits as far as its credit goes, and arrives."""
    with Client(behind, "aa" * 8) as slow:
        slow.socket.send(encode_message(FrameHeader(MessageType.ACK, credit=1 << 30)))
        for _ in range(600):
            behind.publish(50_000)
        bodies = 0
        while bodies < 600:
            assert slow.socket.poll(WITHIN)
            for head, _ in decode_messages(slow.socket.recv()):
                bodies += head.type is MessageType.ITEM
                if head.type is MessageType.PING:
                    slow.socket.send(encode_message(FrameHeader(MessageType.PONG)))
