"""The ground all peers stand on: temporary folders, one sshd, and a mark on every process.

Nothing of the person's own is read or written: homes, Jupyter's folders, SSH's files and the
session folders there are all below one temporary folder. Every process that is started on this
side carries one mark in its environment, everything that comes out of sshd another; so what is
left behind at the end can be found, whoever started it and however it daemonised.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

from tests.real_sshd import RealSshd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.proxy import Proxy

MARK = "REMOTER_BENCH_SIDE"
GONE_WITHIN = 5.0  # seconds a process has to obey SIGTERM


class Ground:
    """Folders, sshd, marks. Use it in `with`; the folder is gone afterwards."""

    def __init__(self) -> None:
        self.folder = Path()
        self.ssh_config = Path()
        self.sshd: RealSshd
        self._proxy: Proxy | None = None
        self._environment_before: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Make the folders, start sshd, and mark this process's children-to-be."""
        # Short, because the path of a Unix socket (ssh's ControlPath) must be.
        self.folder = Path(tempfile.mkdtemp(prefix="bench-"))
        self.ssh_config = self.folder / "ssh_config"
        for name in ("near", "far", "jupyter/kernels", "run", "sshd"):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        self.sshd = RealSshd(self.folder / "sshd", extra_config=self._far_environment())
        self.sshd.start()
        self._environment_before = dict(os.environ)
        os.environ.update(self._near_environment())
        os.environ.pop("SSH_AUTH_SOCK", None)
        return self

    def __exit__(self, *_: object) -> None:
        """End every marked process and sshd, and take the folders away."""
        self._proxy = None
        self.end_all()
        os.environ.clear()
        os.environ.update(self._environment_before)
        self.sshd.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _near_environment(self) -> dict[str, str]:
        """Say what processes on this side find in their environment."""
        near, jupyter = self.folder / "near", self.folder / "jupyter"
        return {
            MARK: f"near-{os.getpid()}",
            "HOME": str(near),
            "XDG_CONFIG_HOME": str(near / "config"),
            "XDG_STATE_HOME": str(near / "state"),
            "XDG_CACHE_HOME": str(near / "cache"),
            "XDG_DATA_HOME": str(near / "data"),
            "IPYTHONDIR": str(near / "ipython"),
            "JUPYTER_PATH": str(jupyter),
            "JUPYTER_DATA_DIR": str(jupyter),
            "JUPYTER_CONFIG_DIR": str(near / "jupyter_config"),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "run"),
            "REMOTER_CONFIG": str(near / "remotes.toml"),
            "REMOTER_STATE": str(near / "remoter_state"),
        }

    def _far_environment(self) -> str:
        """Say (to sshd) what processes on the far side find in their environment."""
        far = self.folder / "far"
        environment = {MARK: f"far-{os.getpid()}", "HOME": far, "IPYTHONDIR": far / "ipython"}
        return "SetEnv " + " ".join(f"{name}={value}" for name, value in environment.items())

    def aim(self, proxy: Proxy) -> None:
        """Write the SSH configuration in which the hosts of all peers lie behind `proxy`."""
        self._proxy = proxy
        kind, key = self.sshd.host_key().with_suffix(".pub").read_text().split()[:2]
        known_hosts = self.folder / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{proxy.port} {kind} {key}\n")
        behind = f"Port {proxy.port}\nUserKnownHostsFile {known_hosts}\nBatchMode yes"
        # One ssh for all that sshpyk does is what its manual asks for.
        shared = f"ControlMaster auto\nControlPersist 10m\nControlPath {self.folder}/m-%p"
        # As are these: the connection outlives an outage, a new one is not waited for.
        patient = (
            "ServerAliveInterval 5\nServerAliveCountMax 120000\nTCPKeepAlive yes\n"
            "ConnectionAttempts 1\nConnectTimeout 5"
        )
        self.ssh_config.unlink(missing_ok=True)
        sshpyk = f"{behind}\n{shared}\n{patient}"
        self.sshd.ssh_config(self.ssh_config, "bench-sshpyk", extra=sshpyk)
        self.sshd.ssh_config(self.ssh_config, "bench-remoter", extra=behind)

    def near(self) -> list[psutil.Process]:
        """List the processes of this side, without this one and the proxy."""
        ours = {os.getpid(), self._proxy.pid if self._proxy else 0}
        return [
            process
            for process in psutil.process_iter()
            if process.pid not in ours
            and (_has_mark(process, f"near-{os.getpid()}") or self._is_control_master(process))
        ]

    def far(self) -> list[psutil.Process]:
        """List the processes that came out of sshd, wherever they went since."""
        mark = f"far-{os.getpid()}"
        return [process for process in psutil.process_iter() if _has_mark(process, mark)]

    def _is_control_master(self, process: psutil.Process) -> bool:
        """Know OpenSSH's shared connection by its title, which it writes over its environment."""
        title = _command_line(process)
        return title.startswith("ssh: ") and str(self.folder) in title

    def forget_proxy(self) -> None:
        """Stop leaving the last proxy out: it has ended."""
        self._proxy = None

    def end_what_stays(self) -> list[str]:
        """End what does not end by itself within a few seconds; says what it was."""
        deadline = time.monotonic() + GONE_WITHIN
        while (found := self.near() + self.far()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.end_all() if found else []

    def end_all(self) -> list[str]:
        """End every marked process; says which there were."""
        found = self.near() + self.far()
        names = [f"{process.pid} {_command_line(process)[:120]}" for process in found]
        end(found)
        return names


def end(processes: Iterable[psutil.Process]) -> None:
    """Ask these processes to end, then make them."""
    listed = list(processes)
    for process in listed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(listed, timeout=GONE_WITHIN)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=GONE_WITHIN)


def beside_kernel(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Leave out the Jupyter kernel itself."""
    return [process for process in processes if not is_kernel(process)]


def is_kernel(process: psutil.Process) -> bool:
    """Tell the Jupyter kernel itself from what watches over it (whose argv may name it too)."""
    return _runs_ipykernel(process) and not any(map(_runs_ipykernel, _children(process)))


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children()
    except psutil.NoSuchProcess:
        return []
    return children


def _runs_ipykernel(process: psutil.Process) -> bool:
    return "ipykernel_launcher" in _command_line(process).split()


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        is_alive = process.status() != psutil.STATUS_ZOMBIE
        return bool(is_alive and process.environ().get(MARK) == mark)
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""
