"""Which transport a login takes, and why (pure)."""

from __future__ import annotations

from dataclasses import dataclass

PARAMIKO, OPENSSH = "paramiko", "openssh"
NO_COMMON_ALGORITHM = "paramiko has no algorithm in common with the host"


@dataclass(frozen=True)
class TransportFacts:
    """What is known before a login."""

    has_ssh: bool = False
    """There is an OpenSSH client here."""
    has_master: bool = False
    """The person's own ControlMaster for the host is logged in."""
    has_ticket: bool = False
    """The host is to be entered by GSSAPI, and there is a Kerberos ticket."""
    has_only_security_keys: bool = False
    """All keys that could be shown are on security keys (FIDO)."""
    is_known_by_authority: bool = False
    """Only a certificate authority vouches for the host's key."""
    needs_proxy_on_windows: bool = False
    beyond_paramiko: str = ""
    """A clause: what the ssh config says that only ssh can heed."""


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
