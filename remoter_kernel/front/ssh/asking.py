"""Puts ssh's questions to a person: `askpass` brings them here, one connection for each."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import sys
import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import TYPE_CHECKING

from remoter_kernel.errors import RemoterError
from remoter_kernel.front.questions import Prompt, Trust, readable
from remoter_kernel.front.ssh import askpass
from remoter_kernel.front.ssh.outcome import UnknownHostKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from remoter_kernel.front.questions import Questions

ENDS_WITHIN = 2.0  # seconds
HOST_KEY = re.compile(
    r"authenticity of host '(?P<host>[^']+)'.*?(?P<kind>\S+) key fingerprint is "
    r"(?P<fingerprint>SHA256:[A-Za-z0-9+/]+)",
    re.DOTALL,
)


class Desk:
    """Waits for the questions of one ssh and those that it starts; `start` it, `close` it."""

    def __init__(self, host: str, questions: Questions, folder: Path) -> None:
        self.problem: RemoterError | None = None
        """Why the login is to end: a question was not answered, a key not accepted."""
        self.is_asking = False
        self.remembers = False
        """The person wants the host key that was accepted to be remembered."""
        self.host_key = ""
        """The key that the host of this login has shown (kind, fingerprint): ssh told it."""
        self.on_problem: Callable[[], None] = lambda: None
        self._host = host
        self._questions = questions
        self._folder = folder
        self._key = secrets.token_bytes(32)
        self._asked: list[str] = []
        self._notes: list[Connection] = []
        self._is_over = False
        self._listener: Listener | None = None
        self._thread = threading.Thread(target=self._serve, name="ssh-questions", daemon=True)

    def start(self) -> None:
        """Listen from now on."""
        place = str(self._folder / "ask") if os.name == "posix" else None
        family = "AF_UNIX" if os.name == "posix" else "AF_PIPE"
        self._listener = Listener(place, family, backlog=4, authkey=self._key)
        self._thread.start()

    def environment(self) -> dict[str, str]:
        """Return what makes ssh ask here, and nowhere else."""
        assert self._listener is not None  # noqa: S101 (started)
        return {
            "SSH_ASKPASS": str(_program(self._folder)),
            "SSH_ASKPASS_REQUIRE": "force",
            "DISPLAY": os.environ.get("DISPLAY") or "none:0",  # without one an old ssh never asks
            askpass.PLACE: str(self._listener.address),
            askpass.KEY: self._key.hex(),
        }

    def close(self) -> None:
        """Answer nothing any more."""
        if self._listener is None or self._is_over:
            return
        self._is_over = True
        for note in self._notes:
            note.close()
        # A thread that waits for a connection is woken by one; a thread that does not, since it
        # asks still or has just ended, would never prove to know the key: nobody waits for that.
        with contextlib.suppress(OSError):
            Client(self._listener.address).close()
        self._thread.join(ENDS_WITHIN)
        self._listener.close()
        (self._folder / "askpass").unlink(missing_ok=True)

    def _serve(self) -> None:
        assert self._listener is not None  # noqa: S101 (started)
        while not self._is_over:
            try:
                connection = self._listener.accept()
            except (OSError, EOFError, AuthenticationError):  # not ours, or gone again
                continue
            with contextlib.suppress(OSError, EOFError):
                self._hear(connection)

    def _hear(self, connection: Connection) -> None:
        if self._is_over:
            connection.close()
            return
        hint = connection.recv_bytes().decode()
        text = readable(connection.recv_bytes().decode(errors="replace")).strip()
        if hint == "none":  # something to do, a touch for instance: it stands until it is done
            self._notes.append(connection)
            self._try(lambda: self._note(text))
            return
        with connection:
            self.is_asking = True
            answer = self._try(lambda: self._answer(hint, text))
            self.is_asking = False
            if answer is not None:
                connection.send_bytes(answer.encode())

    def _try(self, ask: Callable[[], str | None]) -> str | None:
        if self.problem is None:
            try:
                return ask()
            except RemoterError as error:
                self.problem = error
                self.on_problem()
        return None

    def _note(self, text: str) -> None:
        self._questions.ask(self._host, [], text)

    def _answer(self, hint: str, text: str) -> str | None:
        """Ask the person; None declines."""
        if match := HOST_KEY.search(text):
            return self._confirm(match)
        if hint == "confirm":
            asked = Prompt(f"{text} (yes/no)", is_shown=True)
            said = self._questions.ask(self._host, [asked])[0]
            return "yes" if said.strip().lower() in ("y", "yes") else None
        again = "That was not accepted." if text in self._asked else ""
        self._asked.append(text)
        return self._questions.ask(self._host, [Prompt(text)], again)[0]

    def _confirm(self, match: re.Match[str]) -> str:
        kind, fingerprint = match["kind"], match["fingerprint"]
        known_kind, _, known = self.host_key.partition(" ")
        is_last = known == fingerprint  # else it is a jump host's: ssh asks for those itself
        host, kind = (self._host, known_kind) if is_last else (match["host"], kind)
        said = self._questions.confirm_host_key(host, kind, fingerprint)
        if said is Trust.ONCE and not is_last:
            raise UnknownHostKey(
                f"the key of {host}, a jump host, can be accepted by ssh only for good.",
                'Accept it so, or set transport = "paramiko".',
            )
        if said is Trust.NO:
            raise UnknownHostKey(
                f"the host key of {host} was not accepted: {kind} {fingerprint}.",
                "Compare it with what the host's administrator says, then try again.",
            )
        if is_last:
            self.remembers = said is Trust.YES
        return "yes"


def _program(folder: Path) -> Path:
    """Write the little program that ssh can start: it takes the name of one, and no words."""
    source = str(Path(askpass.__file__).resolve())
    if os.name == "posix":
        program = folder / "askpass"
        words = shlex.join([sys.executable, "-I", source])
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    else:
        program = folder / "askpass.cmd"
        program.write_text(f'@"{sys.executable}" -I "{source}" %*\n')
    program.chmod(0o700)
    return program
