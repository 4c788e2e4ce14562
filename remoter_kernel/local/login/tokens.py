"""What `%h` and its like stand for in the values of ssh_config (ssh_config(5), TOKENS)."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

COMMAND_TOKENS = "%hknpr"  # ProxyCommand and ProxyJump know only these; the shell does the rest
OPENSSH_TOKENS = "Cj"


def local_user() -> str:
    """Return the name of whoever runs this; empty for a user id that has none (containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""


def account_home() -> str:
    """Return the home that the user database knows, or HOME where it knows nobody."""
    name = local_user()
    home = os.path.expanduser(f"~{name}")  # noqa: PTH111 (no lookup by name)
    return str(Path.home()) if home.startswith("~") or not name else home


@dataclass(frozen=True)
class Tokens:
    """What the tokens stand for, for one host."""

    values: dict[str, str]
    expand_by_ssh: Callable[[str], str]
    """Expands a token whose value differs from ssh to ssh."""
    environment: Mapping[str, str]
    """Of whoever logs in."""

    @classmethod
    def for_host(
        cls,
        typed: str,
        *,
        host: str,
        port: int,
        user: str,
        alias: str,
        expand_by_ssh: Callable[[str], str],
        environment: Mapping[str, str],
    ) -> Tokens:
        """Collect them for a host that was called `typed`."""
        local_host = socket.gethostname()
        values = {
            "%": "%",
            "d": str(Path.home()),
            "h": host,
            "i": str(os.getuid()) if hasattr(os, "getuid") else "0",
            "k": alias or typed,
            "L": local_host.partition(".")[0],
            "l": local_host,
            "n": typed,
            "p": str(port),
            "r": user,
            "u": local_user(),
        }
        return cls(values, expand_by_ssh, environment)

    def expand(self, text: str) -> str:
        """Fill in a path or the name of a socket; `${NAME}` is of the environment."""
        text = re.sub(r"%(.)", self._value, text)
        return re.sub(r"\$\{(\w+)\}", lambda match: self.environment.get(match[1], match[0]), text)

    def expand_command(self, text: str) -> str:
        """Fill in a ProxyCommand or a ProxyJump."""
        return re.sub(f"%([{COMMAND_TOKENS}])", self._value, text)

    def expand_path(self, text: str) -> Path:
        """Make a path of it."""
        return Path(self.expand(_unexpand_home(text.strip('"')))).expanduser()

    def hash(self, jump: str = "") -> str:
        """Compute `%C`, as a ssh does that knows `%j`, too."""
        whole = "".join(self.values[name] for name in "lhpr") + jump
        return hashlib.sha1(whole.encode(), usedforsecurity=False).hexdigest()

    def _value(self, match: re.Match[str]) -> str:
        name = match[1]
        return (
            self.expand_by_ssh(name) if name in OPENSSH_TOKENS else self.values.get(name, match[0])
        )


def _unexpand_home(path: str) -> str:
    """Write ssh's own default paths so that HOME decides about them, as for all else here."""
    home = account_home()
    start = f"{home}/.ssh/known_hosts"
    return path.replace(home, "~", 1) if path in (start, f"{start}2") else path
