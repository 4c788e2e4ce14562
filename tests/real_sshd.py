"""A real OpenSSH server on loopback, for one test or one measurement.

It has its own host key, its own client key and its own configuration, and leaves
nothing behind: closing it ends the listener and every login that came through it.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

READY_WITHIN = 10.0  # seconds until a started sshd shows its banner
# Before a command: a run that is killed takes it along.
ENDS_WITH_US = ("setpriv", "--pdeathsig", "TERM")
TRIES = 5  # another process may take our port between choosing and binding it


def sshd_path() -> str | None:
    """Say where sshd is; None where it is not installed."""
    return shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")


def free_port() -> int:
    """Find a loopback TCP port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Make a key pair (`path` and `path.pub`) with ssh-keygen."""
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return path


@dataclass(frozen=True)
class Place:
    """Where a server listens: on this host, or in a network namespace of its own."""

    address: str = "127.0.0.1"
    enter: tuple[str, ...] = ()
    """The words before a command that is to run there."""


class RealSshd:
    """An sshd that lets `user` in with `client_key`, and nobody else.

    It is on 127.0.0.1, unless `place` says otherwise. `folder` must exist and may be
    private; `user` defaults to whoever runs this (any other user needs root).
    `extra_config` lines come first, and sshd obeys the first value it meets, so they win.
    `force_command` runs instead of whatever was asked for. `program` is the name to start
    it by: the name of its PAM service, too.
    """

    def __init__(
        self,
        folder: Path,
        *,
        user: str | None = None,
        extra_config: str = "",
        force_command: str = "",
        host_key_kinds: tuple[str, ...] = ("ed25519",),
        place: Place = Place(),
        program: str = "sshd",
    ) -> None:
        self.folder = Path(folder).resolve()
        self.user = user or getpass.getuser()
        self.extra_config = extra_config
        self.force_command = force_command
        self.host_key_kinds = host_key_kinds
        self.place = place
        self.program = program
        self.port = 0
        self.client_key = self.folder / "client_key"
        self.known_hosts = self.folder / "known_hosts"
        self.log = self.folder / "sshd.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._public: Path | None = None

    # --- start and end ---

    def start(self) -> Self:
        """Start listening; return once the banner is there."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, parents=True, exist_ok=True)
        for kind in self.host_key_kinds:
            if not self.host_key(kind).exists():
                make_key(self.host_key(kind), kind)
        if not self.client_key.exists():
            make_key(self.client_key)
        # sshd reads this file as the user who logs in, who cannot enter a private `folder`.
        if self._public is None:
            self._public = Path(tempfile.mkdtemp(prefix="real-sshd-"))
            self._public.chmod(0o755)
            self.allow(self.client_key.with_name("client_key.pub").read_text())
        for _ in range(TRIES):
            self.port = self.port or free_port()
            if self._listen():
                break
            self.port = 0
        else:
            self.close()
            log = self.log.read_text() if self.log.exists() else ""
            message = f"sshd did not start: {log}"
            raise RuntimeError(message)
        self.known_hosts.write_text(self.host_key_line + "\n")
        return self

    def close(self) -> None:
        """End the listener and all logins, and remove what is outside `folder`."""
        self.stop_listening()
        if self._public is not None:
            shutil.rmtree(self._public, ignore_errors=True)
            self._public = None

    def stop_listening(self) -> None:
        """End the listener and all its logins; `start` begins again at the same port."""
        if self._process is None:
            return
        logins = self.logins()
        self._process.terminate()
        self._process.wait(10)
        self._process = None
        for login in logins:
            with contextlib.suppress(psutil.NoSuchProcess):
                login.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what a client needs ---

    def host_key(self, kind: str = "") -> Path:
        """Say where the host key of that kind is (the first kind, if none is named)."""
        return self.folder / f"host_key_{kind or self.host_key_kinds[0]}"

    @property
    def host_key_line(self) -> str:
        """The line of known_hosts for this server's (first) host key."""
        kind, key, *_ = self.host_key().with_suffix(".pub").read_text().split()
        return f"[{self.place.address}]:{self.port} {kind} {key}"

    def ssh_config(self, path: Path, alias: str = "real", *, extra: str = "") -> Path:
        """Write an ssh_config to `path` in which `alias` is this server; append if it exists."""
        lines = [
            f"Host {alias}",
            *(f"    {line}" for line in extra.splitlines()),
            f"    HostName {self.place.address}",
            f"    Port {self.port}",
            f"    User {self.user}",
            f"    IdentityFile {self.client_key}",
            "    IdentitiesOnly yes",
            f"    UserKnownHostsFile {self.known_hosts}",
            "    GlobalKnownHostsFile /dev/null",
            "    StrictHostKeyChecking ask",
            "",
        ]
        with Path(path).open("a") as file:
            file.write("\n".join(lines))
        return Path(path)

    def allow(self, *public_keys: str) -> None:
        """Let these public keys in, and no others, from the next login on."""
        assert self._public is not None, "not started"
        file = self._public / "authorized_keys"
        file.write_text("".join(key.strip() + "\n" for key in public_keys))
        file.chmod(0o644)

    # --- looking at it, and breaking it ---

    def accepted(self) -> int:
        """Say how many logins it has let in since it was made."""
        return len(re.findall(r"^Accepted \S+ for ", self.log.read_text(), re.MULTILINE))

    def refused(self) -> int:
        """Say how many passwords and codes it has refused (with `LogLevel VERBOSE`)."""
        found = re.findall(r"^Failed (?:password|keyboard)", self.log.read_text(), re.MULTILINE)
        return len(found)

    def logins(self) -> list[psutil.Process]:
        """List the processes that serve logins, parents before their children."""
        if self._process is None:
            return []
        return list(_serving(psutil.Process(self._process.pid)))

    def cut_all(self) -> None:
        """Kill every login's sshd process: the clients see their connection end."""
        for login in self.logins():
            with contextlib.suppress(psutil.NoSuchProcess):
                login.kill()

    # --- inside ---

    def _config(self) -> str:
        lines = [
            self.extra_config,
            f"ForceCommand {self.force_command}" if self.force_command else "",
            f"ListenAddress {self.place.address}",
            f"Port {self.port}",
            *(f"HostKey {self.host_key(kind)}" for kind in self.host_key_kinds),
            f"AuthorizedKeysFile {self._public}/authorized_keys",
            f"PidFile {self.folder}/sshd.pid",
            "StrictModes no",
            "UsePAM no",
            "UseDNS no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "PrintMotd no",
            "LogLevel VERBOSE",
            "PrintLastLog no",
            "MaxStartups 100:30:200",
            "MaxSessions 50",
            "Subsystem sftp internal-sftp",
        ]
        return "\n".join(line for line in lines if line) + "\n"

    def _listen(self) -> bool:
        config = self.folder / "sshd_config"
        config.write_text(self._config())
        pid_file = self.folder / "sshd.pid"
        pid_file.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [*self.place.enter, self._sshd(), "-D", "-f", str(config), "-E", str(self.log)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A group of its own: a Ctrl-C that a test sends to its group is not for the server.
            start_new_session=True,
        )
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            if self.place.enter:
                # Nobody here can look; sshd writes this file once it listens.
                if pid_file.exists():
                    return True
            elif self._shows_its_banner() and self._process.poll() is None:
                return True
            time.sleep(0.01)
        self.stop_listening()
        return False

    def _shows_its_banner(self) -> bool:
        where = (self.place.address, self.port)
        with contextlib.suppress(OSError), socket.create_connection(where, timeout=2) as probe:
            return probe.recv(4) == b"SSH-"
        return False

    def _sshd(self) -> str:
        """Say where the program is; by another name it is a link of ours."""
        sshd = sshd_path()
        if sshd is None:
            message = "sshd is not installed"
            raise FileNotFoundError(message)
        if self.program == "sshd":
            return sshd
        link = self.folder / self.program
        if not link.is_symlink():
            link.symlink_to(sshd)
        return str(link)


def _serving(process: psutil.Process) -> Iterator[psutil.Process]:
    """Walk down the sshd processes only: what a login left running is not the server's."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in process.children():
            if child.name().startswith("sshd"):
                yield child
                yield from _serving(child)
