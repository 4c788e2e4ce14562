"""What went wrong, and what the person can do about it.

Errors are grouped by what the person can do next, not by where they arose. The module that meets a
foreign error (paramiko's, ZeroMQ's, the operating system's) makes one of these of it. This file is
shipped, so it stays within Python 3.9.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Iterator


class RemoterError(Exception):
    """An error for a person: what happened, and what to do next.

    `what` is one sentence without its remote's name when `remote` is given; `advice` is one
    sentence that can be acted on at midnight. Both may quote a server or a kernel: what a terminal
    would act on is taken out of them.
    """

    exit_code = 1  # the code that was evaluated failed
    worth_retrying = False  # would the same call, a little later, have a chance?
    name = ""  # in a cell; "": that of the class

    def __init__(self, what: str, advice: str = "", *, remote: str = "") -> None:
        super().__init__(what)
        self.what = plain_text(what, keeps_lines=True)
        self.advice = plain_text(advice, keeps_lines=True)
        self.remote = remote

    def __str__(self) -> str:
        where = f"{self.remote}: " if self.remote else ""
        return plain_text(f"{where}{self.what} {self.advice}".rstrip(), keeps_lines=True)

    def at(self, remote: str) -> RemoterError:
        """Name the remote where this happened, unless it has one: the innermost knows best."""
        self.remote = self.remote or remote
        return self


@contextlib.contextmanager
def naming_remote(remote: str) -> Iterator[None]:
    """Let each `RemoterError` of the block name this remote."""
    try:
        yield
    except RemoterError as error:
        error.at(remote)
        raise


class Usage(RemoterError):
    """The request itself cannot be right: mend the words and ask again."""

    exit_code = 2


class BadConfiguration(Usage):
    """`remotes.toml` says something that cannot be: names file, line, right word."""


class Unreachable(RemoterError):
    """The host was not reached: a name, a network or a port is in the way."""

    exit_code = 3
    worth_retrying = True


class LoginRefused(RemoterError):
    """The host was reached and did not let us in."""

    exit_code = 3


class HostKeyProblem(LoginRefused):
    """The host did not prove who it is. Never worth trying again by itself."""


class RemoteLacks(RemoterError):
    """Something on the remote is missing or wrong: Python, packages, space, a kernel."""

    exit_code = 4


class HereLacks(RemoterError):
    """Something on this machine is missing or wrong: a file, permission, space."""


class ForwardingRefused(RemoteLacks):
    """The server forbids TCP forwarding."""


class NoSuchSession(RemoterError):
    """The session is not there any more, or never was."""

    exit_code = 5


class TooLarge(Usage):
    """A message is larger than any that is sent: it stays where it is."""


class ProtocolError(RemoterError):
    """The other end sent what this protocol does not allow: the connection ends."""

    worth_retrying = True


class Overrun(ProtocolError):
    """The other end sent more than it may. It would do so again: a person has to decide."""

    worth_retrying = False
