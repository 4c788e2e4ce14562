"""Listening sockets for our own processes on this machine, which no other user can use.

On POSIX they are unix sockets in a folder of this person alone, and whoever connects has to be a
process of this person. Where there are none (Windows, a disk that cannot hold them) they are TCP
on loopback, where anybody may connect: then who accepts asks for a proof.

There are two kinds of proof. The keeper and its clients share a key that stands in a file of this
person alone: both prove that they know it, the keeper first, each in its own role, within one
deadline. A tunnel has a secret, which its user sends before all else. ZeroMQ cannot send one: CURVE
proves what it carries, and we let only a process of this person through to the other end.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import random
import secrets
import socket
import stat
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from remoter_kernel.local.private_files import state_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNIX_SCHEME, TCP_SCHEME = "ipc://", "tcp://"  # how an address begins, as ZeroMQ writes it
HAS_UNIX_SOCKETS = hasattr(socket, "AF_UNIX") and os.name == "posix"
SEND_BUFFER = 1024 * 1024  # bytes on their way
LONGEST_PATH = 100  # bytes: macOS has room for 103, Linux for 107
SHORT_PREFIX = "remoter-socket-"  # of a folder that is made where the usual path is too long
STALE_SOCKET_AFTER = 3600.0  # seconds: a tunnel's socket is removed when its user connects
# Jupyter chooses the ports of a kernel by asking for any, and the kernel binds them a moment
# later: a port of ours must not be one of those that Linux, macOS and Windows give away.
NON_EPHEMERAL_PORTS = range(20000, 32768)
PORT_TRIES = 50
TRY_EVERY = 0.01  # seconds
LOCAL_PEERCRED = 0x001  # of macOS and FreeBSD, at the level of the socket's own protocol (0)

SECRET_SIZE = 32  # bytes of a key, a secret, a nonce and a proof
HANDSHAKE_WITHIN = 5.0  # seconds for all of a proof
SECRET_WITHIN = 1.0  # seconds for a tunnel's secret: its user sends it at once
ZMTP_SIGNATURE = b"\xff"  # how ZeroMQ's greeting begins
KEEPER_ROLE, CLIENT_ROLE = b"keeper", b"visitor"


class PrivateListener:
    """A socket that listens from its construction on; OSError where none can be had."""

    def __init__(self, kind: str, backlog: int) -> None:
        """Listen; `kind` begins the name of the socket's file."""
        self.address = ""  # where to connect to, as ZeroMQ writes it
        self._path: Path | None = None
        self._socket = self._listen_at_path(kind, backlog) or _listen_at_tcp(backlog)
        if self._path is None:
            self.address = f"{TCP_SCHEME}127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_tcp(self) -> bool:
        """Can anybody on this machine connect?"""
        return self.address.startswith(TCP_SCHEME)

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self.address.rpartition(":")[2])

    def accept(self, seconds: float | None = None) -> socket.socket:
        """Wait for a connection; on a unix socket only this person's processes count.

        Raises OSError once it is closed, TimeoutError after `seconds` without a connection.
        """
        self._socket.settimeout(seconds)
        while True:
            connection, _ = self._socket.accept()
            connection.settimeout(None)
            if self.is_tcp:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection
            if is_own_process(connection):
                # As much as the system gives: a sender waits less often for the other one's turn.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
                return connection
            connection.close()  # root, or a folder that others can enter by now

    def unlink(self) -> None:
        """Let nobody else connect; whoever has done so already can still be accepted."""
        path, self._path = self._path, None
        if path is not None:
            remove_socket(path)

    def wake(self) -> None:
        """Let a thread that waits in `accept` go on: closing its socket would not."""
        with contextlib.suppress(OSError):
            connect_to_listener(self.address, 0.5).close()

    def close(self) -> None:
        """Listen no more."""
        self.unlink()
        self._socket.close()

    def _listen_at_path(self, kind: str, backlog: int) -> socket.socket | None:
        """Listen at a unix socket, if one can be made anywhere."""
        for folder in _socket_folders() if HAS_UNIX_SOCKETS else ():
            path = folder / f"{kind}{secrets.token_hex(4)}"  # many listen at a time
            listener: socket.socket | None = None
            try:
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                listener.bind(str(path))
                listener.listen(backlog)
            except OSError:  # too long a path, or a disk without sockets
                if listener:
                    listener.close()
                remove_socket(path)
                continue
            self._path, self.address = path, f"{UNIX_SCHEME}{path}"
            return listener
        return None


def connect_to_listener(address: str, seconds: float) -> socket.socket:
    """Connect to a listener of this person; OSError where nobody is, or somebody else."""
    if address.startswith(UNIX_SCHEME):
        connection = _connect_to_path(address.removeprefix(UNIX_SCHEME), time.monotonic() + seconds)
        if not is_own_process(connection):  # before we send anything
            connection.close()
            raise PermissionError("another user listens there")
    else:
        host, _, port = address.removeprefix(TCP_SCHEME).rpartition(":")
        connection = socket.create_connection((host, int(port)), seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(None)
    return connection


def _connect_to_path(path: str, deadline: float) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            connection.connect(path)
        except BlockingIOError:  # Linux says so at once where many wait: that passes
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(TRY_EVERY)
        except BaseException:
            connection.close()
            raise
        else:
            return connection


def is_own_process(connection: socket.socket) -> bool:
    """Is the process at the other end of a unix socket this person's, as far as that is known?"""
    return sys.platform == "win32" or peer_uid(connection) in (os.getuid(), -1)


def peer_uid(sock: socket.socket) -> int:
    """Return the user id of whoever is at the other end of a unix socket; -1: not known."""
    try:
        if sys.platform == "linux":
            found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            _process, uid, _group = struct.unpack("iII", found)  # struct ucred
            return int(uid)
        if sys.platform == "darwin" or sys.platform.startswith("freebsd"):
            found = sock.getsockopt(0, LOCAL_PEERCRED, struct.calcsize("IIh16I"))
            _version, uid = struct.unpack_from("II", found)  # struct xucred
            return int(uid)
    except (OSError, struct.error):
        pass
    return -1


def remove_socket(path: Path) -> None:
    """Remove a socket's file, and its folder if that was made for it alone."""
    with contextlib.suppress(OSError):
        path.unlink()
    if path.parent.name.startswith(SHORT_PREFIX):
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def remove_old_sockets(kind: str) -> None:
    """Remove the files of sockets of this kind whose processes were killed before they did."""
    with contextlib.suppress(OSError):
        for path in _default_folder().glob(f"{kind}*"):
            # A younger one may be of a tunnel whose user has yet to connect.
            if time.time() - path.lstat().st_mtime > STALE_SOCKET_AFTER:
                path.unlink()


def _default_folder() -> Path:
    return state_folder().absolute() / "sockets"


def _socket_folders() -> Iterator[Path]:
    """Yield folders of this person alone with room for a socket: the usual one, then a new one."""
    usual = _default_folder()
    if len(os.fsencode(usual)) + 10 <= LONGEST_PATH:
        with contextlib.suppress(OSError):
            yield _ensure_private(usual)
    for parent in (os.environ.get("XDG_RUNTIME_DIR", ""), _temporary_folder(), "/tmp"):  # noqa: S108 (mkdtemp makes it private)
        if parent and len(os.fsencode(parent)) + 40 <= LONGEST_PATH:
            with contextlib.suppress(OSError):
                yield Path(tempfile.mkdtemp(prefix=SHORT_PREFIX, dir=parent))


def _ensure_private(folder: Path) -> Path:
    """Return a folder that nobody else can enter; OSError where it is somebody else's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not this person's")
    if stat.S_IMODE(about.st_mode) != 0o700:  # noqa: PLR2004 (it is what private means)
        folder.chmod(0o700)
    return folder


def short_private_folder(prefix: str) -> Path:
    """Make a folder that only this person can enter, with a path short enough for sockets."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=short_temporary_folder()))


def short_temporary_folder() -> str:
    """Return where folders with sockets are made: the usual place, if it is there and short."""
    usual = _temporary_folder()
    is_short = os.name != "posix" or len(os.fsencode(usual)) + 40 <= LONGEST_PATH
    return usual if usual and is_short else "/tmp"  # noqa: S108 (mkdtemp makes what is in it private)


def _temporary_folder() -> str:
    """Return the folder for temporary files; a long-lived process may have outlived its TMPDIR."""
    with contextlib.suppress(OSError):
        if not os.path.isdir(tempfile.gettempdir()):  # noqa: PTH112 (a text is wanted)
            tempfile.tempdir = None
            os.environ.pop("TMPDIR", None)
        return tempfile.gettempdir()
    return ""


def _listen_at_tcp(backlog: int) -> socket.socket:
    for port in random.sample(NON_EPHEMERAL_PORTS, PORT_TRIES):
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", port), backlog=backlog)
    return socket.create_server(("127.0.0.1", 0), backlog=backlog)  # rather than none


def authenticate_as_client(connection: socket.socket, key: bytes, port: int) -> bool:
    """Let the keeper prove itself, and only then prove that we know the key, too."""
    mine = secrets.token_bytes(SECRET_SIZE)  # a proof that was overheard fits no other nonce
    with _deadline(connection, HANDSHAKE_WITHIN) as read:
        connection.sendall(mine)
        theirs, proof = read(SECRET_SIZE), read(SECRET_SIZE)
        if not hmac.compare_digest(proof, _digest(key, KEEPER_ROLE, mine, theirs, port)):
            return False
        connection.sendall(_digest(key, CLIENT_ROLE, mine, theirs, port))
        return True
    return False


def authenticate_as_keeper(connection: socket.socket, key: bytes, port: int) -> bool:
    """Prove that we know the key, and let the client do so."""
    mine = secrets.token_bytes(SECRET_SIZE)
    with _deadline(connection, HANDSHAKE_WITHIN) as read:
        theirs = read(SECRET_SIZE)
        connection.sendall(mine + _digest(key, KEEPER_ROLE, theirs, mine, port))
        return hmac.compare_digest(read(SECRET_SIZE), _digest(key, CLIENT_ROLE, theirs, mine, port))
    return False


def is_authenticated(connection: socket.socket, secret: bytes) -> bool:
    """Does whoever has connected to a tunnel know its secret, or is it our own ZeroMQ?"""
    with _deadline(connection, SECRET_WITHIN) as read:
        if connection.recv(1, socket.MSG_PEEK) == ZMTP_SIGNATURE and secret[:1] != ZMTP_SIGNATURE:
            return _is_peer_own_process(connection)
        return hmac.compare_digest(read(SECRET_SIZE), secret)
    return False


def new_secret() -> bytes:
    """Make a tunnel's secret, which does not begin as ZeroMQ does."""
    while (secret := secrets.token_bytes(SECRET_SIZE))[:1] == ZMTP_SIGNATURE:
        pass
    return secret


def _digest(key: bytes, role: bytes, client_nonce: bytes, keeper_nonce: bytes, port: int) -> bytes:
    # The role: no answer can be sent back as a proof. The port: nobody can pass it on elsewhere.
    words = b"|".join((role, client_nonce, keeper_nonce, str(port).encode()))
    return hmac.digest(key, words, "sha256")


def read_exactly(connection: socket.socket, size: int, deadline: float | None) -> bytes:
    """Read so many bytes by then (`time.monotonic`); what is late or ends early is an OSError."""
    data = b""
    while len(data) < size:
        # Seconds for each piece would let a stranger hold us for as long as it likes.
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("it ended before all had come")
        data += more
    return data


@contextlib.contextmanager
def _deadline(connection: socket.socket, seconds: float) -> Iterator[Callable[[int], bytes]]:
    """Read within a time; what goes wrong ends the block, and is no proof."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(OSError):
        connection.settimeout(seconds)
        yield lambda size: read_exactly(connection, size, deadline)
        connection.settimeout(None)


def _is_peer_own_process(connection: socket.socket) -> bool:
    """Is the socket at the other end of a loopback connection one of this person's processes?"""
    import psutil  # noqa: PLC0415 - only where there are no unix sockets

    address = connection.getpeername()
    with contextlib.suppress(psutil.Error):
        me = psutil.Process().username()
        for each in psutil.net_connections("tcp4"):
            if each.laddr == address and each.pid is not None:
                return bool(psutil.Process(each.pid).username() == me)
    return False
