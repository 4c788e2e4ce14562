"""One child kernel: its process and its sockets. Touches, decides nothing."""

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

import zmq
from jupyter_client.kernelspec import NoSuchKernel
from jupyter_client.manager import KernelManager

from remoter_kernel.daemon import registry
from remoter_kernel.daemon.encryption import (
    Greeting,
    Keys,
    may_know_keys,
    offer_keys,
    offered_keys,
    withdraw_keys,
)
from remoter_kernel.daemon.processes import is_running, started_at
from remoter_kernel.errors import ProtocolError, RemoteLacks
from remoter_kernel.wire.frames import Bytes, Channel
from remoter_kernel.wire.messages import HEADER, PARENT, TOPIC, Voice, content_of, header_of
from remoter_kernel.wire.reactor import messages
from remoter_kernel.wire.threads import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jupyter_client.kernelspec import KernelSpec

    from remoter_kernel.wire.reactor import Reactor

SOCKETS = {
    Channel.SHELL: zmq.DEALER,
    Channel.CONTROL: zmq.DEALER,
    Channel.STDIN: zmq.DEALER,
    Channel.IOPUB: zmq.SUB,
}
NUDGE_AGAIN = 0.02  # seconds
GREET_AGAIN = 0.1  # seconds
HEARD_WITHIN = 0.25  # seconds: not all kernels say something to who subscribes
MOST_LAST_WORDS = 4000  # characters
LOOK_EVERY = 0.1  # seconds
NOBODY = 8  # bytes: the parent header of a message that has no parent
HIDDEN = ("JPY_PARENT_PID", "JPY_SESSION_NAME")  # of the login's environment, from the kernel


class _Manager(KernelManager):
    """Jupyter's, but it leaves the connection file to who comes next.

    Its own would remove the file whenever it is collected: that of the kernel which has been
    started since, and without it no other evaluator could ever take over.
    """

    def cleanup_connection_file(self) -> None:
        """Leave it: it goes with the session."""


class Child:
    """A kernel of any kernelspec here, started through a warden."""

    def __init__(self, reactor: Reactor, folder: Path, kernel: str, identity: bytes) -> None:
        """Remember; `identity` is the routing id on the child's sockets."""
        self.reactor = reactor
        self.folder = folder
        self.identity = identity
        self.manager = _Manager(kernel_name=kernel)
        self.pid = 0
        self.on_message: Callable[[Channel, list[Bytes]], None] = lambda _channel, _parts: None
        self.on_exit: Callable[[dict[str, Any]], None] = lambda _words: None
        self.is_encrypted = False  # for sure only once the kernel has answered
        self._offered: Keys | None = None
        self._context = zmq.Context()
        self._disk = Worker("child", reactor.call)
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
        self._greeting: Greeting | None = None  # while it is not known
        self._is_held = False  # what is sent waits until something is heard on iopub
        self._unsent: list[tuple[Channel, Sequence[Bytes]]] = []
        self.on_ready: Callable[[dict[str, Any], dict[str, Any]], None] = lambda _head, _info: None
        self._voice = Voice(b"")
        self._own_mark = b""  # stands in the parent header of what answers our own questions
        self._is_heard = False  # does iopub reach us?
        self._is_met = False
        self._log_begins = 0  # bytes of the kernels before it
        self._warden: subprocess.Popen[bytes] | None = None

    @property
    def voice(self) -> Voice:
        """Speaks with the key of the child's connection."""
        return self._voice

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
        if may_know_keys(spec):
            offer_keys(Path(manager.connection_file))
        argv = with_init(manager.format_kernel_cmd(list(arguments)), init)
        environment = {key: value for key, value in os.environ.items() if key not in HIDDEN}
        for key, value in {**spec.env, **env}.items():
            environment[key] = string.Template(value).safe_substitute(environment)
        self.forget()
        log = self.folder / "kernel.log"
        self._log_begins = log.stat().st_size if log.exists() else 0
        wish = {
            "argv": argv,
            "env": environment,
            "cwd": cwd,
            "umask": umask,
            "folder": str(self.folder),
            "log": str(log),
        }
        self._watch_over(wish)
        self._connect()

    def forget(self) -> None:
        """Forget a process that has ended: where no file tells of one, one is to be started."""
        for name in ("child.json", "exit.json"):
            with contextlib.suppress(OSError):
                (self.folder / name).unlink()

    def adopt(self) -> None:
        """Connect to a process that an evaluator before this one has started."""
        self.manager.connection_file = str(self.folder / "connection.json")
        self.manager.load_connection_file()
        about = registry.read_json(self.folder / "child.json")
        self.pid = int(about["pid"])
        self._connect()
        self._look_after(about)

    def ask_again(self) -> None:
        """Ask the child once more who it is, and hear of it through `on_ready`."""
        self._is_met = False
        self.ask(Channel.SHELL, "kernel_info_request", {})

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

    def ask(self, channel: Channel, kind: str, content: dict[str, Any]) -> None:
        """Ask something ourselves: what comes of it is heard by nobody else."""
        parts = self._voice.compose(kind, content)
        if channel in self._sockets:
            self._send(channel, parts)
        elif self._greeting:
            self._unsent.append((channel, parts))

    def say(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Sign a message with the child's key and send it, as soon as its outputs are heard."""
        if self._is_held:
            self._unsent.append((channel, parts))
        else:
            self._send(channel, parts)

    def _send(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        self._sockets[channel].send_multipart(self._voice.sign(parts), copy=True)

    def _send_held(self) -> None:
        """Send what has waited: what a kernel publishes before we are subscribed is dropped."""
        self._is_held = False
        unsent, self._unsent = self._unsent, []
        for channel, parts in unsent:
            if channel in self._sockets:
                self._send(channel, parts)

    def hear(self, channel: Channel) -> None:
        """Take in what waits on one channel."""
        if channel not in self._sockets:
            return  # it has ended before it listened
        for frames in messages(self._sockets[channel]):
            try:
                topics, parts = self._voice.check(frames)
            except ProtocolError:
                continue  # somebody else on this machine knocked at the child's port
            if channel is Channel.IOPUB:
                parts[TOPIC] = b"".join(topics)
                if self._is_held:
                    self._send_held()
            elif channel is not Channel.CONTROL:
                self.hear(Channel.IOPUB)  # what was published before the reply comes before it
            is_ours = self._own_mark in bytes(parts[PARENT])
            if not self._is_met:
                self._meet(channel, parts, is_answer=is_ours)
            if not (is_ours or _tells_of_its_start(parts)):
                self.on_message(channel, parts)

    def _meet(self, channel: Channel, parts: list[Bytes], *, is_answer: bool) -> None:
        """Note that the child answers, and that it is heard on iopub: both, and it is ready.

        What a kernel publishes before we are subscribed is dropped, so it is asked again
        until something of it has come.
        """
        self._is_heard |= channel is Channel.IOPUB
        if not (is_answer and channel is Channel.SHELL):
            return
        if self._is_heard:
            self._is_met = True
            if self._offered and not self.is_encrypted:
                # If there is no room, whoever takes over asks again.
                self._disk.do(partial(withdraw_keys, Path(self.manager.connection_file)))
            self.on_ready(header_of(parts[HEADER]), content_of(parts))
        else:
            again = partial(self.ask, Channel.SHELL, "kernel_info_request", {})
            self.reactor.later(NUDGE_AGAIN, again)

    def interrupt(self) -> None:
        """Interrupt as the kernelspec asks: a signal to its group, or a message."""
        spec = self.manager.kernel_spec
        if spec is not None and spec.interrupt_mode == "message":
            self.ask(Channel.CONTROL, "interrupt_request", {})
        else:
            self.signal(signal.SIGINT)

    def signal(self, number: int) -> None:
        """Send a signal to the kernel's process group, if it is there."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def disconnect(self) -> None:
        """Close the sockets; what the process does is another matter."""
        if self._greeting:
            self._greeting.close()
            self._greeting = None
        self._unsent.clear()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for channel in list(self._sockets):
            handle = self._sockets.pop(channel)
            self.reactor.unwatch(handle)
            handle.close(linger=0)

    def close(self) -> None:
        """Give everything back."""
        self.disconnect()
        self._context.term()
        self._disk.close(0.0)

    def last_words(self, lines: int = 12) -> str:
        """Return the end of what this kernel printed by itself."""
        try:
            said = (self.folder / "kernel.log").read_bytes()[self._log_begins :]
        except OSError:
            return ""
        text = said.decode("utf-8", "replace")
        return "\n".join(text.strip().splitlines()[-lines:])[-MOST_LAST_WORDS:]

    def _connect(self) -> None:
        """Connect with keys or without, as the kernel binds its sockets."""
        manager = self.manager
        self._voice = Voice(manager.session.key, manager.session.signature_scheme)
        self._own_mark = self._voice.session.encode()
        self._is_held = True
        self._offered = offered_keys(Path(manager.connection_file))
        self.is_encrypted = self._offered is not None
        if self._offered:
            self._greet()
        else:
            self._open(None)

    def _greet(self) -> None:
        """Ask at the kernel's port whether it wants keys."""
        address = (str(self.manager.ip), int(self.manager.shell_port))
        self._greeting = Greeting(self.reactor, address, self._settle)

    def _greet_again(self) -> None:
        if self._sockets and not self._is_met and self._greeting is None:
            self._greet()

    def _settle(self, knows_keys: bool) -> None:  # noqa: FBT001 - a callback's only word
        """Open the sockets as the port says; a word against keys is asked for again and again."""
        self._greeting = None
        if self._is_met:
            return
        self.is_encrypted = knows_keys
        if knows_keys:
            self._close_sockets()
            self._is_heard = False
            self._open(self._offered)
            return
        if not self._sockets:
            self._open(None)
        self.reactor.later(GREET_AGAIN, self._greet_again)

    def _open(self, keys: Keys | None) -> None:
        manager = self.manager
        ports = {
            Channel.SHELL: manager.shell_port,
            Channel.CONTROL: manager.control_port,
            Channel.STDIN: manager.stdin_port,
            Channel.IOPUB: manager.iopub_port,
        }
        for channel, kind in SOCKETS.items():
            handle = self._context.socket(kind)
            handle.linger = 0
            handle.sndhwm = handle.rcvhwm = 0
            handle.reconnect_ivl = 15  # milliseconds: the kernel is about to listen
            handle.identity = self.identity
            if keys:
                keys.lock(handle)
            if kind == zmq.SUB:
                handle.subscribe(b"")
            handle.connect(f"tcp://{manager.ip}:{ports[channel]}")
            self._sockets[channel] = handle
            self.reactor.watch(handle, lambda channel=channel: self.hear(channel))  # type: ignore[misc]
        self.ask(Channel.SHELL, "kernel_info_request", {})
        self.reactor.later(HEARD_WITHIN, self._send_held)

    def _look_after(self, about: dict[str, Any]) -> None:
        """Watch a process whose warden is no child of ours."""
        self._disk.do(partial(self._stand_of, about), partial(self._judge, about))

    def _stand_of(self, about: dict[str, Any]) -> tuple[bool, bool, dict[str, Any]]:
        """Tell of such a process: does it run, has it a warden, how has it ended?"""
        is_there = is_running(self.pid, about.get("started", ""))
        has_warden = bool(started_at(int(about["warden"])))
        return is_there, has_warden, registry.read_json(self.folder / "exit.json")

    def _judge(self, about: dict[str, Any], stand: tuple[bool, bool, dict[str, Any]]) -> None:
        is_there, has_warden, words = stand
        if self.pid == 0:
            return
        if words.get("pid") == self.pid or not has_warden:
            if is_there:
                self.signal(signal.SIGKILL)  # it does not run on without a warden
            self.pid = 0
            self.on_exit(words or {"failed": "its warden was killed"})
            return
        self.reactor.later(LOOK_EVERY, partial(self._look_after, about))

    def _watch_over(self, wish: dict[str, Any]) -> None:
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
            warden.stdin.write(json.dumps(wish).encode() + b"\n")
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
                self._note(json.loads(line))
            if not heard:
                self.reactor.unwatch(ours)
                ours.close()
                warden.wait()
                self.signal(signal.SIGKILL)  # only where the warden was killed is there one left
                self._note({"failed": "its warden was killed"})

        self.reactor.watch(ours, listen)

    def _note(self, words: dict[str, Any]) -> None:
        """Hear from the warden: first a process number, then how that process ended."""
        if self._warden is None:
            return
        if "status" in words or "failed" in words:
            self._warden = None
            self.pid = 0
            self.on_exit(words)
        else:
            self.pid = int(words["pid"])


def with_init(argv: list[str], init: Sequence[str]) -> list[str]:
    """Run shell lines of a login shell before a command; the first that fails ends it."""
    if not init:
        return argv
    shell = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
    lines = [f"{line} || exit 1" for line in init]
    return [shell, "-l", "-c", "\n".join([*lines, 'exec "$@"']), shell, *argv]


def _tells_of_its_start(parts: Sequence[Bytes]) -> bool:
    """Is this what a kernel says once, as it begins, to whoever listens already?

    On a busy machine it comes late, when the kernel answers already. Nobody asked for it, and
    clients (ipykernel's own tests, for one) take what comes then for an answer to them.
    """
    if len(parts[PARENT]) > NOBODY:
        return False
    kind = header_of(parts[HEADER]).get("msg_type")
    is_starting = kind == "status" and content_of(parts).get("execution_state") == "starting"
    return is_starting or kind == "iopub_welcome"
