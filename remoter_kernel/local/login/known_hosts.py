"""Knows which host keys this person trusts: reads known_hosts, and adds to it when told to.

Rules: a key is trusted only because a line says so; a line that cannot be read (or that
paramiko cannot use) spoils no other line; a revoked key is never trusted; a host that
shows another key than the known one is refused, and nobody is asked about it.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remoter_kernel.errors import HostKeyProblem
from remoter_kernel.local.login.destination import SSH_PORT
from remoter_kernel.local.login.login import HostKeyNotAsked, UnknownHostKey
from remoter_kernel.local.login.prompts import HostKeyDecision

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from remoter_kernel.local.login.destination import Destination
    from remoter_kernel.local.login.prompts import Prompter

REVOKED = "@revoked"
AUTHORITY = "@cert-authority"
DISCARDING_FILES = ("/dev/null", os.devnull)  # what is written there is not kept
SALT_SIZE = 20  # bytes, as ssh has it
HASH_PREFIX = "|1|"  # HMAC-SHA1 of the name: "|1|salt|hash"


@dataclass(frozen=True)
class KnownHostsLine:
    """One usable line of a known_hosts file."""

    file: Path
    number: int
    # Only lines without one are trusted: paramiko cannot check what @cert-authority signs
    marker: str
    names: str
    kind: str
    key: bytes

    def is_for(self, name: str) -> bool:
        """Say whether this line speaks about the host of that name."""
        if self.names.startswith(HASH_PREFIX):
            return _matches_hash(self.names, name)
        matches = False
        for pattern in self.names.lower().split(","):
            # "[" is no wildcard here: it belongs to "[host]:port".
            if fnmatch.fnmatchcase(name, pattern.removeprefix("!").replace("[", "[[]")):
                if pattern.startswith("!"):
                    return False
                matches = True
        return matches


def fingerprint(key: bytes) -> str:
    """Write a public key's fingerprint as ssh-keygen does."""
    digest = base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"


class KnownHosts:
    """What the known_hosts files say about one destination."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        plain = (destination.host_key_alias or destination.host_name).lower()
        self.name = name_in_file(destination).lower()
        lines = [line for file in destination.known_hosts_files for line in read_known_hosts(file)]
        self._lines = [line for line in lines if line.is_for(self.name)]
        # As OpenSSH does: a key known for the host without a port will do, if it matches.
        has_port = self.name != plain
        self._lines_without_port = [line for line in lines if has_port and line.is_for(plain)]

    @property
    def known_kinds(self) -> tuple[str, ...]:
        """The kinds of key this host is known by: those it should be asked to show."""
        lines = [line for line in self._lines if not line.marker]
        return tuple(dict.fromkeys(line.kind for line in lines or self._lines_without_port))

    @property
    def has_ca(self) -> bool:
        """Say whether an authority is named that may vouch for this host's key."""
        return any(line.marker == AUTHORITY for line in (*self._lines, *self._lines_without_port))

    def check(self, kind: str, key: bytes, prompter: Prompter | None) -> None:
        """Return if the key is trusted; raise HostKeyProblem if it is not."""
        self._refuse_unusable(key)
        host, rules = self.destination.label, self.destination.rules
        trusted = [line for line in self._lines if not line.marker]
        if any(line.key == key for line in trusted):  # a host may have several keys of a kind
            return
        shown = f"{kind} {fingerprint(key)}"
        if trusted:
            # OpenSSH would ask when only the kind is new. But we ask for the known kinds first,
            # so a host that shows another kind no longer has (or never had) the key we know.
            old = next((line for line in trusted if line.kind == kind), trusted[0])
            raise HostKeyProblem(
                f"the host key of {host} has changed: it shows {shown}, "
                f"but {old.file}, line {old.number}, says {old.kind} {fingerprint(old.key)}.",
                "Somebody may be listening in. If the administrator confirms the new key, "
                f"remove that line (or run: ssh-keygen -f '{old.file}' -R '{self.name}').",
            )
        if any(line.key == key and not line.marker for line in self._lines_without_port):
            return
        if rules.is_strict or prompter is None:
            raise host_key_unknown(self.destination, shown, was_asked=False)
        said = prompter.confirm_host_key(host, kind, fingerprint(key))
        if said is HostKeyDecision.NO:
            raise host_key_rejected(host, shown)
        files = self.destination.known_hosts_files
        if said is HostKeyDecision.YES and files:
            # As ssh does with HashKnownHosts: who steals the file learns no names.
            name = hash_name(self.name) if rules.hashes_names else self.name
            append_known_host(files[0], f"{name} {kind} {base64.b64encode(key).decode()}")

    def _refuse_unusable(self, key: bytes) -> None:
        """Raise HostKeyProblem for a key that nobody may trust, known or not."""
        host, rules = self.destination.label, self.destination.rules
        for line in (*self._lines, *self._lines_without_port):
            if line.marker == REVOKED and line.key == key:
                raise HostKeyProblem(
                    f"{host} shows a key that is revoked ({line.file}, line {line.number}).",
                    "Do not log in; ask the host's administrator.",
                )
        if 0 < rsa_bits(key) < rules.least_rsa_bits:
            raise HostKeyProblem(
                f"{host} shows an RSA key of {rsa_bits(key)} bits, and your ssh config "
                f"asks for {rules.least_rsa_bits} (RequiredRSASize).",
                "Ask the host's administrator for a longer key, or one of another kind.",
            )


def is_known_by_ca_only(destination: Destination) -> bool:
    """Say whether only a certificate authority vouches for the host's key."""
    files = destination.known_hosts_files
    if not any(line.marker == AUTHORITY for file in files for line in read_known_hosts(file)):
        return False  # as in nearly all files; hashed names take their time
    known = KnownHosts(destination)
    return not known.known_kinds and known.has_ca


# ------------------------------------------------------------------ the file


def read_known_hosts(file: Path) -> Iterator[KnownHostsLine]:
    """Read what can be used of a known_hosts file; a missing or unreadable file says nothing."""
    try:
        whole = file.read_bytes()
    except OSError:
        return
    # As ssh does: only a newline ends a line, and only blanks part its words. A form feed or
    # a foreign line separator in a comment must not begin a line of its own.
    for number, line in enumerate(whole.split(b"\n"), 1):
        words = [word.decode(errors="replace") for word in re.split(rb"[ \t\r]+", line) if word]
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#"):  # noqa: PLR2004 (names, kind, key)
            continue
        try:
            key = base64.b64decode(words[2], validate=True)
        except (binascii.Error, ValueError):
            continue
        # What the key says of itself counts, as in OpenSSH: a line that lies is no line.
        if key[4 : 4 + int.from_bytes(key[:4], "big")] == words[1].encode():
            yield KnownHostsLine(file, number, marker, words[0], words[1], key)


def append_known_host(file: Path, line: str) -> None:
    """Append a line; the file is private from its first moment, and so is its folder."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "rb+", buffering=0) as opened:
            size = opened.seek(0, os.SEEK_END)
            ends_well = not size or (opened.seek(size - 1), opened.read(1))[1] == b"\n"
            # One write, so that two logins at once cannot mix their lines.
            opened.write((("" if ends_well else "\n") + line + "\n").encode())
    except OSError as error:
        raise HostKeyProblem(
            f"the accepted host key cannot be written to {file}: {error.strerror}.",
            "Make that file writable, or name another one with UserKnownHostsFile.",
        ) from error


def name_in_file(destination: Destination) -> str:
    """Return what a host is called in known_hosts: with its port, unless it has an alias there."""
    if destination.host_key_alias or destination.port == SSH_PORT:
        return destination.host_key_alias or destination.host_name
    return f"[{destination.host_name}]:{destination.port}"


def host_key_unknown(destination: Destination, shown: str, *, was_asked: bool) -> UnknownHostKey:
    """Say that a host key would have to be known; `shown`: its kind and fingerprint."""
    host, files = destination.label, destination.known_hosts_files
    keeps_keys = bool(files) and str(files[0]) not in DISCARDING_FILES
    if destination.rules.is_strict:  # nobody may be asked about it
        file = files[0] if keeps_keys else "a file of known hosts"
        return UnknownHostKey(
            f"the host key of {host} is not known here: {shown}; "
            "and your ssh config says StrictHostKeyChecking yes.",
            f"Add the line that its administrator gives you to {file}, "
            "or say StrictHostKeyChecking ask for it.",
        )
    if was_asked:
        return host_key_rejected(host, shown)
    advice = "Run `remoter check NAME` at a terminal to compare and accept it."
    if not keeps_keys:
        advice = (
            "Your ssh config keeps no host keys for it (UserKnownHostsFile): name a file there, "
            "then run `remoter check NAME` at a terminal to compare and accept it."
        )
    return HostKeyNotAsked(f"the host key of {host} is not known here: {shown}.", advice)


def host_key_rejected(host: str, shown: str) -> UnknownHostKey:
    """Say that a person does not take a host key for the right one."""
    return UnknownHostKey(
        f"the host key of {host} was not accepted: {shown}.",
        "Compare it with what the host's administrator says, then try again.",
    )


def hash_name(name: str) -> str:
    """Write a host's name so that only who knows it finds it, as HashKnownHosts has it."""
    salt = secrets.token_bytes(SALT_SIZE)
    digest = hmac.digest(salt, name.lower().encode(), "sha1")
    return f"{HASH_PREFIX}{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def hash_line(line: str) -> list[str]:
    """Hash the names of a line, of which a hashed one can have only one."""
    names, blank, rest = line.partition(" ")
    if not blank or names.startswith(("|", "@", "#")):
        return [line]
    return [f"{hash_name(name)} {rest}" for name in names.split(",")]


def rsa_bits(key: bytes) -> int:
    """Say how long the number of an RSA key is; 0 for other kinds."""
    fields: list[bytes] = []
    rest = key
    while len(rest) > 4 and len(fields) < 3:  # noqa: PLR2004 (a length; a kind and two numbers)
        end = 4 + int.from_bytes(rest[:4], "big")
        fields.append(rest[4:end])
        rest = rest[end:]
    is_rsa = len(fields) == 3 and fields[0] == b"ssh-rsa"  # noqa: PLR2004 (as above)
    return int.from_bytes(fields[2], "big").bit_length() if is_rsa else 0


def _matches_hash(hashed: str, name: str) -> bool:
    try:
        salt, digest = (
            base64.b64decode(part) for part in hashed.removeprefix(HASH_PREFIX).split("|")
        )
    except (binascii.Error, ValueError):
        return False
    # SHA-1 is what OpenSSH hashes names with; nothing rests on its strength.
    return hmac.compare_digest(hmac.digest(salt, name.encode(), "sha1"), digest)
