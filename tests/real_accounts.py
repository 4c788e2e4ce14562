"""Accounts that ask for more than a key: a password, a code that works once, or both.

What sshd asks is what PAM asks, and the PAM service that it reads has the name by which sshd
was started; so each account comes with a service of its own.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.real_users import own_name, remove_own_users, throw_away_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_users import FarSide

SERVICES = Path("/etc/pam.d")
DIGITS = 6
WINDOW = 100  # codes that may have been made, and not used, before the one that is used
PASSWORD, CODE = "password", "code"


@dataclass
class Account:
    """A user who is let in by a password, by a code from a list without end, or by both."""

    far: FarSide
    service: str
    """The name that sshd must be started by."""
    password: str = field(repr=False, default="")
    _secret: bytes = field(repr=False, default=b"")
    _used: int = 0

    def next_code(self) -> str:
        """Give the next code that works, once (RFC 4226)."""
        digest = hmac.digest(self._secret, self._used.to_bytes(8, "big"), "sha1")
        self._used += 1
        start = digest[-1] & 0xF
        number = int.from_bytes(digest[start : start + 4], "big") & 0x7FFFFFFF
        return f"{number % 10**DIGITS:0{DIGITS}}"

    @property
    def secrets(self) -> list[str]:
        """List what must be found nowhere."""
        return [one for one in (self.password, self._secret.hex()) if one]


@contextlib.contextmanager
def account(name: str, folder: Path, *asks: str) -> Iterator[Account]:
    """Make an account that is asked for those, in that order; it needs root, and ends with it."""
    service = SERVICES / own_name(f"sshd-{name}")
    with throw_away_user(own_name(f"remoter-{name}")) as far:
        made = Account(far, service.name, secrets.token_hex(12), secrets.token_bytes(20))
        _set_password(far.user, made.password)
        codes = folder / f"{name}-codes"
        codes.touch(0o600)
        codes.write_text(f"HOTP {far.user} - {made._secret.hex()}\n")
        lines = {
            PASSWORD: "auth requisite pam_unix.so",
            CODE: f"auth required pam_oath.so usersfile={codes} digits={DIGITS} window={WINDOW}",
        }
        rest = ("account required pam_unix.so", "session required pam_permit.so")
        service.write_text("\n".join([*(lines[one] for one in asks), *rest, ""]))
        try:
            yield made
        finally:
            service.unlink()


def remove_left_accounts() -> None:
    """Remove what a killed run has left."""
    for service in SERVICES.glob(f"*{own_name('')}"):
        service.unlink()
    remove_own_users()


def _set_password(user: str, password: str) -> None:
    subprocess.run(["chpasswd"], input=f"{user}:{password}", text=True, check=True)
