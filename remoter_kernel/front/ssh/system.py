"""Logs in by the system's own ssh, for what paramiko cannot do.

Kerberos, keys on a security key, host certificates, algorithms that only OpenSSH has, and a
ControlMaster that is logged in already. Whatever a login is for goes over it as over any other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from remoter_kernel.errors import BadConfiguration, RemoterError, Unreachable
from remoter_kernel.front.ssh.admission import VERDICT_WITHIN, asker_of
from remoter_kernel.front.ssh.askpass_server import AskpassServer
from remoter_kernel.front.ssh.banner import SHOWN_AFTER, Banner
from remoter_kernel.front.ssh.channel import ChannelOpenError, Closed, TooLate
from remoter_kernel.front.ssh.complaints import (
    SAID_WHEN_FAILED,
    SAID_WHEN_FORBIDDEN,
    ended,
    error_from_stderr,
    fell_silent,
)
from remoter_kernel.front.ssh.entry import LoginProcess
from remoter_kernel.front.ssh.memory import Memory
from remoter_kernel.front.ssh.mux import Mux, master_answers
from remoter_kernel.front.ssh.openssh_argv import (
    master_words,
    single_words,
    ssh_words,
    through_words,
)
from remoter_kernel.front.ssh.separate import SeparateTransport
from remoter_kernel.front.ssh.shared import FORBIDDEN, SharedTransport
from remoter_kernel.front.ssh.ssh_login import Login
from remoter_kernel.front.ssh.trust import add_line, with_hashed_names
from remoter_kernel.front.unix_sockets import short_temporary_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.front.questions import Questions
    from remoter_kernel.front.ssh.aliases import Destination

CAN_SHARE = os.name == "posix"  # OpenSSH for Windows has no masters
PREFIX = "remoter-ssh-"
FORGOTTEN_AFTER = 3600.0  # seconds: no login takes so long to have its master
FORSAKEN_WITHIN = 0.5  # seconds for a master to answer
SWEEPS_FOR = 1.0  # seconds that old folders may cost a login: the next one goes on
NOBODY = {"SSH_ASKPASS_REQUIRE": "never", "SSH_ASKPASS": ""}


def log_in_by_system(
    destination: Destination,
    *,
    questions: Questions | None = None,
    on_step: Callable[[str], None] = lambda _step: None,
    on_try: Callable[[Login], None] = lambda _login: None,
    why: str = "",
) -> SystemLogin:
    """Log in as `login.log_in` does: each jump host with a master of its own.

    Where there are no masters ssh goes through jump hosts by itself.
    """
    is_direct = not CAN_SHARE or living_master(destination) is not None
    hops = (destination,) if is_direct else (*destination.jumps, destination)
    passed: list[SystemLogin] = []
    try:
        for hop in hops:
            login = SystemLogin(hop, tuple(passed), why=why, asker=asker_of(hop, destination))
            on_try(login)
            login.start(questions, on_step, Memory())
            passed.append(login)
    except BaseException:
        if passed:
            passed[-1].close()
        raise
    return passed[-1]


def living_master(destination: Destination) -> Path | None:
    """Say where the person's own ControlMaster for this destination listens, if it lives."""
    path = destination.for_ssh.control_path
    place = Path(path) if path else None
    return place if CAN_SHARE and place and master_answers(place) else None


class SystemLogin(Login):
    """A login whose connection is the system's ssh."""

    def __init__(
        self,
        destination: Destination,
        through: tuple[SystemLogin, ...] = (),
        *,
        why: str = "",
        asker: str = "",
    ) -> None:
        super().__init__(destination, through, asker=asker)
        self._before = through[-1] if through else None
        self.transport = "openssh"
        self.why_transport = why
        self._host = destination.alias or destination.host_name
        self._entry: LoginProcess | None = None
        self._desk: AskpassServer | None = None
        self._banner = Banner(self._asker, None)
        self._waits_since: float | None = None  # for the server: the step, or the last question
        self._may_ask = False
        self._folder: Path | None = None
        self._place: Path | None = None  # where the master listens
        self._leave = self._remove_folder

    def start(
        self,
        questions: Questions | None,
        on_step: Callable[[str], None],
        memory: Memory,  # noqa: ARG002 - ssh asks for itself, and nobody overhears it
    ) -> None:
        """Log in, or join the person's own master; on an error nothing is left open."""
        try:
            place = living_master(self._destination)
            if place is not None:
                self._join(place, on_step)
            else:
                self._enter(questions, on_step)
            if self._is_cut:
                raise Closed  # noqa: TRY301 (renamed below)
        except Closed:
            self.close()
            raise ended(self._destination.label, self._step) from None
        except TooLate:
            self.close()
            said = self._entry.aside if self._entry else ""
            raise fell_silent(self._destination.label, self._step, said=said) from None
        except BaseException:
            self.close()
            raise

    @property
    def _step(self) -> str:
        return self._entry.step if self._entry else "connect"

    def _join(self, place: Path, on_step: Callable[[str], None]) -> None:
        """Use a master that is there already: nothing is asked, and it is not ours to end."""
        began = time.perf_counter()
        on_step("connect")
        self._place = place
        shared = SharedTransport(place, is_ours=False)
        shared.open()
        self._transport = shared
        self.seconds["connect"] = time.perf_counter() - began
        self.cipher = "as your ControlMaster agreed on it"
        self.host_key = "checked by your ControlMaster"
        on_step("host key")
        on_step("login")

    def _enter(self, questions: Questions | None, on_step: Callable[[str], None]) -> None:
        self._folder = folder = _private_folder()
        environment = {**self._destination.environment, **NOBODY}
        if questions is not None:
            self._desk = self._new_desk(questions, folder)
            self._banner = Banner(self._asker, self._desk.show)
            self._desk.start()
            environment |= self._desk.environment()

        self._may_ask = questions is not None
        if not CAN_SHARE:
            words = single_words(self._options("DEBUG1"), "-N", host=self._host)
            entry = self._get_in(LoginProcess(words, environment, on_step))
            entry.close()
            self._transport = SeparateTransport(
                self._options, self._host, environment, entry.round_trip
            )
            return
        self._place = folder / "m"
        options = self._options("DEBUG1")
        if self._destination.proxy_command:  # else a master throws away what that complains of
            options.append("-v")
        words = master_words(options, self._place, self._host)
        entry = self._get_in(LoginProcess(words, environment, on_step))
        if self._desk is not None:
            self._desk.close()
        shared = SharedTransport(self._place, is_ours=True, round_trip=entry.round_trip)
        shared.open()
        self._transport = shared

    def _new_desk(self, questions: Questions, folder: Path) -> AskpassServer:
        destination = self._destination
        hops = {
            f"{hop.user}@{name}": asker_of(hop, destination)
            for hop in destination.jumps
            for name in (hop.host_name, hop.alias, hop.host_key_alias)
        }
        for name in (destination.host_name, destination.alias, destination.host_key_alias):
            hops[f"{destination.user}@{name}"] = self._asker
        by_itself = bool(destination.jumps or destination.proxy_command)
        return AskpassServer(
            self._asker,
            questions,
            folder,
            hops=hops,
            leads_through=by_itself and self._before is None,
        )

    def _options(self, log_level: str) -> list[str]:
        files = self._destination.known_hosts_files
        if self._may_ask and self._folder is not None:
            files = (self._folder / "accepted", *files)
        before = self._before._place if self._before else None  # noqa: SLF001 (one of us)
        words = ssh_words(self._destination, files, log_level, may_ask=self._may_ask)
        return [*words, *(through_words(before) if before else ())]

    def _get_in(self, entry: LoginProcess) -> LoginProcess:
        self._entry = entry
        desk = self._desk
        if desk is not None:
            desk.on_problem, desk.entry = entry.kill, entry
            desk.unseen = lambda: self._banner.unseen(entry.aside)
        try:
            entry.start()
        except OSError as error:
            raise BadConfiguration(
                f"ssh cannot be run: {error.strerror or error}.",
                'Install an OpenSSH client, or set transport = "paramiko".',
            ) from error
        seconds = self._destination.connect_timeout + VERDICT_WITHIN
        is_in = entry.wait(seconds, partial(self._waits_for_person, entry), until_over=CAN_SHARE)
        self._remember_host_key()
        if desk is not None and desk.problem is not None:
            raise desk.problem
        if self._is_cut:
            raise Closed
        if not is_in:
            said = entry.said + (self._why_not_through() if entry.step == "connect" else "")
            raise error_from_stderr(
                self._destination,
                said,
                entry.step,
                entry.host_key,
                may_ask=self._may_ask,
                aside=entry.aside,
            )
        self.cipher, self.host_key, self.seconds = entry.cipher, entry.host_key, entry.seconds
        return entry

    def _waits_for_person(self, entry: LoginProcess) -> bool:
        """Say whether a person is to answer, or to act on what the server has said to everybody.

        That is shown where the server does not go on. What it says meanwhile gives it no more
        time: it might trickle for ever.
        """
        desk = self._desk
        if desk is None or desk.is_asking or entry.step != "login":
            self._waits_since = None
            return desk is not None and desk.is_asking
        now = time.perf_counter()
        if self._waits_since is None:
            self._waits_since = now
        if entry.silent_for >= SHOWN_AFTER:
            self._banner.show(entry.aside)
        return now - self._waits_since < self._banner.patience(entry.aside, 0.0)

    def _why_not_through(self) -> str:
        """Ask the jump host itself, in ssh's words: what goes through it has no stderr."""
        if self._before is None:
            return ""
        where = (self._destination.host_name, self._destination.port)
        try:
            errand = self._before.live.begin_forward(*where, self._destination.connect_timeout)
        except ChannelOpenError as refused:
            is_forbidden = refused.code == FORBIDDEN
            return f"\n{SAID_WHEN_FORBIDDEN if is_forbidden else SAID_WHEN_FAILED}"
        except (Closed, TooLate):
            return ""
        errand.drop()
        return ""

    def _remember_host_key(self) -> None:
        """Write down what was accepted for good: ssh itself wrote it beside."""
        accepted = self._folder / "accepted" if self._folder else None
        files = self._destination.known_hosts_files
        if accepted and accepted.exists():
            if files and self._desk is not None and self._desk.remembers:
                is_hashed = self._destination.rules.hashes_names
                for line in filter(None, accepted.read_text().split("\n")):
                    for one in with_hashed_names(line) if is_hashed else [line]:
                        add_line(files[0], one)
            if CAN_SHARE:
                accepted.unlink()

    def answers(self, seconds: float) -> bool:
        """Find out within that time whether the server is still there: a master cannot say."""
        try:
            self.run("exit 0", seconds=seconds)
        except RemoterError as error:
            return not isinstance(error, Unreachable)
        return True

    def _open_spare(self) -> None:
        """Do without: a master opens a channel only together with its command."""

    def cut(self) -> None:
        """Drop the connection without a goodbye, as a dead network would."""
        super().cut()
        if self._entry is not None:
            self._entry.kill()

    def _remove_folder(self) -> None:
        if self._entry is not None:
            self._entry.close()
        if self._desk is not None:
            self._desk.close()
            self._desk = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _private_folder() -> Path:
    """Make a folder that only this person can enter, with a path that is short enough."""
    where = Path(short_temporary_folder())
    if CAN_SHARE:
        _remove_stale_folders(where)
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=where))


def _remove_stale_folders(where: Path) -> None:
    """Remove what logins have left there that were killed; where others write, too, be brief."""
    until = time.monotonic() + SWEEPS_FOR
    with contextlib.suppress(OSError), os.scandir(where) as entries:
        for entry in entries:
            if time.monotonic() > until:
                break
            with contextlib.suppress(OSError):  # gone meanwhile
                if entry.name.startswith(PREFIX) and _is_forsaken(Path(entry.path)):
                    shutil.rmtree(entry.path, ignore_errors=True)


def _is_forsaken(folder: Path) -> bool:
    """Say whether that is a folder of ours in which no master serves any more."""
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not is_ours or time.time() - found.st_mtime <= FORGOTTEN_AFTER:
        return False
    try:
        Mux(folder / "m", FORSAKEN_WITHIN).close()
    except Closed:
        return True
    except TooLate:
        pass
    return False
