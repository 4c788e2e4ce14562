"""Jupyter's five sockets: signatures, identities, and the welcome on iopub.

A client may be stopped for hours: a suspended console, a window of a laptop that sleeps. libzmq
keeps a few messages for each client and then takes no more. What follows waits here, and
`has_room` lets the link leave the rest of it in the session.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import zmq

from remoter_kernel.errors import ProtocolError, Usage
from remoter_kernel.protocol.frames import Bytes, Channel
from remoter_kernel.protocol.messages import CONTENT, LARGE, PARENT, TOPIC, MessageSigner, header_of
from remoter_kernel.protocol.reactor import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from remoter_kernel.protocol.reactor import Reactor, Timer

FREE_WITHIN = 5.0  # seconds in which a port of the connection file must become free
RETRY_BIND_EVERY = 0.05  # seconds
SIGNED = 2  # frames (delimiter, signature) that come between a message's topic and the rest
LINGER_MS = 500  # milliseconds in which the last messages may leave at the end
PORTS = {
    Channel.SHELL: "shell_port",
    Channel.CONTROL: "control_port",
    Channel.STDIN: "stdin_port",
    Channel.IOPUB: "iopub_port",
}

# Messages that libzmq keeps for one client, of any size: what waits here instead can be counted in
# bytes, and left out for a client that is stopped.
MOST_QUEUED = 32
MOST_WAITING = 64 * 1024 * 1024  # bytes that wait here for one client, or for all that listen
STALLED_AFTER = 20.0  # seconds that a client which takes nothing may hold up another
RETRY_FIRST, RETRY_LAST = 0.002, 0.05  # seconds from one try to the next
STALLED_NOTICE = (
    "A client of this kernel takes nothing: it may be suspended. What follows is not kept for it "
    "until it goes on; `%remoter outputs` in a cell has all of it."
)


def notice_text(*sentences: str) -> str:
    """Return lines of ours, for a cell or for Jupyter's log: each says that it is no kernel's."""
    return "".join(f"[remoter] {sentence}\n" for sentence in sentences)


class Sockets:
    """What Jupyter's clients connect to."""

    def __init__(self, reactor: Reactor, connection: dict[str, Any]) -> None:
        """`connection` is what the connection file says; `bind` begins."""
        self.reactor = reactor
        self.connection = connection
        key = str(connection.get("key", "")).encode()
        self.voice = MessageSigner(key, connection.get("signature_scheme") or "hmac-sha256")
        self.on_request: Callable[[Channel, list[bytes], list[Bytes]], None]
        self._context = zmq.Context()  # of its own: the link has another, and ends it apart
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
        self._publisher: Publisher
        self._repliers: dict[Channel, Replier] = {}
        self._heartbeat = self._context.socket(zmq.ROUTER)

    def bind(self) -> None:
        """Bind all five."""
        self._bind(self._heartbeat, "hb_port")
        self.reactor.add_reader(self._heartbeat, self._echo_heartbeat)
        for channel, port in PORTS.items():
            is_iopub = channel is Channel.IOPUB
            handle = self._context.socket(zmq.XPUB if is_iopub else zmq.ROUTER)
            handle.rcvhwm = 0  # no bound: a client that sends much is read, not blocked
            if is_iopub:
                self._publisher = Publisher(self.reactor, handle, self._make_notice)
            else:
                # A client that reconnects keeps its identity: the new connection gets replies.
                handle.router_handover = True
                self._repliers[channel] = Replier(self.reactor, handle)
            self._bind(handle, port)
            self._sockets[channel] = handle
            on_readable = partial(self._on_readable, channel)
            self.reactor.add_reader(handle, self._send_iopub_welcome if is_iopub else on_readable)

    def reply(self, channel: Channel, identities: Sequence[bytes], parts: Sequence[Bytes]) -> None:
        """Send a message to the client with these identities."""
        self._repliers[channel].send(identities, self.voice.sign(parts))

    def publish(self, parts: Sequence[Bytes]) -> None:
        """Send a message to all who listen on iopub."""
        frames = [parts[TOPIC], *self.voice.sign(parts)]
        self._publisher.send(frames, is_copied=len(parts[CONTENT]) < LARGE)

    def has_room(self) -> bool:
        """Does all who listen on iopub take what is published, as far as is known?"""
        return self._publisher.has_room

    def _make_notice(self, message: OutgoingMessage, sentence: str) -> OutgoingMessage:
        """Return a message that says a sentence where another one would be shown."""
        parent: dict[str, Any] = {}
        with contextlib.suppress(ProtocolError):  # a kernel may send any bytes as a header
            parent = header_of(message.frames[SIGNED + PARENT])
        content = {"name": "stderr", "text": notice_text(sentence)}
        parts = self.voice.compose("stream", content, parent, topic=b"kernel.stream")
        return OutgoingMessage([parts[TOPIC], *self.voice.sign(parts)], is_copied=True)

    def close(self) -> None:
        """Send what waits, for a moment, and close."""
        until = time.monotonic() + LINGER_MS / 1000
        outs: list[Publisher | Replier] = [self._publisher, *self._repliers.values()]
        for out in outs:
            while not out.drain() and time.monotonic() < until:  # the reactor runs no more timers
                time.sleep(RETRY_FIRST)
        for handle in (self._heartbeat, *self._sockets.values()):
            handle.close(linger=LINGER_MS)
        self._context.term()  # blocks until libzmq has sent, at most as long as it lingers

    def _bind(self, handle: zmq.Socket[bytes], port: str) -> None:
        about = self.connection
        # The default is for ever: a client that is stopped would keep this process.
        handle.linger = LINGER_MS
        if about.get("curve_secretkey"):
            handle.curve_server = True
            handle.curve_publickey = about["curve_publickey"].encode()
            handle.curve_secretkey = about["curve_secretkey"].encode()
        separator = "-" if about["transport"] == "ipc" else ":"  # as jupyter_client makes them
        self._bind_address(handle, f"{about['transport']}://{about['ip']}{separator}{about[port]}")

    @staticmethod
    def _bind_address(handle: zmq.Socket[bytes], place: str) -> None:
        """Bind; while the kernel before this one is gone, anybody may have borrowed its port."""
        until = time.monotonic() + FREE_WITHIN
        while True:
            try:
                handle.bind(place)
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE or time.monotonic() > until:
                    message = f"{place} of the connection file cannot be taken: {error}."
                    raise Usage(
                        message, "Restart the kernel, so that Jupyter chooses anew."
                    ) from error
                time.sleep(RETRY_BIND_EVERY)
            else:
                return

    def _on_readable(self, channel: Channel) -> None:
        for frames in messages(self._sockets[channel]):
            try:
                identities, parts = self.voice.check(frames)
                self.on_request(channel, identities, parts)
            except ProtocolError:
                continue  # not signed with this kernel's key: any user of this machine may connect

    def _echo_heartbeat(self) -> None:
        self._heartbeat.send_multipart(self._heartbeat.recv_multipart())

    def welcome_subscribers(self) -> None:
        """Welcome all who have subscribed by now: a client drops what comes before its welcome."""
        while self._sockets[Channel.IOPUB].poll(0):
            self._send_iopub_welcome()

    def _send_iopub_welcome(self) -> None:
        """Send the welcome of JEP 65: from here on a new subscriber misses nothing."""
        (frame, *_) = self._sockets[Channel.IOPUB].recv_multipart()
        if self._publisher.on_subscription(frame):
            subscription = frame[1:].decode("utf-8", "replace")
            parts = self.voice.compose("iopub_welcome", {"subscription": subscription})
            parts[TOPIC] = frame[1:]
            self.publish(parts)


def read_connection(path: Path) -> dict[str, Any]:
    """Read a connection file; `Usage` if it is none."""
    try:
        connection = json.loads(path.read_text(encoding="utf-8"))
        ports = [connection[name] for name in (*PORTS.values(), "hb_port", "transport", "ip")]
    except (OSError, ValueError, LookupError, TypeError) as error:
        message = f"{path} is not a Jupyter connection file ({error})."
        raise Usage(message, "Jupyter writes one when it starts a kernel.") from error
    del ports  # they are there: that was all to know
    return dict(connection)


def key_fingerprint(key: str) -> str:
    """Return what a kernel is known by: a restart keeps its key, and process numbers recur.

    One without a key is known by nothing, and so never taken for another.
    """
    if not key:
        return secrets.token_hex(12)
    return hashlib.sha256(b"remoter kernel\0" + key.encode()).hexdigest()[:24]


class OutgoingMessage(NamedTuple):
    """Frames, and whether libzmq is to copy them: for small ones that is quicker."""

    frames: list[Bytes]
    is_copied: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(map(len, self.frames))


@dataclass
class SendQueue:
    """What waits for room in a socket, in order."""

    messages: deque[OutgoingMessage] = field(default_factory=deque)
    size: int = 0  # bytes

    def add(self, message: OutgoingMessage) -> None:
        """Put a message at the end."""
        self.messages.append(message)
        self.size += message.size

    def drop(self) -> None:
        """Take the first one away."""
        self.size -= self.messages.popleft().size


@dataclass
class SendRetry:
    """Calls `send` until it returns that all has gone, with pauses that grow."""

    reactor: Reactor
    send: Callable[[], bool]
    # libzmq tells a sender of ROUTER or XPUB nothing when one of its many peers takes more again.
    pause: float = RETRY_FIRST
    timer: Timer | None = None

    def start(self) -> None:
        """Call soon, unless that is about to happen."""
        if self.timer is None:
            self._start_timer(RETRY_FIRST)

    def _start_timer(self, pause: float) -> None:
        self.pause = pause
        self.timer = self.reactor.call_later(pause, self._on_timer)

    def _on_timer(self) -> None:
        self.timer = None
        if not self.send():
            self._start_timer(min(2 * self.pause, RETRY_LAST))


class Publisher:
    """The XPUB socket: all clients get all; one that is stopped holds up the others for a while."""

    def __init__(
        self,
        reactor: Reactor,
        handle: zmq.Socket[bytes],
        make_notice: Callable[[OutgoingMessage, str], OutgoingMessage],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`make_notice(message, sentence)` returns one with that sentence in the same cell."""
        self.subscribers = 0
        self.has_room = True  # would what is published now go at once? Kept, as it is asked often
        self._handle = handle
        self._make_notice = make_notice
        self._clock = clock
        self._waiting = SendQueue()
        self._since = 0.0  # when libzmq took something last, while anything waits
        self._retry = SendRetry(reactor, self.drain)
        handle.sndhwm = MOST_QUEUED
        handle.xpub_nodrop = True  # else libzmq drops what a client has no room for, in silence
        handle.xpub_verboser = True  # each client is welcomed and counted, not just the first
        enable_keepalive(handle)

    def send(self, frames: list[Bytes], *, is_copied: bool) -> None:
        """Send to all, now or once there is room for it."""
        message = OutgoingMessage(frames, is_copied)
        if not self.has_room or not self._try_send(message):
            if self.has_room:
                self.has_room = False
                self._since = self._clock()
            self._waiting.add(message)
            self._retry.start()
            if self._waiting.size > MOST_WAITING:  # drain() leaves somebody out then
                self.drain()

    def on_subscription(self, subscription: bytes) -> bool:
        """Count a client that has come, or gone; return whether it came."""
        has_come = subscription[:1] == b"\x01"
        self.subscribers = max(0, self.subscribers + (1 if has_come else -1))
        return has_come

    def _try_send(self, message: OutgoingMessage) -> bool:
        try:
            self._handle.send_multipart(message.frames, zmq.NOBLOCK, copy=message.is_copied)
        except zmq.Again:
            return False
        return True

    def drain(self) -> bool:
        """Send what waits; return whether all has gone.

        Those that take nothing are left out of it where they hold up too much.
        """
        while self._waiting.messages:
            first = self._waiting.messages[0]
            if not self._try_send(first):
                # A client that is alone holds up nobody: it may take its time.
                is_too_long = self.subscribers > 1 and self._clock() - self._since > STALLED_AFTER
                if not (is_too_long or self._waiting.size > MOST_WAITING):
                    return False
                self._send_without_stalled(first)
            self._since = self._clock()
            self._waiting.drop()
        self.has_room = True
        return True

    def _send_without_stalled(self, message: OutgoingMessage) -> None:
        """Send a message without those that take nothing; libzmq drops for them until they do.

        The last that they will find is a notice of that.
        """
        sys.stderr.write(notice_text(STALLED_NOTICE))
        # libzmq heeds a new limit at once: their full queues have room for one more.
        self._handle.sndhwm = MOST_QUEUED + 1
        self._try_send(self._make_notice(message, STALLED_NOTICE))
        self._handle.sndhwm = MOST_QUEUED
        self._handle.xpub_nodrop = False  # for this one message
        self._try_send(message)
        self._handle.xpub_nodrop = True


class Replier:
    """A ROUTER socket: what one client does not take waits for it alone."""

    def __init__(self, reactor: Reactor, handle: zmq.Socket[bytes]) -> None:
        self._handle = handle
        self._waiting: dict[bytes, SendQueue] = {}  # by the identity of a client
        self._retry = SendRetry(reactor, self.drain)
        handle.sndhwm = MOST_QUEUED
        handle.router_mandatory = True  # else it would drop what a client does not take
        enable_keepalive(handle)

    def send(self, identities: Sequence[bytes], frames: Sequence[Bytes]) -> None:
        """Send to one client, now or once it takes it."""
        message = OutgoingMessage([*identities, *frames], is_copied=True)
        if identities[0] not in self._waiting and self._try_send(message):
            return
        queue = self._waiting.setdefault(identities[0], SendQueue())
        queue.add(message)
        self._retry.start()
        while queue.size > MOST_WAITING and len(queue.messages) > 1:
            sys.stderr.write(notice_text("A client takes no replies: its oldest one is dropped."))
            queue.drop()

    def _try_send(self, message: OutgoingMessage) -> bool:
        """Send; False: the client takes nothing now. What is for one that is gone is dropped."""
        try:
            self._handle.send_multipart(message.frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:  # what router_mandatory raises for a client gone
                raise
        return True

    def drain(self) -> bool:
        """Send what waits; return whether all has gone."""
        for client, queue in list(self._waiting.items()):
            while queue.messages and self._try_send(queue.messages[0]):
                queue.drop()
            if not queue.messages:
                del self._waiting[client]
        return not self._waiting


def enable_keepalive(handle: zmq.Socket[bytes]) -> None:
    """Let the system end connections to machines that are gone; one that is stopped answers."""
    handle.tcp_keepalive = 1
    handle.tcp_keepalive_idle = 60
    handle.tcp_keepalive_intvl = 20
    handle.tcp_keepalive_cnt = 6
