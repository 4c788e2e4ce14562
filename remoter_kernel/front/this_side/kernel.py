"""The Python kernel on this side: started when a cell first needs it, ended with the front.

A real IPython kernel in a process of its own, with the front's Python and folder. Its messages
come as they are; whose session they carry is changed by whoever passes them on.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from remoter_kernel.errors import ProtocolError, RemoterError
from remoter_kernel.wire.frames import Channel
from remoter_kernel.wire.messages import HEADER, PARENT, TOPIC, Voice, header_of
from remoter_kernel.wire.reactor import messages
from remoter_kernel.wire.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jupyter_client.manager import KernelManager

    from remoter_kernel.wire.frames import Bytes
    from remoter_kernel.wire.reactor import Reactor

SOCKETS = {
    Channel.IOPUB: zmq.SUB,  # first, so that it is there when anything is asked
    Channel.SHELL: zmq.DEALER,
    Channel.CONTROL: zmq.DEALER,
    Channel.STDIN: zmq.DEALER,
}
READY_WITHIN = 60.0  # seconds
NUDGE_EVERY = 0.2  # seconds
LOOK_EVERY = 0.5  # seconds between two looks at whether the process lives
END_WITHIN = 1.0  # seconds for its own end; Jupyter gives a front that restarts no more than two
# What it warns of (an old one: that it is not encrypted) would stand in a console.
QUIET = "--log-level=ERROR"
OF_JUPYTER = "JPY_"  # variables that tell a kernel whose child it is: not this one


class ThisSide:
    """One kernel after the other; none before `start`."""

    def __init__(self, reactor: Reactor) -> None:
        """Remember."""
        self.on_message: Callable[[Channel, list[Bytes]], None] = lambda _channel, _parts: None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_end: Callable[[RemoterError], None] = lambda _error: None
        self.is_ready = False
        self._reactor = reactor
        self._manager: KernelManager | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
        self._voice = Voice(b"")
        self._is_starting = False
        self._is_heard = self._has_answered = False
        self._is_closed = False

    def start(self) -> None:
        """Start it unless it is there; `on_ready` or `on_end` tells."""
        if self.is_ready:
            self.on_ready()
        elif not self._is_starting:
            self._is_starting = True
            Thread(self._start, name="this side").start()

    def say(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Sign a message with its key and send it."""
        if channel in self._sockets:
            self._sockets[channel].send_multipart(self._voice.sign(parts))

    def ask(self, kind: str, content: dict[str, Any]) -> str:
        """Ask something of our own on its shell; return the message's id."""
        parts = self._voice.compose(kind, content)
        self.say(Channel.SHELL, parts)
        return str(header_of(parts[HEADER])["msg_id"])

    def is_own(self, parent: dict[str, Any]) -> bool:
        """Is this the header of something that `ask` has said?"""
        return parent.get("session") == self._voice.session

    def interrupt(self) -> None:
        """Interrupt what it runs."""
        if self._manager and self.is_ready:
            self._manager.interrupt_kernel()

    def stop(self) -> None:
        """End it, in a moment and whatever it is doing; the next `start` starts another."""
        self._let_go()

    def close(self) -> None:
        """End it, and start no other."""
        self._is_closed = True
        self._let_go()

    # --- in a thread ---

    def _start(self) -> None:
        try:
            manager = _new_manager()
            environment = {
                key: value for key, value in os.environ.items() if not key.startswith(OF_JUPYTER)
            }
            manager.start_kernel(env=environment, cwd=str(Path.cwd()))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told in the cell
            why = f"The kernel on this side did not start: {type(error).__name__}: {error}."
            trouble = RemoterError(why, "It needs the package ipykernel, as remoter itself does.")
            self._reactor.call(partial(self._end, trouble))
        else:
            self._reactor.call(partial(self._connect, manager))

    # --- in the front's thread ---

    def _connect(self, manager: KernelManager) -> None:
        self._manager = manager
        if self._is_closed:
            self._let_go()
            return
        about: dict[str, Any] = {**manager.get_connection_info()}
        self._voice = Voice(manager.session.key, manager.session.signature_scheme)
        self._context = zmq.Context()
        for channel, kind in SOCKETS.items():
            handle = self._context.socket(kind)
            handle.linger = 0
            handle.sndhwm = handle.rcvhwm = 0
            handle.reconnect_ivl = 15  # milliseconds: it is about to listen
            handle.identity = b"front"  # the same on all: questions go to who has asked
            if about.get("curve_publickey"):  # the kernel's own pair, as Jupyter has it
                handle.curve_publickey = handle.curve_serverkey = about["curve_publickey"].encode()
                handle.curve_secretkey = about["curve_secretkey"].encode()
            if kind == zmq.SUB:
                handle.subscribe(b"")
            port = about[f"{channel.name.lower()}_port"]
            handle.connect(f"{about['transport']}://{about['ip']}:{port}")
            self._sockets[channel] = handle
            self._reactor.watch(handle, partial(self._hear, channel))
        self._reactor.later(READY_WITHIN, partial(self._lose_patience, manager))
        self._nudge(manager)
        self._look_after(manager)

    def _nudge(self, manager: KernelManager) -> None:
        """Ask until it answers and is heard: what it says before that is lost."""
        if manager is self._manager and not self.is_ready:
            self.ask("kernel_info_request", {})
            self._reactor.later(NUDGE_EVERY, partial(self._nudge, manager))

    def _hear(self, channel: Channel) -> None:
        handle = self._sockets.get(channel)
        if handle is None:
            return
        for frames in messages(handle):
            try:
                topics, parts = self._voice.check(frames)
                if channel is Channel.IOPUB:
                    parts[TOPIC] = b"".join(topics)
                elif channel is Channel.SHELL:
                    self._hear(Channel.IOPUB)  # what was published before a reply comes before it
                self._take(channel, parts)
            except ProtocolError:
                continue  # somebody else on this machine knocked at its port

    def _take(self, channel: Channel, parts: list[Bytes]) -> None:
        if not self.is_ready:
            self._is_heard |= channel is Channel.IOPUB
            self._has_answered |= channel is Channel.SHELL
            if self._is_heard and self._has_answered:
                self.is_ready, self._is_starting = True, False
                self.on_ready()
        elif header_of(parts[PARENT]):
            self.on_message(channel, parts)

    def _look_after(self, manager: KernelManager) -> None:
        if manager is not self._manager:
            return
        if manager.is_alive():
            self._reactor.later(LOOK_EVERY, partial(self._look_after, manager))
            return
        how = "died" if self.is_ready else "ended before it was ready"
        why = f"The kernel on this side {how}, and with it its variables."
        self._end(RemoterError(why, "The next cell that needs it starts another one."))

    def _lose_patience(self, manager: KernelManager) -> None:
        if manager is self._manager and not self.is_ready:
            why = f"The kernel on this side was not ready within {READY_WITHIN:.0f} seconds."
            self._end(RemoterError(why, "What it printed is in Jupyter's log."))

    def _end(self, error: RemoterError) -> None:
        self._let_go()
        self.on_end(error)

    def _let_go(self) -> None:
        self.is_ready = self._is_starting = self._is_heard = self._has_answered = False
        for channel in list(self._sockets):
            handle = self._sockets.pop(channel)
            self._reactor.unwatch(handle)
            handle.close()
        manager, self._manager = self._manager, None
        if manager:
            manager.shutdown_wait_time = END_WITHIN
            manager.shutdown_kernel()
            manager.context.destroy(linger=0)
        if self._context:
            self._context.term()
            self._context = None


def _new_manager() -> KernelManager:
    """Return what starts an IPython kernel with our own Python, whatever kernelspecs say."""
    # Slow to import, and only needed by those who run cells here.
    from ipykernel.kernelspec import get_kernel_dict  # noqa: PLC0415
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager  # noqa: PLC0415
    from jupyter_client.manager import KernelManager  # noqa: PLC0415

    class OwnPython(KernelSpecManager):
        """Knows one kernel."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            # No -P: cells may import what lies beside their notebook, and IPython heeds that flag.
            # Nobody starts this kernel before a person has let the notebook's code run here.
            argv = [sys.executable, "-m", "ipykernel_launcher", QUIET, "-f", "{connection_file}"]
            about = get_kernel_dict().get("metadata") or {}  # does it know encrypted sockets?
            return KernelSpec(name=kernel_name, argv=argv, language="python", metadata=about)

    manager = KernelManager(kernel_name="this-side", kernel_spec_manager=OwnPython())
    if manager.has_trait("transport_encryption") and zmq.has("curve"):
        # Whoever subscribes to plain sockets hears all outputs: any user of this machine may.
        manager.transport_encryption = "auto"
    return manager
