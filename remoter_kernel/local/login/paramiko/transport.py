"""paramiko's Transport, taught to lose no time.

What differs, and why:
- AES-GCM first (a third faster), no ciphers or MACs of the last century.
- The service request and the first key go out together, and so does the opening of the
  first channel: each saves a round trip.
- Channels are our own (see `paramiko_channel`), opened without blocking.
- It looks after itself every few seconds instead of ten times a second.
- A server cannot make it hold more than it needs: a packet, a greeting, a list and what waits
  to be sent have a largest size, and whoever shows another host key later on is left.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import re
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import paramiko
from paramiko import common as ssh

from remoter_kernel.local.login.login import (
    PACKET,
    WINDOW,
    ConnectionClosed,
    HostKeyChanged,
    ResponseTimeout,
    ServerViolation,
)
from remoter_kernel.local.login.login_errors import NoCommonAlgorithm
from remoter_kernel.local.login.paramiko import paramiko_internals as internals
from remoter_kernel.local.login.paramiko.keys import CERTIFICATE_SUFFIX, RSA_SIGNATURES
from remoter_kernel.local.login.paramiko.paramiko_channel import (
    MESSAGE_HANDLERS,
    ParamikoChannel,
    ssh_message,
)
from remoter_kernel.local.login.paramiko.userauth import UserauthHandler
from remoter_kernel.local.login.prompts import LONGEST_TEXT
from remoter_kernel.local.login.ssh_keywords import KEYWORDS, filter_algorithms
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remoter_kernel.local.login.destination import Destination
    from remoter_kernel.local.login.login import ChannelReceiver

DISCONNECT_WITHIN = 0.5  # seconds
LARGEST_PACKET = 256 * 1024  # bytes, as in OpenSSH; RFC 4253, 6.1 asks for 35,000
PACKET_OVERHEAD = 128  # bytes at the most: a packet's authentication code, and its length
MOST_BEFORE_VERSION = 64 * 1024  # bytes until a server has said that it speaks SSH
MOST_EXTENSIONS = 64  # of a server (RFC 8308): there are about ten
MOST_UNSENT = 4096  # messages; ours are small, and most are answers to the server
# Servers known to take a request that was sent ahead of an answer, as RFC 4252 allows.
ACCEPTS_PIPELINING = ("OpenSSH_", "dropbear_", "paramiko_", "AsyncSSH_")
# Those among them that shrug off a channel request when the attempt before it has failed;
# dropbear and AsyncSSH would hang up.
ACCEPTS_EARLY_CHANNELS = ("OpenSSH_", "paramiko_")
RSA_SIGNATURE_NAMES = "pubkeyacceptedalgorithms"
SEND_ERRORS = (OSError, EOFError, paramiko.SSHException)  # of a connection that is gone

# paramiko's log goes nowhere unless a person asks for it: stderr belongs to Jupyter.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class NegotiationFailed(Exception):
    """Server and client have no algorithm in common."""


class BoundedPacketizer(internals.HookedPacketizer):
    """paramiko's reader of packets, which would take in whatever a server names."""

    _bytes_before_version = 0  # bytes
    before_greeting = ""  # what the server says instead of saying that it speaks SSH

    def readline(self, timeout: float) -> str:
        """Read a line before the first packet."""
        line = str(super().readline(timeout))
        is_greeting = line.startswith("SSH-")
        said = "" if is_greeting else f"{self.before_greeting}\n{line}"
        self.before_greeting = said[-LONGEST_TEXT:]
        return line

    def on_text(self, size: int) -> None:
        """Count what comes before the first packet: paramiko reads on until a line ends."""
        self._bytes_before_version += size
        if self._bytes_before_version > MOST_BEFORE_VERSION:
            raise ServerViolation("says much and does not say that it speaks SSH")

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:  # noqa: FBT001, FBT002 (paramiko's)
        """Read that many bytes: the head of a packet, or all the rest that its head has named."""
        if not 0 <= n <= LARGEST_PACKET + PACKET_OVERHEAD:
            raise ServerViolation("names a packet of a size that no packet has")
        return bytes(super().read_all(n, check_rekey))


# 18 attributes: five are paramiko's own. Its Transport is a thread, a state machine and a socket
# in one, and can only be taught from inside.
class ParamikoTransport(internals.HookedTransport):
    """One SSH connection. `handshake`, log in, open channels, `close_and_join`."""

    _failure: BaseException | None = None
    _disconnect_reason = ""  # what the server said when it hung up

    def __init__(self, sock: Any, known_kinds: Iterable[str] = ()) -> None:
        super().__init__(
            sock,
            default_window_size=WINDOW,
            default_max_packet_size=PACKET,
            packetizer_class=BoundedPacketizer,
        )
        self.name = "ssh-transport"
        self.first_host_key: Any = None  # the one that is looked at: no later one may be another
        self.round_trip = math.inf  # seconds: the quickest answer so far
        self.auth_handler = self.userauth = UserauthHandler(self)
        self._known_kinds = set(known_kinds)
        self._kex_began = 0.0
        self._send_queue: queue.SimpleQueue[paramiko.Message | None] = queue.SimpleQueue()
        self._sender: threading.Thread | None = None
        self._open_channels: dict[int, ParamikoChannel] = {}  # paramiko holds them weakly
        self._has_replied = threading.Event()  # the server, to a sign of life that we asked for
        internals.handle_channel_messages(self, MESSAGE_HANDLERS)
        internals.handle_messages(
            self,
            {
                ssh.MSG_CHANNEL_OPEN_SUCCESS: self._on_open_confirmation,
                ssh.MSG_CHANNEL_OPEN_FAILURE: self._on_open_failure,
                ssh.MSG_EXT_INFO: self._on_extensions,
                ssh.MSG_REQUEST_SUCCESS: lambda _message: self._has_replied.set(),
                ssh.MSG_REQUEST_FAILURE: lambda _message: self._has_replied.set(),
            },
        )

    # --- meeting the server ---

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        """Host key algorithms, those first by which this host is known (no certificates)."""

        def is_unknown(algorithm: str) -> bool:
            kind = "ssh-rsa" if algorithm in RSA_SIGNATURES else algorithm
            return kind not in self._known_kinds

        # sorted() keeps the order among equals.
        return tuple(sorted(internals.host_key_algorithms(self), key=is_unknown))

    def restrict_algorithms(self, destination: Destination) -> None:
        """Offer only what ssh_config allows; to be called before the handshake."""
        for word, wanted in destination.rules.algorithms:
            is_signatures = word == RSA_SIGNATURE_NAMES
            # Paramiko's list of ways to sign has no certificates: they sign as their key does.
            names = wanted.replace(CERTIFICATE_SUFFIX, "") if is_signatures else wanted
            offered = filter_algorithms(internals.algorithms(self, word), names)
            # Keys that may not be shown are left out one by one (see `keys`), with a note on each.
            if not offered and not is_signatures:
                raise NoCommonAlgorithm(
                    f"your ssh config says {KEYWORDS[word]} for {destination.label}, "
                    "and paramiko has none of them.",
                    'Set transport = "openssh" for this remote.',
                )
            internals.set_algorithms(self, word, offered)

    def handshake(self, seconds: float) -> None:
        """Exchange greetings and keys. Nothing is trusted yet."""
        self.banner_timeout = self.handshake_timeout = seconds
        met = threading.Event()
        self.start_client(event=met)
        if not met.wait(seconds):
            raise ResponseTimeout
        if not self.active or not self.initial_kex_done:
            problem = self.saved_exception
            # The same error also stands for servers of another age, which nobody would reach.
            if match := re.search(r"\((no acceptable [^)]*)\)", str(problem)):
                raise NegotiationFailed(match[1])
            raise ConnectionClosed

    @property
    def software(self) -> str:
        """What the server calls itself."""
        return str(self.remote_version).split("-", 2)[-1]

    @property
    def server_reason(self) -> str:
        """What the server has given as a reason so far, unasked: it may be anything."""
        if self.is_authenticated():
            return self._disconnect_reason
        words = (self.packetizer.before_greeting, self.userauth.banner, self._disconnect_reason)
        return "\n".join(filter(None, words))

    def on_disconnect(self, reason: str) -> None:
        """Keep what the server says as it hangs up."""
        self._disconnect_reason = reason[:LONGEST_TEXT]

    def on_key_exchange(self) -> None:
        """Note when our half of the exchange has gone out."""
        self._kex_began = time.perf_counter()

    def on_key_exchange_reply(self) -> None:
        """Learn from the answer to our half: one round trip and the server's sums."""
        self.record_rtt(time.perf_counter() - self._kex_began)

    def on_host_key(self, key: Any) -> None:
        """Let no later key be another one: somebody has looked at the first alone."""
        if self.first_host_key is None:
            self.first_host_key = key
        elif key.asbytes() != self.first_host_key.asbytes():
            raise HostKeyChanged("showed another host key in a later key exchange")

    def _on_extensions(self, message: Any) -> None:
        # paramiko reads as many pairs as the number says: 2**32 empty ones take an hour.
        number = message.get_int()
        if number > MOST_EXTENSIONS:
            raise ServerViolation(f"names {number} extensions")
        self.server_extensions = {
            message.get_binary().decode(errors="replace"): message.get_binary()
            for _ in range(number)
        }
        internals.log_debug(self, f"Got EXT_INFO: {self.server_extensions}")

    def record_rtt(self, seconds: float) -> None:
        """Learn how long the server took for an answer."""
        self.round_trip = min(self.round_trip, seconds)

    # --- channels ---

    def new_channel(self, receiver: ChannelReceiver) -> ParamikoChannel:
        """Make a channel that nobody has asked the server for yet."""
        with self.lock:
            number = internals.next_channel_number(self)
            channel = ParamikoChannel(self, number, receiver)
            internals.link_channel(self, number, channel)
            self._open_channels[number] = channel
        return channel

    def remove_channel(self, channel: ParamikoChannel) -> None:
        """Drop a channel that is over."""
        self._open_channels.pop(channel.number, None)
        internals.unlink_channel(self, channel.number)  # its number may be used again

    def _on_open_confirmation(self, message: Any) -> None:
        number, *said = (message.get_int() for _ in range(4))
        if channel := self._open_channels.get(number):
            channel.on_open_confirmation(*said)
        else:
            # Nobody waits for it any more: hand it back, or it would count against MaxSessions.
            self.send_nowait(ssh_message(ssh.cMSG_CHANNEL_CLOSE, said[0]))

    def _on_open_failure(self, message: Any) -> None:
        number, code = message.get_int(), message.get_int()
        if channel := self._open_channels.get(number):
            channel.on_open_failure(code)
            self.remove_channel(channel)

    # --- sending ---

    def send(self, message: paramiko.Message) -> None:
        """Send now; may block while keys are exchanged or the network is slow."""
        try:
            internals.send_user_message(self, message)
        except SEND_ERRORS:
            if threading.current_thread() is not self:
                self.join(DISCONNECT_WITHIN)  # it reads what the server said before it hung up
            self.close_and_join()
            raise ConnectionClosed from None

    def send_nowait(self, message: paramiko.Message) -> None:
        """Send soon, from a thread of its own.

        The transport's thread must go on reading: were it to wait for a full pipe, or for
        the end of a key exchange which only it can bring about, both ends would stand still.
        """
        with self.lock:
            if self._sender is None and self.active:
                self._sender = Thread(
                    self._send_queued, name="ssh-postman", on_error=lambda _error: self.abort()
                )
                self._sender.start()
        if self._send_queue.qsize() >= MOST_UNSENT:
            self.saved_exception = ServerViolation("does not read the answers that it asks for")
            self.abort()
            return
        self._send_queue.put(message)

    def _send_queued(self) -> None:
        with contextlib.suppress(*SEND_ERRORS):
            while (message := self._send_queue.get()) is not None:
                internals.send_user_message(self, message)

    def responds_within(self, seconds: float) -> bool:
        """Ask for a sign of life, and wait for it: an answer to what nobody understands is one."""
        self._has_replied.clear()
        self.send_nowait(ssh_message(ssh.cMSG_GLOBAL_REQUEST, "keepalive@openssh.com", True))
        return self._has_replied.wait(seconds) and bool(self.active)

    # --- the end ---

    @property
    def violation(self) -> ServerViolation | None:
        """What the server did that no server may, if that has ended the connection."""
        return self._failure if isinstance(self._failure, ServerViolation) else None

    @property
    def saved_exception(self) -> BaseException | None:
        """What has ended the connection (paramiko's thread notes it here, and asks for it)."""
        return self._failure

    @saved_exception.setter
    def saved_exception(self, problem: BaseException | None) -> None:
        # Whatever follows a violation is no more than that the connection is over.
        if self.violation is None:
            # paramiko raises an error of its own from whatever comes before the first packet.
            cause = problem.__context__ if problem else None
            self._failure = cause if isinstance(cause, ServerViolation) else problem

    def run(self) -> None:
        """Serve the connection until it ends (paramiko's thread)."""
        try:
            super().run()
        finally:
            # paramiko does this only where it has ended the connection itself.
            self.active = False
            self.packetizer.close()
            if self.completion_event is not None:
                self.completion_event.set()
            self.auth_handler.abort()
            self._has_replied.set()
            self._send_queue.put(None)

    def abort(self) -> None:
        """Drop the connection without a goodbye, not even TCP's."""
        with contextlib.suppress(OSError):
            # Closing then resets; and our reader wakes without a word to the other end.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.shutdown(socket.SHUT_RD)
        self.packetizer.close()

    def close_and_join(self, seconds: float = 2.0) -> None:
        """Close the connection and wait for its threads."""
        self.active = False
        # Closing a socket does not wake the thread that reads from it; shutting it down does.
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.packetizer.close()
        for thread in (self, self._sender):
            if thread and thread.is_alive() and thread is not threading.current_thread():
                thread.join(seconds)
        # A server that falls silent right after its greeting leaves a timer behind.
        self.packetizer.complete_handshake()
        for channel in list(self._open_channels.values()):
            channel.mark_ended()
        self.sock.close()
