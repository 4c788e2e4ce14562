"""What ssh says when it does not get in, as our errors (pure)."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from remoter_kernel.errors import (
    BadConfiguration,
    ForwardingRefused,
    HostKeyProblem,
    LoginRefused,
    RemoteLacks,
    RemoterError,
    Unreachable,
)
from remoter_kernel.local.login.known_hosts import acceptance_advice, strict_checking_error
from remoter_kernel.local.login.login import HostKeyNotAsked, UnknownHostKey
from remoter_kernel.local.login.login_process import OPENSSH_LINE
from remoter_kernel.local.login.paramiko_channel import HostKeyChanged, ServerViolation
from remoter_kernel.local.login.prompts import (
    LOG_IN_WITHOUT_PROMPTS,
    NeedsPerson,
    strip_controls,
    to_one_line,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.login.ssh_config import Destination

LAST_LINES, LONGEST_LINE = 100, 500  # of what was said: the cause is told at the end
FORBIDDEN, CONNECT_FAILED = 1, 2  # RFC 4254, 5.1
MOST_QUOTED, LONGEST_QUOTE = 4, 400  # lines, characters: the last words of others in a sentence
# Of a connection from a jump host.
JUMP_FORBIDS = "open failed: administratively prohibited"
JUMP_FAILED = "stdio forwarding failed"
CHANGE_SSH_CONFIG = (
    "Change that for this host in your ssh config, or ask its administrator for another way."
)


class NoCommonAlgorithm(Unreachable):
    """The host and this side have no algorithm in common."""

    worth_retrying = False


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


def proxy_command_failed(label: str, status: int | None, said: str) -> RemoterError | None:
    """Say how a ProxyCommand has failed; None: it is not what has failed."""
    words = quote_tail(said)
    how = f"failed with status {status}" if status else "gave no connection"
    if not words:
        if not status:
            return None
        how, words = f"{how} and said nothing", "."
    else:
        words = f": {words}"
    return Unreachable(
        f"the ProxyCommand of {label} {how}{words}",
        "Look at your ssh config, or try that command in a terminal.",
    )


def tunnel_refused(destination: Destination, where: str, code: int) -> RemoteLacks:
    """Say why no connection leads to a port there, by the code that the server gives."""
    if code == FORBIDDEN:
        return ForwardingRefused(
            f"{destination.label} forbids TCP forwarding to {where}.",
            "Its administrator would have to allow it (AllowTcpForwarding, PermitOpen).",
        )
    if code == CONNECT_FAILED:
        return RemoteLacks(f"nothing listens at {where} on {destination.label}.")
    return RemoteLacks(f"{destination.label} opens no connection to {where} (reason {code}).")


def quote_tail(said: str) -> str:
    """Return the last lines of what somebody else has said, in quotes; "" if there are none.

    They belong behind ": ", at the end of a sentence: there a log leaves them out.
    """
    lines = [line for each in said.splitlines() if (line := to_one_line(each))]
    words = " / ".join(lines[-MOST_QUOTED:])
    return f'"{words[-LONGEST_QUOTE:]}".' if words else ""


def error_from_stderr(
    destination: Destination,
    said: str,
    step: str,
    host_key: str,
    *,
    may_ask: bool,
    server_text: str = "",
) -> RemoterError:
    """Say why ssh did not get in, by its last words and how far it was.

    `host_key` is the kind and the fingerprint that the host has shown, if it was so
    far; `server_text` are words of the server that ssh has passed on.
    """
    lines = [
        strip_controls(line)[:LONGEST_LINE]
        for line in said.splitlines()
        if not line.startswith("debug")
    ][-LAST_LINES:]
    failure = "\n".join(lines)
    # A server's own words (a banner, say) may stand among those of ssh once it may ask who we
    # are. By then its key and its address are settled, and nothing is believed about them.
    for pattern, make in _AUTH_RULES if step == "login" else _RULES:
        if match := re.search(pattern, failure, re.IGNORECASE):
            by_proxy = step == "connect" and destination.proxy_command and make in _CONNECT_RULES
            foreign = "\n".join(line for line in lines if not OPENSSH_LINE.match(line))
            if by_proxy and (error := proxy_command_failed(destination.label, None, foreign)):
                return error
            if make is _connection_closed:
                return connection_ended(
                    destination.label, step, said=_server_reason(said, server_text)
                )
            return make(_FailedLogin(destination, failure, step, host_key, may_ask=may_ask), match)
    last = strip_controls(lines[-1].strip()) if lines else "it said nothing"
    is_own = not lines or OPENSSH_LINE.match(last)
    return Unreachable(
        f"ssh did not get to {destination.label}: {f'{last}.' if is_own else quote_tail(last)}",
        f"Try `ssh {destination.alias or destination.host_name}` in a terminal.",
    )


def _server_reason(said: str, server_text: str) -> str:
    """Return what the server has said before it hung up, as far as that can be told."""
    before = "\n".join(re.findall(r"banner line \d+: (.+)", said))
    farewell = "\n".join(re.findall(r"^Received disconnect from .+?:\d+: (.+)", said, re.MULTILINE))
    return "\n".join(filter(None, (before, server_text, farewell)))


class _FailedLogin:
    """What is known of a failed login."""

    def __init__(
        self, destination: Destination, text: str, step: str, host_key: str, *, may_ask: bool
    ) -> None:
        self.destination = destination
        self.label = destination.label
        self.stderr = text
        self.step = step
        self.host_key = host_key or "unknown"
        self.may_ask = may_ask


def _host_key_changed(failure: _FailedLogin, _match: re.Match[str]) -> RemoterError:
    where = re.search(r"Offending (\S+) key in (.+):(\d+)$", failure.stderr, re.MULTILINE)
    file, number = (where[2], where[3]) if where else ("known_hosts", "?")
    # What is to be pasted into a shell names only a file that the person has chosen.
    if file not in map(str, failure.destination.known_hosts_files):
        file = "known_hosts"
    plain = failure.destination.host_key_alias or failure.destination.host_name
    port = failure.destination.port
    name = plain if port == 22 or failure.destination.host_key_alias else f"[{plain}]:{port}"  # noqa: PLR2004 (SSH's)
    return HostKeyProblem(
        f"the host key of {failure.label} has changed: it shows {failure.host_key}, "
        f"but {file}, line {number}, says another one.",
        "Somebody may be listening in. If the administrator confirms the new key, "
        f"remove that line (or run: ssh-keygen -f {shlex.quote(file)} -R {shlex.quote(name)}).",
    )


def _host_key_revoked(failure: _FailedLogin, match: re.Match[str]) -> RemoterError:
    by = f" (RevokedHostKeys {strip_controls(match['file'])})" if match["file"] else ""
    return HostKeyProblem(
        f"{failure.label} shows a key that is revoked{by}.",
        "Do not log in; ask the host's administrator.",
    )


def _revocation_unreadable(failure: _FailedLogin, match: re.Match[str]) -> RemoterError:
    return HostKeyProblem(
        f"ssh cannot say whether the host key of {failure.label} is revoked: "
        f"{strip_controls(match[1])}.",
        "Look at RevokedHostKeys in your ssh config: that file must be there and readable.",
    )


def _host_key_unknown(failure: _FailedLogin, _match: re.Match[str]) -> RemoterError:
    if failure.destination.rules.is_strict:
        files = failure.destination.known_hosts_files
        return strict_checking_error(failure.label, failure.host_key, files)
    if failure.may_ask:
        return UnknownHostKey(
            f"the host key of {failure.label} was not accepted: {failure.host_key}.",
            "Compare it with what the host's administrator says, then try again.",
        )
    return HostKeyNotAsked(
        f"the host key of {failure.label} is not known here: {failure.host_key}.",
        acceptance_advice(failure.destination.known_hosts_files),
    )


def _name_unresolved(_failure: _FailedLogin, match: re.Match[str]) -> RemoterError:
    return Unreachable(
        f"the name {match[1]} does not resolve.",
        "Look for a typing error, or connect the VPN that knows it.",
    )


def _connection_refused(failure: _FailedLogin, _match: re.Match[str]) -> RemoterError:
    return Unreachable(
        f"{failure.label} refuses connections at port {failure.destination.port}.",
        "Is sshd running there, and is the port right?",
    )


def _connect_timeout(failure: _FailedLogin, _match: re.Match[str]) -> RemoterError:
    return Unreachable(
        f"{failure.label} did not answer within {failure.destination.connect_timeout:g} s.",
        "Is the machine up, and does it take a VPN to reach it?",
    )


def _no_route(failure: _FailedLogin, match: re.Match[str]) -> RemoterError:
    return Unreachable(
        f"{failure.destination.host_name} cannot be reached: {match[0].lower()}.",
        "Look at the network or VPN, then try again.",
    )


def _permission_denied(failure: _FailedLogin, match: re.Match[str]) -> RemoterError:
    takes = match[1].split(",")
    what = (
        f"{failure.label} did not let {failure.destination.user} in (it takes {', '.join(takes)})"
    )
    rules = failure.destination.rules
    if forbids := rules.forbidden_by(takes):
        what += f", and your ssh config says {forbids}"
        if not set(takes) & set(rules.methods):
            return LoginRefused(f"{what}.", CHANGE_SSH_CONFIG)
    if not failure.may_ask:
        return NeedsPerson(f"{what}, and nobody can be asked here.", LOG_IN_WITHOUT_PROMPTS)
    advice = "Add a key with `ssh-copy-id`, or one to the agent with `ssh-add`."
    return LoginRefused(f"{what}.", advice)


def _too_many_failures(failure: _FailedLogin, _match: re.Match[str]) -> RemoterError:
    return LoginRefused(
        f"{failure.label} hung up after too many keys or answers that it did not accept.",
        "Name the right key with IdentityFile, and say IdentitiesOnly yes, in your ssh config.",
    )


def _no_common_algorithm(failure: _FailedLogin, match: re.Match[str]) -> RemoterError:
    return NoCommonAlgorithm(
        f"{failure.label} and the ssh of this machine have no {match[1]} in common.",
        "A newer OpenSSH here, or one there, would help.",
    )


def _jump_host_forbids(failure: _FailedLogin, _match: re.Match[str]) -> RemoterError:
    return ForwardingRefused(
        f"the jump host before {failure.label} forbids TCP forwarding.",
        "Its administrator would have to allow it (AllowTcpForwarding, PermitOpen).",
    )


def _jump_host_unreachable(failure: _FailedLogin, _match: re.Match[str]) -> RemoterError:
    return Unreachable(
        f"{failure.label} cannot be reached from its jump host.",
        "Look for its name and port as the jump host knows them.",
    )


def _bad_ssh_config(_failure: _FailedLogin, match: re.Match[str]) -> RemoterError:
    return BadConfiguration(
        f"ssh does not understand its configuration: {strip_controls(match[0])}.",
        "Look at your ssh config.",
    )


def _connection_closed(failure: _FailedLogin, _match: re.Match[str]) -> RemoterError:
    return connection_ended(failure.label, failure.step)


# In this order: what came first is the cause, and a closed connection is only what follows.
_RULES: tuple[tuple[str, Callable[[_FailedLogin, re.Match[str]], RemoterError]], ...] = (
    (r"bad configuration option.*|bad owner or permissions on .*", _bad_ssh_config),
    (r"HOST IDENTIFICATION HAS CHANGED", _host_key_changed),
    (r"REVOKED HOST KEY|host key \S+ \S+ revoked by file (?P<file>.+)", _host_key_revoked),
    (r"error checking host key \S+ \S+ in revoked keys file (.+)", _revocation_unreadable),
    (r"Host key verification failed", _host_key_unknown),
    (r"could not resolve hostname ([^:\s]+)", _name_unresolved),
    (JUMP_FORBIDS, _jump_host_forbids),
    (JUMP_FAILED, _jump_host_unreachable),
    (r"too many authentication failures", _too_many_failures),
    (r"permission denied \(([^)\n]*)\)", _permission_denied),
    (r"no matching ([a-z ]+?) found", _no_common_algorithm),
    (r"connection refused", _connection_refused),
    (r"timed out|timeout, server .* not responding", _connect_timeout),
    (r"no route to host|network is unreachable|network is down", _no_route),
    (
        r"closed by|connection reset|broken pipe|disconnected from|disconnect from",
        _connection_closed,
    ),
)
_CONNECT_RULES = (
    _name_unresolved,
    _connection_refused,
    _connect_timeout,
    _no_route,
    _connection_closed,
)
_AUTH_RULES = tuple(
    rule
    for rule in _RULES
    if rule[1] in (_too_many_failures, _permission_denied, _connect_timeout, _connection_closed)
)
