"""Holds the login of one remote, and shares it: who comes first logs in, who comes later uses it.

Decides when a login is as good as dead. A login that fell silent is given up once, for all
visitors: their tunnels end with it, and each of them comes again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import RemoterError, Unreachable
from remoter_kernel.front.configuration.remotes import Remote
from remoter_kernel.front.keeper.talk import PERSONAL, told
from remoter_kernel.front.keeper.visitor import Visitor
from remoter_kernel.front.logins.login import log_in_to
from remoter_kernel.front.ssh.memory import Memories
from remoter_kernel.front.ssh.outcome import LoginGone

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from remoter_kernel.front.ssh.login import Login

LOOK_EVERY = 15.0  # seconds between two looks at a login of which nothing is heard
ANSWERS_WITHIN = 2.0  # seconds, and four round trips, that a login in doubt has for an answer
SILENT_FOR = 10.0  # seconds without an answer after which a login is given up
TRUSTED_FOR = 20.0  # seconds since it was last heard from
GRACE = 2.0  # seconds that a keeper waits for somebody who was never let in


@dataclass
class _Held:
    """A login that is there."""

    login: Login
    since: float = field(default_factory=time.time)
    heard_at: float = field(default_factory=time.time)  # a clock that goes on while asleep
    received: int = 0  # bytes, when that was looked at


class Host:
    """One remote's login and its visitors."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # held by the one who logs in
        self._visitors: set[Visitor] = set()
        self._left_at = time.monotonic()  # when the last one went
        self._held: _Held | None = None
        self._memories = Memories()
        self._lifetime = 0.0  # seconds without a visitor
        self._was_inside = False  # has there ever been a login?
        self._is_over = False

    # --- how long ---

    def keep(self) -> None:
        """Return when it is enough: nobody was here for long, or somebody said so."""
        while not self._is_over:
            with self._changed:
                self._changed.wait(self._rest())
                if not self._visitors and time.monotonic() - self._left_at >= self._patience():
                    self._is_over = True
                    break
            self._look()

    def close(self) -> None:
        """Show everybody out, and end the login."""
        for visitor in list(self._visitors):
            visitor.leave()
        self._give_up()

    def end(self) -> None:
        """Let it be enough."""
        self._is_over = True
        with contextlib.suppress(RuntimeError):  # a signal may come while the lock is held
            if self._changed.acquire(blocking=False):
                self._changed.notify_all()
                self._changed.release()

    def _patience(self) -> float:
        """Seconds without a visitor; what was typed is not forgotten in an outage."""
        return self._lifetime if self._was_inside else min(self._lifetime, GRACE) or GRACE

    def _rest(self) -> float:
        """Return for how long there is nothing to do."""
        if self._visitors:
            return LOOK_EVERY
        left = self._left_at + self._patience() - time.monotonic()
        return min(LOOK_EVERY, max(0.05, left))

    # --- visitors ---

    def receive(self, connection: Connection) -> None:
        """Serve one visitor until it goes."""
        visitor = Visitor(connection)
        with self._changed:
            self._visitors.add(visitor)
            if self._is_over:  # it hears the end once it can find another keeper: see `close`
                return
        try:
            for words, blobs in visitor.requests():
                answer, back = self._answer(visitor, words, blobs)
                visitor.say(answer, *back)
        finally:
            visitor.leave()
            with self._changed:
                self._visitors.discard(visitor)
                self._left_at = time.monotonic()
                self._changed.notify_all()

    def _answer(
        self, visitor: Visitor, words: dict[str, Any], blobs: list[bytes]
    ) -> tuple[dict[str, Any], list[bytes]]:
        try:
            return self._do(visitor, words, blobs)
        except RemoterError as error:
            return told(error)
        except Exception as error:  # noqa: BLE001 - a bug must reach the person, too
            traceback.print_exc()
            # Its words may hold what somebody typed.
            return told(RemoterError(f"the keeper of the login failed: {type(error).__name__}."))

    def _do(
        self, visitor: Visitor, words: dict[str, Any], blobs: list[bytes]
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Do one thing for a visitor; what is not done is a RemoterError."""
        match words["do"]:
            case "log in":
                return self._log_in(visitor, words), []
            case "run":
                ran = self._login.run(words["command"], blobs[0], seconds=words["seconds"])
                self._note_life()
                return {"status": ran.status}, [ran.stdout, ran.stderr]
            case "run until line":
                line = self._login.run_until_line(
                    words["command"], blobs[0], blobs[1], words["seconds"]
                )
                self._note_life()
                return {}, [line]
            case "open tunnel":
                tunnel = self._login.open_tunnel(words["host"], words["port"])
                self._note_life()
                return visitor.own(tunnel), []
            case "open pipe":
                return visitor.own(self._login.open_pipe(words["command"], blobs[0])), []
            case "end":
                self.end()
                return {}, []
            case other:
                raise RemoterError(f"this version keeps no login that can {other!r}.")

    @property
    def _login(self) -> Login:
        held = self._held
        if held is None or not held.login.is_alive:
            raise LoginGone("the connection is gone.", "It can be dialled again.")
        return held.login

    # --- the login ---

    def _log_in(self, visitor: Visitor, words: dict[str, Any]) -> dict[str, Any]:
        """Return what is known of the login; log in, if there is none that lives."""
        remote = Remote(**{**words["remote"], "ssh_config": Path(words["remote"]["ssh_config"])})
        self._lifetime = float(words["lifetime"])
        with self._turn:
            if visitor.is_gone:
                raise Unreachable("whoever asked for the login is gone.")
            if words["is_stale"] and not self._is_used_by_others(visitor):
                self._give_up()
            is_new = not self._is_well(in_doubt=bool(words["in_doubt"]))
            if is_new:
                self._renew(visitor, remote, words)
            held = self._held
            assert held is not None  # noqa: S101 - one of the two has just made sure of it
            return {**facts(held.login), "since": held.since, "is_new": is_new}

    def _is_used_by_others(self, visitor: Visitor) -> bool:
        return any(each.has_tunnels for each in list(self._visitors) if each is not visitor)

    def _renew(self, visitor: Visitor, remote: Remote, words: dict[str, Any]) -> None:
        for name in PERSONAL:
            if name in words["environment"]:
                os.environ[name] = words["environment"][name]
        self._give_up()
        self._memories.use(is_remembered=bool(words["is_remembered"]))
        login = log_in_to(
            remote,
            visitor if words["may_ask"] else None,
            on_step=visitor.tell_step,
            on_try=visitor.watch,
            memories=self._memories,
        )
        visitor.watch(None)
        self._was_inside = True
        self._held = _Held(login)

    def _is_well(self, *, in_doubt: bool) -> bool:
        """Is there a login that answers? One that was heard of late is believed, if nobody doubts.

        This machine may have slept since, and nothing on it knows how long.
        """
        held = self._held
        if held is None or not held.login.is_alive:
            return False
        if not in_doubt and 0 <= time.time() - held.heard_at < TRUSTED_FOR:
            return True
        # What a command says may be in the way of the answer.
        patience = SILENT_FOR if held.login.is_busy else ANSWERS_WITHIN
        return self._answers(held, patience + 4 * held.login.round_trip)

    def _answers(self, held: _Held, seconds: float) -> bool:
        is_there = held.login.answers(seconds)
        if is_there:
            held.heard_at = time.time()
        return is_there

    def _look(self) -> None:
        """Ask a silent login whether it is there; it may not be, without anybody knowing."""
        held = self._held
        if held is None:
            return
        received = sum(visitor.received for visitor in list(self._visitors))
        if received != held.received:
            held.received, held.heard_at = received, time.time()
        elif 0 <= time.time() - held.heard_at < LOOK_EVERY:
            return
        elif not self._answers(held, SILENT_FOR):
            held.login.cut()

    def _note_life(self) -> None:
        if self._held:
            self._held.heard_at = time.time()

    def _give_up(self) -> None:
        held, self._held = self._held, None
        if held:
            self._memories.refresh()
            held.login.cut()
            held.login.close()


def facts(login: Login) -> dict[str, Any]:
    """Return what is known of a login, in plain values."""
    return {
        "host": login.host,
        "user": login.user,
        "cipher": login.cipher,
        "host_key": login.host_key,
        "seconds": login.seconds,
        "round_trip": login.round_trip,
        "transport": login.transport,
        "why_transport": login.why_transport,
    }
