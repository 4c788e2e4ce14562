"""The local kernel: a Python on this machine, started when a cell first needs it.

A real IPython kernel in a process of its own, with this process's Python and folder; it ends with
this process. Its messages come as they are: whoever passes them on changes their session.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from remoter_kernel.errors import RemoterError
from remoter_kernel.protocol.frames import Channel, to_json
from remoter_kernel.protocol.kernel_client import SOCKETS, KernelClient
from remoter_kernel.protocol.messages import (
    CONTENT,
    HEADER,
    KernelMessage,
    MessageSigner,
    content_of,
    header_of,
)
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jupyter_client.manager import KernelManager

    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request

# Generous: a cold disk and a busy machine take their time over such imports.
READY_WITHIN = 60.0  # seconds
POLL_EVERY = 0.5  # seconds between two looks at whether the process lives
# Seconds for its own end, before it is killed: Jupyter gives a kernel that restarts two.
END_WITHIN = 1.0
# What it warns of (an old one: that it is not encrypted) would stand in a console.
LOG_LEVEL_OPTION = "--log-level=ERROR"
JUPYTER_VARIABLES = "JPY_"  # variables that tell a kernel whose child it is: not this one
logger = logging.getLogger(__name__)


class LocalKernel:
    """One kernel after the other; none before `start`."""

    def __init__(self, reactor: Reactor) -> None:
        self.on_message: Callable[[Channel, list[Bytes]], None] = lambda _channel, _parts: None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_end: Callable[[RemoterError], None] = lambda _error: None
        self._reactor = reactor
        self._manager: KernelManager | None = None
        self._client: KernelClient | None = None
        self._signer = MessageSigner(b"")  # of what `send_request` sends
        # One for each kernel, from its start to its end: a thread that comes back with a kernel
        # which was given up meanwhile has an old one.
        self._start_token: object = None
        self._is_closed = False

    @property
    def is_ready(self) -> bool:
        """Does it take cells?"""
        return self._client is not None and self._client.is_ready

    def start(self) -> None:
        """Start it unless it is there; `on_ready` or `on_end` is called."""
        if self.is_ready:
            self.on_ready()
        elif self._start_token is None:
            self._start_token = token = object()
            # In a thread: imports and the process take a second or two.
            Thread(partial(self._start, token), name="this side").start()

    def send(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Sign a message with its key and send it."""
        if self._client:
            self._client.send(channel, parts)

    def send_request(self, kind: str, content: dict[str, Any]) -> str:
        """Send a request of our own on its shell; return the message's id."""
        parts = self._signer.compose(kind, content)
        self.send(Channel.SHELL, parts)
        return str(header_of(parts[HEADER])["msg_id"])

    def is_own_request(self, parent: dict[str, Any]) -> bool:
        """Is this the header of something that `send_request` has sent?"""
        return parent.get("session") == self._signer.session

    def interrupt(self) -> None:
        """Interrupt what it runs."""
        if self._manager and self.is_ready:
            # One that is starting has nothing to interrupt, and a signal would end it.
            self._manager.interrupt_kernel()

    def close(self) -> None:
        """End it, and start no other."""
        self._is_closed = True
        self.stop()

    # --- in a thread ---

    def _start(self, token: object) -> None:
        try:
            manager = _new_manager()
            ours = os.environ.items()
            variables = {key: word for key, word in ours if not key.startswith(JUPYTER_VARIABLES)}
            with _own_loop():
                manager.start_kernel(env=variables, cwd=str(Path.cwd()))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is shown in the cell
            why = f"The kernel on this side did not start: {type(error).__name__}: {error}."
            failure = RemoterError(why, "It needs the package ipykernel, as remoter itself does.")
            self._reactor.call_soon_threadsafe(partial(self._on_start_failed, token, failure))
        else:
            self._reactor.call_soon_threadsafe(partial(self._connect, token, manager))

    # --- in the proxy's thread ---

    def _on_start_failed(self, token: object, error: RemoterError) -> None:
        if token is self._start_token:
            self._on_gone(error)

    def _connect(self, token: object, manager: KernelManager) -> None:
        # It was stopped while it started: nobody waits for it.
        if token is not self._start_token or self._is_closed:
            _shut_down_later(manager)
            return
        self._manager = manager
        about: dict[str, Any] = {**manager.get_connection_info()}
        self._client = client = KernelClient(self._reactor, b"front")
        client.on_message = self._on_message
        client.on_ready = lambda _header, _info: self.on_ready()

        def lock(handle: zmq.Socket[bytes]) -> None:
            if about.get("curve_publickey"):  # the kernel's own pair, as Jupyter has it
                handle.curve_publickey = handle.curve_serverkey = about["curve_publickey"].encode()
                handle.curve_secretkey = about["curve_secretkey"].encode()

        host = f"{about['transport']}://{about['ip']}"
        ports = {channel: about[f"{channel.name.lower()}_port"] for channel in SOCKETS}
        client.hold_until_open(MessageSigner(manager.session.key, manager.session.signature_scheme))
        client.open({channel: f"{host}:{port}" for channel, port in ports.items()}, lock)
        self._reactor.call_later(READY_WITHIN, partial(self._on_ready_timeout, manager))
        self._poll_alive(manager)

    def _on_message(self, message: KernelMessage) -> None:
        # What it sends as it starts answers nobody, and would look like another kernel's start.
        if self.is_ready and message.parent:
            self.on_message(message.channel, message.parts)

    def _poll_alive(self, manager: KernelManager) -> None:
        # Another kernel has taken its place.
        if manager is not self._manager or self._client is None:
            return
        if manager.is_alive():
            self._reactor.call_later(POLL_EVERY, partial(self._poll_alive, manager))
            return
        how = "died" if self.is_ready else "ended before it was ready"
        why = f"The kernel on this side {how}, and with it its variables."
        if _ended_by_signal(manager):
            why += " The last outputs of its cell may be missing."
        error = RemoterError(why, "The next cell that needs it starts another one.")
        # What it had sent by then comes first.
        self._client.drain(partial(self._on_gone, error))

    def _on_ready_timeout(self, manager: KernelManager) -> None:
        if manager is self._manager and not self.is_ready:
            why = f"The kernel on this side was not ready within {READY_WITHIN:.0f} seconds."
            self._on_gone(RemoterError(why, "What it printed is in Jupyter's log."))

    def _on_gone(self, error: RemoterError) -> None:
        self.stop()
        self.on_end(error)

    def stop(self) -> None:
        """End it, in a moment and whatever it is doing; the next `start` starts another."""
        client, self._client = self._client, None
        self._start_token = None
        if client:
            client.close()
        manager, self._manager = self._manager, None
        if manager:
            _shut_down_later(manager)


def _shut_down_later(manager: KernelManager) -> None:
    """End a kernel in a thread, for it takes a second or two.

    No daemon: this process does not end before its kernel has.
    """
    thread = Thread(_shut_down, name="this side's end", args=(manager,))
    thread.daemon = False
    thread.start()


def _shut_down(manager: KernelManager) -> None:
    """Ask a kernel to end, then kill it."""
    try:
        manager.shutdown_wait_time = END_WITHIN
        with _own_loop():
            manager.shutdown_kernel()
    except Exception:
        logger.exception("The kernel on this side was not ended in order; it is killed.")
        with contextlib.suppress(Exception):
            manager.provisioner.process.kill()  # type: ignore[union-attr]
    finally:
        manager.context.destroy(linger=0)


@contextlib.contextmanager
def _own_loop() -> Iterator[None]:
    """Close the event loop that jupyter_client makes for each thread, and would leave open."""
    from jupyter_core.utils import ensure_event_loop  # noqa: PLC0415 - slow to import, too

    loop = ensure_event_loop()
    try:
        yield
    finally:
        loop.close()


def _ended_by_signal(manager: KernelManager) -> bool:
    process = getattr(manager.provisioner, "process", None)
    # Its last half second of output was never sent then. On Windows no return code is negative.
    return process is not None and (process.returncode or 0) < 0


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
            command = [sys.executable, "-m", "ipykernel_launcher"]
            argv = [*command, LOG_LEVEL_OPTION, "-f", "{connection_file}"]
            about = get_kernel_dict().get("metadata") or {}  # does it know encrypted sockets?
            return KernelSpec(name=kernel_name, argv=argv, language="python", metadata=about)

    manager = KernelManager(kernel_name="this-side", kernel_spec_manager=OwnPython())
    if manager.has_trait("transport_encryption") and zmq.has("curve"):
        # Whoever subscribes to plain sockets hears all outputs: any user of this machine may.
        manager.transport_encryption = "auto"
    return manager


@dataclass
class LocalComms:
    """The comms (widgets) of the local kernel: clients' messages do not say whose they are."""

    _targets: dict[str, str] = field(default_factory=dict)  # by comm id

    def on_kernel_message(self, kind: str, parts: Sequence[Bytes]) -> None:
        """Note a comm that the local kernel opens or closes."""
        if kind == "comm_open":
            content = content_of(parts)
            self._targets[str(content.get("comm_id"))] = str(content.get("target_name"))
        elif kind == "comm_close":
            self._targets.pop(str(content_of(parts).get("comm_id")), None)

    def is_for_local_kernel(self, request: Request) -> bool:
        """Is this message of a client about a comm of the local kernel?"""
        if not self._targets or request.type not in {"comm_msg", "comm_close"}:
            return False
        comm = str(request.content.get("comm_id"))
        is_ours = comm in self._targets
        if request.type == "comm_close":
            self._targets.pop(comm, None)
        return is_ours

    def add_to_reply(self, parts: Sequence[Bytes], target: object) -> Sequence[Bytes]:
        """Add the local comms to a reply that lists comms (of one `target`, if not None or "")."""
        ours = {
            comm: {"target_name": name}
            for comm, name in self._targets.items()
            if target in {None, "", name}
        }
        content: dict[str, Any] = content_of(parts)
        comms = content.get("comms")
        if not ours or content.get("status") != "ok" or not isinstance(comms, dict | list):
            return parts
        content["comms"] = {**(comms if isinstance(comms, dict) else {}), **ours}
        return [*parts[:CONTENT], to_json(content), *parts[CONTENT + 1 :]]

    def clear(self) -> None:
        """Forget them: the kernel is gone."""
        self._targets.clear()
