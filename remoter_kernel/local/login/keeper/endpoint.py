"""Where this person's keeper answers on this machine: found, and started if there is none.

The keeper writes where it answers into a file of this person alone. On POSIX that is a unix
socket, and each end looks at whose process the other one is; where it must be TCP, both prove
that they know the key in that file, the keeper first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from remoter_kernel import __version__, errors
from remoter_kernel.errors import RemoteLacks, RemoterError, Unreachable
from remoter_kernel.local import private_sockets
from remoter_kernel.local.login import login, prompts
from remoter_kernel.local.private_files import STATE_VARIABLE, file_lock, state_folder
from remoter_kernel.local.private_sockets import TCP_SCHEME, connect_to_listener

CONNECTS_WITHIN = 5.0  # seconds
ENDS_WITHIN = 10.0  # seconds
STARTS_WITHIN = 10.0  # seconds, another one that ends, or begins, at the same time included
LEAST_STARTS = 3  # of keepers that are gone before anybody has come: a busy machine takes its time
BEGINS_WITHIN = 60.0  # seconds for one of them to say how it is
TRY_EVERY = 0.1  # seconds
BOOT_ID, PID_NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
PACKAGE_ROOT = Path(__file__).resolve().parents[4]
WINDOWS_FLAGS = 0x00000200 | 0x00000008  # new group, no console
BREAKAWAY_FROM_JOB = 0x01000000  # Windows: not every job lets anybody out
_prestarted: list[subprocess.Popen[bytes]] = []  # started ahead by this process

Message = dict[str, Any]  # JSON
Reply = tuple[Message, list[bytes]]  # a message, and the bytes that belong to it

POLL_EVERY = 0.2  # seconds between two looks at whether a wait was called off
FORWARDED_ENV = ("SSH_AUTH_SOCK", "KRB5CCNAME", "PATH")  # variables of whoever logs in
BLOBS = "blobs"  # how many frames of bytes follow
EXIT_STATUS = "ended"  # of a command that said less than was waited for: its status
# What a keeper tells of a login, and the type of each; a newer one may tell more.
LOGIN_FACTS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("host", "user", "cipher", "host_key", "transport", "why_transport"), str),
    "seconds": dict,
    "round_trip": (int, float),
    "since": (int, float),  # seconds since 1970
    "is_new": bool,
}


def endpoint_file() -> Path:
    """Return the file that tells where the keeper of this person, machine and version answers."""
    machine = hashlib.sha256(_machine_and_boot().encode()).hexdigest()[:12]
    return state_folder().absolute() / "keepers" / f"keeper-{__version__}-{machine}.json"


def connect_to_keeper() -> Connection:
    """Connect to the keeper, and start it if nobody answers."""
    connection = try_connect()
    if connection is None:
        with file_lock(endpoint_file()):
            # Another process may have started it while we waited for the lock.
            connection = try_connect() or _wait_for_keeper()
    return connection


def prestart() -> None:
    """Begin to start the keeper, if there is none, while this process is still making ready."""
    if not endpoint_file().exists():  # one that is there most likely answers
        endpoint_file().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prestarted.append(_spawn_keeper())


def try_connect() -> Connection | None:
    """Connect to a keeper that is there."""
    try:
        record = json.loads(endpoint_file().read_text(encoding="utf-8"))
        if record["machine"] != _machine_and_boot():  # of before a reboot, or of another machine
            return None
        address, key = str(record["address"]), bytes.fromhex(record["key"])
        handle = connect_to_listener(address, CONNECTS_WITHIN)
    except (OSError, ValueError, LookupError, TypeError):
        return None  # nobody there, somebody else, or half a file
    if address.startswith(TCP_SCHEME):
        port = int(address.rpartition(":")[2])
        if len(key) != private_sockets.SECRET_SIZE or not private_sockets.authenticate_as_client(
            handle, key, port
        ):
            handle.close()
            return None
    return Connection(handle.detach())


def endpoint_record(address: str, pid: int) -> dict[str, Any]:
    """Return what a keeper writes into its file."""
    key = secrets.token_bytes(private_sockets.SECRET_SIZE).hex()
    return {"address": address, "key": key, "pid": pid, "machine": _machine_and_boot()}


def end_logins(name: str = "") -> None:
    """End the logins that only this remote uses, or all of this person's, and the keeper."""
    text = _read_if_there(endpoint_file())
    connection = try_connect()
    if connection:
        with connection, contextlib.suppress(OSError, EOFError):
            send_message(connection, {"do": "end", "name": name})
            # The keeper hangs up when it ends; it goes on while it keeps other logins.
            while connection.poll(ENDS_WITHIN):
                if receive_message(connection)[0].get("goes_on"):
                    return
    remove_endpoint_file(endpoint_file(), text)


def remove_endpoint_file(path: Path, text: str) -> None:
    """Remove what is left of a keeper that has written this, unless another one is there."""
    with file_lock(path):
        if _read_if_there(path) == text:
            for file in (path, path.with_suffix(".log")):
                with contextlib.suppress(OSError):  # Windows: whoever writes into it has it still
                    file.unlink()


def _read_if_there(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _machine_and_boot() -> str:
    """Tell this machine, in this boot, from others that share a home with it.

    A host name is no help: on macOS, say, it changes with the network. Where nothing else is
    known, the keeper's socket, or its key, proves that it is here.
    """
    with contextlib.suppress(OSError):
        return f"{BOOT_ID.read_text().strip()} {PID_NAMESPACE.stat().st_ino}"
    return socket.gethostname() if sys.platform == "win32" else ""


def _spawn_keeper() -> subprocess.Popen[bytes]:
    """Start a keeper that is nobody's child: it outlives a proxy that is killed with its tree."""
    module = "remoter_kernel.local.login.keeper.keeper_main"
    command = [sys.executable, "-P", "-m", module, str(endpoint_file())]
    options: dict[str, Any] = {
        "cwd": PACKAGE_ROOT,  # a folder that a person may remove must not be held
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        # It starts in another folder: a path relative to ours is not the same from there.
        "env": {**os.environ, STATE_VARIABLE: str(state_folder().absolute())},
    }
    if sys.platform != "win32":
        return subprocess.Popen(command, start_new_session=True, **options)
    try:
        return subprocess.Popen(
            command, creationflags=WINDOWS_FLAGS | BREAKAWAY_FROM_JOB, **options
        )
    except PermissionError:
        return subprocess.Popen(command, creationflags=WINDOWS_FLAGS, **options)


def _wait_for_keeper() -> Connection:
    """Wait until a keeper that is being started answers, and connect to it.

    There is one at a time: what is started while another one ends, or begins, ends at once. One
    that nobody could come to in time has ended, too: then there is another.
    """
    deadline = time.monotonic() + STARTS_WITHIN
    starts = 0
    while True:
        try:
            process = _prestarted.pop() if _prestarted else _spawn_keeper()
        except OSError as error:  # no process, no memory, no descriptor is left: that passes
            why = error.strerror or error
            raise _keeper_unreachable(f"cannot be started here: {why}") from error
        why_not = _startup_error(process)
        starts += 1
        connection = try_connect()  # even if ours has ended: another one may have been quicker
        if connection is not None:
            return connection
        if why_not:
            raise RemoteLacks(
                f"the process that keeps logins did not start here: {why_not}.",
                "Is remoter-kernel installed completely?",
            )
        if starts >= LEAST_STARTS and time.monotonic() > deadline:
            raise _keeper_unreachable("ends before anybody reaches it")
        time.sleep(TRY_EVERY)


def _startup_error(process: subprocess.Popen[bytes]) -> str:
    """Wait until a keeper answers or has ended; return why it could not begin, as it says."""
    try:
        # Its stdout ends when it answers: it goes on with a file in its place.
        said, complaints = process.communicate(timeout=BEGINS_WITHIN)
    except subprocess.TimeoutExpired:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        raise _keeper_unreachable(f"has said nothing for {BEGINS_WITHIN:g} s") from None
    if process.returncode:
        said = said.strip() or complaints
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else ""


def _keeper_unreachable(what: str) -> RemoterError:
    return Unreachable(
        f"the process that keeps logins {what}.",
        "Try again; what keeps this machine so busy?",
    )


# How a keeper and its clients talk: JSON, bytes behind it, errors by their names.
def send_message(connection: Connection, message: Message, *blobs: bytes) -> None:
    """Send a message; `blobs` are bytes that belong to it."""
    connection.send_bytes(json.dumps({**message, BLOBS: len(blobs)}).encode())
    for blob in blobs:
        connection.send_bytes(blob)


def receive_message(connection: Connection) -> Reply:
    """Wait for a message; EOFError or OSError when the other end is gone."""
    message: Message = json.loads(connection.recv_bytes())
    return message, [connection.recv_bytes() for _ in range(message.pop(BLOBS))]


def error_to_message(error: RemoterError) -> Reply:
    """Return an error as a message."""
    message = {
        "error": type(error).__name__,
        "what": error.what,
        "advice": error.advice,
        "remote": error.remote,
    }
    if isinstance(error, login.CommandEnded):
        return {**message, EXIT_STATUS: error.status}, [error.stdout, error.stderr]
    return message, []


def raise_from_message(message: Message, blobs: list[bytes]) -> None:
    """Raise the error that a message tells of, if it does."""
    name = message.get("error")
    if not name:
        return
    if EXIT_STATUS in message:
        raise login.CommandEnded(login.CompletedCommand(blobs[0], blobs[1], message[EXIT_STATUS]))
    kinds = [getattr(module, name, None) for module in (errors, prompts, login)]
    kind = next(
        (each for each in kinds if isinstance(each, type) and issubclass(each, RemoterError)),
        RemoterError,  # one of a newer keeper
    )
    raise kind(message["what"], message["advice"], remote=message["remote"])
