"""Talks with one kernel through its sockets: when it is ready, in which order it speaks, its end.

A kernel sends a reply by one socket and the outputs before it by another, so a reply may be
here first: outputs wait in the kernel's own TCP buffer, in ours, and in ZeroMQ's queue, all the
longer the longer this process was held up. What is handed on is in the kernel's order: a reply
or a question comes after all that was published before it. No loop blocks for that: a reply
waits its time while the reactor goes on, and outputs are read a piece at a time.
"""

from __future__ import annotations

import logging
import struct
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

import zmq

from remoter_kernel.errors import ProtocolError
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.link_connection import connection_ports, has_bytes_in_flight
from remoter_kernel.protocol.messages import (
    HEADER,
    ODD,
    TOPIC,
    KernelMessage,
    MessageSigner,
    content_of,
    header_of,
    read_message,
)
from remoter_kernel.protocol.reactor import messages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Reactor, Timer

SOCKETS = {
    Channel.IOPUB: zmq.SUB,  # first, so that it is there when anything is asked
    Channel.SHELL: zmq.DEALER,
    Channel.CONTROL: zmq.DEALER,
    Channel.STDIN: zmq.DEALER,
}
AFTER_OUTPUTS = {Channel.SHELL, Channel.STDIN}  # what comes there waits for outputs before it
NUDGE_AGAIN = 0.02  # seconds
HEARD_WITHIN = 0.25  # seconds: not all kernels say something to who subscribes

# How long a reply waits. A kernel tells by "idle" that it has published all of a request. Where
# that does not come (with a question, or from R for a cell that it calls off), a message that
# the kernel made later than the reply tells the same, also while it publishes without end; so
# does silence, if the system holds nothing either. The last bound is for a kernel that does
# none of it: what it can have handed to the system before its reply is what two TCP buffers
# hold, some MB, and those are read many times over by then.
QUIET = 0.05  # seconds; ZeroMQ's own thread may wait that long for a processor
REPLY_WITHIN = 10.0  # seconds
MOST_WAITING = 1000  # replies that wait, and requests whose idle came before their reply
MOST_COMPLAINTS = 10  # a kernel may say what nobody can read without end

# How long the end of a kernel is listened to, once its process is gone: until the system says
# that its connections are closed, which it does behind the last byte. A process that the kernel
# has left behind may hold them open: then until silence.
LOOK_EVERY = 0.005  # seconds
QUIET_AT_END = 0.25  # seconds
END_WITHIN = 10.0  # seconds

logger = logging.getLogger(__name__)


@dataclass
class _PendingReply:
    """A reply or a question that waits for the outputs before it."""

    message: KernelMessage
    date: str  # when the kernel made it, by its own clock
    since: float
    is_passed: bool = False  # was something heard that the kernel published later?


class KernelClient:
    """The only client of one kernel."""

    def __init__(self, reactor: Reactor, identity: bytes) -> None:
        """Remember; `identity` is the routing id on the kernel's sockets."""
        self.on_message: Callable[[KernelMessage], None] = lambda _message: None
        self.on_ready: Callable[[dict[str, Any], dict[str, Any]], None] = lambda _head, _info: None
        # The kernel is at our last question: all that it had published by then was handed on.
        self.on_question_reached: Callable[[], None] = lambda: None
        self.signer = MessageSigner(b"")
        self.is_ready = False
        self._reactor = reactor
        self._identity = identity
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
        self._monitors: dict[Channel, zmq.Socket[bytes]] = {}
        self._connected: dict[Channel, tuple[int, int]] = {}  # the ports: the kernel's, ours
        self._is_expected = False  # will there be sockets?
        self._is_held = False  # what is sent waits until something is heard on iopub
        self._held_messages: list[tuple[Channel, Sequence[Bytes]]] = []
        self._is_subscribed = False  # does iopub reach us?
        self._info_request_id = (
            ""  # the message id of our kernel_info_request, until it is answered
        )
        self._last_question = ""  # the same, also after that
        self._pending_replies: deque[_PendingReply] = deque()
        self._idle: OrderedDict[str, None] = OrderedDict()  # their replies were not heard yet
        self._published_at = 0.0
        self._look: Timer | None = None  # at the replies
        self._complaint_count = 0

    # Connections -----------------------------------------------------------------------

    def hold_until_open(self, signer: MessageSigner) -> None:
        """Get ready for a kernel with this key: what is sent waits for the sockets."""
        self.signer = signer
        self._is_expected = self._is_held = True

    @property
    def is_open(self) -> bool:
        """Are there sockets?"""
        return bool(self._sockets)

    def open(
        self,
        addresses: Mapping[Channel, str],
        lock: Callable[[zmq.Socket[bytes]], None] = lambda _handle: None,
    ) -> None:
        """Connect, and ask who is there; `lock` gives a socket its keys."""
        self._close_sockets()
        self._is_subscribed = False
        self._context = self._context or zmq.Context()
        for channel, kind in SOCKETS.items():
            handle = self._context.socket(kind)
            handle.linger = 0
            # No bound of ours: a kernel drops what it publishes while we do not read.
            handle.sndhwm = handle.rcvhwm = 0
            handle.reconnect_ivl = 15  # milliseconds: the kernel is about to listen
            handle.identity = self._identity  # the same on all: questions go to who has asked
            lock(handle)
            if kind == zmq.SUB:
                handle.subscribe(b"")
            self._monitors[channel] = monitor = handle.get_monitor_socket(
                zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED
            )
            self._reactor.add_reader(monitor, partial(self._record_ports, channel))
            handle.connect(addresses[channel])
            self._sockets[channel] = handle
            self._reactor.add_reader(handle, partial(self._on_readable, channel))
        self.request_kernel_info()
        self._reactor.call_later(HEARD_WITHIN, self._flush_held)

    def close(self) -> None:
        """Give everything back; what has waited is dropped."""
        self._is_expected = self._is_held = self.is_ready = False
        self._held_messages.clear()
        self._pending_replies.clear()
        self._idle.clear()
        self._close_sockets()
        if self._context:
            self._context.term()
            self._context = None

    def _close_sockets(self) -> None:
        self._connected.clear()
        for channel in list(self._sockets):
            handle = self._sockets.pop(channel)
            self._reactor.remove_reader(handle)
            handle.disable_monitor()
            monitor = self._monitors.pop(channel)
            self._reactor.remove_reader(monitor)
            monitor.close(linger=0)
            handle.close(linger=0)

    # To the kernel ---------------------------------------------------------------------

    def send(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Sign a message and send it, as soon as its outputs are heard."""
        if self._is_held:
            self._held_messages.append((channel, parts))
        else:
            self._send(channel, parts)

    def request(self, channel: Channel, kind: str, content: dict[str, Any]) -> str:
        """Ask something ourselves, at once; what comes of it is heard by nobody else."""
        parts = self.signer.compose(kind, content)
        if self._sockets:
            self._send(channel, parts)
        elif self._is_expected:
            self._held_messages.append((channel, parts))
        return str(header_of(parts[HEADER])["msg_id"])

    def request_kernel_info(self) -> None:
        """Ask the kernel who it is, and hear of it through `on_ready`."""
        self.is_ready = False
        self._info_request_id = self.request(Channel.SHELL, "kernel_info_request", {})
        self._last_question = self._info_request_id

    def _send(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        if channel in self._sockets:
            self._sockets[channel].send_multipart(self.signer.sign(parts), copy=True)

    def _flush_held(self) -> None:
        """Send what has waited: what a kernel publishes before we are subscribed is dropped."""
        if not self._sockets:
            return
        self._is_held = False
        unsent, self._held_messages = self._held_messages, []
        for channel, parts in unsent:
            self._send(channel, parts)

    # From the kernel -------------------------------------------------------------------

    def _on_readable(self, channel: Channel) -> None:
        """Read a piece of what waits on one socket."""
        if channel is Channel.SHELL:
            self._on_readable(Channel.IOPUB)  # it may say there already that it is heard
        if channel not in self._sockets:
            return  # it was closed meanwhile
        for frames in messages(self._sockets[channel]):
            try:
                topics, parts = self.signer.check(frames)
            except ProtocolError:
                continue  # somebody else on this machine knocked at the kernel's port
            try:
                message = read_message(channel, parts)
            except ProtocolError as error:
                self._log_odd_message(error)
                continue
            if channel is Channel.IOPUB:
                parts[TOPIC] = b"".join(topics)
                self._on_iopub(message)
            self._on_message(message)

    def _deliver(self, message: KernelMessage) -> None:
        """Hand on a message; one that is not as it should be harms no other."""
        try:
            self.on_message(message)
        except ODD as error:
            self._log_odd_message(error)

    def _log_odd_message(self, error: Exception) -> None:
        self._complaint_count += 1
        if self._complaint_count <= MOST_COMPLAINTS:
            logger.warning("A message of the kernel makes no sense.", exc_info=error)

    def _on_message(self, message: KernelMessage) -> None:
        if message.parent.get("session") == self.signer.session:
            # Only the answer to the last question counts: a kernel may answer more than once.
            if message.channel is Channel.SHELL and message.parent_id == self._info_request_id:
                self._check_ready(message.header, message.parts)
            elif message.parent_id == self._last_question and message.state == "busy":
                self.on_question_reached()
        elif message.is_startup_message:
            pass  # nobody asked for it
        elif message.channel in AFTER_OUTPUTS:
            date = str(message.header.get("date") or "").rstrip("Z")
            self._pending_replies.append(_PendingReply(message, date, time.monotonic()))
            self._release_replies()
            self._schedule_check()
        else:
            self._deliver(message)

    def _check_ready(self, header: dict[str, Any], parts: list[Bytes]) -> None:
        """Note that the kernel answers; if it is heard on iopub, too, it is ready.

        What a kernel publishes before we are subscribed is dropped, so it is asked again
        until something of it has come.
        """
        self._info_request_id = ""
        if self._is_subscribed:
            self.is_ready = True
            self.on_ready(header, content_of(parts))
        else:
            self._reactor.call_later(NUDGE_AGAIN, self._request_info_again)

    def _request_info_again(self) -> None:
        if self._sockets and not self.is_ready and not self._info_request_id:
            self.request_kernel_info()

    # Replies after outputs -------------------------------------------------------------

    def _on_iopub(self, message: KernelMessage) -> None:
        self._is_subscribed = True
        self._published_at = time.monotonic()
        if self._is_held:
            self._flush_held()
        date = str(message.header.get("date") or "").rstrip("Z")
        for reply in self._pending_replies:
            if not reply.date or date <= reply.date:
                break
            reply.is_passed = True
        if message.state == "idle" and message.parent_id:
            self._idle[message.parent_id] = None
            if len(self._idle) > MOST_WAITING:
                self._idle.popitem(last=False)
        if self._pending_replies:
            self._release_replies()

    def _release_replies(self) -> None:
        """Hand on the replies that wait for nothing any more, in their order."""
        now = time.monotonic()
        while self._pending_replies and self._can_release(self._pending_replies[0], now):
            reply = self._pending_replies.popleft()
            if reply.message.channel is Channel.SHELL:
                self._idle.pop(reply.message.parent_id, None)
            self._deliver(reply.message)

    def _can_release(self, reply: _PendingReply, now: float) -> bool:
        return (
            reply.is_passed
            or (reply.message.channel is Channel.SHELL and reply.message.parent_id in self._idle)
            or now - reply.since >= REPLY_WITHIN
            or len(self._pending_replies) > MOST_WAITING
            or (now - reply.since >= QUIET and self._is_silent(QUIET))
        )

    def _is_silent(self, seconds: float) -> bool:
        """Was nothing published for so long, and is nothing of it on its way?"""
        if time.monotonic() - self._published_at < seconds:
            return False
        # In this order: what is not on its way any more may have come in between.
        kernel, ours = self._connected.get(Channel.IOPUB, (0, 0))
        is_silent = not (
            (kernel and has_bytes_in_flight(kernel, ours)) or self._has_input(Channel.IOPUB)
        )
        if not is_silent:
            self._published_at = time.monotonic()
        return is_silent

    def _schedule_check(self) -> None:
        """See to it that replies do not wait for ever."""
        if self._pending_replies and self._look is None:
            silent = time.monotonic() - max(self._pending_replies[0].since, self._published_at)
            self._look = self._reactor.call_later(
                max(LOOK_EVERY, QUIET - silent), self._check_replies
            )

    def _check_replies(self) -> None:
        self._look = None
        self._release_replies()
        self._schedule_check()

    # The end ---------------------------------------------------------------------------

    def drain(self, then: Callable[[], None]) -> None:
        """Hear all that a kernel whose process has ended has handed to the system; then call.

        Never, if `close` comes first.
        """
        self._published_at = time.monotonic()
        if self._sockets:
            self._drain_until(time.monotonic() + END_WITHIN, then)
        else:
            then()

    def _drain_until(self, limit: float, then: Callable[[], None]) -> None:
        if not self._sockets:
            return
        for channel in self._monitors:
            self._record_ports(channel)
        # In this order: what was read before the connection ended is in ZeroMQ's queue by now.
        is_cut = self._connected.keys().isdisjoint({Channel.IOPUB, Channel.SHELL})
        is_over = is_cut or self._is_silent(QUIET_AT_END)
        is_late = time.monotonic() >= limit
        if not is_late and (not is_over or any(map(self._has_input, self._sockets))):
            self._reactor.call_later(LOOK_EVERY, partial(self._drain_until, limit, then))
            return
        replies, self._pending_replies = self._pending_replies, deque()
        for reply in replies:
            self._deliver(reply.message)
        then()

    def _record_ports(self, channel: Channel) -> None:
        if channel not in self._monitors:
            return
        for event, *_ in messages(self._monitors[channel]):
            kind, handle = struct.unpack("=hi", event)
            if kind == zmq.EVENT_CONNECTED:
                self._connected[channel] = connection_ports(handle)
            else:
                self._connected.pop(channel, None)

    def _has_input(self, channel: Channel) -> bool:
        handle = self._sockets.get(channel)
        return handle is not None and bool(int(handle.get(zmq.EVENTS)) & zmq.POLLIN)
