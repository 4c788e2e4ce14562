"""The embedded host's server process: paramiko's server mode, for one key, on a unix socket.

    python -m remoter_kernel.local.login.embedded_server FOLDER

makes its keys and its socket in FOLDER, says so, and serves until its stdin ends: then the
parent is done with it, or dead. FOLDER goes with it.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import ipaddress
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from remoter_kernel.local.login.embedded_host import HOST_KEY_ALIAS, READY_LINE, SOCKET_NAME
from remoter_kernel.local.login.paramiko.paramiko_internals import CHECK_EVERY, ServerTransport
from remoter_kernel.local.private_sockets import is_own_process
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

# A process that a command leaves behind may hold its pipes open: what the command itself
# said is read within this time after its end.
LINGER = 1.0  # seconds
CONNECT_WITHIN = 5.0  # seconds, on loopback
PAUSE = 0.2  # seconds until the next connection is taken, where no descriptor is left
READ_AT_ONCE = 32 * 1024  # bytes
GONE = (OSError, EOFError, paramiko.SSHException)  # what a connection that has ended raises
PARENT_PID_VARIABLE = "JPY_PARENT_PID"  # ipykernel ends when the process of that number does


def main(folder: Path) -> None:
    """Serve until stdin ends."""
    _reset_signals()
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    logging.getLogger("paramiko").propagate = False
    host_key, client_key = _generate_key(None), _generate_key(folder / "client_key")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(folder / SOCKET_NAME))  # the folder is private: so is the socket
    listener.listen()
    public = base64.b64encode(host_key.asbytes()).decode()
    (folder / "known_hosts").write_text(f"{HOST_KEY_ALIAS} {host_key.get_name()} {public}\n")
    accepting = Thread(
        _accept_connections,
        args=(listener, host_key, client_key),
        name="host-accept",
        on_error=lambda _error: listener.close(),
    )
    accepting.start()
    print(READY_LINE.decode(), flush=True)  # noqa: T201 (it is the answer that the parent waits for)
    with contextlib.suppress(OSError):
        while os.read(0, 1024):  # until the parent closes its end, or dies
            pass
    shutil.rmtree(folder, ignore_errors=True)
    # Not sys.exit: nothing here is worth waiting for, and the parent may be gone already.
    os._exit(0)


def _reset_signals() -> None:
    """Begin afresh, as a login does: a parent may have chosen to ignore or block signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # inherited by all commands, too


def _generate_key(file: Path | None) -> Any:
    """Make a key, and write its private half to `file`, if one is named."""
    private = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    if file is not None:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(private)
    return paramiko.Ed25519Key.from_private_key(io.StringIO(private.decode()))


def _accept_connections(listener: socket.socket, host_key: Any, client_key: Any) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno == errno.EBADF:  # closed
                return
            time.sleep(PAUSE)  # gone again, or no descriptor is left: that passes
            continue
        if not is_own_process(sock):  # the key would not let others in, either
            sock.close()
            continue
        Thread(_serve_connection, args=(sock, host_key, client_key), name="host-login").start()


def _serve_connection(sock: socket.socket, host_key: Any, client_key: Any) -> None:
    """Serve one connection: hand each forwarded channel to the socket made for it."""
    server = _ServerInterface(client_key)
    transport = ServerTransport(sock)
    transport.add_server_key(host_key)
    with contextlib.closing(transport), contextlib.suppress(*GONE):
        transport.start_server(server=server)
        while transport.is_active():
            channel = transport.accept(CHECK_EVERY)
            target = server.sockets.pop(channel.get_id(), None) if channel else None
            if target is not None:
                _start_thread(_relay_inwards, channel, target)
                _start_thread(_relay_outwards, channel, target)


class _ServerInterface(paramiko.ServerInterface):  # type: ignore[misc]  # paramiko has no types
    """What this host allows: one key, commands, connections to loopback."""

    def __init__(self, client_key: Any) -> None:
        self.sockets: dict[int, socket.socket] = {}
        self._client_key = client_key

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002 (paramiko's signature)
        return "publickey"

    def check_auth_publickey(self, username: str, key: Any) -> int:  # noqa: ARG002
        fits = key.asbytes() == self._client_key.asbytes()
        return int(paramiko.AUTH_SUCCESSFUL if fits else paramiko.AUTH_FAILED)

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002
        known = kind == "session"
        return int(paramiko.OPEN_SUCCEEDED if known else paramiko.OPEN_FAILED_UNKNOWN_CHANNEL_TYPE)

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        _start_thread(_run_command, channel, command)
        return True

    def check_channel_direct_tcpip_request(
        self,
        chanid: int,
        origin: tuple[str, int],  # noqa: ARG002
        destination: tuple[str, int],
    ) -> int:
        if not _is_loopback(destination[0]):  # it is no way into other networks
            return int(paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED)
        try:
            target = socket.create_connection(destination, CONNECT_WITHIN)
        except (OSError, OverflowError):  # the latter: a port that is none
            return int(paramiko.OPEN_FAILED_CONNECT_FAILED)
        target.settimeout(None)
        target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sockets[chanid] = target
        return int(paramiko.OPEN_SUCCEEDED)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _run_command(channel: Any, command: bytes) -> None:
    """Run a command as sshd would: by a shell, in a session of its own, from the home."""
    # Set where Jupyter has started us: a kernel would end with a process that is not its parent.
    environment = {key: value for key, value in os.environ.items() if key != PARENT_PID_VARIABLE}
    with contextlib.closing(channel):
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path.home(),
            env=environment,
            start_new_session=True,
        )
        _start_thread(_relay_stdin, channel, process)
        outputs = [
            _start_thread(_relay_output, process.stdout, channel.sendall),
            _start_thread(_relay_output, process.stderr, channel.sendall_stderr),
        ]
        status = process.wait()
        for output in outputs:  # before the status: after it, a client may hang up
            output.join(LINGER)
        with contextlib.suppress(*GONE):
            # As a shell does for a command that a signal has ended.
            channel.send_exit_status(status if status >= 0 else 128 - status)


def _start_thread(do: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = Thread(do, args=arguments, name=f"host{do.__name__}")
    thread.start()
    return thread


def _relay_stdin(channel: Any, process: subprocess.Popen[bytes]) -> None:
    """Give a command its input; its end, or the channel's, closes it."""
    with contextlib.suppress(OSError, EOFError), process.stdin as stdin:  # type: ignore[union-attr]
        while data := channel.recv(READ_AT_ONCE):
            stdin.write(data)
            stdin.flush()


def _relay_output(source: Any, send: Callable[[bytes], None]) -> None:
    """Relay what a command says; where nobody listens any more, it meets a closed pipe."""
    with contextlib.suppress(*GONE), source:
        while data := source.read1(READ_AT_ONCE):
            send(data)


def _relay_inwards(channel: Any, target: socket.socket) -> None:
    """Relay what comes for a forwarded connection; when either end closes, so does the other."""
    with contextlib.suppress(OSError, EOFError):
        while data := channel.recv(READ_AT_ONCE):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)  # wakes the other thread, which closes it


def _relay_outwards(channel: Any, target: socket.socket) -> None:
    """Relay what a forwarded connection answers."""
    with contextlib.suppress(*GONE), target:
        while data := target.recv(READ_AT_ONCE):
            channel.sendall(data)
    with contextlib.suppress(*GONE):
        channel.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
