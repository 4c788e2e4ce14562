"""One kernel: its process, started through a warden, and its client. Decides nothing.

Also: a kernel that goes on without one of its ports, as R does, would never be ready, so it is
killed. Another process may take a port between the moment when Jupyter chooses it and the one when
the kernel binds it. The kernel's log tells; it is in a home, which may hang, so a thread reads it.

And which kernelspec is meant where several have its name: Jupyter looks into a person's own folder
first, and a kernelspec there may start any Python. Whoever has named a Python means that one's
kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import string
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_client.manager import KernelManager

from remoter_kernel.errors import RemoteLacks
from remoter_kernel.evaluator import registry
from remoter_kernel.evaluator.kernel_curve import KernelConnector, can_offer_keys, write_keys
from remoter_kernel.evaluator.kernel_log import KernelLog
from remoter_kernel.evaluator.processes import is_running, started_at
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.kernel_client import KernelClient
from remoter_kernel.protocol.reactor import ignore
from remoter_kernel.protocol.threads import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jupyter_client.kernelspec import KernelSpec

    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Reactor

CHECK_ALIVE_EVERY = 0.1  # seconds
WARDEN_KILLED = {"failed": "its warden was killed", "status": -signal.SIGKILL}
# Of the login's environment: ipykernel would end with the process of JPY_PARENT_PID, and take
# JPY_SESSION_NAME for its notebook's path.
HIDDEN = ("JPY_PARENT_PID", "JPY_SESSION_NAME")

PORT_TAKEN = "Address already in use"  # what such a kernel prints
CHECK_PORTS_EVERY = 2.0  # seconds
TRIES = 3  # to start a kernel

DEFAULT = "python3"  # the name that the kernel of any Python has
OWN = Path(sys.prefix, "share", "jupyter", "kernels")


class _KernelManager(KernelManager):
    """Jupyter's, but it leaves the connection file alone: that goes with the session.

    Jupyter's own removes the file whenever it is collected: by then it is that of the kernel which
    has been started since, and without it no other evaluator could ever take over.
    """

    def cleanup_connection_file(self) -> None:
        """Leave it."""


class KernelProcess:
    """A kernel of any kernelspec here, started through a warden."""

    def __init__(
        self, reactor: Reactor, folder: Path, kernel: str, identity: bytes, *, is_own: bool = False
    ) -> None:
        """`identity` is our routing id on the kernel's sockets.

        `is_own`: the default kernel is that of the Python that runs this.
        """
        self.reactor = reactor
        self.folder = folder
        specs = specs_for(kernel, is_own=is_own)
        self.manager = _KernelManager(kernel_name=kernel, kernel_spec_manager=specs)
        self.pid = 0
        self.is_recovered = False  # has an evaluator before this one started it?
        self.on_ready: Callable[[dict[str, Any], dict[str, Any]], None] = ignore
        self.on_exit: Callable[[dict[str, Any]], None] = ignore
        self.client = KernelClient(reactor, identity)
        self.client.on_ready = self._on_ready
        self._log = KernelLog(folder)
        self._disk = Worker("child", reactor.call_soon_threadsafe)
        self._connector = KernelConnector(reactor, self.manager, self.client, self._disk)
        self._warden: subprocess.Popen[bytes] | None = None

    @property
    def is_encrypted(self) -> bool:
        """Do its sockets have keys? For sure only once it has answered."""
        return self._connector.is_encrypted

    def start(
        self,
        *,
        arguments: Sequence[str] = (),
        env: Mapping[str, str],
        cwd: str,
        init: Sequence[str],
        umask: int,
    ) -> None:
        """Start the process and connect to it; `RemoteLacks` if that cannot be."""
        manager = self.manager
        spec = self._spec()
        manager.connection_file = str(self.folder / "connection.json")
        manager.write_connection_file()
        # Between the two: Jupyter has written the file, and the kernel has not read it.
        if can_offer_keys(spec):
            write_keys(Path(manager.connection_file))
        argv = manager.format_kernel_cmd(list(arguments))
        if not init:  # its lines may bring the program
            check_argv(spec, argv)
        # Before the warden writes its own: files of a dead kernel would be taken for this one's.
        self.remove_exit_files()
        self._log.begin()
        start_request = {
            "argv": wrap_in_login_shell(argv, init),
            "env": merged_environment({**spec.env, **env}),
            "cwd": cwd,
            "umask": umask,
            "folder": str(self.folder),
            "log": str(self._log.path),
        }
        self._start_warden(start_request)
        self._connector.connect()

    def remove_exit_files(self) -> None:
        """Forget a process that has ended: where no file tells of one, one is to be started."""
        for name in ("child.json", "exit.json"):
            with contextlib.suppress(OSError):
                (self.folder / name).unlink()

    def attach(self) -> None:
        """Connect to a process that an evaluator before this one has started."""
        self.manager.connection_file = str(self.folder / "connection.json")
        self.manager.load_connection_file()
        about = registry.read_json(self.folder / "child.json")
        self.pid, self.is_recovered = int(about["pid"]), True
        self._connector.connect()
        self._poll_process(about)

    def resend_kernel_info(self) -> None:
        """Ask the kernel once more for its kernel_info, which `on_ready` gets."""
        self.client.request_kernel_info()

    def _spec(self) -> KernelSpec:
        manager = self.manager
        try:
            spec = manager.kernel_spec
        except (NoSuchKernel, OSError, ValueError) as error:
            names = ", ".join(sorted(manager.kernel_spec_manager.find_kernel_specs()))
            message = f"There is no kernelspec {manager.kernel_name} that works ({error})."
            raise RemoteLacks(message, f"There are: {names or 'none'}.") from error
        assert spec is not None  # noqa: S101 - only a kernel without a name has none
        return spec

    def request(self, channel: Channel, kind: str, content: dict[str, Any]) -> None:
        """Send a request of our own: no client receives what comes of it."""
        self.client.request(channel, kind, content)

    def send(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Sign a message with the kernel's key and send it, as soon as its outputs reach us."""
        self.client.send(channel, parts)

    def _on_ready(self, header: dict[str, Any], info: dict[str, Any]) -> None:
        self._connector.on_ready()
        self.on_ready(header, info)

    def interrupt(self) -> None:
        """Interrupt as the kernelspec asks: a signal to its group, or a message."""
        spec = self.manager.kernel_spec
        if spec is not None and spec.interrupt_mode == "message":
            self.request(Channel.CONTROL, "interrupt_request", {})
        else:
            self.signal(signal.SIGINT)

    def signal(self, number: int) -> None:
        """Send a signal to the kernel's process group, if it is there."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)  # the warden made it a session, and so a group

    def close(self) -> None:
        """Close the sockets; what the process does is another matter."""
        self._connector.close()
        self.client.close()
        self._disk.close(0.0)

    def log_tail(self, lines: int = 12) -> str:
        """Return the end of what this kernel has printed to its stdout and stderr."""
        return self._log.tail(lines)

    def _poll_process(self, about: dict[str, Any]) -> None:
        """Watch a process whose warden another evaluator has started, and so without its pipe."""

        def look_again(_error: Exception | None = None) -> None:
            self.reactor.call_later(CHECK_ALIVE_EVERY, partial(self._poll_process, about))

        def read_status() -> tuple[bool, bool, dict[str, Any]]:  # in a thread: the disk may hang
            is_there = is_running(self.pid, about.get("started", ""))
            has_warden = bool(started_at(int(about["warden"])))
            return is_there, has_warden, registry.read_json(self.folder / "exit.json")

        def on_status(status: tuple[bool, bool, dict[str, Any]]) -> None:
            is_there, has_warden, words = status
            if self.pid == 0:
                return
            if words.get("pid") != self.pid and has_warden:
                look_again()
                return
            if is_there:
                self.signal(signal.SIGKILL)  # it does not run on without a warden
            self._on_process_end(words or WARDEN_KILLED)

        self._disk.submit(read_status, on_status, look_again)

    def _start_warden(self, start_request: dict[str, Any]) -> None:
        # A socket pair instead of a pipe: the poller of every system can wait for it.
        ours, theirs = socket.socketpair()
        with theirs:
            self._warden = warden = subprocess.Popen(
                # -I, -S: it needs no packages, and no module of the person's comes in its way.
                [sys.executable, "-I", "-S", sys.argv[0], "warden"],
                stdin=subprocess.PIPE,
                stdout=theirs.fileno(),
                start_new_session=True,  # it must outlive this process, whatever ends that
                cwd="/",
            )
        with contextlib.suppress(OSError):  # no room: whoever looks for it finds none
            registry.write_json(self.folder / "child.json", {"warden": warden.pid})
        assert warden.stdin is not None  # noqa: S101 - it was asked for as a pipe
        with warden.stdin:
            warden.stdin.write(json.dumps(start_request).encode() + b"\n")
        ours.setblocking(False)
        rest = bytearray()

        def on_readable() -> None:
            try:
                chunk = ours.recv(65536)
            except BlockingIOError:
                return
            rest.extend(chunk)
            *lines, rest[:] = bytes(rest).split(b"\n")
            for line in lines:
                self._on_warden_message(json.loads(line))
            if not chunk:
                self.reactor.remove_reader(ours)
                ours.close()
                warden.wait()
                self.signal(signal.SIGKILL)  # only where the warden was killed is there one left
                self._on_warden_message(WARDEN_KILLED)

        self.reactor.add_reader(ours, on_readable)

    def _on_warden_message(self, words: dict[str, Any]) -> None:
        """Take a line of the warden: first a process number, then how that process ended."""
        if self._warden is None:
            return
        if "status" in words or "failed" in words:
            self._warden = None
            self._on_process_end(words)
        else:
            self.pid = int(words["pid"])

    def _on_process_end(self, words: dict[str, Any]) -> None:
        """Read all that the kernel has sent before its end, then tell of that."""
        self.pid = 0
        self.client.drain(partial(self.on_exit, words))


def merged_environment(more: Mapping[str, Any]) -> dict[str, str]:
    """Return the login's environment with more in it; a kernelspec may have a number there."""
    environment = {key: value for key, value in os.environ.items() if key not in HIDDEN}
    for key, value in more.items():
        environment[key] = string.Template(str(value)).safe_substitute(environment)
    return environment


def wrap_in_login_shell(argv: list[str], init: Sequence[str]) -> list[str]:
    """Run shell lines of a login shell before a command; the first that fails ends it."""
    if not init:
        return argv
    shell = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
    lines = [f"{line} || exit 1" for line in init]
    return [shell, "-l", "-c", "\n".join([*lines, 'exec "$@"']), shell, *argv]


class PortConflicts:
    """Finds out whether a kernel has lost a port; serves one start after the other."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._disk = Worker("kernel log", reactor.call_soon_threadsafe)
        self._tries = 1

    def watch(self, kernel: KernelProcess, is_starting: Callable[[], bool]) -> None:
        """Look at a kernel again and again while it starts."""

        def look() -> None:
            if is_starting():
                self.check_ports(kernel, lambda: None)
                self.watch(kernel, is_starting)

        self._reactor.call_later(CHECK_PORTS_EVERY, look)

    def check_ports(self, kernel: KernelProcess, then: Callable[[], None]) -> None:
        """Call `then` if it has its ports (it may go on without that for stdin); else kill it."""

        def judge(printed: str) -> None:
            if self._can_retry(printed):
                kernel.signal(signal.SIGKILL)
            else:
                then()

        self._disk.submit(kernel.log_tail, judge)

    def read_log_tail(self, kernel: KernelProcess, then: Callable[[str], None]) -> None:
        """Call `then` with what a kernel printed last; its disk may hang, or fail."""
        self._disk.submit(kernel.log_tail, then, lambda _error: then(""))

    def should_retry(self, printed: str) -> bool:
        """May another try help a kernel that has ended after printing this? If so, count it."""
        can_retry = self._can_retry(printed)
        self._tries += can_retry
        return can_retry

    def reset(self) -> None:
        """A kernel is ready: the next start has all its tries again."""
        self._tries = 1

    def _can_retry(self, printed: str) -> bool:
        return self._tries < TRIES and PORT_TAKEN in printed


def specs_for(kernel: str, *, is_own: bool) -> KernelSpecManager:
    """Return what finds the kernelspecs; `is_own`: the default kernel is this Python's.

    `local/launch/survey.sh` lists what a remote has by the same rule.
    """
    if is_own and kernel.lower() == DEFAULT:
        # This environment's alone, or what ipykernel itself offers where it has none.
        own = KernelSpecManager(kernel_dirs=[str(OWN)])
        with contextlib.suppress(NoSuchKernel, OSError, ValueError):  # it has none, or a broken one
            own.get_kernel_spec(kernel)
            return own
    return KernelSpecManager()


def check_argv(spec: KernelSpec, argv: list[str]) -> None:
    """Say so if a kernelspec starts a program that is gone, such as a removed environment's."""
    program = Path(argv[0])
    if program.is_absolute() and not program.exists():
        raise RemoteLacks(
            f"The kernelspec in {spec.resource_dir} starts {program}, which is not there.",
            f"Install its kernel anew, or remove it there: rm -r {spec.resource_dir}",
        )
