"""Reads ssh_config by paramiko's parser, where there is no OpenSSH client to ask."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar

import paramiko
import paramiko.config

from remoter_kernel.errors import BadConfiguration
from remoter_kernel.local.login.paramiko.paramiko_internals import HookedConfig
from remoter_kernel.local.login.ssh_keywords import FORMER_KEYWORDS, local_user

if TYPE_CHECKING:
    from pathlib import Path

# Not everybody has a name (containers), and paramiko looks it up wherever there is a condition.
paramiko.config.getpass = SimpleNamespace(getuser=local_user)

KNOWN_MATCHES = frozenset(
    {"all", "canonical", "exec", "final", "host", "localuser", "originalhost", "user"}
)


class _ConfigParser(HookedConfig):
    """Paramiko's, which leaves tokens to us and passes over no condition."""

    # Its own idea of `%C` is not ssh's, and it does not know all tokens.
    TOKENS_BY_CONFIG_KEY: ClassVar[dict[str, list[str]]] = {
        key: paramiko.SSHConfig.TOKENS_BY_CONFIG_KEY[key] for key in ("hostname", "match-exec")
    }

    def on_match(self, kinds: set[str]) -> None:
        """Refuse what it does not know: it would take such a condition for met."""
        if strange := kinds - KNOWN_MATCHES:
            message = f"`Match {min(strange)}` is not known"
            raise paramiko.ConfigParseError(message)


def lookup_host(config: Path, host: str) -> dict[str, list[str]]:
    """Return what a file says about a host, keyword by keyword; tokens in it stay as they are."""
    try:
        found = _ConfigParser.from_path(str(config)).lookup(host)
    except Exception as error:  # a parser of foreign files: anything may come
        raise BadConfiguration(
            f"{config} cannot be read without an OpenSSH client: {error}.",
            "Install one: it knows Include, each kind of Match, and CanonicalizeHostname.",
        ) from error
    return {
        FORMER_KEYWORDS.get(key, key): value if isinstance(value, list) else [value]
        for key, value in found.items()
        if value is not None  # its way to say "none"
    }
