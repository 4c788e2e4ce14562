"""Starts a session that outlives its login, or finds it; says in one line if it worked.

Reads the wish, one JSON object, from stdin: nothing of it is ever in a command line.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import zmq

from remoter_kernel.daemon import registry
from remoter_kernel.daemon.door import Door
from remoter_kernel.daemon.journal import Journal
from remoter_kernel.daemon.registry import Session
from remoter_kernel.wire.reactor import Reactor

STOP_WITHIN = 8.0  # seconds


def main(pyzmq: str) -> None:
    """Answer one wish with one line; `pyzmq` is the version that was found here."""
    login_umask = os.umask(0o077)
    try:
        check_own_bytes()
        wish = json.loads(sys.stdin.readline())
        answer = {**fulfil(wish, login_umask), "pyzmq": pyzmq}
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        answer = {"lacks": "room", "what": f"{error.strerror}{place}"}
    except Exception as error:  # noqa: BLE001 - the one line is all that is heard of us
        traceback.print_exc()
        answer = {"lacks": "luck", "what": f"{type(error).__name__}: {error}"}
    sys.stdout.write("REMOTER " + json.dumps(answer) + "\n")
    sys.stdout.flush()


def check_own_bytes() -> None:
    """Compare this zip with its name: an upload cut in the middle must not run."""
    me = Path(sys.argv[0])
    if me.suffix == ".pyz" and hashlib.sha256(me.read_bytes()).hexdigest() != me.stem:
        me.unlink()
        message = "the uploaded program was damaged and has been removed"
        raise RuntimeError(message)


def fulfil(wish: dict[str, Any], login_umask: int) -> dict[str, Any]:
    """Find the session that is meant, or start one, and tell where it answers."""
    for order in wish.get("orders") or ():
        carry_out(order)
    session = registry.find_session(wish.get("kernel_id", ""), wish.get("session", ""))
    is_joined = session is not None
    if session is None:
        if wish.get("session"):
            return {"lacks": "session", "what": wish["session"], **why_it_ended(wish["session"])}
        session = start(wish, login_umask)
    session.admit(wish["client_key"])
    door = session.read("door.json")
    return {
        "session": session.id,
        "joined": is_joined,
        "address": "127.0.0.1",
        "port": door["port"],
        "server_key": door["public_key"],
        "host": socket.gethostname(),
        "user": getpass.getuser(),
        "python": platform.python_version(),
    }


def carry_out(order: dict[str, Any]) -> None:
    """Do what was ordered while nobody could hear it; a session that is gone needs nothing."""
    session = registry.find_session(order.get("kernel_id", ""), order.get("session", ""))
    if session is None:
        return
    pid = int(session.read("door.json")["pid"])
    os.kill(pid, signal.SIGUSR1 if order.get("order") == "restart" else signal.SIGTERM)
    limit = time.monotonic() + STOP_WITHIN
    while order.get("order") == "stop" and session.is_alive() and time.monotonic() < limit:
        time.sleep(0.05)


def why_it_ended(session_id: str) -> dict[str, Any]:
    """Tell what the folder of a session that is gone says of its end."""
    session = Session(registry.sessions_folder() / session_id)
    about = session.read("session.json")
    return {"ended": about.get("ended", ""), "why": about.get("why", "")}


def start(wish: dict[str, Any], login_umask: int) -> Session:
    """Start an evaluator in a process of its own and wait until its door is open."""
    about = {key: wish.get(key) for key in ("kernel_id", "kernel", "notebook", "laptop", "remote")}
    session = Session.create({**about, "created": time.time()})
    ear, mouth = os.pipe()
    if os.fork() == 0:
        os.close(ear)
        _evaluate(session, wish, login_umask, mouth)
    os.close(mouth)
    with os.fdopen(ear, encoding="utf-8") as pipe:
        trouble = pipe.read()  # ends when the door is open, or with the process
    if trouble:
        raise RuntimeError(trouble)
    return session


def _evaluate(session: Session, wish: dict[str, Any], login_umask: int, mouth: int) -> None:
    """Become the evaluator: leave the login, open the door, say so, go on. Never returns."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        _leave_the_login(session)
        reactor = Reactor()
        journal = Journal(session.folder / "journal", reactor.call)
        journal.open()
        door = Door(reactor, session, journal)
        public, secret = zmq.curve_keypair()
        session.claim(door.open(secret, public), public.decode())
    except BaseException as error:  # noqa: BLE001 - the login waits for a word
        os.write(mouth, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    os.close(mouth)
    try:
        # What follows is imported while the front finds its way to the door.
        from remoter_kernel.daemon.supervisor import Supervisor  # noqa: PLC0415

        Supervisor(reactor, session, journal, door, wish=wish, umask=login_umask).run()
    except BaseException:  # noqa: BLE001 - the log is all there is
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _leave_the_login(session: Session) -> None:
    log = os.open(
        str(session.folder / "evaluator.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(nothing)
    os.close(log)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
