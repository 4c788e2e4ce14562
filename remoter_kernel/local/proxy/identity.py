"""How a proxy comes to its session: which kernel it is, on which laptop, for which notebook.

A Jupyter server says all of that at once. Another client says it later, and may mean by a new proxy
that the kernel of the one before should be restarted.

VS Code names the notebook in its start-up code (Python), and with each cell. Until then no session
is begun: it may be one that is there.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from remoter_kernel.local.proxy.client_startup_code import is_startup_code
from remoter_kernel.local.proxy.replies import INTERACTIVE_REQUESTS
from remoter_kernel.local.session import machine, notebook_identity, undelivered_commands
from remoter_kernel.local.session.machine import LivenessLock, machine_id
from remoter_kernel.local.session.notebook_identity import (
    SESSION_NAME_VARIABLE,
    NotebookIdentity,
    notebook_from_environment,
)
from remoter_kernel.protocol.messages import METADATA, header_of, is_silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.reactor import Reactor, Timer
    from remoter_kernel.protocol.requests import Request

RECORD_EVERY = 1.0  # seconds
DETECT_WITHIN = 2.0  # seconds; a client that is not VS Code may be silent for a reason of its own


class ProxyIdentity:
    """What the session is told of this proxy, once that is known."""

    def __init__(
        self, reactor: Reactor, link: Link, dialer: SessionDialer, remote_name: Callable[[], str]
    ) -> None:
        self.notebook_detector = ClientNotebookDetector(reactor, self._on_notebook_known)
        self._reactor = reactor
        self._link = link
        self._dialer = dialer
        self._remote_name = remote_name
        # On the wall clock: the exit of another process is compared with it.
        self._started = time.time()
        self._liveness_lock = LivenessLock("")
        self._notebook = ""  # of a client that starts kernels itself

    @property
    def is_for_vscode(self) -> bool:
        """Is VS Code this proxy's client, as far as that is known?"""
        return bool(self._notebook) or notebook_identity.is_parent()

    def start(self) -> None:
        """Lock this proxy's file, and give the dialer what is known of it."""
        self._announce(self._dialer.session_request.kernel_id)
        # Jupyter's own launcher sets one of these, or both; VS Code starts kernels by itself.
        is_started_by_jupyter = machine.has_pid() or SESSION_NAME_VARIABLE in os.environ
        if is_started_by_jupyter or self._dialer.session_request.session:
            self._dialer.notebook_identity = NotebookIdentity(
                notebook_from_environment(), self._link.identity["laptop"]
            )
        else:
            self._dialer.is_identified.clear()  # the dialer waits for that
            self.notebook_detector.start()

    def close(self, *, is_without_command: bool) -> None:
        """Let go of all; `is_without_command`: nobody has said what becomes of the session."""
        if is_without_command:
            self._record_exit()
        self._liveness_lock.release()  # what follows may take a while: the next proxy may be there

    def _announce(self, kernel_id: str) -> None:
        self._liveness_lock.release()
        self._liveness_lock = LivenessLock(kernel_id)
        # Without a lock no other proxy could tell that this one lives: then it names no laptop,
        # and its session is never taken for one that was left.
        laptop = machine_id() if self._liveness_lock.acquire() else ""
        self._link.identity = {"kernel_id": kernel_id, "laptop": laptop}

    def _on_notebook_known(self, notebook: str) -> None:
        remote, self._notebook = self._remote_name(), notebook
        # VS Code restarts a kernel by ending it without a word and starting another one.
        before = machine.previous_exit(remote, notebook, self._started) if notebook else None
        if before:
            undelivered_commands.save_command(remote, before.kernel_id, before.session, "restart")
            self._announce(before.kernel_id)
            self._dialer.session_request = replace(
                self._dialer.session_request, kernel_id=before.kernel_id
            )
        self._dialer.notebook_identity = NotebookIdentity(notebook, self._link.identity["laptop"])
        self._dialer.is_identified.set()
        if sys.platform == "win32":  # no signal comes before the end there: it is always recorded
            self._keep_recording_exit()

    def _record_exit(self) -> None:
        address = self._dialer.session_info
        if self._notebook and address:
            departure = machine.ProxyExitRecord(
                self._dialer.session_request.kernel_id, address.session
            )
            machine.record_exit(self._remote_name(), self._notebook, departure)

    def _keep_recording_exit(self) -> None:
        self._record_exit()
        self._reactor.call_later(RECORD_EVERY, self._keep_recording_exit)


@dataclass
class ClientNotebookDetector:
    """Waits until the client has said which notebook it is, or anything else of weight."""

    reactor: Reactor
    on_detected: Callable[[str], None]  # called once: with a path, or with nothing
    is_waiting: bool = False
    _timer: Timer | None = None

    def start(self) -> None:
        """Begin to wait; VS Code says it for sure, however long that takes."""
        self.is_waiting = True
        if not notebook_identity.is_parent():
            self._timer = self.reactor.call_later(DETECT_WITHIN, self._finish)

    def on_request(self, request: Request) -> None:
        """Wait no more if this names the notebook, or is what a person waits for."""
        # What a person types says nothing, and can wait.
        if not self.is_waiting or request.type in INTERACTIVE_REQUESTS:
            return
        notebook = ""
        if request.is_cell:
            content = request.content
            # A cell of a stranger's notebook may contain the line that VS Code's own code has.
            own = content if is_silent(content) else {}
            notebook = notebook_identity.notebook_from(own, header_of(request.parts[METADATA]))
        if notebook or not is_startup_code(request):
            self._finish(notebook)

    def _finish(self, notebook: str = "") -> None:
        if self._timer:
            self._timer.cancel()
        if self.is_waiting:
            self.is_waiting = False
            self.on_detected(notebook)
