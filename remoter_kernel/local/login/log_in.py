"""Logs in to a remote in the way that its configuration says."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remoter_kernel.errors import BadConfiguration, RemoterError
from remoter_kernel.local.login.credentials import (
    HostCredentials,
    KeyringStore,
    account_name,
    hops_with_names,
)
from remoter_kernel.local.login.known_hosts import is_known_by_ca_only
from remoter_kernel.local.login.login_errors import NoCommonAlgorithm
from remoter_kernel.local.login.openssh.openssh_login import living_master, log_in_by_openssh
from remoter_kernel.local.login.paramiko.keys import has_only_security_keys, key_files
from remoter_kernel.local.login.paramiko.paramiko_login import log_in_by_paramiko
from remoter_kernel.local.login.ssh_config import has_usable_ssh, resolve_destination, run_quietly
from remoter_kernel.local.login.ssh_keywords import why_unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.login.credentials import RemoteCredentials
    from remoter_kernel.local.login.destination import Destination
    from remoter_kernel.local.login.prompts import Prompter
    from remoter_kernel.local.login.ssh_login import SSHLogin

TICKET_WITHIN = 3.0  # seconds for `klist`

PARAMIKO, OPENSSH = "paramiko", "openssh"
NO_COMMON_ALGORITHM = "paramiko has no algorithm in common with the host"


def log_in_to(
    remote: Remote,
    prompter: Prompter | None = None,
    on_step: Callable[[str], None] = lambda _step: None,
    on_try: Callable[[SSHLogin], None] = lambda _login: None,
    *,
    destination: Destination | None = None,
    credentials: RemoteCredentials | None = None,
) -> SSHLogin:
    """Log in to a remote; `on_step` is called with each step, `on_try` with each login.

    `destination`: what its host stands for now, if that is known already.
    """
    destination = destination or resolve_destination(remote.host, remote.ssh_config)
    facts = transport_facts(destination) if remote.transport == "auto" else TransportFacts()
    transport, why = choose_transport(remote.transport, facts)
    if transport != OPENSSH:
        _raise_if_unsafe(destination)  # where paramiko was asked for, or there is no ssh
        try:
            return log_in_by_paramiko(
                destination,
                prompter=prompter,
                on_step=on_step,
                on_try=on_try,
                credentials=credentials,
            )
        except NoCommonAlgorithm:  # ssh has algorithms that paramiko does not know
            if not facts.has_ssh:
                raise
            why = NO_COMMON_ALGORITHM
        except RemoterError as error:
            _hint_at_skipped(destination, error)
            raise
    return log_in_by_openssh(
        destination, prompter=prompter, on_step=on_step, on_try=on_try, why=why
    )


def clear_secrets(remote: Remote) -> None:
    """Let this system's keyring forget what it keeps for a remote's logins."""
    destination, keyring = resolve_destination(remote.host, remote.ssh_config), KeyringStore()
    for hop, name in hops_with_names(destination):  # jump hosts may have asked, too
        for each in {name, account_name(hop)}:  # the latter is how earlier versions called it
            HostCredentials(each, keyring).clear(map(str, key_files(hop)))


def transport_facts(destination: Destination) -> TransportFacts:
    """Find out what decides about the transport; without an OpenSSH client nothing does."""
    if not has_usable_ssh(destination.environment):
        return TransportFacts()
    hops = (*destination.jumps, destination)
    return TransportFacts(
        has_ssh=True,
        has_master=living_master(destination) is not None,
        beyond_paramiko=next(_unsupported_reasons(destination), ""),  # one is enough for a sentence
        has_ticket=any(hop.openssh.uses_kerberos for hop in hops)
        and _has_ticket(destination.environment),
        has_only_security_keys=any(map(has_only_security_keys, hops)),
        is_known_by_authority=any(map(is_known_by_ca_only, hops)),
        needs_proxy_on_windows=os.name != "posix" and any(hop.proxy_command for hop in hops),
    )


def _unsupported_reasons(destination: Destination) -> Iterator[str]:
    for hop in (destination, *destination.jumps):
        label = "it" if hop is destination else f"its jump host {hop.label}"
        yield from (why_unsupported(word, label) for word in hop.rules.unsupported)


def _raise_if_unsafe(destination: Destination) -> None:
    """Log in to no host that the person has guarded by a word which would not be heeded."""
    for hop in (destination, *destination.jumps):
        for word in hop.rules.unsafe_to_ignore:
            raise BadConfiguration(
                f"{why_unsupported(word, hop.label)}.",
                'Set transport = "auto" for this remote: then ssh logs in.'
                if has_usable_ssh(destination.environment)
                else "Install an OpenSSH client here: it heeds that word.",
            )


def _hint_at_skipped(destination: Destination, error: RemoterError) -> None:
    """Say that what is missing may be in a part of the ssh config that nobody has read."""
    words = dict.fromkeys(
        word for hop in (destination, *destination.jumps) for word in hop.rules.skipped
    )
    if words and not has_usable_ssh(destination.environment):
        error.advice += (
            f" Your ssh config has {', '.join(words)}, which only an OpenSSH client can follow: "
            "there is none here."
        )


def _has_ticket(environment: Mapping[str, str]) -> bool:
    try:
        # -s: only the status, which says whether there is a ticket that is still valid.
        return run_quietly(["klist", "-s"], TICKET_WITHIN, environment).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@dataclass(frozen=True)
class TransportFacts:
    """What is known before a login."""

    has_ssh: bool = False  # there is an OpenSSH client here
    has_master: bool = False  # the person's own ControlMaster for the host is logged in
    has_ticket: bool = False  # the host is to be entered by GSSAPI, and there is a Kerberos ticket
    has_only_security_keys: bool = False  # all keys that could be shown are on security keys (FIDO)
    is_known_by_authority: bool = False  # only a certificate authority vouches for the host's key
    needs_proxy_on_windows: bool = False
    beyond_paramiko: str = ""  # A clause: what the ssh config says that only ssh can heed


# The first that is true decides; the clause says why paramiko would not do.
_REASONS = (
    ("has_master", "your ControlMaster for it is logged in"),
    ("has_ticket", "it takes your Kerberos ticket"),
    ("has_only_security_keys", "your keys for it are on a security key"),
    ("is_known_by_authority", "its host key is vouched for by a certificate authority"),
    ("needs_proxy_on_windows", "it has a ProxyCommand, on Windows"),
)


def choose_transport(wanted: str, facts: TransportFacts) -> tuple[str, str]:
    """Return the transport and why; the reason is empty for what was asked for, or is usual."""
    if wanted != "auto":
        return wanted, ""
    if facts.has_ssh:
        for fact, reason in _REASONS:
            if getattr(facts, fact):
                return OPENSSH, reason
        if facts.beyond_paramiko:
            return OPENSSH, facts.beyond_paramiko
    return PARAMIKO, ""
