"""What a login is made of, whoever holds it and whatever carries it: protocols, values, errors.

`paramiko/` and `openssh/` fulfil `Transport` and `SSHChannel`, each in its own way. Commands and
tunnels (`remote_command`, `tunnel`) know no more of the two than stands here; `ssh_login` makes
a `Login` of them, and `keeper/` one that another process holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from remoter_kernel.errors import HostKeyProblem, RemoteLacks, RemoterError, Unreachable
from remoter_kernel.local.login.prompts import NeedsPerson

WINDOW = 4 * 1024 * 1024  # bytes in flight towards us: with more, sshd itself collapses
PACKET = 32 * 1024  # bytes: what sshd is tuned for
AUTH_RESULT_WITHIN = 30.0  # seconds for one attempt: the server may ask a slow directory service
FORBIDDEN, CONNECT_FAILED = 1, 2  # why a server opens no channel (RFC 4254, 5.1)


# ------------------------------------------------------------ what a login can do


@dataclass(eq=False, repr=False)  # two logins are never the same one
class LoginFacts:
    """What is told of a login, in plain values."""

    host: str
    user: str
    transport: str  # "paramiko" or "openssh"
    why_transport: str = ""  # a clause; empty where it is the usual one, or was asked for
    cipher: str = ""
    host_key: str = ""  # its kind and its fingerprint
    seconds: dict[str, float] = field(default_factory=dict)  # how long each step took


class OpenTunnel(Protocol):
    """A local listener that leads to one remote port. It takes one connection of this person."""

    secret: bytes  # by TCP, whoever connects sends it first, unless that is ZeroMQ; else empty

    @property
    def address(self) -> str:
        """Where to connect to, as ZeroMQ writes it."""


class Login(Protocol):
    """A login. Everything blocks and has a deadline; errors are `RemoterError`s."""

    host: str  # these seven: see `LoginFacts`
    user: str
    transport: str
    why_transport: str
    cipher: str
    host_key: str
    seconds: dict[str, float]

    @property
    def round_trip(self) -> float:
        """Seconds to the server and back."""

    def run(self, command: str, stdin: bytes = b"", *, seconds: float = 60) -> CompletedCommand:
        """Run a command with this input, and wait until it ends."""

    def run_until_line(
        self, command: str, stdin: bytes, starts_with: bytes, seconds: float
    ) -> bytes:
        """Run a command, and wait for a line of stdout that starts so; the command goes on.

        Raises CommandEnded if it ends before.
        """

    def open_tunnel(self, host: str, port: int) -> OpenTunnel:
        """Have the server connect to `host`:`port`, and listen for one connection to that."""

    def open_pipe(self, command: str, first_line: bytes) -> OpenTunnel:
        """Run a remote command, and listen for one connection to its stdin and stdout.

        That begins after a line which is exactly `first_line`; raises CommandEnded without one.
        """

    def close(self) -> None:
        """End the login and all that runs over it."""

    def abort(self) -> None:
        """Let whatever is under way fail; from another thread."""


# ------------------------------------------------------------ what carries it


class ChannelReceiver(Protocol):
    """Where a channel's bytes go. Called on the transport's thread: must not block."""

    def data_received(self, data: bytes) -> None:
        """Take bytes of the stream (stdout of a command); b"" is its end, as with a socket."""

    def extended_data_received(self, data: bytes) -> None:
        """Take bytes of stderr."""

    def exit_status_received(self) -> None:
        """Learn that the command has ended; the rest of its output may still come."""

    def connection_lost(self) -> None:
        """Learn that no more will come: end of stream, channel closed, or connection gone."""


class SSHChannel(Protocol):
    """One stream each way, as SSH has it.

    What waits raises ChannelOpenError, ConnectionClosed or ResponseTimeout.
    """

    exit_status: int | None  # of its command, once that is known

    @property
    def is_open(self) -> bool:
        """Say whether bytes can still be sent."""

    def request_open(self, kind: str, *fields: str | int) -> None:
        """Ask the server to open it, and return at once."""

    def wait_open(self, seconds: float) -> None:
        """Wait until the server has opened it."""

    def exec_command(self, command: str) -> None:
        """Start a command; that it was refused may only show as the channel's end."""

    def send(self, data: bytes | memoryview, *, deadline: float | None = None) -> None:
        """Send all of it, waiting as long as the other end takes no more."""

    def send_eof(self) -> None:
        """Say that no more bytes will be sent."""

    def adjust_window(self, size: int) -> None:
        """Let the other end send `size` bytes more: the receiver is done with that many."""

    def close(self) -> None:
        """Close it; from any thread, and more than once if need be."""


class ChannelFactory(Protocol):
    """What makes channels: as much of a transport as a command or a tunnel sees."""

    active: bool

    def new_channel(self, receiver: ChannelReceiver) -> SSHChannel:
        """Make a channel that is not open yet."""


class Transport(ChannelFactory, Protocol):
    """A connection of paramiko's, or ssh processes."""

    round_trip: float  # seconds: the quickest answer so far; infinite where none is known

    def abort(self) -> None:
        """Drop everything without a goodbye, as a dead network would."""

    def close_and_join(self) -> None:
        """Close everything, and wait for its threads."""


class ChannelOpenError(Exception):
    """The server did not open the channel; `code` is that of RFC 4254, 5.1."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class ConnectionClosed(Exception):
    """The channel, or the connection under it, ended."""


class ResponseTimeout(Exception):
    """The other end did not answer within the time given."""


class ServerViolation(Exception):
    """The server does what no server may, in a clause that goes on after "the server"."""


class HostKeyChanged(ServerViolation):
    """A later key exchange has shown another host key than the one that was looked at."""


# ------------------------------------------------------------ what comes of it


@dataclass(frozen=True)
class CompletedCommand:
    """A command that ended; a status of -1 means that the server did not say how."""

    stdout: bytes
    stderr: bytes
    status: int

    @classmethod
    def of(cls, stdout: bytes, stderr: bytes, status: int | None) -> CompletedCommand:
        """Make one of what a channel knows."""
        return cls(stdout, stderr, -1 if status is None else status)


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
        """Note which remote this happened to, and name it in the advice."""
        self.advice = self.advice.replace("NAME", remote)
        return super().at(remote)


class HostKeyNotAsked(UnknownHostKey, NeedsPerson):
    """The same, and nobody could be asked."""
