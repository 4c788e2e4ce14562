"""A Jupyter of one's own: folders, remotes and kernels that no person shares.

Kernels are started as Jupyter starts them (by kernelspec), or plainly, without any of our
code, as the yardstick.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file
from jupyter_client.manager import KernelManager

from remoter_kernel.local.login.keeper.endpoint import end_logins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.real_users import FarSide

MARK = "REMOTER_TEST_MARK"  # in the environment of everything a test starts on either side
THIS_RUN = f"run-{os.getpid()}-{time.time_ns()}"  # the mark's value
READY_WITHIN = 60.0  # seconds until a started kernel has answered
ENDS_WITHIN = 15.0  # seconds until a stopped kernel is gone


class JupyterHere:
    """A home, Jupyter folders and remotes in one folder; in force between enter and exit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "jupyter-data"
        self.environment = {
            "HOME": str(folder / "home"),
            "JUPYTER_DATA_DIR": str(self.data),
            "JUPYTER_CONFIG_DIR": str(folder / "jupyter-config"),
            "JUPYTER_RUNTIME_DIR": str(folder / "jupyter-runtime"),
            "JUPYTER_PATH": "",
            "IPYTHONDIR": str(folder / "ipython"),
            "REMOTER_CONFIG": str(folder / "remotes.toml"),
            "REMOTER_STATE": str(folder / "state"),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            MARK: THIS_RUN,
        }
        self._before: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._before = dict(os.environ)
        for name in ("home", "jupyter-data", "jupyter-config", "jupyter-runtime", "ipython"):
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ.update(self.environment)
        for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"):
            os.environ.pop(name, None)
        return self

    def __exit__(self, *_: object) -> None:
        end_logins()
        os.environ.clear()
        os.environ.update(self._before)

    def add_remote(
        self,
        name: str,
        host: str,
        *,
        language: str = "python",
        debugger: bool = False,
        **wishes: Any,
    ) -> str:
        """Configure a remote with its kernelspec; returns the kernelspec's name."""
        from remoter_kernel.local.config.kernelspec import install_kernelspec
        from remoter_kernel.local.config.remotes import Remote, write_remote

        remote = Remote(name=name, host=host, **wishes)
        write_remote(remote, make_default=False, replace=True)
        install_kernelspec(remote, language=language, debugger=debugger)
        return f"remoter-{name}"

    def remoter(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the `remoter` command as a person without a terminal would."""
        options = {"timeout": 60.0, "stdin": subprocess.DEVNULL, **options}
        return subprocess.run(
            [str(Path(sys.executable).with_name("remoter")), *words],
            check=False,
            capture_output=True,
            text=True,
            **options,
        )


class StartedKernel:
    """A kernel that was started from a kernelspec, and a client that is connected to it."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager = manager
        self.client = client

    @property
    def pid(self) -> int:
        """The process id of what Jupyter started here."""
        return int(self.manager.provisioner.pid)


PORT_TRIES = 3
PORT_TAKEN = b"of the connection file cannot be taken"


@contextlib.contextmanager
def started_kernel(
    spec: str,
    *,
    ready_within: float = READY_WITHIN,
    before: Callable[[KernelManager], object] = lambda _manager: None,
    **options: Any,
) -> Iterator[StartedKernel]:
    """Start a kernel by the name of its kernelspec, as Jupyter does, and shut it down.

    `before` may look at its manager, whose key is known, before the kernel is started.
    """
    for left in reversed(range(PORT_TRIES)):
        manager = KernelManager(kernel_name=spec)
        before(manager)
        with tempfile.TemporaryFile() as log:
            manager.start_kernel(stdout=subprocess.DEVNULL, **{"stderr": log, **options})
            client = manager.client()
            try:
                client.start_channels()
                try:
                    client.wait_for_ready(timeout=ready_within)
                except RuntimeError:
                    log.seek(0)
                    # As Jupyter: its ports were free a moment ago, and somebody else has one now.
                    if not left or PORT_TAKEN not in log.read():
                        raise
                    continue
                yield StartedKernel(manager, client)
                return
            finally:
                client.stop_channels()
                manager.shutdown_kernel()
                manager.context.destroy(linger=0)


@contextlib.contextmanager
def plain_kernel(
    far: FarSide, folder: Path, *, argv: tuple[str, ...] = (), environment: Mapping[str, str] = {}
) -> Iterator[BlockingKernelClient]:
    """Run a kernel as the far user without any of our code, and connect a client to it."""
    runtime = Path(f"{folder}-plain")
    runtime.mkdir()
    far.give(runtime)
    file = runtime / "kernel.json"
    write_connection_file(str(file))
    far.give(file)
    command = argv or (str(far.python), "-m", "ipykernel_launcher", "-f", "{connection_file}")
    with (runtime / "log").open("wb") as log:
        process = subprocess.Popen(
            [part.format(connection_file=file) for part in command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=far_environment(far) | {MARK: THIS_RUN} | dict(environment),
            **far.ids,
        )
    try:
        with client_of(file) as client:
            yield client
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(ENDS_WITHIN)
        shutil.rmtree(runtime, ignore_errors=True)


@contextlib.contextmanager
def client_of(file: Path) -> Iterator[BlockingKernelClient]:
    """Connect a client to the kernel of a connection file, which may have yet to begin."""
    client = BlockingKernelClient(connection_file=str(file))
    client.load_connection_file()
    try:
        wait_for(
            lambda: _listens(client.shell_port), seconds=READY_WITHIN, what="a kernel is there"
        )
        # With a heartbeat, a client takes a kernel that lets it wait for a second for a dead one.
        client.start_channels(hb=False)
        client.wait_for_ready(timeout=READY_WITHIN)
        yield client
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def far_environment(far: FarSide) -> dict[str, str]:
    """Say what a login finds in its environment."""
    return {
        "HOME": str(far.home),
        "USER": far.user,
        "LOGNAME": far.user,
        "SHELL": "/bin/bash",
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/games",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def wait_for(fact: Any, *, seconds: float = 10.0, what: str = "") -> Any:
    """Wait until `fact()` is true and return its value; fail when the limit has passed."""
    deadline = time.monotonic() + seconds
    while True:
        begun = time.monotonic()
        if value := fact():
            return value
        if time.monotonic() > deadline:
            message = f"not within {seconds} s: {what or fact}"
            raise AssertionError(message)
        time.sleep(max(0.02, (time.monotonic() - begun) / 2))  # a command is no light question
