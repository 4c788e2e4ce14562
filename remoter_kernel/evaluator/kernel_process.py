"""One child kernel: its process and its sockets. Touches, decides nothing.

Ends a kernel that goes on without one of its ports, as R does: it would never be ready. Another
process may take a port between the moment when it is chosen and the one when the kernel binds it.
The kernel's log tells; it is in a home, which may hang, so a thread reads it.

Which kernelspec is meant where several have its name. Jupyter looks into a person's own folder
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
from remoter_kernel.evaluator.kernel_curve import (
    KernelCurveKeys,
    KernelCurveProbe,
    can_offer_keys,
    read_keys,
    remove_keys,
    write_keys,
)
from remoter_kernel.evaluator.kernel_log import KernelLog
from remoter_kernel.evaluator.processes import is_running, started_at
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.kernel_client import KernelClient
from remoter_kernel.protocol.messages import MessageSigner
from remoter_kernel.protocol.threads import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jupyter_client.kernelspec import KernelSpec

    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Call, Reactor

GREET_AGAIN = 0.1  # seconds
CHECK_ALIVE_EVERY = 0.1  # seconds
WARDEN_KILLED = {"failed": "its warden was killed", "status": -signal.SIGKILL}
HIDDEN = ("JPY_PARENT_PID", "JPY_SESSION_NAME")  # of the login's environment, from the kernel

PORT_TAKEN = "Address already in use"  # what such a kernel prints
CHECK_PORTS_EVERY = 2.0  # seconds
TRIES = 3  # to start a kernel

DEFAULT = "python3"  # the name that the kernel of any Python has
OWN = Path(sys.prefix, "share", "jupyter", "kernels")


class _KernelManager(KernelManager):
    """Jupyter's, but it leaves the connection file to who comes next.

    Its own would remove the file whenever it is collected: that of the kernel which has been
    started since, and without it no other evaluator could ever take over.
    """

    def cleanup_connection_file(self) -> None:
        """Leave it: it goes with the session."""


class KernelProcess:
    """A kernel of any kernelspec here, started through a warden."""

    def __init__(
        self, reactor: Reactor, folder: Path, kernel: str, identity: bytes, *, is_own: bool = False
    ) -> None:
        """Remember; `identity` is the routing id on the child's sockets.

        `is_own`: the default kernel is that of the Python that runs this.
        """
        self.reactor = reactor
        self.folder = folder
        specs = specs_for(kernel, is_own=is_own)
        self.manager = _KernelManager(kernel_name=kernel, kernel_spec_manager=specs)
        self.pid = 0
        self.is_recovered = False  # has an evaluator before this one started it?
        self.on_ready: Callable[[dict[str, Any], dict[str, Any]], None] = lambda _head, _info: None
        self.on_exit: Callable[[dict[str, Any]], None] = lambda _words: None
        self.on_question_reached: Callable[[], None] = lambda: None  # see KernelClient
        self.is_encrypted = False  # for sure only once the kernel has answered
        self.client = KernelClient(reactor, identity)
        self.client.on_ready = self._on_ready
        self.client.on_question_reached = self._hear_of_question
        self._log = KernelLog(folder)
        self._disk = Worker("child", reactor.call_soon_threadsafe)
        self._offered_keys: KernelCurveKeys | None = None
        self._curve_probe: KernelCurveProbe | None = None  # while it is not known
        self._warden: subprocess.Popen[bytes] | None = None

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
        if can_offer_keys(spec):
            write_keys(Path(manager.connection_file))
        argv = manager.format_kernel_cmd(list(arguments))
        if not init:  # its lines may bring the program
            check_argv(spec, argv)
        argv = wrap_in_login_shell(argv, init)
        environment = merged_environment({**spec.env, **env})
        self.remove_exit_files()
        self._log.begin()
        start_request = {
            "argv": argv,
            "env": environment,
            "cwd": cwd,
            "umask": umask,
            "folder": str(self.folder),
            "log": str(self._log.path),
        }
        self._start_warden(start_request)
        self._connect()

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
        self._connect()
        self._poll_process(about)

    def resend_kernel_info(self) -> None:
        """Ask the child once more who it is, and hear of it through `on_ready`."""
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
        """Ask something ourselves: what comes of it is heard by nobody else."""
        self.client.request(channel, kind, content)

    def send(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Sign a message with the child's key and send it, as soon as its outputs are heard."""
        self.client.send(channel, parts)

    def _hear_of_question(self) -> None:
        self.on_question_reached()

    def _on_ready(self, header: dict[str, Any], info: dict[str, Any]) -> None:
        if self._offered_keys and not self.is_encrypted:
            # If there is no room, whoever takes over asks again.
            self._disk.submit(partial(remove_keys, Path(self.manager.connection_file)))
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
                os.killpg(self.pid, number)

    def close(self) -> None:
        """Close the sockets; what the process does is another matter."""
        if self._curve_probe:
            self._curve_probe.close()
            self._curve_probe = None
        self.client.close()
        self._disk.close(0.0)

    def log_tail(self, lines: int = 12) -> str:
        """Return the end of what this kernel printed by itself."""
        return self._log.tail(lines)

    def _connect(self) -> None:
        """Connect with keys or without, as the kernel binds its sockets."""
        manager = self.manager
        self.client.hold_until_open(
            MessageSigner(manager.session.key, manager.session.signature_scheme)
        )
        self._offered_keys = read_keys(Path(manager.connection_file))
        self.is_encrypted = self._offered_keys is not None
        if self._offered_keys:
            self._probe_curve()
        else:
            self._open_sockets(None)

    def _probe_curve(self) -> None:
        """Ask at the kernel's port whether it wants keys."""
        address = (str(self.manager.ip), int(self.manager.shell_port))
        self._curve_probe = KernelCurveProbe(self.reactor, address, self._on_curve_known)

    def _probe_curve_again(self) -> None:
        if self.client.is_open and not self.client.is_ready and self._curve_probe is None:
            self._probe_curve()

    def _on_curve_known(self, knows_keys: bool) -> None:  # noqa: FBT001 - a callback's only word
        """Open the sockets as the port says; a word against keys is asked for again and again."""
        self._curve_probe = None
        if self.client.is_ready:
            return
        self.is_encrypted = knows_keys
        if knows_keys:
            self._open_sockets(self._offered_keys)
            return
        if not self.client.is_open:
            self._open_sockets(None)
        self.reactor.call_later(GREET_AGAIN, self._probe_curve_again)

    def _open_sockets(self, keys: KernelCurveKeys | None) -> None:
        manager = self.manager
        ports = {
            Channel.SHELL: manager.shell_port,
            Channel.CONTROL: manager.control_port,
            Channel.STDIN: manager.stdin_port,
            Channel.IOPUB: manager.iopub_port,
        }
        addresses = {channel: f"tcp://{manager.ip}:{port}" for channel, port in ports.items()}
        if keys:
            self.client.open(addresses, keys.apply_to)
        else:
            self.client.open(addresses)

    def _poll_process(self, about: dict[str, Any]) -> None:
        """Watch a process whose warden is no child of ours."""

        def look_again(_error: Exception | None = None) -> None:
            self.reactor.call_later(CHECK_ALIVE_EVERY, partial(self._poll_process, about))

        self._disk.submit(
            partial(self._process_status, about),
            partial(self._on_process_status, look_again),
            look_again,
        )

    def _process_status(self, about: dict[str, Any]) -> tuple[bool, bool, dict[str, Any]]:
        """Tell of such a process: does it run, has it a warden, how has it ended?"""
        is_there = is_running(self.pid, about.get("started", ""))
        has_warden = bool(started_at(int(about["warden"])))
        return is_there, has_warden, registry.read_json(self.folder / "exit.json")

    def _on_process_status(
        self, look_again: Call, stand: tuple[bool, bool, dict[str, Any]]
    ) -> None:
        is_there, has_warden, words = stand
        if self.pid == 0:
            return
        if words.get("pid") == self.pid or not has_warden:
            if is_there:
                self.signal(signal.SIGKILL)  # it does not run on without a warden
            self._on_process_end(words or WARDEN_KILLED)
            return
        look_again()

    def _start_warden(self, start_request: dict[str, Any]) -> None:
        # A socket pair instead of a pipe: the poller of every system can wait for it.
        ours, theirs = socket.socketpair()
        with theirs:
            self._warden = warden = subprocess.Popen(
                [sys.executable, "-I", "-S", sys.argv[0], "warden"],
                stdin=subprocess.PIPE,
                stdout=theirs.fileno(),
                start_new_session=True,
                cwd="/",
            )
        with contextlib.suppress(OSError):  # no room: whoever looks for it finds none
            registry.write_json(self.folder / "child.json", {"warden": warden.pid})
        assert warden.stdin is not None  # noqa: S101 - it was asked for as a pipe
        with warden.stdin:
            warden.stdin.write(json.dumps(start_request).encode() + b"\n")
        ours.setblocking(False)
        rest = bytearray()

        def listen() -> None:
            try:
                heard = ours.recv(65536)
            except BlockingIOError:
                return
            rest.extend(heard)
            *lines, rest[:] = bytes(rest).split(b"\n")
            for line in lines:
                self._on_warden_message(json.loads(line))
            if not heard:
                self.reactor.remove_reader(ours)
                ours.close()
                warden.wait()
                self.signal(signal.SIGKILL)  # only where the warden was killed is there one left
                self._on_warden_message(WARDEN_KILLED)

        self.reactor.add_reader(ours, listen)

    def _on_warden_message(self, words: dict[str, Any]) -> None:
        """Hear from the warden: first a process number, then how that process ended."""
        if self._warden is None:
            return
        if "status" in words or "failed" in words:
            self._warden = None
            self._on_process_end(words)
        else:
            self.pid = int(words["pid"])

    def _on_process_end(self, words: dict[str, Any]) -> None:
        """Hear out what has ended, then tell of it."""
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
    """Looks at one start after the other."""

    def __init__(self, reactor: Reactor) -> None:
        """Remember; nothing is looked at yet."""
        self._reactor = reactor
        self._disk = Worker("kernel log", reactor.call_soon_threadsafe)
        self._tries = 1

    def watch(self, kernel: KernelProcess, is_starting: Callable[[], bool]) -> None:
        """Look at a child again and again while it starts."""
        self._reactor.call_later(CHECK_PORTS_EVERY, partial(self._poll, kernel, is_starting))

    def check_ports(self, kernel: KernelProcess, then: Callable[[], None]) -> None:
        """Go on if it has all its ports, perhaps that for questions apart; else end it."""
        self._disk.submit(kernel.log_tail, partial(self._on_log_tail, kernel, then))

    def read_log_tail(self, kernel: KernelProcess, then: Callable[[str], None]) -> None:
        """Go on with the last words of a child, whose disk may hang, or fail."""
        self._disk.submit(kernel.log_tail, then, lambda _error: then(""))

    def should_retry(self, last_words: str) -> bool:
        """May another try help a kernel that has ended with these words?"""
        if not self._reports_port_taken(last_words):
            return False
        self._tries += 1
        return True

    def reset(self) -> None:
        """A kernel is ready: the next start has all its tries again."""
        self._tries = 1

    def _poll(self, kernel: KernelProcess, is_starting: Callable[[], bool]) -> None:
        if is_starting():
            self.check_ports(kernel, lambda: None)
            self.watch(kernel, is_starting)

    def _on_log_tail(self, kernel: KernelProcess, then: Callable[[], None], said: str) -> None:
        if self._reports_port_taken(said):
            kernel.signal(signal.SIGKILL)
        else:
            then()

    def _reports_port_taken(self, said: str) -> bool:
        return self._tries < TRIES and PORT_TAKEN in said


def specs_for(kernel: str, *, is_own: bool) -> KernelSpecManager:
    """Return who knows the kernelspecs; `is_own`: the default kernel is this Python's.

    The look around a remote (local/launch/survey.sh) decides in the same way.
    """
    if is_own and kernel.lower() == DEFAULT:
        # Nothing but this environment's, or what ipykernel itself says where it has none.
        client_number = KernelSpecManager(kernel_dirs=[str(OWN)])
        try:
            client_number.get_kernel_spec(kernel)
        except (NoSuchKernel, OSError, ValueError):
            pass  # it has none, or a broken one
        else:
            return client_number
    return KernelSpecManager()


def check_argv(spec: KernelSpec, argv: list[str]) -> None:
    """Say so if a kernelspec starts a program that is gone, such as a removed environment's."""
    program = Path(argv[0])
    if program.is_absolute() and not program.exists():
        raise RemoteLacks(
            f"The kernelspec in {spec.resource_dir} starts {program}, which is not there.",
            f"Install its kernel anew, or remove it there: rm -r {spec.resource_dir}",
        )
