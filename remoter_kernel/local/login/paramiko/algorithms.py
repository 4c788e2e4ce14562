"""Lets a transport of paramiko offer only the algorithms that ssh_config allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoter_kernel.local.login.login_errors import NoCommonAlgorithm
from remoter_kernel.local.login.paramiko.keys import CERTIFICATE_SUFFIX
from remoter_kernel.local.login.ssh_keywords import KEYWORDS, filter_algorithms

if TYPE_CHECKING:
    from remoter_kernel.local.login.paramiko.transport import Transport
    from remoter_kernel.local.login.ssh_config import Destination

RSA_SIGNATURE_NAMES = "pubkeyacceptedalgorithms"
PARAMIKO_ATTRIBUTES = {  # by paramiko
    "ciphers": "_preferred_ciphers",
    "hostkeyalgorithms": "_preferred_keys",
    "kexalgorithms": "_preferred_kex",
    "macs": "_preferred_macs",
    RSA_SIGNATURE_NAMES: "_preferred_pubkeys",
}


def restrict_algorithms(transport: Transport, destination: Destination) -> None:
    """Narrow what a transport will offer; to be called before it meets the server."""
    for word, wanted in destination.rules.algorithms:
        # Paramiko's list of ways to sign has no certificates: they sign as their key does.
        names = wanted.replace(CERTIFICATE_SUFFIX, "") if word == RSA_SIGNATURE_NAMES else wanted
        offered = filter_algorithms(getattr(transport, PARAMIKO_ATTRIBUTES[word]), names)
        # Keys that may not be shown are left out one by one (see `keys`), with a note on each.
        if not offered and word != RSA_SIGNATURE_NAMES:
            raise NoCommonAlgorithm(
                f"your ssh config says {KEYWORDS[word]} for {destination.label}, "
                "and paramiko has none of them.",
                'Set transport = "openssh" for this remote.',
            )
        setattr(transport, PARAMIKO_ATTRIBUTES[word], offered)
