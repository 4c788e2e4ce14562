"""Starts a session that outlives its login, or finds it; says in one line if it worked.

Reads the wish, one JSON object, from stdin: nothing of it is ever in a command line.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import logging
import os
import platform
import signal
import socket
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

import zmq

from remoter_kernel import logs
from remoter_kernel.daemon import program_archive, registry, stdio_reply
from remoter_kernel.daemon.folders import is_ours, sessions_folder
from remoter_kernel.daemon.journal import LIMIT, Journal
from remoter_kernel.daemon.listener import Listener
from remoter_kernel.daemon.lock import Lock
from remoter_kernel.daemon.pending_commands import WrongHostError, carry_out_commands
from remoter_kernel.daemon.processes import call_this_process, started_at
from remoter_kernel.daemon.records import check_format, read_journal
from remoter_kernel.daemon.registry import Session
from remoter_kernel.daemon.session_candidates import candidates_for, is_of_a_notebook
from remoter_kernel.daemon.session_match import match_session
from remoter_kernel.errors import RemoterError
from remoter_kernel.wire.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.daemon.replay import RecoveredState

START_WITHIN = 10.0  # seconds that a warden may need to start a kernel and to say so
TURN_WITHIN = 20.0  # seconds that another launch for the same session may take
MOST_CRASHES = 3  # of evaluators of one session, each soon after the other
CRASHED_LATELY = 60.0  # seconds
# What a session stays, whoever comes to it later.
ABOUT = ("kernel_id", "kernel", "arguments", "notebook", "script", "laptop", "remote")
_log = logging.getLogger(__name__)


def main(pyzmq: str) -> None:
    """Answer one wish with one line; `pyzmq` is the version that was found here."""
    login_umask = os.umask(0o077)

    archive = program_archive.own_archive()
    if archive:
        program_archive.note_use(archive)
    if archive and not program_archive.is_whole(archive):
        archive.unlink()
        print("REMOTER lacks zip", flush=True)  # noqa: T201 - it is sent anew
        return

    def find_or_start(wish: dict[str, Any]) -> stdio_reply.Answer:
        return {**answer_to(wish, login_umask), "pyzmq": pyzmq}, ()

    stdio_reply.reply_to_stdin(find_or_start)
    program_archive.keep_house_aside()


def answer_to(wish: dict[str, Any], login_umask: int) -> dict[str, Any]:
    """Carry out what waited for a login, then fulfil the wish.

    The answer tells what became of each command (`commands`), whatever becomes of the wish.
    """

    def find_named(kernel_id: str, session_id: str) -> Session | None:
        return find({**wish, "kernel_id": kernel_id, "session": session_id}, login_umask)

    told = carry_out_commands(wish.get("orders"), find_named)
    words = stdio_reply.result_or_error(lambda: fulfil(wish, login_umask))
    return {**words, "commands": told} if told else words


def fulfil(wish: dict[str, Any], login_umask: int) -> dict[str, Any]:
    """Find the session that is meant, or start one, and tell where it answers."""
    news: dict[str, Any] = {}
    with contextlib.ExitStack() as turns:
        for name in _turns(wish):
            lock = Lock(name)
            if lock.take(TURN_WITHIN):  # if not: better a second session than none
                turns.callback(lock.release)
        try:
            session = find(wish, login_umask)
        except WrongHostError as elsewhere:
            return {"lacks": "host", "what": elsewhere.session, "host": elsewhere.host}
        if session is None and wish.get("session"):
            why = why_it_ended(wish["session"])
            return {"lacks": "session", "what": wish["session"], **why}
        if session is None and is_of_a_notebook(wish):
            session, news = inherit(wish, login_umask)
        is_joined = session is not None
        session = session or create(wish, login_umask)
        session.admit(wish["client_key"], wish.get("kernel_id") or "")
    door = session.read("door.json")
    return {
        **news,
        "session": session.id,
        "joined": is_joined,
        "address": "127.0.0.1",
        "port": door["port"],
        "server_key": door["public_key"],
        "host": socket.gethostname(),
        "user": getpass.getuser(),
        "python": platform.python_version(),
    }


def _turns(wish: dict[str, Any]) -> Iterator[str]:
    """Yield what only one launch at a time may look for: a kernel's session, a notebook's."""
    if wish.get("kernel_id"):
        yield f"kernel-{wish['kernel_id']}"
    if is_of_a_notebook(wish) and not wish.get("session"):
        words = json.dumps([wish[key] for key in ("laptop", "remote", "notebook")])
        yield f"notebook-{hashlib.sha256(words.encode()).hexdigest()[:24]}"


def inherit(wish: dict[str, Any], login_umask: int) -> tuple[Session | None, dict[str, Any]]:
    """Join the session that a front of the same notebook has left behind, if that is clear.

    Returns it, and news for the person: `begun` (seconds since 1970) if it was joined, else
    `others`: which sessions there are, and of which notebooks.
    """
    heir, told = match_session(list(candidates_for(wish)))
    if heir:
        session = Session(sessions_folder() / heir)
        can_go_on = _can_go_on(session, wish, login_umask)
        about = session.read("session.json")
        if can_go_on:
            # What was written down for the front before, and not carried out by now, is void.
            before = [*session.kernels_before(), about.get("kernel_id")]
            session.amend(kernel_id=wish.get("kernel_id"), kernels_before=before)
            return session, {"begun": about.get("created") or 0.0}
        told = [] if about.get("ended") else [heir]
    others = []
    for name in told:
        about = Session(sessions_folder() / name).read("session.json")
        others.append({"session": name, "notebook": about.get("notebook") or ""})
    return None, {"others": others}


def _can_go_on(session: Session, wish: dict[str, Any], login_umask: int) -> bool:
    """Does it live, if need be with another evaluator? What cannot be joined is no reason to fail.

    A front that is wanted by its kernel's id has nothing else to do than to complain; a
    notebook can begin afresh.
    """
    try:
        return session.is_alive() or _revive(session, wish, login_umask)
    except (OSError, RemoterError, RuntimeError):
        traceback.print_exc()
        return False


def find(wish: dict[str, Any], login_umask: int) -> Session | None:
    """Find the session that is meant; one whose evaluator has died gets another one."""
    kernel_id, session_id = wish.get("kernel_id", ""), wish.get("session", "")
    meant = list(registry.sessions_meant(kernel_id, session_id))
    for session in meant:
        if session.is_alive():
            return session
    for session in meant:
        door = session.read("door.json")
        if door and not session.is_of_this_host():
            raise WrongHostError(session.id, str(door["host"]))
        if door and _revive(session, wish, login_umask):
            return session
    return None


def _revive(session: Session, wish: dict[str, Any], login_umask: int) -> bool:
    """Give a session another evaluator if its kernel lives, else note its end."""
    lock = Lock(session.id)
    if not lock.take(TURN_WITHIN, unless=session.is_alive):
        return session.is_alive()  # somebody was quicker
    if session.is_alive():
        lock.release()
        return True
    if session.has_evaluator():  # it runs and does not answer: two would be worse than none
        lock.release()
        message = f"the evaluator of session {session.id} runs, but does not answer"
        raise RuntimeError(message)
    if not session.has_kernel() and not _is_to_have_one(session):
        why, died = session.how_it_died()
        session.end(why, died=died)
        session.forget_keys()
        lock.release()
        return False
    about = session.read("session.json")
    known = {key: about[key] for key in ABOUT if about.get(key) is not None}
    try:
        _refuse_another_crash(session)
        with (session.folder / "journal").open("rb") as file:
            check_format(file)
    except (RemoterError, OSError):
        lock.release()
        raise
    start(session, lock, {**wish, **known, "is_adopted": True}, login_umask, is_adopted=True)
    return True


def _is_to_have_one(session: Session) -> bool:
    """Has its evaluator died while a kernel was about to start, or between two of them?"""
    limit = time.monotonic() + START_WITHIN
    while session.is_here() and time.monotonic() < limit:
        child = session.read("child.json")
        if "pid" in child or session.read("exit.json"):
            break
        if not child or not started_at(registry.whole_number(child.get("warden"))):
            return True  # nobody is at it: another evaluator will be
        time.sleep(0.05)
    return session.has_kernel() or (session.is_here() and _is_restarting(session))


def _is_restarting(session: Session) -> bool:
    """Was its kernel asked to make room for another one when its evaluator died?"""
    from remoter_kernel.daemon.replay import RecoveredState  # noqa: PLC0415 - imports what a start need not

    past = RecoveredState()
    with contextlib.suppress(OSError, RemoterError):
        for record in read_journal(session.folder / "journal"):
            past.take(record)
    return past.unfinished == "restart"


def why_it_ended(session_id: str) -> dict[str, Any]:
    """Tell what the folder of a session that is gone says of its end, and when that was."""
    folder = sessions_folder() / session_id
    if not session_id.isalnum() or not folder.exists():
        return {"why": f"There is none of that name on {socket.gethostname()}."}
    if not is_ours(folder):
        return {"why": "Its folder belongs to another user."}
    about = Session(folder).read("session.json")
    return {"ended": about.get("died") or about.get("ended", ""), "why": about.get("why", "")}


def create(wish: dict[str, Any], login_umask: int) -> Session:
    """Make a session and start its evaluator."""
    about = {key: wish.get(key) for key in ABOUT}
    session = Session.create({**about, "created": time.time()})
    lock = Lock(session.id)
    lock.take(TURN_WITHIN)
    start(session, lock, wish, login_umask)
    return session


def start(
    session: Session,
    lock: Lock,
    wish: dict[str, Any],
    login_umask: int,
    *,
    is_adopted: bool = False,
) -> None:
    """Start an evaluator in a process of its own and wait until its door is open.

    It holds the lock for as long as it lives.
    """
    ear, mouth = os.pipe()
    between = os.fork()
    if between == 0:
        os.close(ear)
        _evaluate(session, lock, wish, login_umask, mouth, is_adopted=is_adopted)
    os.close(mouth)
    with os.fdopen(ear, encoding="utf-8") as pipe:
        trouble = pipe.read()  # ends when the door is open, or with the process
    os.waitpid(between, 0)
    if trouble:
        lock.release()
        why = json.loads(trouble)
        raise OSError(*why) if isinstance(why, list) else RuntimeError(why)
    lock.hand_down()


def _evaluate(
    session: Session,
    lock: Lock,
    wish: dict[str, Any],
    login_umask: int,
    mouth: int,
    *,
    is_adopted: bool,
) -> None:
    """Become the evaluator: leave the login, open the door, say so, go on. Never returns."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        reactor, journal, door, past = _open_door(session, wish, is_adopted=is_adopted)
    except BaseException as error:  # noqa: BLE001 - the login waits for a word
        _say_why(mouth, error)
        os._exit(1)
    os.close(mouth)
    try:
        # What follows is imported while the front finds its way to the door.
        from remoter_kernel.daemon.supervisor import Supervisor  # noqa: PLC0415

        Supervisor(reactor, session, journal, door, wish=wish, umask=login_umask, past=past).run()
        lock.release()
    except BaseException as error:  # noqa: BLE001 - the log is all there is
        _log.critical("The evaluator ends by a fault.", exc_info=True)
        traceback.print_exc()
        _note_crash(session, error)
        logs.close_log()
        os._exit(1)
    _log.info("The evaluator ends.")
    logs.close_log()
    os._exit(0)


def _open_door(
    session: Session, wish: dict[str, Any], *, is_adopted: bool
) -> tuple[Reactor, Journal, Listener, RecoveredState | None]:
    """Leave the login, begin to log, open the journal, and listen."""
    # An order that comes before there is somebody to hear it waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))
    _leave_the_login(session)
    logs.open_log(session.folder / logs.FILE, str(wish.get("log") or ""))
    begins = "adopts" if is_adopted else "begins"
    _log.info("An evaluator %s as process %d.", begins, os.getpid())
    call_this_process(f"remoter {session.id}")
    reactor, limit = Reactor(), int(wish.get("journal_limit") or LIMIT)
    journal = Journal(session.folder / "journal", reactor.call, limit)
    past = _open(journal, is_adopted=is_adopted)
    door = Listener(reactor, session, journal)
    journal.lowest_acked = door.low_water
    public, secret = zmq.curve_keypair()
    program_archive.note_program(session)
    session.claim(door.open(secret, public), public.decode())
    return reactor, journal, door, past


def _say_why(mouth: int, error: BaseException) -> None:
    """Tell the login why no evaluator could begin."""
    why: Any = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        why = [error.errno, error.strerror, error.filename]
    _log.critical("The evaluator could not begin.", exc_info=True)
    os.write(mouth, json.dumps(why).encode())
    logs.close_log()


def _crashes(session: Session) -> dict[str, Any]:
    """Return what is written of the evaluators that have crashed lately: `count`, `why`."""
    crashes = session.read("crashes.json")
    is_lately = abs(time.time() - float(crashes.get("time") or 0.0)) < CRASHED_LATELY
    return crashes if is_lately else {}


def _note_crash(session: Session, error: BaseException) -> None:
    words = {"time": time.time(), "why": f"{type(error).__name__}: {error}"}
    with contextlib.suppress(OSError):
        session.write("crashes.json", {**words, "count": _crashes(session).get("count", 0) + 1})


def _refuse_another_crash(session: Session) -> None:
    """End what would else go on for ever: a crash, a front that dials again, a crash."""
    crashes = _crashes(session)
    if crashes.get("count", 0) >= MOST_CRASHES:
        raise RemoterError(
            f"The evaluator of session {session.id} crashes as often as it is started "
            f"({crashes['why']}).",
            f"`remoter log {session.id}` shows more; `remoter stop {session.id}` ends the session.",
        )


def _open(journal: Journal, *, is_adopted: bool) -> Any:
    """Open the journal; return what it tells of the time before, if there was one."""
    if not is_adopted:
        journal.open()
        return None
    from remoter_kernel.daemon.replay import RecoveredState  # noqa: PLC0415 - imports what a start need not

    past = RecoveredState()
    journal.open(past.take)
    return past


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
