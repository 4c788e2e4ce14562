"""Carries out what was asked while nobody could hear it, before a launch does anything else.

Each command stands by itself: what one of them meets harms neither the others nor the launch.
Each gets one answer, by its name: "done" (or there was nothing left to do), "failed" (and why),
"elsewhere" (another machine has to do it).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from typing import TYPE_CHECKING, Any, Callable

from remoter_kernel.daemon import registry
from remoter_kernel.daemon.lock import Lock
from remoter_kernel.errors import RemoterError

if TYPE_CHECKING:
    from remoter_kernel.daemon.registry import Session

    Find = Callable[[str, str], "Session | None"]  # by the kernel's id and the session's

ALL_WITHIN = 20.0  # seconds: whoever waits for the launch waits for these, too
TURN_WITHIN = 20.0  # seconds that another launch for the same session may take
TRIES = 2  # an evaluator may die between being found and being told


class ElsewhereError(Exception):
    """The session that is meant lives on another host, which alone may judge or adopt it."""

    def __init__(self, session: str, host: str) -> None:
        super().__init__(session, host)
        self.session = session
        self.host = host


def carry_out_commands(
    commands: object, find: Find, *, clock: Callable[[], float] = time.monotonic
) -> list[dict[str, str]]:
    """Carry out as many as there is time for; return the answers to those that were tried.

    `find` gives a dead evaluator's session another one, for a command that only one can obey.
    """
    answers: list[dict[str, str]] = []
    until = clock() + ALL_WITHIN
    for command in commands if isinstance(commands, (list, tuple)) else ():
        if clock() > until:
            break  # the others wait for the next launch
        answers.append(_answer(command, find))
    return answers


def _answer(command: Any, find: Find) -> dict[str, str]:
    name = str(command.get("name") or "") if isinstance(command, dict) else ""
    try:
        _carry_out(command, find)
    except ElsewhereError as elsewhere:
        return {"name": name, "became": "elsewhere", "why": f"It lives on {elsewhere.host}."}
    except Exception as error:  # noqa: BLE001 - whatever it is, the next command is not to blame
        if not isinstance(error, RemoterError):
            traceback.print_exc()
        return {"name": name, "became": "failed", "why": _reason(error)}
    return {"name": name, "became": "done", "why": ""}


def _reason(error: Exception) -> str:
    if isinstance(error, RemoterError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}."
    return f"{str(error) or type(error).__name__}."


def _carry_out(command: Any, find: Find) -> None:
    words = command if isinstance(command, dict) else {}
    kernel_id, session_id = (str(words.get(key) or "") for key in ("kernel_id", "session"))
    if not (kernel_id or session_id):
        message = "It does not say which session is meant."
        raise RemoterError(message)
    if words.get("order") == "stop":
        _stop(kernel_id, session_id)
    elif words.get("order") == "restart":
        _restart(kernel_id, session_id, find)
    else:
        message = "This version does not know what it asks for."
        raise RemoterError(message)


def _stop(kernel_id: str, session_id: str) -> None:
    """End what is meant, whether anybody could still start an evaluator for it or not."""
    meant = list(registry.sessions_meant(kernel_id, session_id))
    doors = {session.id: session.read("door.json") for session in meant}
    here = [each for each in meant if not doors[each.id] or each.is_of_this_host()]
    for session in here:
        if not _has_moved_on(session, kernel_id):
            _end(session)
    if meant and not here:
        raise ElsewhereError(meant[0].id, str(doors[meant[0].id].get("host")))


def _end(session: Session) -> None:
    from remoter_kernel.daemon import inquire  # noqa: PLC0415 - a start without commands needs none

    lock = Lock(session.id)
    # Without an evaluator, which would hold the lock, another launch may be about to adopt it.
    is_taken = lock.take(TURN_WITHIN, unless=session.has_evaluator)
    try:
        how = inquire.stop_session(session)["how"]
    finally:
        if is_taken:
            lock.release()
    if how == "stays":
        message = "It does not end, even by SIGKILL."
        raise RemoterError(message)


def _restart(kernel_id: str, session_id: str, find: Find) -> None:
    for _ in range(TRIES):
        session = find(kernel_id, session_id)
        if session is None or _has_moved_on(session, kernel_id):
            return  # a session that is gone needs nothing
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(session.read("door.json")["pid"]), signal.SIGUSR1)
            return
    message = "Its evaluator died just then."
    raise RemoterError(message)


def _has_moved_on(session: Session, kernel_id: str) -> bool:
    """Has it gone to another front since? Then another launch was quicker to carry this out."""
    return kernel_id in session.kernels_before()
