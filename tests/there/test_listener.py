"""At the evaluator's port: strangers, garbage, truncated and replayed frames harm nobody.

A running session with a front of its own stands behind the door in each test, and goes on.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from remoter_kernel.local.config.remotes import find_remote
from remoter_kernel.local.launch.launcher import SessionRequest
from remoter_kernel.local.proxy.sockets import key_fingerprint
from remoter_kernel.local.session.dialer import SessionDialer
from remoter_kernel.protocol.frames import (
    Channel,
    FrameHeader,
    MessageType,
    decode_messages,
    encode_message,
    from_json,
    pack_parts,
    to_json,
)
from remoter_kernel.protocol.messages import MessageSigner
from tests.real_jupyter import started_kernel
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

ANSWER_WITHIN = 5.0  # seconds
SILENCE = 0.5  # seconds in which somebody who is not let in hears nothing


@dataclass(frozen=True)
class Behind:
    """A running session: its own proxy's conversation, and what a login tells of its door."""

    talk: Talk
    port: int
    server_key: bytes
    public_key: bytes
    secret_key: bytes

    def goes_on(self) -> bool:
        """Does the session's own proxy still have its variables and its kernel?"""
        said = self.talk.case(lambda talk: talk.run("(witness, os.getpid() == pid)"))
        shown = [m for m in said["iopub under request 0"] if m["type"] == "execute_result"]
        return bool(shown) and shown[0]["content"]["data"]["text/plain"] == "('here', True)"


@pytest.fixture(scope="module")
def behind(here: JupyterHere, far: FarSide, python_remote: dict[str, Any]) -> Iterator[Behind]:
    """A session with variables, and a second login that was given its address and keys."""
    with started_kernel(here.add_remote("door", **python_remote)) as kernel:
        talk = Talk(kernel.client)
        talk.case(lambda talk: talk.run("import os; witness = 'here'; pid = os.getpid(); runs = 0"))
        dialer = SessionDialer(partial(find_remote, "door"))
        dialer.session_request = SessionRequest(
            client_key="", kernel_id=key_fingerprint(kernel.client.session.key.decode())
        )
        line = dialer.dial()
        try:
            assert dialer.session_info is not None
            assert dialer.session_info.is_joined
            yield Behind(
                talk,
                dialer.session_info.port,
                line.server_key,
                line.public_key,
                line.secret_key,
            )
        finally:
            line.close()


class Knock:
    """One ZeroMQ connection to the door, straight to its port."""

    def __init__(self, behind: Behind, **keys: bytes | None) -> None:
        self.keys = {
            "curve_serverkey": behind.server_key,
            "curve_publickey": behind.public_key,
            "curve_secretkey": behind.secret_key,
            **keys,
        }
        self.endpoint = f"tcp://127.0.0.1:{behind.port}"
        self.events: list[int] = []

    def __enter__(self) -> Self:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.reconnect_ivl = -1
        for name, key in self.keys.items():
            if key is not None:
                setattr(self.socket, name, key)
        self.monitor = self.socket.get_monitor_socket()
        self.socket.connect(self.endpoint)
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()
        self.context.term()

    def send(self, *frames: bytes) -> None:
        """Send frames as one message, unless the peer is gone."""
        with contextlib.suppress(zmq.Again):
            self.socket.send_multipart(frames, zmq.NOBLOCK)

    def hear(self, *, seconds: float = ANSWER_WITHIN) -> list[tuple[FrameHeader, bytes]]:
        """Return what the next message says; nothing if none comes."""
        if not self.socket.poll(int(seconds * 1000)):
            return []
        return [(head, bytes(body)) for head, body in decode_messages(self.socket.recv())]

    def hear_of(self, kind: MessageType, *, seconds: float = ANSWER_WITHIN) -> bytes | None:
        """Wait for a saying of one kind and return its body; None if it does not come."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for head, body in self.hear(seconds=left):
                if head.type is kind:
                    return body
        return None

    def wait_for_event(self, event: int) -> bool:
        """Wait for an event of the connection."""
        until = time.monotonic() + ANSWER_WITHIN
        while (left := until - time.monotonic()) > 0:
            if self.monitor.poll(int(left * 1000)):
                self.events.append(int(recv_monitor_message(self.monitor)["event"]))
                if self.events[-1] == event:
                    return True
        return False

    def greet(self, front: str | None = None, seen: list[int] | None = None) -> dict[str, Any]:
        """Say HELLO as a proxy does and return the WELCOME."""
        self.send(hello(front, seen))
        body = self.hear_of(MessageType.WELCOME)
        assert body is not None
        return from_json(body)


def hello(front: str | None = None, seen: list[int] | None = None) -> bytes:
    """A proxy's first frame."""
    words = {"front": front or random.randbytes(8).hex(), "seen": seen}
    return encode_message(FrameHeader(MessageType.HELLO), to_json(words))


def cell(number: int, code: str, previous: int = 0) -> bytes:
    """A numbered execute_request."""
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    parts = MessageSigner(b"").compose("execute_request", content)
    return encode_message(
        FrameHeader(MessageType.ITEM, Channel.SHELL, number, previous), pack_parts(parts)
    )


def runs(behind: Behind) -> int:
    """How often has `runs += 1` run?"""
    said = behind.talk.case(lambda talk: talk.run("runs"))
    (shown,) = [m for m in said["iopub under request 0"] if m["type"] == "execute_result"]
    return int(shown["content"]["data"]["text/plain"])


# --- who is not let in ---


def test_a_stranger_with_the_right_server_key_is_refused(behind: Behind) -> None:
    """A client key that no login registered is refused by ZAP, whatever else is right."""
    public, secret = zmq.curve_keypair()
    with Knock(behind, curve_publickey=public, curve_secretkey=secret) as knock:
        assert knock.wait_for_event(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        knock.send(hello())
        assert knock.hear(seconds=SILENCE) == []
    assert behind.goes_on()


def test_a_stolen_public_key_is_not_enough(behind: Behind) -> None:
    """A registered public key without its secret key opens nothing."""
    _, secret = zmq.curve_keypair()
    with Knock(behind, curve_secretkey=secret) as knock:
        knock.send(hello())
        assert knock.hear(seconds=SILENCE) == []
    assert behind.goes_on()


def test_without_curve_nobody_is_heard(behind: Behind) -> None:
    """A peer that does not encrypt is not answered."""
    nothing = dict.fromkeys(("curve_serverkey", "curve_publickey", "curve_secretkey"))
    with Knock(behind, **nothing) as knock:
        knock.send(hello())
        assert knock.hear(seconds=SILENCE) == []
    assert behind.goes_on()


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n",
        bytes(1000),
        b"\xff" * 1000,
        # ZMTP 3.1 with CURVE, then a command that claims 2**63 - 1 bytes.
        b"\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE".ljust(64, b"\0")
        + b"\6"
        + struct.pack("!q", 2**63 - 1),
    ],
)
def test_noise_on_the_port(behind: Behind, noise: bytes) -> None:
    """Bytes of other protocols at the port are nobody's message."""
    with socket.create_connection(("127.0.0.1", behind.port), timeout=5) as raw:
        raw.sendall(noise)
        raw.settimeout(SILENCE)
        with contextlib.suppress(OSError):
            while raw.recv(4096):
                pass
    assert behind.goes_on()


# --- who is let in and does not make sense ---

BAD_GREETINGS = {
    "nothing": b"",
    "random bytes": random.Random(1).randbytes(500),
    "half a head": hello()[:30],
    "half a body": hello()[:-5],
    "another protocol": b"rk\x63" + hello()[3:],
    "another kind": b"rk\x01\x63" + hello()[4:],
    "another channel": b"rk\x01\x01\x63" + hello()[5:],
    "an item before the greeting": cell(1, "runs += 1"),
    "a welcome from the wrong side": encode_message(FrameHeader(MessageType.WELCOME), b"{}"),
    "no JSON": encode_message(FrameHeader(MessageType.HELLO), b"\xff\xfe"),
    "JSON that is no object": encode_message(FrameHeader(MessageType.HELLO), b"[1]"),
    "JSON without words": encode_message(FrameHeader(MessageType.HELLO), b"{}"),
    "deep JSON": encode_message(FrameHeader(MessageType.HELLO), b"[" * 100_000),
    "a name too long": encode_message(
        FrameHeader(MessageType.HELLO), to_json({"front": "ab" * 99, "seen": None})
    ),
    "a name that is no name": encode_message(
        FrameHeader(MessageType.HELLO), to_json({"front": "../x", "seen": None})
    ),
    "a name of another type": encode_message(
        FrameHeader(MessageType.HELLO), to_json({"front": 5, "seen": None})
    ),
    "seen what is not": encode_message(
        FrameHeader(MessageType.HELLO), to_json({"front": "ab" * 8, "seen": [2**70, 1]})
    ),
    "seen less than nothing": encode_message(
        FrameHeader(MessageType.HELLO), to_json({"front": "ac" * 8, "seen": [-5, -5]})
    ),
    "seen words": encode_message(
        FrameHeader(MessageType.HELLO), to_json({"front": "ad" * 8, "seen": ["x", {}]})
    ),
    "seen too few": encode_message(
        FrameHeader(MessageType.HELLO), to_json({"front": "ae" * 8, "seen": [1]})
    ),
}


@pytest.mark.parametrize("name", BAD_GREETINGS)
def test_a_greeting_that_makes_no_sense(behind: Behind, name: str) -> None:
    """A proxy whose first frame is malformed is told why, and the session goes on."""
    with Knock(behind) as knock:
        knock.send(BAD_GREETINGS[name])
        body = knock.hear_of(MessageType.BYE)
        assert body is not None
        assert from_json(body)["why"]
    assert behind.goes_on()


def test_a_message_of_many_frames(behind: Behind) -> None:
    """Our messages have one frame; one with more is malformed."""
    with Knock(behind) as knock:
        knock.send(hello(), b"more")
        assert knock.hear_of(MessageType.BYE) is not None
    assert behind.goes_on()


def item(body: bytes, number: int = 1, previous: int = 0, **more: int) -> bytes:
    """An item of any content on the shell channel."""
    return encode_message(
        FrameHeader(MessageType.ITEM, Channel.SHELL, number, previous, **more), body
    )


VALID = MessageSigner(b"").compose("execute_request", {"code": "runs += 1"})
BAD_ITEMS = {
    "random bytes": random.Random(2).randbytes(500),
    "nothing": b"",
    "half an item": cell(1, "runs += 1")[:-3],
    "a second greeting": hello(),
    "an item after a gap": cell(9, "runs += 1", previous=8),
    "no parts": item(pack_parts([])),
    "too few parts": item(pack_parts([b"", b"{}"])),
    "a body that is too short": item(b"\0"),
    "a count that is a lie": item(b"\xff\xff\xff\xff"),
    "a length that is a lie": item(struct.pack("!IQ", 1, 2**60) + b"x"),
    "a header that is no JSON": item(pack_parts([b"", b"\xff", *VALID[2:]])),
    "a header that is a list": item(pack_parts([b"", b"[]", *VALID[2:]])),
    "a header that is deep": item(pack_parts([b"", b"[" * 100_000, *VALID[2:]])),
    "an order that is none": encode_message(
        FrameHeader(MessageType.ITEM, Channel.COMMAND, 1),
        pack_parts([to_json({"order": "self-destruct"})]),
    ),
    "an order that is no JSON": encode_message(
        FrameHeader(MessageType.ITEM, Channel.COMMAND, 1), pack_parts([b"\xff"])
    ),
    "an order without words": encode_message(
        FrameHeader(MessageType.ITEM, Channel.COMMAND, 1), pack_parts([])
    ),
}


@pytest.mark.parametrize("name", BAD_ITEMS)
def test_an_item_that_makes_no_sense(behind: Behind, name: str) -> None:
    """After a good greeting a malformed frame ends that wire with a reason, nothing else."""
    before = runs(behind)
    with Knock(behind) as knock:
        knock.greet()
        knock.send(BAD_ITEMS[name])
        body = knock.hear_of(MessageType.BYE)
        assert body is not None
        assert from_json(body)["why"]
    assert behind.goes_on()
    assert runs(behind) == before


HARMLESS = {
    "an item without a number": cell(0, "runs += 1"),
    "kept what was never said": encode_message(
        FrameHeader(MessageType.ACK, acked_bulk=2**60, acked_urgent=2**60)
    ),
    "credit without end": encode_message(FrameHeader(MessageType.ACK, credit=2**64 - 1)),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_numbers_that_are_lies_harm_the_liar_alone(behind: Behind, name: str) -> None:
    """What claims a wrong past is not run, and the conversation goes on."""
    before = runs(behind)
    with Knock(behind) as knock:
        knock.greet()
        knock.send(HARMLESS[name])
        knock.send(encode_message(FrameHeader(MessageType.PING)))
        assert knock.hear_of(MessageType.PONG) is not None
    assert behind.goes_on()
    assert runs(behind) == before


def test_a_replayed_item_runs_once(behind: Behind) -> None:
    """The same numbered request, again on its wire and again on the next, runs once."""
    before = runs(behind)
    front = random.randbytes(8).hex()
    frame = cell(1, "runs += 1")
    with Knock(behind) as knock:
        knock.greet(front)
        knock.send(encode_message(FrameHeader(MessageType.ACK, credit=10**6)))
        knock.send(frame)
        knock.send(frame)
        assert knock.hear_of(MessageType.ITEM) is not None
    with Knock(behind) as knock:
        knock.greet(front, [0, 0])
        knock.send(frame)
        knock.hear_of(MessageType.ITEM, seconds=SILENCE)
    assert behind.goes_on()
    assert runs(behind) == before + 1


def test_two_fronts_of_one_name(behind: Behind) -> None:
    """The second takes the place of the first, which hears so; nobody else is touched."""
    front = random.randbytes(8).hex()
    with Knock(behind) as first, Knock(behind) as second:
        first.greet(front)
        second.greet(front, [0, 0])
        goodbye = first.hear_of(MessageType.BYE)
        assert goodbye is not None
        assert "came in again" in from_json(goodbye)["why"]
        second.send(encode_message(FrameHeader(MessageType.PING)))
        assert second.hear_of(MessageType.PONG) is not None
    assert behind.goes_on()


@pytest.mark.parametrize("seed", range(4))
def test_frames_with_flipped_bytes(behind: Behind, seed: int) -> None:
    """Whatever single bytes of good frames are changed, the session goes on."""
    chance = random.Random(seed)
    for _ in range(40):
        with Knock(behind) as knock:
            if chance.random() < 0.7:
                knock.greet()
            for _ in range(5):
                frame = bytearray(chance.choice([hello(), cell(1, "pass"), cell(2, "pass", 1)]))
                for _ in range(chance.randrange(1, 4)):
                    frame[chance.randrange(len(frame))] = chance.randrange(256)
                knock.send(bytes(frame))
            knock.hear(seconds=0.02)
    assert behind.goes_on()
