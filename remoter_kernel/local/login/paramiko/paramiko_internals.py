"""The only file that reaches into paramiko: each private name it uses, and why.

All of them were read in paramiko 5.1.0; `tests/pure/test_paramiko_internals.py` says which of them
the paramiko that is installed has no more. Methods that paramiko calls on itself are overridden
here once, and call a hook with a public name; the rest are functions of one line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import paramiko
from paramiko.agent import AgentSSH
from paramiko.auth_handler import AuthHandler
from paramiko.common import DEBUG
from paramiko.packet import Packetizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CHECK_EVERY = 5.0  # seconds between two looks of a transport at whether it was closed


# ------------------------------------------------------------ the connection


class HookedTransport(paramiko.Transport):  # type: ignore[misc]  # paramiko has no types
    """paramiko's Transport, whose private steps call methods with public names."""

    # paramiko reads from its socket with this timeout: 0.1 s costs each idle login ten wake-ups
    # a second. All that closes a transport of ours shuts its socket, too, which wakes it.
    _active_check_timeout = CHECK_EVERY
    # AES-GCM first (a third faster); paramiko's list has ciphers and MACs of the last century.
    _preferred_ciphers = (
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "aes128-ctr",
        "aes192-ctr",
        "aes256-ctr",
    )
    _preferred_macs = (
        "hmac-sha2-256-etm@openssh.com",
        "hmac-sha2-512-etm@openssh.com",
        "hmac-sha2-256",
        "hmac-sha2-512",
        "hmac-sha1",
    )

    def on_key_exchange(self) -> None:
        """Both ends have chosen their algorithms; our half of the exchange has been sent."""

    def on_key_exchange_reply(self) -> None:
        """The server's half has come; it is not verified yet."""

    def on_host_key(self, key: Any) -> None:
        """The server has proven that it holds this key; in each key exchange."""

    def on_disconnect(self, reason: str) -> None:
        """The server hangs up, and says why."""

    def _negotiate_keys(self, m: Any) -> None:
        # No public method tells when the exchange begins: its reply is the first round trip.
        super()._negotiate_keys(m)
        self.on_key_exchange()

    def _verify_key(self, host_key: bytes, sig: bytes) -> None:
        # paramiko looks at the key once, after the first exchange; later ones may show another.
        self.on_key_exchange_reply()
        super()._verify_key(host_key, sig)
        self.on_host_key(self.host_key)

    def _parse_disconnect(self, m: Any) -> None:
        # paramiko only logs the reason.
        m.get_int()  # its number
        self.on_disconnect(m.get_binary().decode(errors="replace"))


def handle_messages(transport: Any, handlers: Mapping[int, Callable[[Any], object]]) -> None:
    """Call these for messages of these numbers: paramiko's own handlers know only its channels."""
    transport._handler_table.update(handlers)


def handle_channel_messages(
    transport: Any, handlers: Mapping[int, Callable[[Any, Any], None]]
) -> None:
    """Call these with a channel and a message: paramiko's table is for its own Channel."""
    transport._channel_handler_table = handlers


def next_channel_number(transport: Any) -> int:
    """Return a number that no channel has; hold `transport.lock`. paramiko counts by itself."""
    return int(transport._next_channel())


def link_channel(transport: Any, number: int, channel: LinkedChannel) -> None:
    """Have messages for this number reach the channel: `open_channel` would wait for an answer."""
    transport._channels.put(number, channel)  # held weakly: the caller keeps the channel
    transport.channels_seen[number] = True  # else late messages for it end the connection


def unlink_channel(transport: Any, number: int) -> None:
    """Have messages for this number dropped: only paramiko's own Channel calls this publicly."""
    transport._unlink_channel(number)


class LinkedChannel:
    """A channel that paramiko's table of channels can hold."""

    def on_connection_gone(self) -> None:
        """The connection has ended."""

    def _unlink(self) -> None:
        # paramiko's `run` calls this on each channel when it ends.
        self.on_connection_gone()


def send_message(transport: Any, message: paramiko.Message) -> None:
    """Send at once: messages of a login may go out before the server's answer to the last one."""
    transport._send_message(message)


def send_user_message(transport: Any, message: paramiko.Message) -> None:
    """Send when no key exchange is under way: RFC 4253 (7.1) forbids it before."""
    transport._send_user_message(message)


def log_debug(transport: Any, text: str) -> None:
    """Write to paramiko's log, under the name of this transport."""
    transport._log(DEBUG, text)


ALGORITHMS = {  # paramiko's list, by the keyword of ssh_config
    "ciphers": "_preferred_ciphers",
    "hostkeyalgorithms": "_preferred_keys",
    "kexalgorithms": "_preferred_kex",
    "macs": "_preferred_macs",
    "pubkeyacceptedalgorithms": "_preferred_pubkeys",
}


def algorithms(transport: Any, keyword: str) -> tuple[str, ...]:
    """Return what a transport offers: `SecurityOptions` knows no signatures of keys."""
    return tuple(getattr(transport, ALGORITHMS[keyword]))


def set_algorithms(transport: Any, keyword: str, names: Sequence[str]) -> None:
    """Offer these alone; before the handshake. For the same reason as above."""
    setattr(transport, ALGORITHMS[keyword], names)


def host_key_algorithms(transport: Any) -> tuple[str, ...]:
    """Return those that are not disabled: the public property adds certificates to them."""
    return tuple(transport._filter_algorithm("keys"))


class HookedPacketizer(Packetizer):  # type: ignore[misc]  # paramiko has no types
    """paramiko's reader of packets, which tells of what comes before the first one."""

    def on_text(self, size: int) -> None:
        """So many bytes have come before the first packet."""

    def _read_timeout(self, timeout: float) -> bytes:
        # `readline` reads through this, and would read on without end.
        data = bytes(super()._read_timeout(timeout))
        self.on_text(len(data))
        return data


class ServerTransport(paramiko.Transport):  # type: ignore[misc]  # paramiko has no types
    """paramiko's Transport in server mode, for the embedded host."""

    _active_check_timeout = CHECK_EVERY  # as in `HookedTransport`
    _preferred_ciphers = ("aes128-gcm@openssh.com", "aes128-ctr")  # the fastest ones


# ------------------------------------------------------------ logging in


class HookedAuthHandler(AuthHandler):  # type: ignore[misc]  # paramiko has no types
    """paramiko's side of RFC 4252, with handlers of our own for what the server sends."""

    def handlers(self) -> dict[int, Callable[[Any], None]]:
        """Return what to call for messages of these numbers."""
        return {}

    @property
    def _client_handler_table(self) -> dict[int, Callable[[Any], None]]:
        # paramiko's own handlers do one attempt at a time, and keep one verdict.
        return {**super()._client_handler_table, **self.handlers()}


def sign_login(handler: Any, user: str, key: Any) -> tuple[str, Any, Any]:
    """Return the algorithm, the public key (or certificate) and the signature of a login.

    paramiko signs by these three on its transport's thread, only after its service request was
    answered: that would cost a round trip.
    """
    kind, public = handler._get_key_type_and_bits(key)
    algorithm = handler._finalize_pubkey_algorithm(kind)
    blob = handler._get_session_blob(key, "ssh-connection", user, algorithm)
    return algorithm, public, key.sign_ssh_data(blob, algorithm)


def begin_session(transport: Any) -> None:
    """Begin what follows a login (delayed compression): paramiko's own verdict would do so."""
    transport._auth_trigger()


class Agent(AgentSSH):  # type: ignore[misc]  # paramiko has no types
    """An agent at a socket of our choice: paramiko's `Agent` knows SSH_AUTH_SOCK alone."""

    def attach(self, connection: Any) -> None:
        """Ask the agent for its keys."""
        self._connect(connection)

    def close(self) -> None:
        """Close its connection, if there is one."""
        self._close()


# ------------------------------------------------------------ ssh_config


class HookedConfig(paramiko.SSHConfig):  # type: ignore[misc]  # paramiko has no types
    """paramiko's parser of ssh_config, which tells of each `Match`."""

    def on_match(self, kinds: set[str]) -> None:
        """A `Match` has conditions of these kinds."""

    def _get_matches(self, match: str) -> list[dict[str, Any]]:
        # A condition that paramiko does not know counts as met.
        found: list[dict[str, Any]] = super()._get_matches(match)
        self.on_match({one["type"] for one in found})
        return found
