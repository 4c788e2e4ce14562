"""What goes wrong on the way to a host and into it, as sentences: the same by both transports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoter_kernel.errors import ForwardingRefused, HostKeyProblem, RemoteLacks, Unreachable
from remoter_kernel.local.login.login import CONNECT_FAILED, FORBIDDEN, HostKeyChanged
from remoter_kernel.local.login.prompts import to_one_line

if TYPE_CHECKING:
    from remoter_kernel.errors import RemoterError
    from remoter_kernel.local.login.destination import Destination
    from remoter_kernel.local.login.login import ServerViolation

MOST_QUOTED, LONGEST_QUOTE = 4, 400  # lines, characters: the last words of others in a sentence
CHANGE_SSH_CONFIG = (
    "Change that for this host in your ssh config, or ask its administrator for another way."
)
ALLOW_FORWARDING = "Its administrator would have to allow it (AllowTcpForwarding, PermitOpen)."


class NoCommonAlgorithm(Unreachable):
    """The host and whoever logs in to it have no algorithm in common."""

    worth_retrying = False


# ------------------------------------------------------------ the way to a host


def name_unresolved(name: str) -> RemoterError:
    """Say that no name server knows it."""
    return Unreachable(
        f"the name {name} does not resolve.",
        "Look for a typing error, or connect the VPN that knows it.",
    )


def connection_refused(destination: Destination) -> RemoterError:
    """Say that nobody listens at its port."""
    return Unreachable(
        f"{destination.label} refuses connections at port {destination.port}.",
        "Is sshd running there, and is the port right?",
    )


def no_answer(destination: Destination) -> RemoterError:
    """Say that it has not answered in time."""
    return Unreachable(
        f"{destination.label} did not answer within {destination.connect_timeout:g} s.",
        "Is the machine up, and does it take a VPN to reach it?",
    )


def no_route(destination: Destination, why: object) -> RemoterError:
    """Say that the network does not lead there."""
    return Unreachable(
        f"{destination.host_name} cannot be reached: {why}.",
        "Look at the network or VPN, then try again.",
    )


def jump_host_refused(destination: Destination, code: int) -> RemoterError:
    """Say why a jump host makes no connection to the next host, by the code that it gives."""
    if code == FORBIDDEN:
        return ForwardingRefused(
            f"the jump host before {destination.label} forbids TCP forwarding.", ALLOW_FORWARDING
        )
    return Unreachable(
        f"{destination.label} cannot be reached from its jump host.",
        "Look for its name and port as the jump host knows them.",
    )


def tunnel_refused(destination: Destination, where: str, code: int) -> RemoteLacks:
    """Say why no connection leads to a remote port, by the code that the server gives."""
    if code == FORBIDDEN:
        return ForwardingRefused(
            f"{destination.label} forbids TCP forwarding to {where}.", ALLOW_FORWARDING
        )
    if code == CONNECT_FAILED:
        return RemoteLacks(f"nothing listens at {where} on {destination.label}.")
    return RemoteLacks(f"{destination.label} opens no connection to {where} (reason {code}).")


def proxy_command_failed(label: str, status: int | None, said: str) -> RemoterError | None:
    """Say how a ProxyCommand has failed; None: it is not what has failed."""
    words = quote_tail(said)
    if not (words or status):
        return None
    how = f"failed with status {status}" if status else "gave no connection"
    how += f": {words}" if words else " and said nothing."
    return Unreachable(
        f"the ProxyCommand of {label} {how}",
        "Look at your ssh config, or try that command in a terminal.",
    )


# ------------------------------------------------------------ the way in


def connection_ended(
    label: str, step: str, violation: ServerViolation | None = None, *, said: str = ""
) -> RemoterError:
    """Say that a connection has ended on the way in.

    `violation`: remoter has ended it; `said`: what the server has given as a reason, if any.
    """
    if isinstance(violation, HostKeyChanged):
        return HostKeyProblem(
            f"remoter ended the connection to {label}: the server {violation}.",
            "Do not log in; ask the host's administrator.",
        )
    if violation:
        return Unreachable(
            f"remoter ended the connection to {label} during the step {step!r}: "
            f"the server {violation}.",
            "Is it an SSH server, and the right one? Ask its administrator.",
        )
    if words := quote_tail(said):
        return Unreachable(
            f"{label} ended the connection during the step {step!r} and said: {words}",
            "If that does not help, ask its administrator (sshd's log may say more).",
        )
    return Unreachable(
        f"{label} ended the connection during the step {step!r}.",
        "Try again; if it stays so, ask its administrator (sshd's log says why).",
    )


def connection_timed_out(label: str, step: str, *, said: str = "") -> RemoterError:
    """Say that nothing more came on the way in; `said`: what the server has said before."""
    words = quote_tail(said)
    before = f" after it had said: {words}" if words else "."
    return Unreachable(
        f"{label} fell silent during the step {step!r}{before}",
        "Look at the network or VPN, then try again.",
    )


def quote_tail(said: str) -> str:
    """Return the last lines of what somebody else has said, in quotes; "" if there are none.

    They belong behind ": ", at the end of a sentence: there a log leaves them out.
    """
    lines = [line for each in said.splitlines() if (line := to_one_line(each))]
    words = " / ".join(lines[-MOST_QUOTED:])
    return f'"{words[-LONGEST_QUOTE:]}".' if words else ""
