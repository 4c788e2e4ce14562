"""What a person has typed for a login: where it is kept, and how often it is used.

In memory for as long as the process lives; in the system's keyring only where `remember` asks
for that. A password is used once at first, and once after each cut: a wrong one must
not lock an account. A code is never kept.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Protocol

from remoter_kernel.errors import RemoteLacks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from remoter_kernel.local.login.destination import Destination

KEYRING_SERVICE = "remoter-kernel"
INSTALL_KEYRING = "Install one with `pip install remoter-kernel[keyring]`, or leave out --remember."


def hops_with_names(destination: Destination) -> Iterator[tuple[Destination, str]]:
    """Give each host on the way, the last one too, with the name under which its secrets are kept.

    Behind two gates there may be two hosts of one name: the way there is part of the name.
    """
    way: list[str] = []
    for hop in (*destination.jumps, destination):
        name = account_name(hop)
        # By one name and port there may be several hosts, each known by an alias of its own.
        if hop.host_key_alias:
            name += f" known as {hop.host_key_alias}"
        if hop.proxy_command:  # there may be secrets in it, and names can be read by all
            digest = hashlib.sha256(hop.proxy_command.encode()).hexdigest()[:16]
            name += f" by the ProxyCommand {digest}"
        yield hop, f"{name} through {', '.join(way)}" if way else name
        way.append(name)


def account_name(hop: Destination) -> str:
    """Name an account by what is said of it alone."""
    return f"{hop.user}@{hop.host_name}:{hop.port}"


class SecretStore(Protocol):
    """Keeps secrets by name, beyond this process's life."""

    def get(self, name: str) -> str:
        """Return a secret; empty where there is none."""

    def put(self, name: str, secret: str) -> None:
        """Keep a secret; an empty one is forgotten."""


class KeyringStore:
    """This system's keyring."""

    def __init__(self) -> None:
        """Find it; RemoteLacks (this machine lacks it) where there is none that works."""
        try:
            import keyring  # noqa: PLC0415 - slow, and only for those who want it
            import keyring.backends.fail  # noqa: PLC0415
            import keyring.errors  # noqa: PLC0415
        except ImportError:
            raise RemoteLacks(
                "the package keyring is not installed here.", INSTALL_KEYRING
            ) from None
        if isinstance(keyring.get_keyring(), keyring.backends.fail.Keyring):
            raise RemoteLacks("this system has no keyring that can be used.", INSTALL_KEYRING)
        self._keyring = keyring
        # It may be locked, or gone: then it has no secret, and is asked to keep none.
        self._errors = (keyring.errors.KeyringError, OSError, ValueError)

    def get(self, name: str) -> str:
        """Return a secret; one that cannot be had is none."""
        with contextlib.suppress(*self._errors):
            return self._keyring.get_password(KEYRING_SERVICE, name) or ""
        return ""

    def put(self, name: str, secret: str) -> None:
        """Keep a secret, or forget it; where that fails, it will be asked for again."""
        with contextlib.suppress(*self._errors):
            if secret:
                self._keyring.set_password(KEYRING_SERVICE, name, secret)
            else:
                self._keyring.delete_password(KEYRING_SERVICE, name)


class HostCredentials:
    """The secrets for one host."""

    def __init__(self, where: str = "", store: SecretStore | None = None) -> None:
        """`where` is the name that `hops_with_names` gives."""
        self._name = where
        self._store = store
        self._secrets: dict[str, str] = {}  # by the names that they have in the store
        self._may_use_password = True

    def __repr__(self) -> str:
        return f"<Memory for {self._name}>"

    def allow_reuse(self) -> None:
        """A login that worked was cut: the password may be used again, once."""
        self._may_use_password = True

    def take_password(self) -> str:
        """Return the password for its one use; empty: there is none, or it was used."""
        if not self._may_use_password:
            return ""
        self._may_use_password = False
        return self._get(f"password of {self._name}")

    def store_password(self, password: str) -> None:
        """Keep a password that has let somebody in; an empty one was wrong: forget it."""
        self._may_use_password = False
        self._put(f"password of {self._name}", password)

    def passphrase(self, file: str) -> str:
        """Return the passphrase of a key; empty: it is not known."""
        return self._get(f"passphrase of {file}")

    def store_passphrase(self, file: str, phrase: str) -> None:
        """Keep the passphrase that has unlocked a key; an empty one was wrong: forget it."""
        self._put(f"passphrase of {file}", phrase)

    def clear(self, files: Iterable[str]) -> None:
        """Forget the password, and the passphrases of these keys."""
        self.store_password("")
        for file in files:
            self.store_passphrase(file, "")

    def _get(self, name: str) -> str:
        return self._secrets.get(name) or (self._store.get(name) if self._store else "")

    def _put(self, name: str, secret: str) -> None:
        self._secrets[name] = secret
        if self._store:
            self._store.put(name, secret)


class RemoteCredentials:
    """The secrets of one remote: of its host, and of the hosts before it."""

    def __init__(self) -> None:
        self._store: SecretStore | None = None
        self._by_host: dict[str, HostCredentials] = {}

    def use_keyring(self, *, is_remembered: bool) -> None:
        """Use the system's keyring, too, or do not."""
        if is_remembered != (self._store is not None):
            self._store = KeyringStore() if is_remembered else None
            self._by_host.clear()  # what was typed stays where its person wanted it

    def for_host(self, where: str) -> HostCredentials:
        """Return what is known for one host."""
        return self._by_host.setdefault(where, HostCredentials(where, self._store))

    def allow_reuse(self) -> None:
        """Logins that worked were cut."""
        for memory in self._by_host.values():
            memory.allow_reuse()
