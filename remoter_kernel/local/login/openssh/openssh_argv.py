"""The words of a command line for the system's ssh (pure).

Whatever a person's configuration says about other uses of a host (a command that is always
run, forwardings, a terminal) must not come between a login and what it is for.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from remoter_kernel.local.login.destination import Destination

MASTER_PERSISTS = 15  # seconds that a master of ours outlives a process of ours that was killed
ALIVE_EVERY, ALIVE_MISSED = 15, 2  # seconds; questions without an answer until it is a cut
# Passed only where `ssh -G` lists them: an ssh stops at an option that it does not know, and
# ForkAfterAuthentication, for one, came with OpenSSH 8.7.
OVERRIDES = {
    "remotecommand": "none",
    "requesttty": "no",
    "permitlocalcommand": "no",
    "forkafterauthentication": "no",
    "stdinnull": "no",
    "updatehostkeys": "no",
    "tunnel": "no",
    "channeltimeout": "none",
    # Nobody but a known_hosts file, or a person, vouches for a host.
    "nohostauthenticationforlocalhost": "no",
    "verifyhostkeydns": "no",
    "visualhostkey": "no",
}


def ssh_argv(
    destination: Destination, known_hosts: Sequence[Path], log_level: str, *, may_ask: bool
) -> list[str]:
    """Return `ssh` and its options for a destination, without the host itself."""
    for_ssh = destination.openssh
    options = {
        "BatchMode": "no" if may_ask else "yes",
        "StrictHostKeyChecking": "ask" if may_ask and not destination.rules.is_strict else "yes",
        "ConnectTimeout": str(max(1, round(destination.connect_timeout))),  # ssh takes no fractions
        "ClearAllForwardings": "yes",  # they are for the person's own terminal
        "LogLevel": log_level,
    }
    if known_hosts:
        options["UserKnownHostsFile"] = " ".join(map(_quote_path, known_hosts))
        options["GlobalKnownHostsFile"] = "none"  # they are among the others already
    if destination.host_key_alias:
        options["HostKeyAlias"] = destination.host_key_alias
    if not for_ssh.keeps_alive:  # a dead network would be noticed after hours
        options["ServerAliveInterval"] = str(ALIVE_EVERY)
        options["ServerAliveCountMax"] = str(ALIVE_MISSED)
    options |= {key: value for key, value in OVERRIDES.items() if key in for_ssh.keywords}
    return [
        "ssh",
        *for_ssh.config_option,
        *(word for key, value in options.items() for word in ("-o", f"{key}={value}")),
        *("-T", "-a", "-x", "-l", destination.user, "-p", str(destination.port)),
    ]


def master_argv(options: Sequence[str], control_path: Path, host: str) -> list[str]:
    """Make ssh log in, go to the background, and serve others at a socket.

    It ends `MASTER_PERSISTS` seconds after nobody is connected to it: also when we are killed.
    """
    control = ("-S", str(control_path), "-o", f"ControlPersist={MASTER_PERSISTS}")
    return [*options, "-M", "-N", *control, "--", host]


def jump_options(control_path: Path) -> list[str]:
    """Make ssh connect through the host whose master serves at `control_path`."""
    socket = shlex.quote(str(control_path)).replace("%", "%%")
    # No such host exists: without its master this ssh gets nowhere, and reads no file.
    carrier = f"ssh -F /dev/null -o BatchMode=yes -S {socket} -W [%h]:%p -- jump.invalid"
    return ["-o", f"ProxyCommand={carrier}"]


def standalone_argv(options: Sequence[str], *more: str, host: str, command: str = "") -> list[str]:
    """Make ssh do one thing with a login of its own."""
    alone = ("-o", "ControlMaster=no", "-o", "ControlPath=none")
    return [*options, *alone, *more, "--", host, *([command] if command else [])]


def _quote_path(path: Path) -> str:
    return '"' + str(path).replace("%", "%%") + '"'  # "%" would begin a token
