"""What comes of logging in and of a command there, in plain values: known without paramiko."""

from __future__ import annotations

from dataclasses import dataclass

from remoter_kernel.errors import HostKeyProblem, RemoteLacks, RemoterError, Unreachable
from remoter_kernel.local.login.prompts import NeedsPerson


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
