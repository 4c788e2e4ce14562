"""An SSH server that says something to everybody, and then waits until somebody has acted on it."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 60.0  # seconds


class WaitingHost:
    """Lets everybody in with a key once `lets_in` is set; `hangs_up` instead, if that is said."""

    def __init__(self, folder: Path, banner: str, *, hangs_up: bool = False) -> None:
        self.lets_in = threading.Event()
        self.was_asked = threading.Event()
        self.banner, self.hangs_up = banner, hangs_up
        self._folder = folder
        self._key = paramiko.Ed25519Key.from_private_key_file(str(_key(folder / "host_key")))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._transports: list[paramiko.Transport] = []
        self._thread = threading.Thread(target=self._accept, name="waiting-host")
        _key(folder / "client_key")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.lets_in.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(LIMIT)
        for transport in self._transports:
            transport.close()
            transport.join(LIMIT)

    def ssh_config(self, alias: str = "waits") -> Path:
        """Write an ssh_config that knows it."""
        port = self.port
        known, config = self._folder / "known_hosts", self._folder / "ssh_config"
        known.write_text(f"[127.0.0.1]:{port} {self._key.get_name()} {self._key.get_base64()}\n")
        config.write_text(
            f"Host {alias}\n HostName 127.0.0.1\n Port {port}\n User ada\n IdentitiesOnly yes\n"
            " ConnectTimeout 3\n"
            f" IdentityFile {self._folder}/client_key\n UserKnownHostsFile {known}\n"
            " GlobalKnownHostsFile /dev/null\n"
        )
        return config

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                transport = paramiko.Transport(connection)
                transport.add_server_key(self._key)
                self._transports.append(transport)
                with contextlib.suppress(paramiko.SSHException, EOFError):
                    transport.start_server(server=_Server(self, transport))


class _Server(paramiko.ServerInterface):  # type: ignore[misc]  # paramiko has no types
    def __init__(self, host: WaitingHost, transport: paramiko.Transport) -> None:
        self._host, self._transport = host, transport

    def get_banner(self) -> tuple[str, str]:
        return self._host.banner, ""

    def get_allowed_auths(self, username: str) -> str:
        del username
        return "publickey"

    def check_auth_publickey(self, username: str, key: Any) -> int:
        del username, key
        self._host.was_asked.set()
        if self._host.hangs_up:
            sock = self._transport.sock
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):  # unread words would cut off those that were said
                while sock.recv(4096):
                    pass
            return int(AUTH_FAILED)
        return int(AUTH_SUCCESSFUL if self._host.lets_in.wait(LIMIT) else AUTH_FAILED)

    def check_channel_request(self, kind: str, chanid: int) -> int:
        del kind, chanid
        return int(OPEN_SUCCEEDED)


def _key(path: Path) -> Path:
    from tests.real_sshd import make_key

    return path if path.exists() else make_key(path)
