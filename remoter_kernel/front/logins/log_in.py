"""Logs in to a remote in the way that its configuration says."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from remoter_kernel.errors import BadConfiguration, RemoterError
from remoter_kernel.front.logins.choice import NOTHING_IN_COMMON, OPENSSH, Facts, choose_transport
from remoter_kernel.front.ssh.aliases import has_usable_ssh, resolve
from remoter_kernel.front.ssh.complaints import NothingInCommon
from remoter_kernel.front.ssh.config_words import why_unsupported
from remoter_kernel.front.ssh.keys import files_for, has_only_security_keys
from remoter_kernel.front.ssh.memory import Keyring, Memory, named_hops, place_of
from remoter_kernel.front.ssh.ssh_login import log_in
from remoter_kernel.front.ssh.system import living_master, log_in_by_system
from remoter_kernel.front.ssh.trust import is_known_by_authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from remoter_kernel.front.configuration.remotes import Remote
    from remoter_kernel.front.questions import Questions
    from remoter_kernel.front.ssh.aliases import Destination
    from remoter_kernel.front.ssh.memory import Memories
    from remoter_kernel.front.ssh.ssh_login import Login

TICKET_WITHIN = 3.0  # seconds for `klist`


def log_in_to(
    remote: Remote,
    questions: Questions | None = None,
    on_step: Callable[[str], None] = lambda _step: None,
    on_try: Callable[[Login], None] = lambda _login: None,
    *,
    where: Destination | None = None,
    memories: Memories | None = None,
) -> Login:
    """Log in to a remote; `on_step` hears of each step as it begins, `on_try` of each login.

    `where`: what its host stands for now, if that is known already.
    """
    where = where or resolve(remote.host, remote.ssh_config)
    facts = facts_about(where) if remote.transport == "auto" else Facts()
    transport, why = choose_transport(remote.transport, facts)
    if transport != OPENSSH:
        _refuse_unsafe(where)
        try:
            return log_in(
                where, questions=questions, on_step=on_step, on_try=on_try, memories=memories
            )
        except NothingInCommon:
            if not facts.has_ssh:
                raise
            why = NOTHING_IN_COMMON
        except RemoterError as error:
            _hint_at_unread(where, error)
            raise
    return log_in_by_system(where, questions=questions, on_step=on_step, on_try=on_try, why=why)


def forget_secrets(remote: Remote) -> None:
    """Let this system's keyring forget what it keeps for a remote's logins."""
    where, keyring = resolve(remote.host, remote.ssh_config), Keyring()
    for hop, name in named_hops(where):
        for each in {name, place_of(hop)}:  # the latter is how earlier versions called it
            Memory(each, keyring).forget(map(str, files_for(hop)))


def facts_about(where: Destination) -> Facts:
    """Find out what decides about the transport; without an OpenSSH client nothing does."""
    if not has_usable_ssh(where.environment):
        return Facts()
    hops = (*where.jumps, where)
    return Facts(
        has_ssh=True,
        has_master=living_master(where) is not None,
        beyond_paramiko=next(_unsupported_reasons(where), ""),
        has_ticket=any(hop.for_ssh.uses_kerberos for hop in hops)
        and _has_ticket(where.environment),
        has_only_security_keys=any(map(has_only_security_keys, hops)),
        is_known_by_authority=any(map(is_known_by_authority, hops)),
        needs_proxy_on_windows=os.name != "posix" and any(hop.proxy_command for hop in hops),
    )


def _unsupported_reasons(where: Destination) -> Iterator[str]:
    for hop in (where, *where.jumps):
        label = "it" if hop is where else f"its jump host {hop.label}"
        yield from (why_unsupported(word, label) for word in hop.rules.beyond_paramiko)


def _refuse_unsafe(where: Destination) -> None:
    """Log in to no host that the person has guarded by a word which would not be heeded."""
    for hop in (where, *where.jumps):
        for word in hop.rules.unsafe:
            raise BadConfiguration(
                f"{why_unsupported(word, hop.label)}.",
                'Set transport = "auto" for this remote: then ssh logs in.'
                if has_usable_ssh(where.environment)
                else "Install an OpenSSH client here: it heeds that word.",
            )


def _hint_at_unread(where: Destination, error: RemoterError) -> None:
    """Say that what is missing may be in a part of the ssh config that nobody has read."""
    words = dict.fromkeys(word for hop in (where, *where.jumps) for word in hop.rules.unread)
    if words and not has_usable_ssh(where.environment):
        error.advice += (
            f" Your ssh config has {', '.join(words)}, which only an OpenSSH client can follow: "
            "there is none here."
        )


def _has_ticket(environment: Mapping[str, str]) -> bool:
    try:
        done = subprocess.run(
            ["klist", "-s"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TICKET_WITHIN,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
