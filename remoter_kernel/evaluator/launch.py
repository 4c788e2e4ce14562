"""Starts a session that outlives its login, or finds it; says in one line if it worked.

Reads the session request, one JSON object, from stdin: what is in a command line, all users of the
machine can read.
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
from remoter_kernel.errors import RemoterError
from remoter_kernel.evaluator import program_archive, registry, stdio_reply
from remoter_kernel.evaluator.folders import is_owned_by_user, sessions_folder
from remoter_kernel.evaluator.journal import LIMIT, Journal
from remoter_kernel.evaluator.listener import Listener
from remoter_kernel.evaluator.named_lock import NamedLock, hold
from remoter_kernel.evaluator.pending_commands import WrongHostError, execute_commands
from remoter_kernel.evaluator.processes import set_process_name, started_at
from remoter_kernel.evaluator.records import check_format, read_journal
from remoter_kernel.evaluator.registry import Session
from remoter_kernel.evaluator.session_match import candidates, match_session, names_notebook
from remoter_kernel.protocol.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.evaluator.recovery import RecoveredState

START_WITHIN = 10.0  # seconds that a warden may need to start a kernel and to say so
TURN_WITHIN = 20.0  # seconds that another launch for the same session may take
MOST_CRASHES = 3  # of evaluators of one session, each soon after the other
CRASHED_LATELY = 60.0  # seconds
# What a session stays, whoever comes to it later.
ABOUT = ("kernel_id", "kernel", "arguments", "notebook", "script", "laptop", "remote")
_log = logging.getLogger(__name__)


def main(pyzmq: str) -> None:
    """Answer one session request with one line; `pyzmq` is the version that was found here."""
    login_umask = os.umask(0o077)  # files of ours are private; the kernel gets the login's own
    archive = program_archive.own_archive()
    if archive:
        program_archive.mark_used(archive)
        if not program_archive.has_valid_hash(archive):
            archive.unlink()
            print("REMOTER lacks zip", flush=True)  # noqa: T201 - it is sent anew
            return

    def find_or_start(request: dict[str, Any]) -> stdio_reply.Answer:
        return {**handle_request(request, login_umask), "pyzmq": pyzmq}, ()

    stdio_reply.reply_to_stdin(find_or_start)
    program_archive.start_maintenance()


def handle_request(request: dict[str, Any], login_umask: int) -> dict[str, Any]:
    """Carry out the commands that waited for a login, then fulfil the session request.

    The answer tells what became of each command (`commands`), whatever becomes of the request.
    """

    def find_named(kernel_id: str, session_id: str) -> Session | None:
        return find_session({**request, "kernel_id": kernel_id, "session": session_id}, login_umask)

    answers = execute_commands(request.get("orders"), find_named)
    words = stdio_reply.result_or_error(lambda: find_or_create(request, login_umask))
    return {**words, "commands": answers} if answers else words


def find_or_create(request: dict[str, Any], login_umask: int) -> dict[str, Any]:
    """Find the session that is meant, or start one, and tell where it answers."""
    news: dict[str, Any] = {}
    with contextlib.ExitStack() as turns:
        for name in _lock_names(request):  # what cannot be had: better a second session than none
            turns.enter_context(hold(name, TURN_WITHIN))
        try:
            session = find_session(request, login_umask)
        except WrongHostError as elsewhere:
            return {"lacks": "host", "what": elsewhere.session, "host": elsewhere.host}
        if session is None and request.get("session"):
            why = end_reason(request["session"])
            return {"lacks": "session", "what": request["session"], **why}
        if session is None and names_notebook(request):
            session, news = join_notebook_session(request, login_umask)
        is_joined = session is not None
        session = session or create_session(request, login_umask)
        session.authorize_key(request["client_key"], request.get("kernel_id") or "")
    listener = session.read("door.json")
    return {
        **news,
        "session": session.id,
        "joined": is_joined,
        "address": "127.0.0.1",
        "port": listener["port"],
        "server_key": listener["public_key"],
        "host": socket.gethostname(),
        "user": getpass.getuser(),
        "python": platform.python_version(),
    }


def _lock_names(request: dict[str, Any]) -> Iterator[str]:
    """Yield what only one launch at a time may look for: a kernel's session, a notebook's.

    Two proxies that start at once would else find none, and begin one each.
    """
    if request.get("kernel_id"):
        yield f"kernel-{request['kernel_id']}"
    if names_notebook(request) and not request.get("session"):
        words = json.dumps([request[key] for key in ("laptop", "remote", "notebook")])
        yield f"notebook-{hashlib.sha256(words.encode()).hexdigest()[:24]}"


def join_notebook_session(
    request: dict[str, Any], login_umask: int
) -> tuple[Session | None, dict[str, Any]]:
    """Join the session that a proxy of the same notebook has left behind, if that is clear.

    Returns it, and news for the person: `begun` (seconds since 1970) if it was joined, else
    `others`: which sessions there are, and of which notebooks.
    """
    match, others = match_session(list(candidates(request)))
    if match:
        session = Session(sessions_folder() / match)
        is_joined = _can_be_joined(session, request, login_umask)
        about = session.read("session.json")
        if is_joined:
            # By this, a command that was saved for the Jupyter kernel before is void from now on.
            before = [*session.previous_kernel_ids(), about.get("kernel_id")]
            session.update(kernel_id=request.get("kernel_id"), kernels_before=before)
            return session, {"begun": about.get("created") or 0.0}
        others = [] if about.get("ended") else [match]
    notebooks = (Session(sessions_folder() / name).read("session.json") for name in others)
    rows = [
        {"session": name, "notebook": about.get("notebook") or ""}
        for name, about in zip(others, notebooks)
    ]
    return None, {"others": rows}


def _can_be_joined(session: Session, request: dict[str, Any], login_umask: int) -> bool:
    """Does it live, if need be with another evaluator? If that fails, the notebook begins afresh.

    Only a session that is asked for by its Jupyter kernel's id has no alternative to an error.
    """
    try:
        return session.is_alive() or _restart_evaluator(session, request, login_umask)
    except (OSError, RemoterError, RuntimeError):
        traceback.print_exc()
        return False


def find_session(request: dict[str, Any], login_umask: int) -> Session | None:
    """Find the session that is meant; one whose evaluator has died gets another one."""
    kernel_id, session_id = request.get("kernel_id", ""), request.get("session", "")
    meant = list(registry.find_sessions(kernel_id, session_id))
    # One that answers first: a dead one with the same kernel id must not get another evaluator.
    for session in meant:
        if session.is_alive():
            return session
    for session in meant:
        listener = session.read("door.json")
        if listener and not session.is_of_this_host():
            raise WrongHostError(session.id, str(listener["host"]))
        if listener and _restart_evaluator(session, request, login_umask):
            return session
    return None


def _restart_evaluator(session: Session, request: dict[str, Any], login_umask: int) -> bool:
    """Give a session another evaluator if its kernel lives, else note its end."""
    lock = NamedLock(session.id)
    if not lock.acquire(TURN_WITHIN, unless=session.is_alive):
        return session.is_alive()  # another launch was quicker
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        if session.is_alive():
            return True
        if session.is_evaluator_running():
            # It runs and does not answer: two that append to one journal are worse than none.
            raise RuntimeError(f"the evaluator of session {session.id} runs, but does not answer")
        if not session.is_kernel_running() and not _is_between_kernels(session):
            why, died = session.death_reason()
            session.mark_ended(why, died=died)
            session.remove_keys()
            return False
        _check_crash_loop(session)
        with (session.folder / "journal").open("rb") as file:
            check_format(file)
        stack.pop_all()  # from here on the lock is the evaluator's
    about = session.read("session.json")
    known = {key: about[key] for key in ABOUT if about.get(key) is not None}
    request = {**request, **known, "is_adopted": True}
    start_evaluator(session, lock, request, login_umask, is_adopted=True)
    return True


def _is_between_kernels(session: Session) -> bool:
    """Has its evaluator died while a kernel was about to start, or between two of them?"""
    limit = time.monotonic() + START_WITHIN
    while session.is_of_this_boot() and time.monotonic() < limit:
        kernel = session.read("child.json")
        if "pid" in kernel or session.read("exit.json"):
            break
        if not kernel or not started_at(registry.whole_number(kernel.get("warden"))):
            return True  # no warden is about to start one: the next evaluator will
        time.sleep(0.05)
    return session.is_kernel_running() or (session.is_of_this_boot() and _is_restarting(session))


def _is_restarting(session: Session) -> bool:
    """Was its kernel asked to make room for another one when its evaluator died?"""
    from remoter_kernel.evaluator.recovery import RecoveredState  # noqa: PLC0415 - imports what a start need not

    past = RecoveredState()
    with contextlib.suppress(OSError, RemoterError):
        for record in read_journal(session.folder / "journal"):
            past.apply(record)
    return past.unfinished == "restart"


def end_reason(session_id: str) -> dict[str, Any]:
    """Tell what the folder of a session that is gone says of its end, and when that was."""
    folder = sessions_folder() / session_id
    if not session_id.isalnum() or not folder.exists():
        return {"why": f"There is none of that name on {socket.gethostname()}."}
    if not is_owned_by_user(folder):
        return {"why": "Its folder belongs to another user."}
    about = Session(folder).read("session.json")
    return {"ended": about.get("died") or about.get("ended", ""), "why": about.get("why", "")}


def create_session(request: dict[str, Any], login_umask: int) -> Session:
    """Make a session and start its evaluator."""
    about = {key: request.get(key) for key in ABOUT}
    session = Session.create({**about, "created": time.time()})
    lock = NamedLock(session.id)
    lock.acquire(TURN_WITHIN)
    start_evaluator(session, lock, request, login_umask)
    return session


def start_evaluator(
    session: Session,
    lock: NamedLock,
    request: dict[str, Any],
    login_umask: int,
    *,
    is_adopted: bool = False,
) -> None:
    """Start an evaluator in a process of its own and wait until it listens.

    It holds the lock for as long as it lives.
    """
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_fd)
        _become_evaluator(session, lock, request, login_umask, write_fd, is_adopted=is_adopted)
    os.close(write_fd)
    # Without a timeout: the system closes the other end however the process ends.
    with os.fdopen(read_fd, encoding="utf-8") as pipe:
        trouble = pipe.read()  # ends when the evaluator listens, or with the process
    os.waitpid(child, 0)
    if trouble:
        lock.release()
        why = json.loads(trouble)
        raise OSError(*why) if isinstance(why, list) else RuntimeError(why)
    lock.pass_to_child()


def _become_evaluator(
    session: Session,
    lock: NamedLock,
    request: dict[str, Any],
    login_umask: int,
    write_fd: int,
    *,
    is_adopted: bool,
) -> None:
    """Become the evaluator: leave the login, listen, say so, go on. Never returns."""
    try:
        os.setsid()
        if os.fork():  # twice: who leads no session can never get a terminal again
            os._exit(0)
        listener, recovered = _open_listener(session, request, is_adopted=is_adopted)
    except BaseException as error:  # noqa: BLE001 - the login waits for a word
        _report_start_failure(write_fd, error)
        os._exit(1)
    os.close(write_fd)
    try:
        # Imported only now, while the proxy connects.
        from remoter_kernel.evaluator.supervisor import Supervisor  # noqa: PLC0415

        Supervisor(listener, request, umask=login_umask, recovered=recovered).run()
        lock.release()
    except BaseException as error:  # noqa: BLE001 - the log is all there is
        _log.critical("The evaluator ends by a fault.", exc_info=True)
        traceback.print_exc()
        _record_crash(session, error)
        logs.close_log()
        os._exit(1)
    _log.info("The evaluator ends.")
    logs.close_log()
    os._exit(0)


def _open_listener(
    session: Session, request: dict[str, Any], *, is_adopted: bool
) -> tuple[Listener, RecoveredState | None]:
    """Leave the login, begin to log, open the journal, and listen."""
    # A command that comes before the supervisor is there waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))
    _detach_from_login(session)
    logs.open_log(session.folder / logs.FILE, str(request.get("log") or ""))
    begins = "adopts" if is_adopted else "begins"
    _log.info("An evaluator %s as process %d.", begins, os.getpid())
    set_process_name(f"remoter {session.id}")
    reactor, limit = Reactor(), int(request.get("journal_limit") or LIMIT)
    calls = reactor.call_soon_threadsafe, limit, reactor.call_without_wakeup
    journal = Journal(session.folder / "journal", *calls)
    recovered = _open_journal(journal, is_adopted=is_adopted)
    listener = Listener(reactor, session, journal)
    journal.lowest_acked = listener.lowest_acked
    public, secret = zmq.curve_keypair()  # a new one for each evaluator; the login tells clients
    program_archive.record_version(session)
    session.write_endpoint(listener.open(secret, public), public.decode())
    return listener, recovered


def _report_start_failure(write_fd: int, error: BaseException) -> None:
    """Tell the login why no evaluator could begin."""
    why: Any = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):  # the login's process raises it again: a full disk has a name
        why = [error.errno, error.strerror, error.filename]
    _log.critical("The evaluator could not begin.", exc_info=True)
    os.write(write_fd, json.dumps(why).encode())
    logs.close_log()


def _recent_crashes(session: Session) -> dict[str, Any]:
    """Return what is written of the evaluators that have crashed lately: `count`, `why`."""
    crashes = session.read("crashes.json")
    is_lately = abs(time.time() - float(crashes.get("time") or 0.0)) < CRASHED_LATELY
    return crashes if is_lately else {}


def _record_crash(session: Session, error: BaseException) -> None:
    count = _recent_crashes(session).get("count", 0) + 1
    words = {"time": time.time(), "why": f"{type(error).__name__}: {error}", "count": count}
    with contextlib.suppress(OSError):
        session.write("crashes.json", words)


def _check_crash_loop(session: Session) -> None:
    """End what would else go on for ever: a crash, a proxy that connects again, a crash."""
    crashes = _recent_crashes(session)
    if crashes.get("count", 0) >= MOST_CRASHES:
        raise RemoterError(
            f"The evaluator of session {session.id} crashes as often as it is started "
            f"({crashes['why']}).",
            f"`remoter log {session.id}` shows more; `remoter stop {session.id}` ends the session.",
        )


def _open_journal(journal: Journal, *, is_adopted: bool) -> Any:
    """Open the journal; return what it tells of the time before, if there was one."""
    if not is_adopted:
        journal.open()
        return None
    from remoter_kernel.evaluator.recovery import RecoveredState  # noqa: PLC0415 - imports what a start need not

    recovered = RecoveredState()
    journal.open(recovered.apply)
    return recovered


def _detach_from_login(session: Session) -> None:
    """Let go of the login's pipes: sshd waits for their end."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    log = os.open(str(session.folder / "evaluator.log"), flags, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(nothing)
    os.close(log)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
