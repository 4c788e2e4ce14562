"""Where to log in, as whom and how: what ssh_config says of one host, in plain values."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remoter_kernel.local.login.ssh_keywords import DEFAULT_RULES, LoginRules

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONNECT_WITHIN = 10.0  # seconds, unless ConnectTimeout says otherwise
SSH_PORT = 22


@dataclass(frozen=True)
class OpenSSHOptions:
    """What the system's ssh must be told, or says of itself, when it is to log in there."""

    config_option: tuple[str, ...] = ()  # its option `-F`, if any
    control_path: str = ""  # the socket of the person's own ControlMaster, alive or not
    uses_kerberos: bool = False
    keeps_alive: bool = False  # the person has chosen how a dead connection is noticed
    # All that `ssh -G` told about: an older ssh stumbles over what it does not know
    keywords: frozenset[str] = field(default=frozenset(), repr=False)


# 16 attributes: plain data, most of it a keyword of ssh_config each.
@dataclass(frozen=True)
class Destination:
    """Where to log in, as whom, and with which files; plain values only."""

    host_name: str
    port: int
    user: str
    # Private keys that were named for this host; empty: the default ones
    identity_files: tuple[Path, ...] = ()
    known_hosts_files: tuple[Path, ...] = ()  # the first is the one that learns new keys
    host_key_alias: str = ""
    # Hosts to pass through, the nearest first; their own `jumps` are empty
    jumps: tuple[Destination, ...] = ()
    identities_only: bool = False
    identity_agent: str = ""  # A socket path, or "none"; empty: what SSH_AUTH_SOCK says
    connect_timeout: float = CONNECT_WITHIN
    proxy_command: str = ""
    alias: str = ""  # what the person typed: for sentences, and for the system's ssh
    openssh: OpenSSHOptions = OpenSSHOptions()
    # A unix socket of this machine where its server listens, instead of TCP
    socket_path: Path | None = None
    # Of whoever logs in: it names the agent, the Kerberos ticket, and where programs are
    environment: Mapping[str, str] = field(
        default_factory=lambda: dict(os.environ), compare=False, repr=False
    )
    rules: LoginRules = DEFAULT_RULES

    @property
    def label(self) -> str:
        """How to call this host in a sentence."""
        where = self.host_name if self.port == SSH_PORT else f"{self.host_name}:{self.port}"
        return where if self.alias in ("", self.host_name, where) else f"{self.alias} ({where})"
