"""What ssh says when it does not get in, as our errors (pure)."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remoter_kernel.errors import (
    BadConfiguration,
    HostKeyProblem,
    LoginRefused,
    RemoterError,
    Unreachable,
)
from remoter_kernel.local.login.known_hosts import host_key_unknown, name_in_file
from remoter_kernel.local.login.login import CONNECT_FAILED, FORBIDDEN
from remoter_kernel.local.login.login_errors import (
    CHANGE_SSH_CONFIG,
    NoCommonAlgorithm,
    connection_ended,
    connection_refused,
    jump_host_refused,
    name_unresolved,
    no_answer,
    no_route,
    proxy_command_failed,
    quote_tail,
)
from remoter_kernel.local.login.openssh.login_process import OPENSSH_LINE
from remoter_kernel.local.login.prompts import LOG_IN_WITHOUT_PROMPTS, NeedsPerson, strip_controls

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.login.destination import Destination

LAST_LINES, LONGEST_LINE = 100, 500  # of what was said: the cause is told at the end
# Of a connection from a jump host.
JUMP_FORBIDS = "open failed: administratively prohibited"
JUMP_FAILED = "stdio forwarding failed"


@dataclass
class _FailedLogin:
    """What is known of a failed login, and what a pattern has found in ssh's words."""

    destination: Destination
    said: str  # all that ssh has said
    stderr: str  # the last lines of that which are no debugging
    server_text: str
    step: str
    host_key: str  # the kind and the fingerprint that the host has shown, or "unknown"
    may_ask: bool
    match: re.Match[str]

    @property
    def label(self) -> str:
        return self.destination.label


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
    stderr = "\n".join(lines)
    for pattern, make in _RULES:
        # A server's own words (a banner, say) may stand among those of ssh once it may ask who we
        # are. By then its key and its address are settled, and nothing is believed about them.
        if step == "login" and make not in _LOGIN_RULES:
            continue
        if match := re.search(pattern, stderr, re.IGNORECASE):
            if step == "connect" and destination.proxy_command and make in _CONNECT_RULES:
                foreign = "\n".join(line for line in lines if not OPENSSH_LINE.match(line))
                if error := proxy_command_failed(destination.label, None, foreign):
                    return error
            shown = host_key or "unknown"
            return make(
                _FailedLogin(destination, said, stderr, server_text, step, shown, may_ask, match)
            )
    last = strip_controls(lines[-1].strip()) if lines else "it said nothing"
    is_own = not lines or OPENSSH_LINE.match(last)
    return Unreachable(
        f"ssh did not get to {destination.label}: {f'{last}.' if is_own else quote_tail(last)}",
        f"Try `ssh {destination.alias or destination.host_name}` in a terminal.",
    )


def _bad_ssh_config(failure: _FailedLogin) -> RemoterError:
    return BadConfiguration(
        f"ssh does not understand its configuration: {strip_controls(failure.match[0])}.",
        "Look at your ssh config.",
    )


def _host_key_changed(failure: _FailedLogin) -> RemoterError:
    where = re.search(r"Offending (\S+) key in (.+):(\d+)$", failure.stderr, re.MULTILINE)
    file, number = (where[2], where[3]) if where else ("known_hosts", "?")  # as ssh says
    # What is to be pasted into a shell names only a file that the person has chosen.
    if file not in map(str, failure.destination.known_hosts_files):
        file = "known_hosts"
    name = name_in_file(failure.destination)
    return HostKeyProblem(
        f"the host key of {failure.label} has changed: it shows {failure.host_key}, "
        f"but {file}, line {number}, says another one.",
        "Somebody may be listening in. If the administrator confirms the new key, "
        f"remove that line (or run: ssh-keygen -f {shlex.quote(file)} -R {shlex.quote(name)}).",
    )


def _host_key_revoked(failure: _FailedLogin) -> RemoterError:
    file = failure.match["file"]
    by = f" (RevokedHostKeys {strip_controls(file)})" if file else ""
    return HostKeyProblem(
        f"{failure.label} shows a key that is revoked{by}.",
        "Do not log in; ask the host's administrator.",
    )


def _revocation_unreadable(failure: _FailedLogin) -> RemoterError:
    return HostKeyProblem(
        f"ssh cannot say whether the host key of {failure.label} is revoked: "
        f"{strip_controls(failure.match[1])}.",
        "Look at RevokedHostKeys in your ssh config: that file must be there and readable.",
    )


def _host_key_unknown(failure: _FailedLogin) -> RemoterError:
    return host_key_unknown(failure.destination, failure.host_key, was_asked=failure.may_ask)


def _name_unresolved(failure: _FailedLogin) -> RemoterError:
    return name_unresolved(failure.match[1])


def _connection_refused(failure: _FailedLogin) -> RemoterError:
    return connection_refused(failure.destination)


def _connect_timeout(failure: _FailedLogin) -> RemoterError:
    return no_answer(failure.destination)


def _no_route(failure: _FailedLogin) -> RemoterError:
    return no_route(failure.destination, failure.match[0].lower())


def _jump_host_refused(failure: _FailedLogin) -> RemoterError:
    is_forbidden = failure.match[0].lower() == JUMP_FORBIDS
    return jump_host_refused(failure.destination, FORBIDDEN if is_forbidden else CONNECT_FAILED)


def _permission_denied(failure: _FailedLogin) -> RemoterError:
    takes = failure.match[1].split(",")
    what = (
        f"{failure.label} did not let {failure.destination.user} in (it takes {', '.join(takes)})"
    )
    rules = failure.destination.rules
    if forbids := rules.forbidden_by(takes):
        what += f", and your ssh config says {forbids}"
        if not set(takes) & set(rules.methods):
            return LoginRefused(f"{what}.", CHANGE_SSH_CONFIG)
    if not failure.may_ask:  # with BatchMode ssh passes over what only a person knows
        return NeedsPerson(f"{what}, and nobody can be asked here.", LOG_IN_WITHOUT_PROMPTS)
    advice = "Add a key with `ssh-copy-id`, or one to the agent with `ssh-add`."
    return LoginRefused(f"{what}.", advice)


def _too_many_failures(failure: _FailedLogin) -> RemoterError:
    return LoginRefused(
        f"{failure.label} hung up after too many keys or answers that it did not accept.",
        "Name the right key with IdentityFile, and say IdentitiesOnly yes, in your ssh config.",
    )


def _no_common_algorithm(failure: _FailedLogin) -> RemoterError:
    return NoCommonAlgorithm(
        f"{failure.label} and the ssh of this machine have no {failure.match[1]} in common.",
        "A newer OpenSSH here, or one there, would help.",
    )


def _connection_closed(failure: _FailedLogin) -> RemoterError:
    # What the server has said before it hung up, as far as that can be told.
    before = re.findall(r"banner line \d+: (.+)", failure.said)
    farewell = re.findall(r"^Received disconnect from .+?:\d+: (.+)", failure.said, re.MULTILINE)
    reason = "\n".join(filter(None, (*before, failure.server_text, *farewell)))
    return connection_ended(failure.label, failure.step, said=reason)


# In this order: what came first is the cause, and a closed connection is only what follows.
_RULES: tuple[tuple[str, Callable[[_FailedLogin], RemoterError]], ...] = (
    (r"bad configuration option.*|bad owner or permissions on .*", _bad_ssh_config),
    (r"HOST IDENTIFICATION HAS CHANGED", _host_key_changed),
    (r"REVOKED HOST KEY|host key \S+ \S+ revoked by file (?P<file>.+)", _host_key_revoked),
    (r"error checking host key \S+ \S+ in revoked keys file (.+)", _revocation_unreadable),
    (r"Host key verification failed", _host_key_unknown),
    (r"could not resolve hostname ([^:\s]+)", _name_unresolved),
    (JUMP_FORBIDS, _jump_host_refused),
    (JUMP_FAILED, _jump_host_refused),
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
_CONNECT_RULES = {
    _name_unresolved,
    _connection_refused,
    _connect_timeout,
    _no_route,
    _connection_closed,
}
_LOGIN_RULES = {_too_many_failures, _permission_denied, _connect_timeout, _connection_closed}
