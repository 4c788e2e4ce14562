"""Puts ssh's questions to a person: `askpass` sends them here, one connection for each.

ssh asks for itself (a passphrase, a PIN, whether a host key is the right one), and passes on
what a server asks. Both come as plain text. We take a text for ssh's own only if it begins as
ssh's do, and if no server could have made it begin so: before a server may ask anything, or
where ssh puts "(user@host) " before a server's questions (since OpenSSH 8.5).
"""

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
from remoter_kernel.local.login.known_hosts import host_key_rejected
from remoter_kernel.local.login.login import UnknownHostKey
from remoter_kernel.local.login.openssh import askpass
from remoter_kernel.local.login.prompts import OWN_TAG, HostKeyDecision, Prompt, to_one_line
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection

    from remoter_kernel.local.login.openssh.login_process import LoginProcess
    from remoter_kernel.local.login.prompts import Prompter

ENDS_WITHIN = 2.0  # seconds
PAUSE = 0.2  # seconds until the next question is taken, where no descriptor is left
LONGEST = 256 * 1024  # bytes of one question
STDERR_WITHIN = 1.0  # seconds: what ssh says and what it asks come by two ways
HOST_KEY = re.compile(
    r"The authenticity of host '(?P<host>[^']+)'.*?(?P<kind>\S+) key fingerprint is "
    r"(?P<fingerprint>SHA256:[A-Za-z0-9+/]+)",
    re.DOTALL,
)
OPENSSH_PROMPT = re.compile(r"Enter (?:passphrase|PIN) for ")
PROMPT_LABEL = re.compile(r"\((?P<marked>[^\s()]+@[^\s()]+)\) |(?P<named>\S+@\S+)'s password:")


class SSHPrompts:
    """Puts the texts of one ssh, and of those that it starts, to a person."""

    def __init__(
        self, host: str, prompter: Prompter, hops: Mapping[str, str], *, passes_hops: bool
    ) -> None:
        """See `AskpassServer`."""
        # Why the login is to end: a question was not answered, a key not accepted
        self.problem: RemoterError | None = None
        self.is_asking = False
        # The person wants the host key that was accepted to be remembered
        self.remembers_host_key = False
        # The ssh that asks, and its log: how far it is decides who can be asking
        self.process: LoginProcess | None = None
        self.on_problem: Callable[[], None] = lambda: None
        # Gives what the server has said to everybody, and nobody has seen yet
        self.unseen_banner: Callable[[], str] = lambda: ""
        self._host = host
        self._prompter = prompter
        self._hops = hops
        self._passes_hops = passes_hops
        self._prompts_seen: list[str] = []
        self._prompt_lock = threading.Lock()  # a person answers one at a time

    def show(self, text: str) -> None:
        """Show the person something to act on, between two questions."""
        self._guarded(lambda: self._show(text))

    def _show(self, text: str) -> None:
        self._prompter.ask("", [], text)

    def _guarded(self, ask: Callable[[], str | None]) -> str | None:
        """Ask, unless something has gone wrong before; what goes wrong ends the login."""
        with self._prompt_lock:
            if self.problem is None:
                try:
                    return ask()
                except RemoterError as error:
                    self.problem = error
                except Exception as error:  # noqa: BLE001 - else the next question would not be asked
                    self.problem = RemoterError(
                        f"what ssh asked could not be passed on: {type(error).__name__}."
                    )
                self.on_problem()
        return None

    def _answer_prompt(self, hint: str, text: str) -> str | None:
        """Ask the person; None declines."""
        if hint == "confirm":
            asked = Prompt(f"{OWN_TAG}{text} (yes/no)", is_shown=True)
            said = self._prompter.ask("", [asked])[0]
            return "yes" if said.strip().lower() in ("y", "yes") else None
        if (match := HOST_KEY.match(text)) and self._is_host_key_prompt(match["fingerprint"]):
            return self._confirm_host_key(match)
        again = "That was not accepted." if text in self._prompts_seen else ""
        self._prompts_seen.append(text)
        if OPENSSH_PROMPT.match(text) and self._is_openssh_prompt():
            host, prompt = "", Prompt(f"{OWN_TAG}{text.rstrip(': ')} (it is not sent):")
        else:
            host, prompt = self._identify_host(text)
        words = "\n".join(filter(None, (self.unseen_banner() if host else "", again)))
        return self._prompter.ask(host, [prompt], words)[0]

    # --- who it is that asks ---

    def _is_openssh_prompt(self) -> bool:
        """Say whether a text that begins as ssh's own do can be no server's."""
        process = self.process
        if process is None:
            return False
        if not self._passes_hops and process.step != "login":
            return True  # nobody could ask yet
        return process.wait_until(lambda: process.version is not None, STDERR_WITHIN) and (
            process.labels_prompts
        )

    def _is_host_key_prompt(self, fingerprint: str) -> bool:
        """Say the same of a question about a host key, by the key that ssh has told of."""
        process = self.process
        if process is None:
            return False
        if process.wait_until(lambda: self._announced_host_key()[1] == fingerprint, STDERR_WITHIN):
            return process.step == "host key"
        # It is that of a host on the way: ssh asks for those itself, and tells nothing of them.
        return self._passes_hops and process.step == "connect" and process.labels_prompts

    def _announced_host_key(self) -> tuple[str, str]:
        kind, _, fingerprint = (self.process.host_key if self.process else "").partition(" ")
        return kind, fingerprint

    def _identify_host(self, text: str) -> tuple[str, Prompt]:
        """Name the host that gets the answer, and give its question."""
        match = PROMPT_LABEL.match(text) if self.process and self.process.labels_prompts else None
        who = (match["marked"] or match["named"]) if match else ""
        # Before a host has shown its key it asks nothing.
        is_before = self._passes_hops and (not self.process or self.process.step == "connect")
        host = self._hops.get(who) or (
            f"{who or 'a host on the way'} (jump host of {self._host})" if is_before else self._host
        )
        is_named = match is not None and match["marked"] in self._hops
        return host, Prompt(text[match.end() :] if is_named and match else text)

    def _confirm_host_key(self, match: re.Match[str]) -> str:
        kind, fingerprint = match["kind"], match["fingerprint"]
        known_kind, known = self._announced_host_key()
        is_last = known == fingerprint  # else it is a jump host's
        host, kind = (self._host, known_kind) if is_last else (match["host"], kind)
        said = self._prompter.confirm_host_key(host, kind, fingerprint)
        if said is HostKeyDecision.ONCE and not is_last:
            raise UnknownHostKey(
                f"the key of {host}, a jump host, can be accepted by ssh only for good.",
                'Accept it so, or set transport = "paramiko".',
            )
        if said is HostKeyDecision.NO:
            raise host_key_rejected(host, f"{kind} {fingerprint}")
        if is_last:
            self.remembers_host_key = said is HostKeyDecision.YES
        return "yes"


class AskpassServer(SSHPrompts):
    """Listens for the questions of one ssh and those that it starts; `start` it, `close` it."""

    def __init__(
        self,
        host: str,
        prompter: Prompter,
        folder: Path,
        *,
        hops: Mapping[str, str] = {},
        passes_hops: bool = False,
    ) -> None:
        """`host` is how the host of this login is called.

        `hops`: how each host that may ask is called, by `user@host`. `passes_hops`: ssh passes
        other hosts by itself, and these may ask as well.
        """
        super().__init__(host, prompter, hops, passes_hops=passes_hops)
        self._folder = folder
        self._key = secrets.token_bytes(32)
        self._open_notices: list[Connection] = []
        self._closed = threading.Event()
        self._listener: Listener | None = None
        self._thread = Thread(
            self._serve, name="ssh-questions", on_error=lambda _error: self._serve()
        )

    def start(self) -> None:
        """Listen from now on."""
        is_posix = os.name == "posix"
        place, family = (str(self._folder / "ask"), "AF_UNIX") if is_posix else (None, "AF_PIPE")
        self._listener = Listener(place, family, backlog=4, authkey=self._key)
        self._thread.start()

    def environment(self) -> dict[str, str]:
        """Return what makes ssh ask here, and nowhere else."""
        assert self._listener is not None  # noqa: S101 (started)
        return {
            "SSH_ASKPASS": str(_write_askpass_program(self._folder)),
            "SSH_ASKPASS_REQUIRE": "force",
            "DISPLAY": os.environ.get("DISPLAY") or "none:0",  # without one an old ssh never asks
            askpass.ADDRESS_VARIABLE: str(self._listener.address),
            askpass.KEY_VARIABLE: self._key.hex(),
        }

    def close(self) -> None:
        """Answer nothing any more."""
        if self._listener is None or self._closed.is_set():
            return
        self._closed.set()
        for connection in self._open_notices:
            connection.close()
        # A thread that waits for a connection is woken by one; a thread that does not, since it
        # asks still or has just ended, would never prove to know the key: nobody waits for that.
        with contextlib.suppress(OSError):
            Client(self._listener.address).close()
        self._thread.join(ENDS_WITHIN)
        self._listener.close()
        (self._folder / "askpass").unlink(missing_ok=True)

    def _serve(self) -> None:
        assert self._listener is not None  # noqa: S101 (started)
        while not self._closed.is_set():
            try:
                connection = self._listener.accept()
            except (EOFError, AuthenticationError):  # not ours, or gone again
                continue
            except OSError:  # the same, or no descriptor is left: that passes
                self._closed.wait(PAUSE)
                continue
            with contextlib.suppress(OSError, EOFError):
                self._handle_connection(connection)

    def _handle_connection(self, connection: Connection) -> None:
        if self._closed.is_set():
            connection.close()
            return
        hint = connection.recv_bytes(LONGEST).decode(errors="replace")
        text = to_one_line(connection.recv_bytes(LONGEST).decode(errors="replace"))
        if hint == "none":  # something to do, a touch for instance: it stands until it is done
            self._open_notices.append(connection)
            self.show(f"{OWN_TAG}{text}")
            return
        with connection:
            self.is_asking = True
            answer = self._guarded(lambda: self._answer_prompt(hint, text))
            self.is_asking = False
            if answer is not None:
                connection.send_bytes(answer.encode())


def _write_askpass_program(folder: Path) -> Path:
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
