"""Which private keys to show a server, in which order: named files, the agent's, default files.

Keys are loaded one by one as they are needed; what could not be used is remembered as a
sentence, because it is what the person wants to read when nobody was let in.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramiko

from remoter_kernel.local.login.known_hosts import rsa_bits
from remoter_kernel.local.login.paramiko import paramiko_internals as internals
from remoter_kernel.local.login.ssh_keywords import filter_algorithms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from remoter_kernel.local.login.destination import Destination

DEFAULT_KEY_NAMES = ("id_ed25519", "id_ecdsa", "id_rsa")
SECURITY_KEY_NAMES = ("id_ed25519_sk", "id_ecdsa_sk")
# How keys of a kind sign, where it is not by the name of the kind; as certificates, too.
RSA_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")
CERTIFICATE_SUFFIX = "-cert-v01@openssh.com"
SECURITY_KEY_PREFIX = "sk-"  # keys on a FIDO token: paramiko cannot use them


@dataclass(frozen=True)
class LockedKey:
    """A private key with a passphrase, and its public half where that can be read."""

    file: Path
    public: bytes

    @property
    def kind(self) -> str:
        """What its public half says that it is."""
        return self.public[4 : 4 + int.from_bytes(self.public[:4], "big")].decode()

    @property
    def algorithm(self) -> str:
        """How this key signs."""
        return RSA_SIGNATURES[0] if self.kind == "ssh-rsa" else self.kind

    def unlock(self, passphrase: str) -> Any:
        """Return the key, or None if this is not its passphrase."""
        try:
            return paramiko.PKey.from_path(str(self.file), passphrase.encode())
        except Exception:  # noqa: BLE001 (a parser of foreign files: anything may come)
            return None


@dataclass
class KeyRing:
    """The keys for one destination; iterate over `candidates()`, then read `notes`."""

    destination: Destination
    # Sentences about keys that could not be shown to the server
    notes: list[str] = field(default_factory=list)
    _agent: internals.Agent | None = None
    _locked: list[LockedKey] = field(default_factory=list)

    def candidates(self) -> Iterator[tuple[str, Any]]:
        """Give each key once, with a name for sentences; the last ones may be `LockedKey`s."""
        return (one for one in self._all_candidates() if self._is_allowed(*one))

    def _all_candidates(self) -> Iterator[tuple[str, Any]]:
        self._locked.clear()  # keys may be tried again, after another method
        self._agent = _open_agent(self.destination, self.notes)
        agent_keys = {key.asbytes(): key for key in self._agent.get_keys()}  # in its order
        shown: set[bytes] = set()
        named = self.destination.identity_files
        for file in named:
            yield from self._keys_in_file(file, agent_keys, shown, must_exist=True)
        if not self.destination.identities_only:
            for blob, key in agent_keys.items():
                # paramiko cannot use the keys of a FIDO token.
                if blob not in shown and not key.get_name().startswith(SECURITY_KEY_PREFIX):
                    shown.add(blob)
                    yield f"{key.comment or key.get_name()} (agent)", key
        for file in () if named else _default_key_files(DEFAULT_KEY_NAMES):
            yield from self._keys_in_file(file, agent_keys, shown, must_exist=False)
        # Nobody is asked for a passphrase while a key that needs none might do.
        yield from ((str(key.file), key) for key in self._locked)

    def _is_allowed(self, name: str, key: Any) -> bool:
        """Say whether ssh_config lets this key be used; note down why it does not."""
        rules = self.destination.rules
        blob = key.public if isinstance(key, LockedKey) else key.asbytes()
        if 0 < (bits := rsa_bits(blob)) < rules.least_rsa_bits:
            self.notes.append(f"{name} has {bits} bits (see RequiredRSASize).")
            return False
        wanted = dict(rules.algorithms).get("pubkeyacceptedalgorithms")
        algorithms = _signature_algorithms(key)
        # Where the kind cannot be read, the server may still say that the key would do.
        if wanted is None or not algorithms or filter_algorithms(algorithms, wanted):
            return True
        self.notes.append(f"{name} is not shown: PubkeyAcceptedAlgorithms leaves it out.")
        return False

    def close(self) -> None:
        """Let go of the agent."""
        if self._agent is not None:
            self._agent.close()

    def _keys_in_file(
        self, file: Path, agent_keys: dict[bytes, Any], shown: set[bytes], *, must_exist: bool
    ) -> Iterator[tuple[str, Any]]:
        """Give the key of a file; the agent signs for it when it can, as with OpenSSH."""
        public = _read_public_key(file)
        if public in agent_keys and public not in shown:
            shown.add(public)
            yield f"{file} (agent)", agent_keys[public]
            return
        if not file.exists():
            if must_exist:
                self.notes.append(f"{file} does not exist.")
            return
        try:
            key = paramiko.PKey.from_path(str(file))
        except OSError as error:
            self.notes.append(f"{file} cannot be read: {error.strerror}.")
            return
        # cryptography says by a TypeError that a passphrase is missing, and old paramikos
        # by a KeyError that they do not know the file's AES-GCM: both mean the same to us.
        except (TypeError, KeyError, paramiko.PasswordRequiredException):
            if not public or public not in shown:
                shown.update({public} if public else ())  # without it, nobody knows which key it is
                self._locked.append(LockedKey(file, public))
            return
        except Exception:  # noqa: BLE001 (a parser of foreign files: anything may come)
            self.notes.append(f"{file} is not a private key that can be read here.")
            return
        blob = key.asbytes()
        if blob in shown:
            return
        shown.add(blob)
        certified = getattr(key, "public_blob", None) is not None
        yield (f"{file} with its certificate" if certified else str(file)), key
        if certified:
            # A server that knows the key, but not who signed it, still lets it in.
            key.public_blob = None
            yield str(file), key


def _signature_algorithms(key: Any) -> tuple[str, ...]:
    """Name the ways in which a key may sign; none where its kind cannot be read yet."""
    kind = (key.public and key.kind) if isinstance(key, LockedKey) else key.get_name()
    if not kind:
        return ()
    plain = kind.removesuffix(CERTIFICATE_SUFFIX)
    ways = RSA_SIGNATURES if plain == "ssh-rsa" else (plain,)
    is_certified = plain != kind or getattr(key, "public_blob", None) is not None
    return tuple(way + CERTIFICATE_SUFFIX for way in ways) if is_certified else ways


def has_only_security_keys(destination: Destination) -> bool:
    """Say whether all keys that could be shown are on security keys, and there are some."""
    if "publickey" not in destination.rules.methods:
        return False
    named = destination.identity_files
    files = named or _default_key_files((*DEFAULT_KEY_NAMES, *SECURITY_KEY_NAMES))
    kinds = ["".join(_read_public_half(file)[:1]) for file in files if file.exists()]
    if not all(kind.startswith(SECURITY_KEY_PREFIX) for kind in kinds):
        return False
    if destination.identities_only:  # the agent's other keys are not shown
        return bool(kinds)
    with contextlib.closing(_open_agent(destination, [])) as agent:
        agent_keys = [key.get_name() for key in agent.get_keys()]
    return all(kind.startswith(SECURITY_KEY_PREFIX) for kind in agent_keys) and bool(
        kinds or agent_keys
    )


def key_files(destination: Destination) -> list[Path]:
    """List the files in which keys for a destination are looked for."""
    return list(destination.identity_files) or _default_key_files(DEFAULT_KEY_NAMES)


def _default_key_files(names: Iterable[str]) -> list[Path]:
    return [Path.home() / ".ssh" / name for name in names]


def _read_public_half(file: Path) -> list[str]:
    """Return the words of the public key beside a private one; none where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return Path(f"{file}.pub" if file.suffix != ".pub" else file).read_text().split()
    return []


def _read_public_key(file: Path) -> bytes:
    """Read the public key beside a private one; b"" if there is none."""
    with contextlib.suppress(ValueError, IndexError):
        line = " ".join(_read_public_half(file)[:2])
        return bytes(paramiko.pkey.PublicBlob.from_string(line).key_blob)
    # OpenSSH's own format begins with the public half, whatever the passphrase.
    with contextlib.suppress(OSError, ValueError):
        text = "".join(file.read_text().splitlines()[1:-1])
        rest = base64.b64decode(text, validate=True).removeprefix(b"openssh-key-v1\0")
        for _ in range(3):  # cipher, kdf and its options
            rest = rest[4 + int.from_bytes(rest[:4], "big") :]
        rest = rest[4:]  # the number of keys
        return rest[4 : 4 + int.from_bytes(rest[:4], "big")]
    return b""


def _open_agent(destination: Destination, notes: list[str]) -> internals.Agent:
    """Connect to the agent that this destination asks for; one that is not there has no keys."""
    agent = internals.Agent()
    if destination.identity_agent.lower() == "none":
        return agent
    try:
        connection = _connect_to_agent(destination.identity_agent, destination.environment)
        if connection is not None:
            agent.attach(connection)
    except (OSError, EOFError, ValueError, paramiko.SSHException) as error:
        notes.append(f"The agent did not answer: {error}.")
    return agent


def _connect_to_agent(named: str, environment: Mapping[str, str]) -> Any:
    """Open the socket of the agent; None where there is no agent."""
    if named and not named.startswith("$"):
        place = named
    elif os.name != "posix":  # Pageant, or the agent of Windows' own OpenSSH
        return paramiko.agent.get_agent_connection()
    else:
        place = environment.get(named[1:] if named else "SSH_AUTH_SOCK", "")
    if not place:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10.0)  # seconds; a person may have to confirm a signature
    try:
        connection.connect(str(Path(place).expanduser()))
    except OSError:
        connection.close()
        raise
    return connection
