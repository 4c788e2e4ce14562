"""Lets a transport of paramiko offer only the algorithms that ssh_config allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoter_kernel.front.ssh.complaints import NothingInCommon
from remoter_kernel.front.ssh.config_words import NAMES, narrowed
from remoter_kernel.front.ssh.keys import CERTIFIED

if TYPE_CHECKING:
    from remoter_kernel.front.ssh.aliases import Destination
    from remoter_kernel.front.ssh.transport import Transport

SIGNATURES = "pubkeyacceptedalgorithms"
KEPT_IN = {  # by paramiko
    "ciphers": "_preferred_ciphers",
    "hostkeyalgorithms": "_preferred_keys",
    "kexalgorithms": "_preferred_kex",
    "macs": "_preferred_macs",
    SIGNATURES: "_preferred_pubkeys",
}


def offer_only_what_is_allowed(transport: Transport, destination: Destination) -> None:
    """Narrow what a transport will offer; to be called before it meets the server."""
    for word, wanted in destination.rules.algorithms:
        # Paramiko's list of ways to sign has no certificates: they sign as their key does.
        names = wanted.replace(CERTIFIED, "") if word == SIGNATURES else wanted
        offered = narrowed(getattr(transport, KEPT_IN[word]), names)
        # Keys that may not be shown are left out one by one (see `keys`), with a note on each.
        if not offered and word != SIGNATURES:
            raise NothingInCommon(
                f"your ssh config says {NAMES[word]} for {destination.label}, "
                "and paramiko has none of them.",
                'Set transport = "openssh" for this remote.',
            )
        setattr(transport, KEPT_IN[word], offered)
