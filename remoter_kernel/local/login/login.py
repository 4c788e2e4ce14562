"""What every login can do, whoever holds it and whatever carries it: plain words, plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from remoter_kernel.errors import HostKeyProblem, RemoteLacks, RemoterError, Unreachable
from remoter_kernel.local.login.prompts import NeedsPerson


class TunnelEndpoint(Protocol):
    """A way to one port there: here it takes one connection, of this person's processes."""

    address: str  # as ZeroMQ writes it
    secret: bytes  # what has to come first by TCP, unless ZeroMQ connects; else empty


class Login(Protocol):
    """A login. Everything blocks and has a deadline; errors are `RemoterError`s."""

    host: str
    user: str
    cipher: str
    host_key: str  # its kind and its fingerprint
    seconds: dict[str, float]  # how long each step of the login took
    transport: str  # "paramiko" or "openssh"
    why_transport: str  # empty where it is the usual one, or the one that was asked for

    @property
    def round_trip(self) -> float:
        """Seconds there and back."""

    def run(self, command: str, stdin: bytes = b"", *, seconds: float = 60) -> CompletedCommand:
        """Run a command with this input, and wait until it ends."""

    def run_until_line(
        self, command: str, stdin: bytes, starts_with: bytes, seconds: float
    ) -> bytes:
        """Run a command, and wait for a line of stdout that starts so; the command goes on."""

    def open_tunnel(self, host: str, port: int) -> TunnelEndpoint:
        """Connect to `host`:`port` from there."""

    def open_pipe(self, command: str, first_line: bytes) -> TunnelEndpoint:
        """Be connected to a command there, from the line after its greeting on."""

    def close(self) -> None:
        """Give everything back."""

    def abort(self) -> None:
        """Let whatever is under way fail; from another thread."""


# What comes of logging in and of a command there, in plain values: known without paramiko.
@dataclass(frozen=True)
class CompletedCommand:
    """A command that ended; a status of -1 means that the server did not say how."""

    stdout: bytes
    stderr: bytes
    status: int


class CommandEnded(RemoteLacks):
    """A command ended before it said the line that was waited for."""

    def __init__(self, completed: CompletedCommand) -> None:
        tail = (completed.stderr or completed.stdout)[-300:].decode(errors="replace").strip()
        super().__init__(
            f"a command there ended with status {completed.status}: {tail or 'no output'}."
        )
        self.stdout, self.stderr, self.status = completed.stdout, completed.stderr, completed.status


class LoginGone(Unreachable):
    """A login that was kept turned out to be dead before anything was done with it."""


class UnknownHostKey(HostKeyProblem):
    """Nobody has said yet whether this host's key is the right one."""

    def at(self, remote: str) -> RemoterError:
        """Remember which remote this happened to, and name it in the advice."""
        self.advice = self.advice.replace("NAME", remote)
        return super().at(remote)


class HostKeyNotAsked(UnknownHostKey, NeedsPerson):
    """The same, and nobody could be asked."""
