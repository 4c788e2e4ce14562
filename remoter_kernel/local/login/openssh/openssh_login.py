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
from remoter_kernel.local.login.banner import SHOWN_AFTER, Banner
from remoter_kernel.local.login.known_hosts import append_known_host, hash_line
from remoter_kernel.local.login.login import (
    AUTH_RESULT_WITHIN,
    FORBIDDEN,
    ChannelOpenError,
    ConnectionClosed,
    ResponseTimeout,
)
from remoter_kernel.local.login.login_errors import connection_ended, connection_timed_out
from remoter_kernel.local.login.openssh.askpass_server import AskpassServer
from remoter_kernel.local.login.openssh.login_process import LoginProcess
from remoter_kernel.local.login.openssh.mux_transport import Mux, MuxTransport, master_answers
from remoter_kernel.local.login.openssh.openssh_argv import (
    jump_options,
    master_argv,
    ssh_argv,
    standalone_argv,
)
from remoter_kernel.local.login.openssh.process_transport import ProcessTransport
from remoter_kernel.local.login.openssh.stderr_errors import (
    JUMP_FAILED,
    JUMP_FORBIDS,
    error_from_stderr,
)
from remoter_kernel.local.login.ssh_login import SSHLogin, log_in_hop_by_hop, prompter_label
from remoter_kernel.local.private_sockets import short_temporary_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from remoter_kernel.local.login.destination import Destination
    from remoter_kernel.local.login.prompts import Prompter

HAS_CONTROL_MASTER = os.name == "posix"  # OpenSSH for Windows has no masters
PREFIX = "remoter-ssh-"
STALE_AFTER = 3600.0  # seconds: no login takes so long to have its master
STALE_WITHIN = 0.5  # seconds for a master to answer
CLEAN_FOR = 1.0  # seconds that old folders may cost a login: the next one goes on
NO_ASKPASS = {"SSH_ASKPASS_REQUIRE": "never", "SSH_ASKPASS": ""}


def log_in_by_openssh(
    destination: Destination,
    *,
    prompter: Prompter | None = None,
    on_step: Callable[[str], None] = lambda _step: None,
    on_try: Callable[[SSHLogin], None] = lambda _login: None,
    why: str = "",
) -> OpenSSHLogin:
    """Log in as `log_in_by_paramiko` does: each jump host with a master of its own.

    Where there are no masters ssh goes through jump hosts by itself.
    """
    is_direct = not HAS_CONTROL_MASTER or living_master(destination) is not None
    hops = (destination,) if is_direct else (*destination.jumps, destination)

    def new_login(hop: Destination, before: tuple[OpenSSHLogin, ...]) -> OpenSSHLogin:
        return OpenSSHLogin(hop, before, why=why, label=prompter_label(hop, destination))

    return log_in_hop_by_hop(hops, new_login, prompter, on_step, on_try)


def living_master(destination: Destination) -> Path | None:
    """Say where the person's own ControlMaster for this destination listens, if it lives."""
    path = destination.openssh.control_path
    place = Path(path) if path else None
    return place if HAS_CONTROL_MASTER and place and master_answers(place) else None


class OpenSSHLogin(SSHLogin):
    """A login whose connection is the system's ssh."""

    def __init__(
        self,
        destination: Destination,
        jump_logins: tuple[OpenSSHLogin, ...] = (),
        *,
        why: str = "",
        label: str = "",
    ) -> None:
        super().__init__(destination, jump_logins, transport="openssh", why=why, label=label)
        self._jump_login = jump_logins[-1] if jump_logins else None
        self._process: LoginProcess | None = None
        self._askpass: AskpassServer | None = None
        self._banner = Banner(self._label, None)
        self._waiting_since: float | None = None  # for the server: the step, or the last question
        self._may_ask = False
        self._folder: Path | None = None
        self._control_path: Path | None = None  # where the master listens

    def start(self, prompter: Prompter | None, on_step: Callable[[str], None]) -> None:
        """Log in, or join the person's own master; on an error nothing is left open.

        ssh asks for secrets itself, and nobody overhears the answers: none is kept.
        """
        label = self._destination.label
        try:
            place = living_master(self._destination)
            if place is not None:
                self._join_master(place, on_step)
            else:
                self._authenticate_by_ssh(prompter, on_step)
            if self._is_cut:
                raise ConnectionClosed  # noqa: TRY301 (renamed below)
        except BaseException as error:
            self.close()
            step = self._process.step if self._process else "connect"
            said = self._process.server_text if self._process else ""
            if isinstance(error, ConnectionClosed):
                raise connection_ended(label, step) from None
            if isinstance(error, ResponseTimeout):
                raise connection_timed_out(label, step, said=said) from None
            raise

    def _join_master(self, place: Path, on_step: Callable[[str], None]) -> None:
        """Use a master that is there already: nothing is asked, and it is not ours to end."""
        began = time.perf_counter()
        on_step("connect")
        self._open_master(MuxTransport(place, is_ours=False), place)
        self.seconds["connect"] = time.perf_counter() - began
        self.cipher = "as your ControlMaster agreed on it"
        self.host_key = "checked by your ControlMaster"
        on_step("host key")
        on_step("login")

    def _open_master(self, master: MuxTransport, place: Path) -> None:
        self._control_path = place
        master.open()
        self._transport = master  # not before: `close` ends what is here

    def _authenticate_by_ssh(
        self, prompter: Prompter | None, on_step: Callable[[str], None]
    ) -> None:
        self._folder = folder = _new_private_folder()
        # Where nobody can be asked, ssh must not open a window of some other askpass.
        environment = {**self._destination.environment, **NO_ASKPASS}
        if prompter is not None:
            self._askpass = self._new_askpass_server(prompter, folder)
            self._banner = Banner(self._label, self._askpass.show)
            self._askpass.start()
            environment |= self._askpass.environment()
            self._may_ask = True
        options = self._options("DEBUG1")
        if not HAS_CONTROL_MASTER:
            argv = standalone_argv(options, "-N", host=self._host)
            process = self._run_process(argv, environment, on_step)
            process.close()
            self._transport = ProcessTransport(
                self._options, self._host, environment, process.round_trip
            )
            return
        if self._destination.proxy_command:  # else a master throws away what that complains of
            options.append("-v")
        place = folder / "m"
        argv = master_argv(options, place, self._host)
        process = self._run_process(argv, environment, on_step)
        if self._askpass is not None:
            self._askpass.close()
        master = MuxTransport(place, is_ours=True, round_trip=process.round_trip)
        self._open_master(master, place)

    @property
    def _host(self) -> str:
        return self._destination.alias or self._destination.host_name

    def _new_askpass_server(self, prompter: Prompter, folder: Path) -> AskpassServer:
        destination = self._destination
        hops = {
            f"{hop.user}@{name}": prompter_label(hop, destination)
            for hop in destination.jumps
            for name in (hop.host_name, hop.alias, hop.host_key_alias)
        }
        for name in (destination.host_name, destination.alias, destination.host_key_alias):
            hops[f"{destination.user}@{name}"] = self._label
        has_way = bool(destination.jumps or destination.proxy_command)
        passes_hops = has_way and self._jump_login is None
        return AskpassServer(self._label, prompter, folder, hops=hops, passes_hops=passes_hops)

    def _options(self, log_level: str) -> list[str]:
        files = self._destination.known_hosts_files
        if self._may_ask and self._folder is not None:
            files = (self._folder / "accepted", *files)  # ssh learns new keys in the first one
        words = ssh_argv(self._destination, files, log_level, may_ask=self._may_ask)
        before = self._jump_login._control_path if self._jump_login else None  # noqa: SLF001 (one of us)
        return [*words, *(jump_options(before) if before else ())]

    def _run_process(
        self, argv: list[str], environment: Mapping[str, str], on_step: Callable[[str], None]
    ) -> LoginProcess:
        """Have ssh log in, and learn what it tells of the login."""
        self._process = process = LoginProcess(argv, environment, on_step)
        askpass = self._askpass
        if askpass is not None:
            askpass.on_problem, askpass.process = process.kill, process
            askpass.unseen_banner = lambda: self._banner.take_unseen(process.server_text)
        try:
            process.start()
        except OSError as error:
            raise BadConfiguration(
                f"ssh cannot be run: {error.strerror or error}.",
                'Install an OpenSSH client, or set transport = "paramiko".',
            ) from error
        seconds = self._destination.connect_timeout + AUTH_RESULT_WITHIN
        # A master that has logged in goes to the background: the process that we started ends.
        is_in = process.wait(
            seconds, partial(self._is_prompting, process), until_over=HAS_CONTROL_MASTER
        )
        self._store_host_key()
        if askpass is not None and askpass.problem is not None:
            raise askpass.problem
        if self._is_cut:
            raise ConnectionClosed
        if not is_in:
            raise error_from_stderr(
                self._destination,
                process.stderr + (self._diagnose_jump() if process.step == "connect" else ""),
                process.step,
                process.host_key,
                may_ask=self._may_ask,
                server_text=process.server_text,
            )
        self.cipher, self.host_key, self.seconds = process.cipher, process.host_key, process.seconds
        return process

    def _is_prompting(self, process: LoginProcess) -> bool:
        """Say whether a person is to answer, or to act on what the server has said to everybody.

        That is shown where the server does not go on. What it says meanwhile gives it no more
        time: it might trickle for ever.
        """
        askpass = self._askpass
        if askpass is None or askpass.is_asking or process.step != "login":
            self._waiting_since = None
            return askpass is not None and askpass.is_asking
        now = time.perf_counter()
        if self._waiting_since is None:
            self._waiting_since = now
        if process.idle_seconds >= SHOWN_AFTER:
            self._banner.show(process.server_text)
        return now - self._waiting_since < self._banner.allowed_silence(process.server_text, 0.0)

    def _diagnose_jump(self) -> str:
        """Ask the jump host itself, in ssh's words: what goes through it has no stderr."""
        if self._jump_login is None:
            return ""
        where = self._destination
        try:
            self._jump_login.live_transport.open_forward(
                where.host_name, where.port, where.connect_timeout
            ).close()
        except ChannelOpenError as refused:
            return f"\n{JUMP_FORBIDS if refused.code == FORBIDDEN else JUMP_FAILED}"
        except (ConnectionClosed, ResponseTimeout):
            pass
        return ""

    def _store_host_key(self) -> None:
        """Write down what was accepted for good: ssh itself wrote it into a file of ours."""
        accepted = self._folder / "accepted" if self._folder else None
        if not accepted or not accepted.exists():
            return
        files, rules = self._destination.known_hosts_files, self._destination.rules
        if files and self._askpass is not None and self._askpass.remembers_host_key:
            for line in filter(None, accepted.read_text().split("\n")):
                for one in hash_line(line) if rules.hashes_names else [line]:
                    append_known_host(files[0], one)
        if HAS_CONTROL_MASTER:  # else each command logs in anew, and must find it there
            accepted.unlink()

    def responds_within(self, seconds: float) -> bool:
        """Find out within that time whether the server is still there: a master cannot say."""
        try:
            self.run("exit 0", seconds=seconds)
        except RemoterError as error:
            return not isinstance(error, Unreachable)
        return True

    def abort(self) -> None:
        """Drop the connection without a goodbye, as a dead network would."""
        super().abort()
        if self._process is not None:
            self._process.kill()

    def _release(self) -> None:
        if self._process is not None:
            self._process.close()
        if self._askpass is not None:
            self._askpass.close()
            self._askpass = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _new_private_folder() -> Path:
    """Make a folder that only this person can enter, with a path that is short enough."""
    where = Path(short_temporary_folder())
    if HAS_CONTROL_MASTER:
        _remove_stale_folders(where)
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=where))


def _remove_stale_folders(where: Path) -> None:
    """Remove what logins have left there that were killed; where others write, too, be brief."""
    until = time.monotonic() + CLEAN_FOR
    with contextlib.suppress(OSError), os.scandir(where) as entries:
        for process in entries:
            if time.monotonic() > until:
                break
            with contextlib.suppress(OSError):  # gone meanwhile
                if process.name.startswith(PREFIX) and _is_stale_folder(Path(process.path)):
                    shutil.rmtree(process.path, ignore_errors=True)


def _is_stale_folder(folder: Path) -> bool:
    """Say whether that is a folder of ours in which no master serves any more."""
    found = folder.lstat()  # not stat: a link may lead to a folder of this person
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not is_ours or time.time() - found.st_mtime <= STALE_AFTER:
        return False
    try:
        Mux(folder / "m", STALE_WITHIN).close()
    except (ConnectionClosed, ResponseTimeout) as error:
        return isinstance(error, ConnectionClosed)  # a master that is silent is still one
    return False
