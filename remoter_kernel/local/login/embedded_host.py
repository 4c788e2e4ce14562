"""The embedded host: an SSH server of this person alone, so that the real path needs no remote.

A child process (`embedded_server`) serves it. Its host key and the one client key it lets in
are made for it and die with it; so does the process when its parent ends, however that
ends. What was started through it and has daemonised itself lives on, as on any host.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

from remoter_kernel.errors import RemoteLacks
from remoter_kernel.local.login.destination import Destination
from remoter_kernel.local.login.ssh_keywords import local_user
from remoter_kernel.local.private_sockets import short_private_folder

READY_WITHIN = 10.0  # seconds
ENDS_WITHIN = 3.0  # seconds
SERVER_MODULE = "remoter_kernel.local.login.embedded_server"
# What the server says and makes; imported from it, they would bring paramiko.
READY_LINE, SOCKET_NAME, HOST_KEY_ALIAS = b"ready", "ssh", "this-machine"
PACKAGE_ROOT = Path(__file__).resolve().parents[3]


class EmbeddedHost:
    """The embedded host, seen from the process that wants one."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the server's process; return once it listens."""
        if os.name != "posix":
            raise RemoteLacks(
                "the built-in host needs Linux or macOS.", "Add a remote with `remoter add`."
            )
        self._folder = short_private_folder("remoter-host-")
        complaints = self._folder / "stderr"
        with complaints.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", SERVER_MODULE, str(self._folder)],
                cwd=PACKAGE_ROOT,  # a folder that a person may remove must not be held
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                # Ctrl-C at the terminal is for the kernel, not for its host.
                start_new_session=True,
            )
        answer = _read_first_line(self._process, READY_WITHIN)  # it listens by then
        if answer != READY_LINE:
            why = complaints.read_text(errors="replace").strip().splitlines() or ["it fell silent"]
            self.close()
            raise RemoteLacks(
                f"the built-in host did not start: {why[-1]}.",
                "Is remoter-kernel installed completely?",
            )

    def close(self) -> None:
        """End the server's process."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError), process:
                if process.stdin is not None:
                    process.stdin.close()  # the sign to end
                try:
                    process.wait(ENDS_WITHIN)
                except subprocess.TimeoutExpired:
                    process.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def destination(self) -> Destination:
        """Where to log in."""
        if self._folder is None:
            raise RemoteLacks("the built-in host is not running.")
        return Destination(
            host_name="127.0.0.1",
            port=22,
            socket_path=self._folder / SOCKET_NAME,
            host_key_alias=HOST_KEY_ALIAS,
            user=local_user() or "nobody",  # its server does not look at it
            identity_files=(self._folder / "client_key",),
            known_hosts_files=(self._folder / "known_hosts",),
            identities_only=True,
            identity_agent="none",
            alias="this machine",
        )


def _read_first_line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Read one line, or nothing if it does not come in time."""
    alarm = threading.Timer(seconds, process.kill)
    alarm.daemon = True
    alarm.start()
    try:
        return process.stdout.readline().strip() if process.stdout else b""
    finally:
        alarm.cancel()
