"""Keys between a kernel and its evaluator, so that no other user can read its messages.

Both talk over TCP on loopback, where every user of the machine may connect, and whoever
subscribes to a plain socket gets all outputs. The connection file offers the kernel keys for
CURVE. A kernel that does not know them binds plain sockets and does not say so; a client with
keys would receive nothing from it. So its port is asked first: the greeting with which each ZeroMQ
socket begins (RFC 23, ZMTP 3) names the mechanism. Another process may come to the port before the
kernel does: that a kernel has no keys is believed only once it has signed a reply without them.
"""

from __future__ import annotations

import contextlib
import json
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

import zmq

from remoter_kernel.evaluator.registry import read_json, write_json
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.messages import MessageSigner
from remoter_kernel.protocol.reactor import ignore

if TYPE_CHECKING:
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import KernelManager

    from remoter_kernel.protocol.kernel_client import KernelClient
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.threads import Worker

PUBLIC, SECRET = "curve_publickey", "curve_secretkey"  # in the connection file, as Jupyter has it
DECLARED = "supported_encryption"  # in a kernelspec's metadata: a word or a list of words

# Our part of a greeting: the signature, and version 3.0. After that much the other end sends its
# mechanism; we send no more.
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
OPENING = SIGNATURE + b"\x03\x00"
MECHANISM = slice(12, 32)  # of the other end's greeting: a name, filled up with zeros
CONNECT_WITHIN = 0.02  # seconds; on loopback it takes none, and everything else waits meanwhile
ANSWERS_WITHIN = 1.0  # seconds; another process may have come to the port, and be silent
TRY_EVERY = 0.015  # seconds: the kernel is about to listen
PROBE_AGAIN = 0.1  # seconds


class KernelCurveKeys(NamedTuple):
    """A key pair of CURVE (Z85). The kernel and its clients have the same one, as in Jupyter."""

    public: bytes
    secret: bytes

    def apply_to(self, handle: zmq.Socket[bytes]) -> None:
        """Let a client's socket talk only to a server that has these keys."""
        handle.curve_publickey = handle.curve_serverkey = self.public
        handle.curve_secretkey = self.secret


def can_offer_keys(spec: KernelSpec) -> bool:
    """May this kernel be offered keys?

    What the kernelspec declares counts. Where it says nothing, ipykernel is offered keys all the
    same: many kernelspecs are older than the package, and older packages ignore the keys.
    """
    if not zmq.has("curve"):
        return False
    declared = spec.metadata.get(DECLARED)
    if declared is None:
        return any("ipykernel" in word for word in spec.argv)
    words = [declared] if isinstance(declared, str) else declared
    return isinstance(words, (list, tuple)) and "curve" in (str(word).lower() for word in words)


def write_keys(connection_file: Path) -> None:
    """Write new keys into a connection file, which only its owner can read."""
    public, secret = zmq.curve_keypair()
    words = {**read_json(connection_file), PUBLIC: public.decode(), SECRET: secret.decode()}
    # Into the same file, which has room also on a full disk; the kernel has not started yet.
    with connection_file.open("r+", encoding="utf-8") as file:
        file.write(json.dumps(words))
        file.truncate()


def read_keys(connection_file: Path) -> KernelCurveKeys | None:
    """Return the keys of a connection file, if it has any."""
    words: dict[str, Any] = read_json(connection_file)
    if not (words.get(PUBLIC) and words.get(SECRET)):
        return None
    return KernelCurveKeys(str(words[PUBLIC]).encode(), str(words[SECRET]).encode())


def remove_keys(connection_file: Path) -> None:
    """Take the keys out of a connection file again: the kernel has plain sockets."""
    words = read_json(connection_file)
    write_json(connection_file, {key: words[key] for key in words if key not in {PUBLIC, SECRET}})


class KernelCurveProbe:
    """Asks a ZeroMQ socket on this machine, once there is one, whether it wants CURVE."""

    def __init__(
        self, reactor: Reactor, address: tuple[str, int], on_answer: Callable[[bool], None]
    ) -> None:
        """Begin to ask; `on_answer` is called once, unless `close` comes first."""
        self._reactor = reactor
        self._address = address
        self._on_answer = on_answer
        self._socket: socket.socket | None = None
        self._is_closed = False
        self._connect()

    def close(self) -> None:
        """Ask no more."""
        self._is_closed = True
        self._close_socket()

    def _connect(self) -> None:
        if self._is_closed:
            return
        with contextlib.suppress(OSError):
            self._socket = handle = socket.create_connection(self._address, CONNECT_WITHIN)
            if handle.getsockname() != handle.getpeername():  # TCP can meet itself at a free port
                handle.setblocking(False)
                handle.send(OPENING)
                self._reactor.add_reader(handle, partial(self._on_readable, handle, bytearray()))
                self._reactor.call_later(ANSWERS_WITHIN, partial(self._on_timeout, handle))
                return
        self._retry()

    def _on_timeout(self, handle: socket.socket) -> None:
        if self._socket is handle:
            self._retry()

    def _retry(self) -> None:
        self._close_socket()
        self._reactor.call_later(TRY_EVERY, self._connect)

    def _on_readable(self, handle: socket.socket, greeting: bytearray) -> None:
        try:
            more = handle.recv(MECHANISM.stop)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        greeting += more
        if not more:
            self._retry()  # it has hung up
        elif len(greeting) >= MECHANISM.stop:
            self.close()
            self._on_answer(greeting[MECHANISM].rstrip(b"\0") == b"CURVE")

    def _close_socket(self) -> None:
        if self._socket:
            self._reactor.remove_reader(self._socket)
            self._socket.close()
            self._socket = None


class KernelConnector:
    """Opens the sockets of a kernel's client, with keys or without, as the kernel binds its own."""

    def __init__(
        self, reactor: Reactor, manager: KernelManager, client: KernelClient, disk: Worker
    ) -> None:
        """`manager` has read the connection file; `disk` changes it."""
        self.is_encrypted = False  # for sure only once the kernel has answered
        self._reactor = reactor
        self._manager = manager
        self._client = client
        self._disk = disk
        self._keys: KernelCurveKeys | None = None  # those that the kernel was offered
        self._probe: KernelCurveProbe | None = None  # while it is not known whether it takes them

    def connect(self) -> None:
        """Open the sockets, at once or as soon as the kernel's port has told its mechanism."""
        session = self._manager.session
        self._client.hold_until_open(MessageSigner(session.key, session.signature_scheme))
        self._keys = read_keys(Path(self._manager.connection_file))
        self.is_encrypted = self._keys is not None
        if self._keys:
            self._ask_port()
        else:
            self._open_sockets()

    def on_ready(self) -> None:
        """The kernel has answered: if without keys, take back the offer that it did not take."""
        if self._keys and not self.is_encrypted:
            # If there is no room, the next evaluator asks the port again.
            self._disk.submit(partial(remove_keys, Path(self._manager.connection_file)))

    def close(self) -> None:
        """Ask no more."""
        if self._probe:
            self._probe.close()
            self._probe = None

    def _ask_port(self) -> None:
        address = (str(self._manager.ip), int(self._manager.shell_port))
        self._probe = KernelCurveProbe(self._reactor, address, self._on_mechanism)

    def _on_mechanism(self, is_curve: bool) -> None:  # noqa: FBT001 - a callback's only word
        """Open the sockets as the port says; a word against keys is asked for again and again."""
        self._probe = None
        if self._client.is_ready:  # the kernel has signed a reply: that settles it
            return
        self.is_encrypted = is_curve
        if is_curve or not self._client.is_open:
            self._open_sockets()
        if not is_curve:
            self._reactor.call_later(PROBE_AGAIN, self._ask_port_again)

    def _ask_port_again(self) -> None:
        if self._client.is_open and not self._client.is_ready and self._probe is None:
            self._ask_port()

    def _open_sockets(self) -> None:
        manager = self._manager
        ports = {
            Channel.SHELL: manager.shell_port,
            Channel.CONTROL: manager.control_port,
            Channel.STDIN: manager.stdin_port,
            Channel.IOPUB: manager.iopub_port,
        }
        addresses = {channel: f"tcp://{manager.ip}:{port}" for channel, port in ports.items()}
        lock = self._keys.apply_to if self._keys and self.is_encrypted else ignore
        self._client.open(addresses, lock)
