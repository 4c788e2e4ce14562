"""The keeper's process: holds logins, and serves clients until nobody has needed it for long.

Like a ControlMaster of OpenSSH, but one for all hosts, and by paramiko as well.

    python -P -m remoter_kernel.local.login.keeper.keeper_main FILE

writes where it answers into FILE, and says on stdout why it could not, if it could not. The
end of its stdout means that it answers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from remoter_kernel import logs
from remoter_kernel.errors import RemoterError
from remoter_kernel.local import private_files, private_sockets
from remoter_kernel.local.login.keeper.endpoint import endpoint_record, remove_endpoint_file
from remoter_kernel.local.login.tunnel import SOCKET_KIND
from remoter_kernel.local.private_files import try_lock, write_private_file
from remoter_kernel.local.private_sockets import (
    UNIX_SCHEME,
    PrivateListener,
    remove_old_sockets,
    remove_socket,
)
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    import socket

    from remoter_kernel.local.login.keeper.keeper_server import KeeperServer

BACKLOG = 64
PAUSE = 0.2  # seconds before the next client is taken, where this process has no descriptor left
MOST_UNAUTHENTICATED = 32  # connections by TCP that have not proven anything yet
DESCRIPTORS = 8192  # enough for some thousand tunnels
DETACHED_FLAG = "--here"  # on Windows, where no process can fork: this one is to stay
PR_SET_DUMPABLE = 4  # of Linux' prctl
PROCESS_NAME = "remoter-keeper"  # as `ps` shows it on Linux
_log = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Be the keeper, in a process whose parent ends at once."""
    endpoint_file = Path(arguments[-1])
    if hasattr(os, "fork"):
        if os.fork():  # the parent ends: nobody kills us with it, and `init` reaps us
            os._exit(0)
        # Ctrl-C, and the end of a terminal, are for the process that has started us.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    elif DETACHED_FLAG not in arguments:
        command = [sys.executable, "-P", "-m", __spec__.name, DETACHED_FLAG, str(endpoint_file)]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, creationflags=0x08000000)
        return
    try:
        serve_until_idle(endpoint_file)
    except Exception as error:  # noqa: BLE001 - who waits for it reads the reason
        why = str(error)
        if not isinstance(error, OSError | RemoterError):  # a bug
            traceback.print_exc()
            why = f"{type(error).__name__}: {error}"
        print(why, flush=True)  # noqa: T201 - who started it reads that
        os._exit(1)


def serve_until_idle(endpoint_file: Path) -> None:
    """Serve until no login is kept and nobody comes; ends this process."""
    from remoter_kernel.local.login.keeper.keeper_server import KeeperServer  # noqa: PLC0415 - it imports SSH

    protect_memory()
    lock = _lock_endpoint(endpoint_file)
    if lock is None:
        os._exit(0)  # another one answers, or is about to: who has started us looks again
    remove_old_sockets(SOCKET_KIND)  # of tunnels of keepers that were killed
    _remove_dead_socket(endpoint_file)
    with PrivateListener("k", BACKLOG) as listener:
        record = endpoint_record(listener.address, os.getpid())
        text = json.dumps(record)
        write_private_file(endpoint_file, text)  # it listens by now: who reads this can connect
        _redirect_output(endpoint_file.with_suffix(".log"))
        private_files.begin_log_file("keeper")
        _log.info("The keeper begins as process %d.", os.getpid())
        server = KeeperServer()
        signal.signal(signal.SIGTERM, lambda *_: server.end())  # at a shutdown, say
        accepting = Thread(
            _accept_clients,
            args=(listener, bytes.fromhex(record["key"]), server),
            name="keeper-door",
            on_error=lambda _error: server.end(),  # who lets nobody in is of no use
        )
        accepting.start()
        server.serve()  # in the main thread, where signals are handled
        # Before the clients are hung up on: they look at the file for another keeper.
        with contextlib.suppress(RemoterError):
            remove_endpoint_file(endpoint_file, text)
        os.close(lock)  # the next keeper may begin
        server.close()
    _log.info("The keeper ends.")
    logs.close_log()
    # Not sys.exit: it would wait for threads that serve clients, and these for their clients.
    os._exit(0)


def protect_memory() -> None:
    """Let nobody read the secrets in this process's memory, and let no core file hold them."""
    if os.name != "posix":
        return
    import resource  # noqa: PLC0415 - POSIX alone has it

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold passwords
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - nothing else needs it

        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text(PROCESS_NAME)
        # Nor may other processes of this person attach: ptrace(2), /proc/PID/mem.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _lock_endpoint(endpoint_file: Path) -> int | None:
    """Be the only keeper, for as long as the descriptor is open; None: there is another one."""
    endpoint_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(endpoint_file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    with contextlib.suppress(OSError):  # a disk without locks: then two may be there for a while
        if not try_lock(handle):
            os.close(handle)
            return None
    return handle


def _remove_dead_socket(endpoint_file: Path) -> None:
    """Remove the socket of a keeper that was killed: no other one lives while we have its lock."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        address = str(json.loads(endpoint_file.read_text(encoding="utf-8"))["address"])
        if address.startswith(UNIX_SCHEME):
            remove_socket(Path(address.removeprefix(UNIX_SCHEME)))


def _redirect_output(log: Path) -> None:
    """Close the pipe that our starter waits at; what goes wrong from now on goes to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    sys.stdout.flush()
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


def _accept_clients(listener: PrivateListener, key: bytes, server: KeeperServer) -> None:
    """Take clients for as long as the listener listens."""
    unauthenticated = threading.BoundedSemaphore(MOST_UNAUTHENTICATED)
    pause = threading.Event()
    while True:
        try:
            connection = listener.accept()
        except OSError as error:
            if error.errno == errno.EBADF:  # closed
                return
            # Gone again, or no descriptor is left: that passes.
            pause.wait(PAUSE)
            continue
        if listener.is_tcp and not unauthenticated.acquire(blocking=False):
            connection.close()  # strangers must not take all threads
            continue
        args = (connection, listener, key, unauthenticated, server)
        try:
            Thread(_serve_client, args=args, name="keeper-visitor").start()
        except RuntimeError:  # no thread is left, either
            connection.close()
            if listener.is_tcp:
                unauthenticated.release()
            pause.wait(PAUSE)


def _serve_client(
    connection: socket.socket,
    listener: PrivateListener,
    key: bytes,
    unauthenticated: threading.BoundedSemaphore,
    server: KeeperServer,
) -> None:
    """Let in who is this person's; by TCP that takes a proof."""
    if listener.is_tcp:
        try:
            is_proven = private_sockets.authenticate_as_keeper(connection, key, listener.port)
        finally:
            unauthenticated.release()
        if not is_proven:
            connection.close()
            return
    try:
        server.serve_client(Connection(connection.detach()))
    except Exception:  # noqa: BLE001 - one client's trouble is not the others'
        _log.exception("A client was not served to its end.")


if __name__ == "__main__":
    main(sys.argv[1:])
