"""Where the keeper of a remote answers: found, proven, started if there is none.

A keeper writes its loopback port and a key made for it into a file of this person alone. Both
ends prove that they know the key before anything else is said, so that neither a stranger at
the port nor a stranger behind it hears or says anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remoter_kernel import __version__
from remoter_kernel.errors import RemoteLacks
from remoter_kernel.front.configuration.remotes import state_folder
from remoter_kernel.front.keeper.talk import PROVES_WITHIN, prove_each_other, receive, send
from remoter_kernel.front.private_files import holding_lock
from remoter_kernel.front.ssh.aliases import resolve

if TYPE_CHECKING:
    from remoter_kernel.front.configuration.remotes import Remote

ENDS_WITHIN = 10.0  # seconds
DIGEST = 24  # hexadecimal digits
_early: dict[Path, subprocess.Popen[bytes]] = {}  # those that this process has started ahead
PACKAGE_ROOT = Path(__file__).resolve().parents[3]
ON_WINDOWS = 0x00000200 | 0x00000008  # new group, no console
OUT_OF_ITS_JOB = 0x01000000  # Windows: not every job lets anybody out


def place_of(remote: Remote) -> Path:
    """Return the file that tells where the keeper of a remote answers.

    Whoever logs in somewhere else, or in another way, or with other code, has another keeper.
    """
    # What the name stands for now: a mended ssh config counts at the next login.
    where = repr(resolve(remote.host, remote.ssh_config))
    words = [remote.name, where, remote.transport, __version__]
    digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:DIGEST]
    return _folder() / f"{remote.name}-{digest}.json"


def connect(place: Path) -> Connection:
    """Connect to a keeper, and start it if nobody answers there."""
    connection = try_connect(place)
    if connection is None:
        with holding_lock(place):
            connection = try_connect(place) or _wait_for(place)
    return connection


def start_early(remote: Remote) -> None:
    """Begin to start a keeper, if there is none, while this process is still making ready."""
    place = place_of(remote)
    if not place.exists():
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _early[place] = _start(place)


def try_connect(place: Path) -> Connection | None:
    """Connect to a keeper that is there."""
    try:
        words = json.loads(place.read_text(encoding="utf-8"))
        key, port = bytes.fromhex(words["key"]), int(words["port"])
        handle = socket.create_connection(("127.0.0.1", port), PROVES_WITHIN)
        handle.settimeout(None)
        connection = Connection(handle.detach())
    except (OSError, ValueError, LookupError, TypeError):
        return None  # nobody there, or half a file
    return connection if prove_each_other(connection, key, is_keeper=False) else None


def dismiss_all(name: str = "") -> None:
    """End the keepers of a remote, or all of this person's, and their logins with them."""
    for place in _folder().glob(f"{name or '*'}-{'[0-9a-f]' * DIGEST}.json"):
        text = _read(place)
        connection = try_connect(place)
        if connection:
            with connection, contextlib.suppress(OSError, EOFError):
                send(connection, {"do": "end"})
                while connection.poll(ENDS_WITHIN):  # until it hangs up
                    receive(connection)
        forget(place, text)


def forget(place: Path, text: str) -> None:
    """Remove what is left of a keeper that has written this, unless another one is there."""
    with holding_lock(place):
        if _read(place) == text:
            for file in (place, place.with_suffix(".log")):
                with contextlib.suppress(OSError):  # Windows: whoever writes into it has it still
                    file.unlink()


def _read(place: Path) -> str:
    try:
        return place.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _folder() -> Path:
    return state_folder() / "keepers"


def _start(place: Path) -> subprocess.Popen[bytes]:
    """Start a keeper that is nobody's child: who kills a front's whole tree kills it not."""
    options: dict[str, Any] = {
        # Not the notebook's folder: `-m` would import what lies there.
        "cwd": PACKAGE_ROOT,
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
    }
    words = [sys.executable, "-P", "-m", "remoter_kernel.front.keeper.process", str(place)]
    if sys.platform == "win32":
        try:
            return subprocess.Popen(words, creationflags=ON_WINDOWS | OUT_OF_ITS_JOB, **options)
        except PermissionError:
            return subprocess.Popen(words, creationflags=ON_WINDOWS, **options)
    return subprocess.Popen(words, start_new_session=True, **options)


def _wait_for(place: Path) -> Connection:
    """Wait until a keeper that is being started answers, and connect to it."""
    with _early.pop(place, None) or _start(place) as process:
        assert process.stdout is not None  # noqa: S101 - it was asked for as a pipe
        said = process.stdout.read().decode(errors="replace").strip()
    connection = try_connect(place)
    if connection is None:
        raise RemoteLacks(
            f"the process that keeps logins did not start here: {said or 'it fell silent'}.",
            "Is remoter-kernel installed completely?",
        )
    return connection
