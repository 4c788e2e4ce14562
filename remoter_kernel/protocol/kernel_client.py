"""The client of one kernel: its sockets, when it is ready, the order of its messages, its end.

A kernel sends a reply by one socket and the outputs before it by another, so a reply may arrive
first: outputs wait in the kernel's own TCP buffer, in ours, and in ZeroMQ's queue, all the
longer the longer this process was held up. What is handed on is in the kernel's order: a reply
or a question comes after all that was published before it. No loop blocks for that: a reply
waits its time while the reactor goes on, and outputs are read a piece at a time.
"""

from __future__ import annotations

import logging
import struct
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
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
from remoter_kernel.protocol.reactor import ignore, messages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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
MOST_COMPLAINTS = 10  # a kernel may send unreadable messages without end

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
    since: float  # on the monotonic clock
    is_passed: bool = False  # has something come that the kernel published later?

    @property
    def date(self) -> str:
        """When the kernel made it, by its own clock; as text, for dates of one kernel sort so."""
        return _date_of(self.message)


def _date_of(message: KernelMessage) -> str:
    return str(message.header.get("date") or "").rstrip("Z")  # some kernels leave the Z out


class KernelSockets:
    """Our end of a kernel's four sockets."""

    def __init__(
        self, reactor: Reactor, identity: bytes, on_readable: Callable[[Channel], None]
    ) -> None:
        """`identity` is our routing id on the kernel's sockets."""
        self.is_subscribed = False  # does iopub reach us?
        self._reactor = reactor
        self._identity = identity
        self._on_readable = on_readable
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
        self._monitors: dict[Channel, zmq.Socket[bytes]] = {}
        self._connected: dict[Channel, tuple[int, int]] = {}  # the ports: the kernel's, ours

    def __len__(self) -> int:
        return len(self._sockets)

    def open(
        self, addresses: Mapping[Channel, str], lock: Callable[[zmq.Socket[bytes]], object]
    ) -> None:
        """Connect; `lock` gives a socket its keys."""
        self.close()
        self._context = self._context or zmq.Context()
        for channel, kind in SOCKETS.items():
            handle = self._context.socket(kind)
            handle.linger = 0  # what a dead kernel does not take must not keep this process
            # No bound of ours: a kernel drops what it publishes while we do not read.
            handle.sndhwm = handle.rcvhwm = 0
            handle.reconnect_ivl = 15  # milliseconds: the kernel is about to listen
            # The same on all: ipykernel sends a question on stdin to the identity that asked on
            # shell.
            handle.identity = self._identity
            lock(handle)
            if kind == zmq.SUB:
                handle.subscribe(b"")
            # A monitor tells when the system has closed the connection: behind its last byte.
            monitor = handle.get_monitor_socket(zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED)
            self._monitors[channel] = monitor
            self._reactor.add_reader(monitor, partial(self._record_ports, channel))
            handle.connect(addresses[channel])
            self._sockets[channel] = handle
            self._reactor.add_reader(handle, partial(self._on_readable, channel))

    def close(self) -> None:
        """Close all sockets; they can be opened again."""
        self.is_subscribed = False
        self._connected.clear()
        for channel, handle in self._sockets.items():
            monitor = self._monitors.pop(channel)
            self._reactor.remove_reader(handle)
            self._reactor.remove_reader(monitor)
            handle.disable_monitor()  # before the monitor closes: libzmq would write into it
            monitor.close(linger=0)
            handle.close(linger=0)
        self._sockets.clear()

    def end(self) -> None:
        """Give everything back."""
        self.close()
        if self._context:
            self._context.term()
            self._context = None

    def send(self, channel: Channel, frames: Sequence[Bytes]) -> None:
        """Send frames, if the socket is open."""
        if channel in self._sockets:
            self._sockets[channel].send_multipart(frames, copy=True)

    def receive(self, channel: Channel) -> Iterator[list[bytes]]:
        """Yield a piece of what waits on a socket; nothing if it was closed meanwhile."""
        return messages(self._sockets[channel]) if channel in self._sockets else iter(())

    def has_input(self, channel: Channel) -> bool:
        """Has ZeroMQ something to read for us?"""
        handle = self._sockets.get(channel)
        return handle is not None and bool(int(handle.get(zmq.EVENTS)) & zmq.POLLIN)

    def has_output_on_its_way(self) -> bool:
        """Is there anything published that we have not read?"""
        kernel, ours = self._connected.get(Channel.IOPUB, (0, 0))
        # In this order: what has left the system may have come to ZeroMQ in between.
        is_in_flight = bool(kernel) and has_bytes_in_flight(kernel, ours)
        return is_in_flight or self.has_input(Channel.IOPUB)

    def is_cut(self) -> bool:
        """Has the system closed the connections for outputs and replies?"""
        for channel in self._monitors:
            self._record_ports(channel)
        return self._connected.keys().isdisjoint({Channel.IOPUB, Channel.SHELL})

    def _record_ports(self, channel: Channel) -> None:
        if channel not in self._monitors:
            return  # it was closed in this pass of the loop
        for event, *_ in messages(self._monitors[channel]):
            kind, handle = struct.unpack("=hi", event)  # as zmq_socket_monitor(3) has it
            if kind == zmq.EVENT_CONNECTED:
                self._connected[channel] = connection_ports(handle)
            else:
                self._connected.pop(channel, None)


@dataclass(eq=False)
class _ReplyOrder:
    """Holds replies and questions back until the outputs before them have been handed on."""

    reactor: Reactor
    sockets: KernelSockets
    deliver: Callable[[KernelMessage], None]
    published_at: float = 0.0  # on the monotonic clock: the last output
    _pending: deque[_PendingReply] = field(default_factory=deque)
    _idle: OrderedDict[str, None] = field(default_factory=OrderedDict)  # their replies are to come
    _timer: Timer | None = None  # looks whether one has waited long enough

    def add(self, message: KernelMessage) -> None:
        """Take in a reply or a question."""
        self._pending.append(_PendingReply(message, time.monotonic()))
        self._release()
        self._schedule_check()

    def on_iopub(self, message: KernelMessage) -> None:
        """Take note of an output, before it is handed on."""
        self.published_at = time.monotonic()
        date = _date_of(message)
        for reply in self._pending:
            if not reply.date or date <= reply.date:
                break  # later ones in the queue have later dates
            reply.is_passed = True
        if message.state == "idle" and message.parent_id:
            self._idle[message.parent_id] = None
            if len(self._idle) > MOST_WAITING:  # some requests (comms) never get a reply
                self._idle.popitem(last=False)
        if self._pending:
            self._release()

    def release_all(self) -> None:
        """Hand on all: nothing more will come."""
        pending, self._pending = self._pending, deque()
        for reply in pending:
            self.deliver(reply.message)

    def clear(self) -> None:
        """Drop all."""
        self._pending.clear()
        self._idle.clear()

    def is_silent(self, seconds: float) -> bool:
        """Was nothing published for so long, and is nothing of it on its way?"""
        if time.monotonic() - self.published_at < seconds:
            return False
        is_silent = not self.sockets.has_output_on_its_way()
        if not is_silent:
            self.published_at = time.monotonic()
        return is_silent

    def _release(self) -> None:
        """Hand on the replies that wait for nothing any more, in their order."""
        now = time.monotonic()
        while self._pending and self._can_release(self._pending[0], now):
            message = self._pending.popleft().message
            if message.channel is Channel.SHELL:
                self._idle.pop(message.parent_id, None)
            self.deliver(message)

    def _can_release(self, reply: _PendingReply, now: float) -> bool:
        message = reply.message
        return (
            reply.is_passed
            or (message.channel is Channel.SHELL and message.parent_id in self._idle)
            or now - reply.since >= REPLY_WITHIN
            or len(self._pending) > MOST_WAITING
            or (now - reply.since >= QUIET and self.is_silent(QUIET))
        )

    def _schedule_check(self) -> None:
        """See to it that replies do not wait for ever."""
        if self._pending and self._timer is None:
            silent = time.monotonic() - max(self._pending[0].since, self.published_at)
            wait = max(LOOK_EVERY, QUIET - silent)
            self._timer = self.reactor.call_later(wait, self._check)

    def _check(self) -> None:
        self._timer = None
        self._release()
        self._schedule_check()


class KernelClient:
    """The only client of one kernel."""

    def __init__(self, reactor: Reactor, identity: bytes) -> None:
        """`identity` is our routing id on the kernel's sockets."""
        self.on_message: Callable[[KernelMessage], None] = ignore
        self.on_ready: Callable[[dict[str, Any], dict[str, Any]], None] = ignore
        # The kernel is at our last question: all that it had published by then was handed on.
        self.on_question_reached: Callable[[], None] = ignore
        self.signer = MessageSigner(b"")
        self.is_ready = False
        self._reactor = reactor
        self._sockets = KernelSockets(reactor, identity, self._on_readable)
        self._replies = _ReplyOrder(reactor, self._sockets, self._deliver)
        # What waits until something has come on iopub; None: what is sent goes at once.
        self._held: list[tuple[Channel, Sequence[Bytes]]] | None = None
        self._info_request_id = ""  # of our kernel_info_request, until it is answered
        self._last_question = ""  # the same, also after that
        self._complaint_count = 0

    # Connections -----------------------------------------------------------------------

    def hold_until_open(self, signer: MessageSigner) -> None:
        """Get ready for a kernel with this key: what is sent waits for the sockets."""
        self.signer = signer
        self._held = []

    @property
    def is_open(self) -> bool:
        """Are there sockets?"""
        return bool(self._sockets)

    def open(
        self,
        addresses: Mapping[Channel, str],
        lock: Callable[[zmq.Socket[bytes]], object] = ignore,
    ) -> None:
        """Connect, and ask for kernel_info; `lock` gives a socket its keys."""
        self._sockets.open(addresses, lock)
        self.request_kernel_info()
        # Not all kernels publish anything before they get a request.
        self._reactor.call_later(HEARD_WITHIN, self._flush_held)

    def close(self) -> None:
        """Give everything back; what has waited is dropped."""
        self._held, self.is_ready = None, False
        self._replies.clear()
        self._sockets.end()

    # To the kernel ---------------------------------------------------------------------

    def send(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Sign a message and send it, as soon as its outputs will reach us."""
        if self._held is not None:
            self._held.append((channel, parts))
        else:
            self._sockets.send(channel, self.signer.sign(parts))

    def request(self, channel: Channel, kind: str, content: dict[str, Any]) -> str:
        """Send a request of our own, at once; `on_message` gets nothing of what comes of it."""
        parts = self.signer.compose(kind, content)
        if self._sockets:
            self._sockets.send(channel, self.signer.sign(parts))
        elif self._held is not None:
            self._held.append((channel, parts))
        return str(header_of(parts[HEADER])["msg_id"])

    def request_kernel_info(self) -> None:
        """Ask the kernel for its kernel_info, which `on_ready` gets."""
        self.is_ready = False
        self._info_request_id = self.request(Channel.SHELL, "kernel_info_request", {})
        self._last_question = self._info_request_id

    def _flush_held(self) -> None:
        """Send what has waited: what a kernel publishes before we are subscribed is dropped."""
        if not self._sockets:
            return
        held, self._held = self._held or [], None
        for channel, parts in held:
            self._sockets.send(channel, self.signer.sign(parts))

    # From the kernel -------------------------------------------------------------------

    def _on_readable(self, channel: Channel) -> None:
        """Read a piece of what waits on one socket."""
        if channel is Channel.SHELL:
            self._on_readable(Channel.IOPUB)  # its idle may have come: then the reply need not wait
        for frames in self._sockets.receive(channel):
            try:
                topics, parts = self.signer.check(frames)
            except ProtocolError:
                continue  # of another process on this machine, which has not the kernel's key
            try:
                message = read_message(channel, parts)
            except ProtocolError as error:
                self._log_odd_message(error)
                continue
            if channel is Channel.IOPUB:
                parts[TOPIC] = b"".join(topics)
                self._sockets.is_subscribed = True
                if self._held is not None:
                    self._flush_held()
                self._replies.on_iopub(message)
            self._on_message(message)

    def _on_message(self, message: KernelMessage) -> None:
        if message.parent.get("session") == self.signer.session:
            # Only the answer to the last question counts: a kernel may answer more than once.
            if message.channel is Channel.SHELL and message.parent_id == self._info_request_id:
                self._check_ready(message)
            elif message.parent_id == self._last_question and message.state == "busy":
                self.on_question_reached()
        elif message.is_startup_message:
            pass  # nobody asked for it
        elif message.channel in AFTER_OUTPUTS:
            self._replies.add(message)
        else:
            self._deliver(message)

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

    def _check_ready(self, message: KernelMessage) -> None:
        """Note that the kernel answers; if iopub reaches us, too, it is ready.

        What a kernel publishes before we are subscribed is dropped, so it is asked again
        until something of it has come.
        """
        self._info_request_id = ""
        if self._sockets.is_subscribed:
            self.is_ready = True
            self.on_ready(message.header, content_of(message.parts))
        else:
            self._reactor.call_later(NUDGE_AGAIN, self._request_info_again)

    def _request_info_again(self) -> None:
        if self._sockets and not self.is_ready and not self._info_request_id:
            self.request_kernel_info()

    # The end ---------------------------------------------------------------------------

    def drain(self, then: Callable[[], None]) -> None:
        """Read all that a kernel whose process has ended has handed to the system; then call.

        Never, if `close` comes first.
        """
        self._replies.published_at = time.monotonic()
        if self._sockets:
            self._drain_until(time.monotonic() + END_WITHIN, then)
        else:
            then()

    def _drain_until(self, limit: float, then: Callable[[], None]) -> None:
        if not self._sockets:
            return
        # In this order: what was read before the connection ended is in ZeroMQ's queue by now.
        is_over = self._sockets.is_cut() or self._replies.is_silent(QUIET_AT_END)
        is_late = time.monotonic() >= limit
        if not is_late and (not is_over or any(map(self._sockets.has_input, SOCKETS))):
            self._reactor.call_later(LOOK_EVERY, partial(self._drain_until, limit, then))
            return
        self._replies.release_all()
        then()
