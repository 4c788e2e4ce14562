"""Whoever is at the other end cannot make this side grow: what is held has a bound everywhere."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import zmq

from remoter_kernel.errors import ProtocolError
from remoter_kernel.local.history.remote_query import LARGEST_ANSWER, JournalReader
from remoter_kernel.protocol.frames import (
    Channel,
    FrameHeader,
    MessageType,
    decode_messages,
    encode_message,
    pack_parts,
    to_json,
)
from remoter_kernel.protocol.journal_entries import JournalEntry, encode_entry

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1024 * 1024
GROWTH = 64 * MIB  # what an attack of several hundred MiB may cost
VICTIM = Path(__file__).with_name("victim.py")
WITHIN = 90.0  # seconds


class Hostile:
    """Greets as an evaluator does, by the real wire, and then sends what it likes."""

    def __init__(self) -> None:
        self.credit = 0
        self.public, self._secret = zmq.curve_keypair()

    def __enter__(self) -> Self:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.sndhwm = 8
        self.socket.router_mandatory = True
        self.socket.curve_server = True
        self.socket.curve_secretkey = self._secret
        self.socket.curve_publickey = self.public
        self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self._context.term()

    def meet(self, victim: subprocess.Popen[str]) -> None:
        """Wait for somebody, and greet them."""
        self.victim = victim
        assert self.socket.poll(int(WITHIN * 1000))
        self._who, _hello = self.socket.recv_multipart()
        words = {"seen": [0, 0], "begin": [0, 0], "id": "evil"}
        self.send(encode_message(FrameHeader(MessageType.WELCOME), to_json(words)))

    def send(self, *frames: bytes, copy: bool = True) -> bool:
        """Send a message; return whether there is still somebody who takes it."""
        while self.victim.poll() is None:
            with contextlib.suppress(zmq.Again):
                try:
                    self.socket.send_multipart([self._who, *frames], zmq.NOBLOCK, copy=copy)
                except zmq.ZMQError as error:
                    if error.errno == zmq.EHOSTUNREACH:
                        return False
                    raise
                return True
            time.sleep(0.001)  # its queue is full
        return False

    def hear(self) -> None:
        """Take in what is said, for its credit."""
        while self.socket.poll(0):
            _, frame = self.socket.recv_multipart()
            for head, _body in decode_messages(frame):
                self.credit = max(self.credit, head.credit)


def attacked(attack: Callable[[Hostile], None], most_item: int = 0) -> dict[str, Any]:
    """Return how a link went that met such an evaluator."""
    with Hostile() as hostile:
        keys = [key.decode() for key in (hostile.public, *zmq.curve_keypair())]
        address = f"tcp://127.0.0.1:{hostile.port}"
        with _victim(address, keys, most_item) as victim:
            hostile.meet(victim)
            attack(hostile)
            said, _ = victim.communicate(timeout=WITHIN)
    words: dict[str, Any] = json.loads(said)
    return words


def _victim(address: str, keys: list[str], most_item: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(VICTIM), address, *keys, str(most_item)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def part(begin: int, size: int, number: int = 1) -> bytes:
    """A slice of an item that has no end."""
    return encode_message(
        FrameHeader(MessageType.PART, Channel.IOPUB, number, 0, offset=begin), bytes(size)
    )


def test_one_frame_of_great_size() -> None:
    """The evaluator sends one frame of 256 MiB; what reads it would have to hold all of it."""

    def attack(hostile: Hostile) -> None:
        hostile.send(bytes(256 * MIB), copy=False)

    went = attacked(attack)
    assert went["grown"] < GROWTH
    assert went["errors"] == ["The connection was cut."]


def test_an_item_without_end() -> None:
    """The evaluator sends slices of one item for ever, and only as fast as it has credit."""

    def attack(hostile: Hostile) -> None:
        begin = 0
        while begin < 512 * MIB and hostile.victim.poll() is None:
            hostile.hear()
            if begin < hostile.credit:
                if not hostile.send(part(begin, 65536)):
                    return
                begin += 65536

    went = attacked(attack, most_item=24 * MIB)
    assert went["grown"] < 2 * GROWTH
    assert went["state"] == "failed"
    assert "sent more than 25 MB as one message" in went["errors"][0]


def test_more_than_there_is_credit_for() -> None:
    """Whoever hears this side takes nothing for now, and the evaluator sends all the same."""
    parts = pack_parts([b"", b"{}", b"{}", b"{}", bytes(60_000)])

    def attack(hostile: Hostile) -> None:
        for number in range(1, 8192):
            head = FrameHeader(MessageType.ITEM, Channel.IOPUB, number, number - 1)
            if not hostile.send(encode_message(head, parts)):
                return

    went = attacked(attack)
    assert went["grown"] < GROWTH
    assert went["state"] == "failed"
    assert "more than it was given credit for" in went["errors"][0]


def test_slices_of_one_byte_in_large_frames() -> None:
    """Each slice has one byte, and keeps alive the frame of 60 kB in which it came."""
    filler = encode_message(FrameHeader(MessageType.PONG), bytes(60_000))

    def attack(hostile: Hostile) -> None:
        for count in range(6000):
            if not hostile.send(part(count, 1) + filler):
                return
        hostile.send(part(0, 1, number=7))  # of another item: this ends it

    went = attacked(attack)
    assert went["grown"] < GROWTH
    assert "came after byte 6000 of item 1" in went["errors"][0]


def test_a_message_of_frames_without_end() -> None:
    """A message of many frames is held until its last one comes, which never does.

    Who does that does not use libzmq, so it speaks ZMTP (RFC 23) by hand here.
    """
    words = {"seen": [0, 0], "begin": [0, 0], "id": "evil"}
    welcome = encode_message(FrameHeader(MessageType.WELCOME), to_json(words))
    frame = b"\x03" + struct.pack("!Q", MIB // 2) + bytes(MIB // 2)  # there is more to come
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        _victim(f"tcp://127.0.0.1:{server.getsockname()[1]}", ["", "", ""], 0) as victim,
    ):
        wire = _greeted(server)
        with wire, contextlib.suppress(OSError):
            wire.sendall(b"\x02" + struct.pack("!Q", len(welcome)) + welcome)
            for _ in range(4096):
                wire.sendall(frame)
                time.sleep(0.004)  # 1 Gbit/s
        said, _ = victim.communicate(timeout=WITHIN)
    went = json.loads(said)
    assert "Nothing was heard" in went["errors"][0]
    assert went["grown"] < 8 * GROWTH


def _greeted(server: socket.socket) -> socket.socket:
    """Take the first who says HELLO: others of this machine may look what listens here."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER"
    while True:
        wire, _ = server.accept()
        wire.settimeout(10)
        with contextlib.suppress(OSError):
            wire.sendall(greeting)
            heard = b""
            while more := wire.recv(4096):
                if not heard:
                    wire.sendall(b"\x04" + bytes([len(ready)]) + ready)
                heard += more
                if b"front" in heard:
                    wire.settimeout(None)
                    return wire
        wire.close()


def test_pings_whose_pongs_nobody_takes() -> None:
    """Each ping makes this side say something, and the other end reads nothing of it."""
    pings = encode_message(FrameHeader(MessageType.PING)) * 900

    def attack(hostile: Hostile) -> None:
        for _ in range(1200):
            if not hostile.send(pings):
                return
        hostile.send(b"that is all")

    went = attacked(attack)
    assert went["grown"] < GROWTH


# --- what a journal tells ---


def answers(*data: bytes, journal: Any = 5000) -> Callable[[dict[str, Any]], Any]:
    """What a remote answers, one after the other; then there is nothing more."""
    left = list(data)

    def ask(_words: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        said = left.pop(0) if left else b""
        about = {"id": "7f3a9c", "journal": journal, "why": ""}
        told = {"session": about, "is_over": True, "bytes": len(said), "place": None, "tails": {}}
        return told, said

    return ask


def record(size: int, body: bytes = b"", number: int = 1) -> bytes:
    """A record that claims a size."""
    said = bytearray(encode_entry(JournalEntry(number, 0.0, Channel.IOPUB, False, bytes(8), body)))
    said[-len(body) - 8 : len(said) - len(body)] = struct.pack("!Q", size)
    return bytes(said)


@pytest.mark.parametrize("journal", [5000, 2**60, "many", None, -1])
def test_a_record_that_claims_more_than_its_journal_has(journal: Any) -> None:
    """The remote promises 2^60 bytes and sends 16 MiB of them again and again."""
    asked = answers(record(2**60, bytes(1000)), *[bytes(1000)] * 50, journal=journal)
    with pytest.raises(ProtocolError, match="claims 1,152,921,504,606,846,976 bytes"):
        list(JournalReader(asked, "7f3a9c"))


def test_an_answer_that_is_larger_than_any() -> None:
    """One answer has more than the program there would ever give."""
    with pytest.raises(ProtocolError, match="An answer of"):
        list(JournalReader(answers(bytes(LARGEST_ANSWER + 1)), "7f3a9c"))


def test_more_records_than_are_kept_in_memory() -> None:
    """The records are honest, and do not end; who keeps them all stops, and says what helps."""
    asked = answers(*[record(100, bytes(100), n) for n in range(1, 100)])
    with pytest.raises(ProtocolError, match="`remoter outputs 7f3a9c` shows all of it"):
        list(JournalReader(asked, "7f3a9c", most=2000))
    said = list(JournalReader(answers(record(100, bytes(100))), "7f3a9c", most=2000))
    assert [len(each.body) for each in said] == [100]
