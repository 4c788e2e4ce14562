"""The keeper's process: serves visitors until nobody has needed it for long.

    python -m remoter_kernel.front.keeper.process FILE

writes where it answers into FILE, and says on stdout why it could not, if it could not. The
end of its stdout means that it answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import traceback
from multiprocessing.connection import Listener
from pathlib import Path
from typing import TYPE_CHECKING

from remoter_kernel.errors import RemoterError
from remoter_kernel.front.keeper.endpoint import forget
from remoter_kernel.front.keeper.talk import prove_each_other
from remoter_kernel.front.private_files import write_private

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from remoter_kernel.front.keeper.host import Host

NOT_FOR_ANYBODY = range(20000, 32768)  # below what Linux, macOS and Windows give away
TRIES = 50
BACKLOG = 16
TWICE_REMOVED = "--here"  # on Windows, where no process can fork: this one is to stay


def main(arguments: list[str]) -> None:
    """Be the keeper, in a process whose parent ends at once."""
    place = Path(arguments[-1])
    if hasattr(os, "fork"):
        if os.fork():
            os._exit(0)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    elif TWICE_REMOVED not in arguments:
        command = [sys.executable, "-P", "-m", __spec__.name, TWICE_REMOVED, str(place)]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, creationflags=0x08000000)
        return
    try:
        keep(place)
    except (OSError, RemoterError) as error:
        print(error, flush=True)  # noqa: T201 - who started it reads that
        os._exit(1)


def keep(place: Path) -> None:
    """Serve until the host says that it is enough."""
    from remoter_kernel.front.keeper.host import Host  # noqa: PLC0415 - only the one that stays

    key = secrets.token_bytes(32)
    with _listen() as listener:
        port = listener.address[1]
        text = json.dumps({"port": port, "key": key.hex(), "pid": os.getpid()})
        write_private(place, text)
        _speak_no_more(place.with_suffix(".log"))
        host = Host()
        signal.signal(signal.SIGTERM, lambda *_: host.end())
        accepting = threading.Thread(
            target=_accept, args=(listener, key, host), name="keeper-door", daemon=True
        )
        accepting.start()
        host.keep()
        # First of all: whoever is turned away from now on must find another keeper.
        with contextlib.suppress(RemoterError):
            forget(place, text)
        host.close()
    # Not sys.exit: whoever still talks is talking to nobody.
    os._exit(0)


def _listen() -> Listener:
    """Listen at a port that nobody gets who asks for any.

    Jupyter chooses the ports of a kernel in that way, and the kernel binds them a moment later:
    one of them might be ours by then, and for long.
    """
    for port in random.sample(NOT_FOR_ANYBODY, TRIES):
        with contextlib.suppress(OSError):
            return Listener(("127.0.0.1", port), "AF_INET", backlog=BACKLOG)
    return Listener(("127.0.0.1", 0), "AF_INET", backlog=BACKLOG)


def _speak_no_more(log: Path) -> None:
    """Let whoever started this go on; what goes wrong from now on is written down."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    sys.stdout.flush()
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


def _accept(listener: Listener, key: bytes, host: Host) -> None:
    while True:
        try:
            connection = listener.accept()
        except ConnectionError:  # it was gone again
            continue
        except OSError:
            return
        threading.Thread(
            target=_welcome, args=(connection, key, host), name="keeper-visitor", daemon=True
        ).start()


def _welcome(connection: Connection, key: bytes, host: Host) -> None:
    """Let in who knows the key; whoever says nothing is shown out."""
    if not prove_each_other(connection, key, is_keeper=True):
        return
    try:
        host.receive(connection)
    except Exception:  # noqa: BLE001 - one visitor's trouble is not the others'
        traceback.print_exc()


if __name__ == "__main__":
    main(sys.argv[1:])
