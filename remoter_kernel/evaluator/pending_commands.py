"""Carries out the commands that proxies could not deliver, before a launch does anything else.

Each command stands by itself: what one of them meets harms neither the others nor the launch.
Each gets one answer, by its name: "done" (or there was nothing left to do), "failed" (and why),
"elsewhere" (another machine has to do it).

One command may come with several logins: two notebooks have read the same file, or an answer was
lost. By its nonce it is known, and is done once: what it meant may be a fresh session by then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
import traceback
from typing import TYPE_CHECKING, Any, Callable

from remoter_kernel import logs
from remoter_kernel.errors import RemoterError
from remoter_kernel.evaluator import registry
from remoter_kernel.evaluator.folders import data_folder
from remoter_kernel.evaluator.named_lock import hold

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.evaluator.registry import Session

    Find = Callable[[str, str], "Session | None"]  # by the kernel's id and the session's

ALL_WITHIN = 20.0  # seconds: whoever waits for the launch waits for these, too
TURN_WITHIN = 20.0  # seconds that another launch for the same session may take
TRIES = 2  # an evaluator may die between being found and being told
CARRIED_OUT = "carried_out.json"  # beside the sessions: the nonces of the last commands
MOST_NONCES = 200
NOTED_WITHIN = 1.0  # seconds that another launch may take to change that file
LONGEST_NONCE = 64  # characters
_log = logging.getLogger(__name__)


class WrongHostError(Exception):
    """The session that is meant lives on another host, which alone may judge or adopt it."""

    def __init__(self, session: str, host: str) -> None:
        super().__init__(session, host)
        self.session = session
        self.host = host


def execute_commands(
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
    words = command if isinstance(command, dict) else {}
    name = str(words.get("name") or "")
    try:
        with _claim_nonce(words.get("nonce")) as once:
            if not once.is_done:
                _execute(words, find, once)
                once.record()
    except WrongHostError as elsewhere:
        return {"name": name, "became": "elsewhere", "why": f"It lives on {elsewhere.host}."}
    except Exception as error:  # noqa: BLE001 - whatever it is, the next command is not to blame
        if isinstance(error, RemoterError):
            why = str(error)
        else:
            traceback.print_exc()
            text = isinstance(error, OSError) and error.strerror
            why = f"{text or str(error) or type(error).__name__}."
        return {"name": name, "became": "failed", "why": why}
    return {"name": name, "became": "done", "why": ""}


def _execute(words: dict[str, Any], find: Find, once: _NonceEntry) -> None:
    kernel_id, session_id = (str(words.get(key) or "") for key in ("kernel_id", "session"))
    if not (kernel_id or session_id):
        raise RemoterError("It does not say which session is meant.")
    if words.get("order") == "stop":
        _stop_named(kernel_id, session_id, once)
    elif words.get("order") == "restart":
        _restart_named(kernel_id, session_id, find, once)
    else:
        raise RemoterError("This version does not know what it asks for.")


def _stop_named(kernel_id: str, session_id: str, once: _NonceEntry) -> None:
    """End what is meant, whether an evaluator could still be started for it or not."""
    meant = list(registry.find_sessions(kernel_id, session_id))
    doors = {session.id: session.read("door.json") for session in meant}
    here = [each for each in meant if not doors[each.id] or each.is_of_this_host()]
    for session in here:
        if not _belongs_to_another(session, kernel_id):
            once.record()
            _end_session(session)
    if meant and not here:
        raise WrongHostError(meant[0].id, str(doors[meant[0].id].get("host")))


def _end_session(session: Session) -> None:
    from remoter_kernel.evaluator import query  # noqa: PLC0415 - a start without commands needs none

    # Without an evaluator, which would hold the lock, another launch may be about to adopt it.
    with hold(session.id, TURN_WITHIN, unless=session.is_evaluator_running):
        how = query.stop_session(session)["how"]
    if how == "stays":
        raise RemoterError("It does not end, even by SIGKILL.")


def _restart_named(kernel_id: str, session_id: str, find: Find, once: _NonceEntry) -> None:
    for _ in range(TRIES):
        session = find(kernel_id, session_id)
        if session is None or _belongs_to_another(session, kernel_id):
            return  # a session that is gone needs nothing
        once.record()
        with contextlib.suppress(ProcessLookupError):  # it died since it was found: find it anew
            os.kill(int(session.read("door.json")["pid"]), signal.SIGUSR1)
            return
    raise RemoterError("Its evaluator died just then.")


def _belongs_to_another(session: Session, kernel_id: str) -> bool:
    """Has another proxy joined it since? Then another launch was quicker to carry this out."""
    return kernel_id in session.previous_kernel_ids()


# Once ------------------------------------------------------------------------------------


class _NonceEntry:
    """Whether one command was carried out before, by any launch here."""

    def __init__(self, nonce: str) -> None:
        """Look; without a nonce (it comes from an older version) nothing is known of it."""
        self._nonce = nonce
        self._is_noted = False
        self.is_done = bool(nonce) and nonce in _nonces()

    def record(self) -> None:
        """Write it down, before it has an effect. A full disk is no reason to do nothing."""
        if self._nonce and not self._is_noted:
            self._is_noted = True
            _write_nonces(lambda known: [*known, self._nonce])

    def withdraw(self) -> None:
        """It has failed, and may be tried again."""
        if self._is_noted:
            self._is_noted = False
            _write_nonces(lambda known: [each for each in known if each != self._nonce])


@contextlib.contextmanager
def _claim_nonce(nonce: object) -> Iterator[_NonceEntry]:
    """Have a command to oneself, while another launch may bring the same one."""
    name = nonce if isinstance(nonce, str) and nonce.isalnum() else ""
    name = name if len(name) <= LONGEST_NONCE else ""  # it becomes part of a file's name
    # Where the lock cannot be had in time: better twice than never.
    with hold(f"command-{name}", TURN_WITHIN) if name else contextlib.nullcontext():
        once = _NonceEntry(name)
        try:
            yield once
        except BaseException:
            once.withdraw()
            raise


def _nonces() -> list[str]:
    known = registry.read_json(data_folder() / CARRIED_OUT).get("nonces")
    return [each for each in known if isinstance(each, str)] if isinstance(known, list) else []


def _write_nonces(change: Callable[[list[str]], list[str]]) -> None:
    trouble = "What was carried out is not written down"
    with logs.noting(_log, trouble, OSError, RemoterError), hold("carried-out", NOTED_WITHIN):
        data_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        nonces = change(_nonces())[-MOST_NONCES:]
        registry.write_json(data_folder() / CARRIED_OUT, {"nonces": nonces})
