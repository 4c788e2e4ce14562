"""Jupyter's five sockets: signatures, identities, and the welcome on iopub."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import zmq

from remoter_kernel.errors import ProtocolError, Usage
from remoter_kernel.local.proxy.send_queues import (
    RETRY_FIRST,
    OutgoingMessage,
    Publisher,
    Replier,
)
from remoter_kernel.protocol.frames import Bytes, Channel
from remoter_kernel.protocol.messages import CONTENT, LARGE, PARENT, TOPIC, MessageSigner, header_of
from remoter_kernel.protocol.reactor import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from remoter_kernel.protocol.reactor import Reactor

FREE_WITHIN = 5.0  # seconds
RETRY_BIND_EVERY = 0.05  # seconds
SIGNED = 2  # frames (delimiter, signature) that come between a message's topic and the rest
LINGER_MS = 500  # milliseconds: the last words of a front
PORTS = {
    Channel.SHELL: "shell_port",
    Channel.CONTROL: "control_port",
    Channel.STDIN: "stdin_port",
    Channel.IOPUB: "iopub_port",
}


class Sockets:
    """The side of the front that Jupyter sees."""

    def __init__(self, reactor: Reactor, connection: dict[str, Any]) -> None:
        """Remember what the connection file says; `bind` begins."""
        self.reactor = reactor
        self.connection = connection
        key = str(connection.get("key", "")).encode()
        self.voice = MessageSigner(key, connection.get("signature_scheme") or "hmac-sha256")
        self.on_request: Callable[[Channel, list[bytes], list[Bytes]], None]
        self._context = zmq.Context()
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
            handle.rcvhwm = 0
            if is_iopub:
                self._publisher = Publisher(self.reactor, handle, self._make_notice)
            else:
                handle.router_handover = True
                self._repliers[channel] = Replier(self.reactor, handle)
            self._bind(handle, port)
            self._sockets[channel] = handle
            hear = self._send_iopub_welcome if is_iopub else partial(self._on_readable, channel)
            self.reactor.add_reader(handle, hear)

    def reply(self, channel: Channel, identities: Sequence[bytes], parts: Sequence[Bytes]) -> None:
        """Send a message to the client with these identities."""
        self._repliers[channel].send(identities, self.voice.sign(parts))

    def publish(self, parts: Sequence[Bytes]) -> None:
        """Send a message to all who listen on iopub."""
        is_small = len(parts[CONTENT]) < LARGE
        frames = [parts[TOPIC], *self.voice.sign(parts)]
        self._publisher.send(frames, is_copied=is_small)

    def has_room(self) -> bool:
        """Does all who listen on iopub take what is published, as far as is known?"""
        return self._publisher.has_room

    def _make_notice(self, message: OutgoingMessage, sentence: str) -> OutgoingMessage:
        """Return a message that says a sentence where another one would be shown."""
        parent: dict[str, Any] = {}
        with contextlib.suppress(ProtocolError):  # a kernel may say anything
            parent = header_of(message.frames[SIGNED + PARENT])
        words = {"name": "stderr", "text": f"[remoter] {sentence}\n"}
        parts = self.voice.compose("stream", words, parent, topic=b"kernel.stream")
        return OutgoingMessage([parts[TOPIC], *self.voice.sign(parts)], is_copied=True)

    def close(self) -> None:
        """Send what waits, for a moment, and close."""
        until = time.monotonic() + LINGER_MS / 1000
        outs: list[Publisher | Replier] = [self._publisher, *self._repliers.values()]
        for out in outs:
            while not out.drain() and time.monotonic() < until:
                time.sleep(RETRY_FIRST)
        for handle in (self._heartbeat, *self._sockets.values()):
            handle.close(linger=LINGER_MS)
        self._context.term()

    def _bind(self, handle: zmq.Socket[bytes], port: str) -> None:
        about = self.connection
        handle.linger = LINGER_MS
        if about.get("curve_secretkey"):
            handle.curve_server = True
            handle.curve_publickey = about["curve_publickey"].encode()
            handle.curve_secretkey = about["curve_secretkey"].encode()
        separator = "-" if about["transport"] == "ipc" else ":"
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
                continue  # not signed with this kernel's key: nobody of ours

    def _echo_heartbeat(self) -> None:
        self._heartbeat.send_multipart(self._heartbeat.recv_multipart())

    def welcome_subscribers(self) -> None:
        """Welcome all who have subscribed by now: else they hear something else first."""
        while self._sockets[Channel.IOPUB].poll(0):
            self._send_iopub_welcome()

    def _send_iopub_welcome(self) -> None:
        """Tell a new subscriber that it is heard (JEP 65)."""
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
    del ports
    return dict(connection)


def key_fingerprint(key: str) -> str:
    """Return what a kernel is known by: a restart keeps its key, its process number recurs.

    One without a key is known by nothing, and so never taken for another.
    """
    if not key:
        return secrets.token_hex(12)
    return hashlib.sha256(b"remoter kernel\0" + key.encode()).hexdigest()[:24]
