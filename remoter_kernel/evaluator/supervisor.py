"""Owns one kernel: starts, restarts and stops it, notices its death and explains it.

It decides; KernelProcess, Listener and Journal do. RequestHandler handles what clients send.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from remoter_kernel.evaluator import registry
from remoter_kernel.evaluator.kernel_output import KernelOutputHandler
from remoter_kernel.evaluator.kernel_process import KernelProcess, PortConflicts
from remoter_kernel.evaluator.message_writer import MessageWriter
from remoter_kernel.evaluator.processes import (
    describe_exit,
    describe_failed_start,
    was_killed_by_signal,
)
from remoter_kernel.evaluator.recovery import InDoubtRequests
from remoter_kernel.evaluator.registry import ServedSession
from remoter_kernel.evaluator.request_handler import RequestHandler
from remoter_kernel.evaluator.status_file import StatusWriter
from remoter_kernel.evaluator.timeouts import IdleTimeout, SlowStartNotice
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.output_backlog import BACKLOG_LIMIT
from remoter_kernel.protocol.requests import Stage
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from remoter_kernel.evaluator.listener import Listener
    from remoter_kernel.evaluator.recovery import RecoveredState
    from remoter_kernel.protocol.messages import KernelMessage
    from remoter_kernel.protocol.requests import Request

# Seconds that a kernel has for its own shutdown (atexit functions, flushed files), before a signal.
DIE_WITHIN = 4.0
KILL_WITHIN = 2.0  # seconds after that signal
NAMED_WITHIN = 0.5  # seconds until the warden says which process it has started
RESTART_AFTER = 0.2  # seconds: JupyterLab drops errors of cells that come after "restarting"
LINGER = 30.0  # seconds that a session which could not start still tells why
LINGER_LOOK = 0.5  # seconds
LOOK_AGAIN = 0.005  # seconds until a thread has probably done its work
SWEEP_AFTER = 10.0  # seconds: the start of a session should not wait for a slow disk
COMMAND_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # stop, restart


class KernelLifecycleState(Enum):
    """The state of the kernel; clients know these words."""

    STARTING = "starting"
    RECOVERING = "adopting"  # it lives, but has yet to answer a new evaluator
    READY = "ready"
    RESTARTING = "restarting"  # the old process has yet to end
    DEAD = "dead"  # it ended by itself; another one is about to start
    STOPPING = "stopping"
    FAILED = "failed"  # it could not be started


WITH_KERNEL = {KernelLifecycleState.READY, KernelLifecycleState.RECOVERING}


class Supervisor:
    """The life of one kernel after the other, in one session."""

    # 19 attributes: it wires all others together, and each of its events concerns several of them.

    def __init__(
        self,
        listener: Listener,
        session_request: dict[str, Any],
        *,
        umask: int,
        recovered: RecoveredState | None = None,
    ) -> None:
        """`recovered` is the state of an evaluator that died, and left its kernel."""
        reactor = self.reactor = listener.reactor
        self.session = ServedSession(listener.session.folder, reactor.call_soon_threadsafe)
        self.listener = listener
        self.session_request = session_request
        self.umask = umask
        self.recovered = recovered
        self.state = KernelLifecycleState.STARTING
        self.why = ""
        self.kernel: KernelProcess | None = None
        self._writer = writer = MessageWriter(listener.journal)
        self._request_handler = handler = RequestHandler(
            self.session, listener, writer, recovered.requests if recovered else None
        )
        self._requests = requests = handler.requests
        self._kernel_output = KernelOutputHandler(handler, recovered)
        self._status = StatusWriter(self.session, listener, requests)
        init = session_request.get("init") or ()
        self._startup_watchdog = SlowStartNotice(listener, requests, writer, init)
        self._idle_timeout = IdleTimeout(listener, requests, self.stop)
        self._port_conflicts = PortConflicts(reactor)
        self._reported_error = ""  # of the journal
        self._last_snapshot: tuple[Any, ...] = ()  # of what the status file depends on

    def run(self) -> None:
        """Serve until the session ends."""
        listener, reactor, handler = self.listener, self.reactor, self._request_handler
        handler.kernel_for = self._kernel_for
        handler.on_command = self._on_command
        handler.on_cell = self._status.add_cell
        handler.on_possible_duplicate = self._on_possible_duplicate
        listener.on_item = handler.on_item
        listener.on_refused = self._writer.reply_refused
        listener.describe = self._describe
        listener.most_waiting = int(self.session_request.get("waiting_limit") or BACKLOG_LIMIT)
        listener.on_client_change = self._writer.log_connection
        reactor.after_pass = self._after_poll
        self._status.open()
        # Also where an evaluator that died had been told to finish.
        is_finishing = bool(self.session.about.get("finish"))
        self._idle_timeout.start(self.session_request, is_finishing=is_finishing)
        reactor.on_bug = _print_bug
        reactor.wake_on_signals()
        for number in COMMAND_SIGNALS:
            signal.signal(number, self._on_signal)
        # They were blocked from before the endpoint was written: one that came early waits.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, COMMAND_SIGNALS)
        if self.recovered:
            self._recover(self.recovered)
        else:
            self._start_kernel()
        reactor.call_later(SWEEP_AFTER, Thread(registry.collect_garbage, name="sweep").start)
        reactor.run()
        listener.journal.close()
        listener.close(self.why)
        self._status.close()
        self.session.close()
        self.session.remove_keys()

    def _on_signal(self, number: int, _frame: object) -> None:
        """Take a command that came by a login, while no client was connected: stop, or restart."""
        order = "stop" if number == signal.SIGTERM else "restart"
        # Not here: a handler of Python's runs between any two instructions of the loop.
        self.reactor.call_soon_threadsafe(partial(self._on_command, order))

    def _after_poll(self) -> None:
        listener = self.listener
        if listener.journal.write_error != self._reported_error:
            self._report_write_error()
        listener.flush_soon()
        # What a hung kernel was given leaves nothing in the journal: therefore moves count, too.
        snapshot = (self.state, listener.journal.last, self._requests.moves, listener.visits)
        if snapshot != self._last_snapshot:
            self._last_snapshot = snapshot
            is_ready = self.state is KernelLifecycleState.READY
            self._status.update(
                ("busy" if self._requests.is_busy else "idle") if is_ready else self.state.value
            )

    def _report_write_error(self) -> None:
        """Say in the running cell that the disk takes nothing any more, once each time."""
        cell, trouble = self._requests.running, self.listener.journal.write_error
        if trouble and not cell:
            return  # the next one is told
        self._reported_error = trouble
        if trouble and cell:
            self._writer.write_stderr(
                cell,
                f"The journal of session {self.session.id} cannot be written there "
                f"({trouble}). The session goes on, with what is said kept in memory alone.",
            )

    def _kernel_for(self, channel: Channel) -> KernelProcess | None:
        """Return the kernel if it may be sent at once what comes on this channel."""
        # A kernel that is being recovered may wait for input, and can be interrupted.
        is_asked_late = (
            self.state is KernelLifecycleState.RECOVERING and channel is not Channel.SHELL
        )
        return self.kernel if self.state is KernelLifecycleState.READY or is_asked_late else None

    def _on_command(self, order: str) -> None:
        if order == "stop":
            self.stop("It was stopped.")
        elif order == "finish":
            self._idle_timeout.stop_when_idle()
        else:
            self._shut_down_kernel(KernelLifecycleState.RESTARTING)

    # From the kernel -------------------------------------------------------------------

    def _start_kernel(self) -> None:
        self.state = KernelLifecycleState.STARTING
        try:
            self.kernel = kernel = self._new_kernel()
            kernel.on_ready = self._on_kernel_ready
            kernel.start(
                arguments=self.session_request.get("arguments") or (),
                env=self.session_request.get("env") or {},
                cwd=os.path.expanduser(os.path.expandvars(self.session_request.get("cwd") or "~")),  # noqa: PTH111 - as a shell would
                init=self.session_request.get("init") or (),
                umask=self.umask,
            )
        except Exception as error:  # noqa: BLE001 - a kernelspec may be odd in any way
            self._fail(describe_failed_start(error))
        else:
            starts = lambda: self.kernel is kernel and self.state is KernelLifecycleState.STARTING  # noqa: E731
            self._port_conflicts.watch(kernel, starts)
            self._startup_watchdog.watch(kernel, starts)

    def _new_kernel(self) -> KernelProcess:
        name = self.session_request.get("kernel") or "python3"
        identity, is_own = self.session.id.encode(), bool(self.session_request.get("python"))
        kernel = KernelProcess(self.reactor, self.session.folder, name, identity, is_own=is_own)
        kernel.client.on_message = self._on_kernel_message
        kernel.client.on_question_reached = self._on_question_reached
        kernel.on_exit = self._on_kernel_exit
        return kernel

    def _on_kernel_message(self, message: KernelMessage) -> None:
        # What a kernel publishes while it starts belongs to no request: with a plain ipykernel,
        # too, no client sees it.
        if message.channel is not Channel.IOPUB or self.state is not KernelLifecycleState.STARTING:
            self._kernel_output.on_message(message)

    def _on_kernel_ready(self, header: dict[str, Any], kernel_info: dict[str, Any]) -> None:
        """The kernel answers, and its outputs reach us: what waits may go, if it has its ports."""
        kernel = self.kernel
        if self.state is KernelLifecycleState.STARTING and kernel is not None:
            self._port_conflicts.check_ports(
                kernel, partial(self._finish_ready, kernel, header, kernel_info)
            )

    def _finish_ready(
        self, kernel: KernelProcess, header: dict[str, Any], kernel_info: dict[str, Any]
    ) -> None:
        if self.state is not KernelLifecycleState.STARTING or self.kernel is not kernel:
            return
        self._port_conflicts.reset()
        self.state = KernelLifecycleState.READY
        self._writer.adopt_identity(header, kernel_info)
        self._record_ready(kernel)
        self._request_handler.dispatcher.dispatch_waiting()

    def _record_ready(self, kernel: KernelProcess) -> None:
        words = self._writer.describe_identity()
        self._writer.write_event("ready", encrypted=kernel.is_encrypted, **words)

    def _recover(self, recovered: RecoveredState) -> None:
        """Take over the kernel of an evaluator that has died, and its requests."""
        self.state = KernelLifecycleState.RECOVERING
        for client, seen in recovered.seen.items():
            self.listener.restore_client(client, seen)
        self.listener.is_seen_exact = recovered.is_seen_exact
        self._requests.is_logged = True
        self._writer.adopt_identity(recovered.kernel, recovered.kernel.get("kernel_info") or {})
        if not self.session.read("child.json").get("pid"):
            self._restart_after(recovered)
            return
        for request_id in recovered.started:
            self._request_handler.interrupts.on_begin(request_id)
        self._begin_recovery(recovered)
        self.kernel = kernel = self._new_kernel()
        kernel.on_ready = partial(self._on_recovered_kernel_ready, kernel)
        kernel.attach()
        if recovered.unfinished:
            self._on_command(recovered.unfinished)

    def _restart_after(self, recovered: RecoveredState) -> None:
        """Go on where an evaluator died between two kernels, or before the first."""
        self._request_handler.fail_all("KernelDied", "The kernel died, and its evaluator with it.")
        self._writer.kernel_info = {}
        if recovered.kernel:
            self.state = KernelLifecycleState.DEAD
            self._restart_kernel()
        else:
            self._start_kernel()

    def _begin_recovery(self, recovered: RecoveredState) -> InDoubtRequests:
        recovery = InDoubtRequests(self.reactor, recovered, self._writer)
        recovery.on_settled = self._on_recovered
        interrupt = self._request_handler.interrupts.schedule
        recovery.on_lost_interrupt = lambda cell, number: interrupt(cell.id, cell.client, number)
        self._kernel_output.recovery = recovery
        return recovery

    def _on_possible_duplicate(self, request: Request) -> None:
        """Find out what became of what the kernel may have: it is not given to it again."""
        is_missed = request.expects_reply and not (
            self.recovered and request.id in self.recovered.answered
        )
        if self.recovered is None or not is_missed:
            self._requests.move(request, Stage.DONE, "an evaluator before may have sent it")
            return
        if self.kernel and self.kernel.is_recovered and self.state in WITH_KERNEL:
            recovery = self._kernel_output.recovery or self._begin_recovery(self.recovered)
            recovery.mark_uncertain(request)
            self.kernel.resend_kernel_info()
        else:
            self._request_handler.fail(
                request, "OutputsMissing", "It may have run in a kernel that is gone."
            )

    def _on_recovered_kernel_ready(
        self, kernel: KernelProcess, header: dict[str, Any], kernel_info: dict[str, Any]
    ) -> None:
        if not self._writer.kernel_info:  # the journal was damaged there
            self._writer.adopt_identity(header, kernel_info)
            self._record_ready(kernel)
        if self._kernel_output.recovery:
            self._kernel_output.recovery.on_kernel_info(kernel)

    def _on_question_reached(self) -> None:
        if self._kernel_output.recovery:
            self._kernel_output.recovery.on_question_reached()

    def _on_recovered(self) -> None:
        self._kernel_output.recovery = None
        if self.state is KernelLifecycleState.RECOVERING:
            self.state = KernelLifecycleState.READY
            self._request_handler.interrupts.clear()
            self._request_handler.dispatcher.dispatch_waiting()

    def _on_kernel_exit(self, words: dict[str, Any]) -> None:
        """The kernel has ended: as it should, or not."""
        kernel, self.kernel = self.kernel, None
        if kernel is None:
            return
        self._kernel_output.recovery = None
        self._request_handler.interrupts.clear()
        kernel.close()
        self._writer.kernel_info = {}  # the next kernel may be another version
        if self.state is KernelLifecycleState.STOPPING:
            self._exit()
        elif self.state is KernelLifecycleState.RESTARTING:
            self._request_handler.fail_all("KernelRestarted", "The kernel was restarted.")
            self._start_kernel()
        elif self.state is KernelLifecycleState.STARTING:
            # Perhaps another try helps; the disk that has the log may hang.
            self._port_conflicts.read_log_tail(kernel, partial(self._on_start_failed, words))
        else:
            self.state = KernelLifecycleState.DEAD
            why = f"The kernel died: {describe_exit(words)} Its variables are gone; it starts anew."
            self._request_handler.fail_all("KernelDied", why, is_cut=was_killed_by_signal(words))
            self._writer.write_event("died", why=why)
            kernel.remove_exit_files()
            self.reactor.call_later(RESTART_AFTER, self._restart_kernel)

    def _on_start_failed(self, words: dict[str, Any], last_words: str) -> None:
        if self.state is not KernelLifecycleState.STARTING:
            return  # it is to end
        if self._port_conflicts.should_retry(last_words):
            self._start_kernel()
        else:
            self._fail(f"The kernel did not start: {describe_exit(words)}\n{last_words}".rstrip())

    def _restart_kernel(self) -> None:
        if self.state is not KernelLifecycleState.DEAD:
            return  # it is to end
        # As Jupyter's own restarter publishes it: clients reset their prompts.
        self._writer.publish("status", {"execution_state": "restarting"})
        self._start_kernel()

    def _fail(self, why: str) -> None:
        """End a session whose kernel does not start, once a client knows why."""
        self.state = KernelLifecycleState.FAILED
        self.why = why
        self._writer.write_event("failed", why=why)
        self.session.mark_ended(self.why)
        self._wait_for_clients(time.monotonic() + LINGER)

    def _wait_for_clients(self, until: float) -> None:
        """Stay until a client has come, received why, and left."""
        has_told = self.listener.clients and not self.listener.has_clients
        if has_told or time.monotonic() > until:
            self.reactor.stop()
        self.reactor.call_later(LINGER_LOOK, partial(self._wait_for_clients, until))

    # Ends ------------------------------------------------------------------------------

    def stop(self, why: str) -> None:
        """End the session."""
        if self.state is KernelLifecycleState.STOPPING:
            return
        self.why = why
        self.session.mark_ended(self.why)
        if self.kernel:
            self._shut_down_kernel(KernelLifecycleState.STOPPING)
        else:
            self.state = KernelLifecycleState.STOPPING
            self._exit()

    def _exit(self) -> None:
        """End this process once all is written, so that the last commands are acknowledged."""
        if self.listener.journal.written == self.listener.journal.last:
            self.reactor.stop()
        else:
            self.reactor.call_later(LOOK_AGAIN, self._exit)

    def _shut_down_kernel(self, state: KernelLifecycleState) -> None:
        """Ask the kernel to end; a signal follows where asking does not help."""
        kernel, was_ready = self.kernel, self.state in WITH_KERNEL
        if kernel is None or self.state is KernelLifecycleState.STOPPING:
            return  # another kernel is about to start, or the session is about to end
        if was_ready:
            # The cell's own KeyboardInterrupt is dropped: no person has interrupted it.
            self._kernel_output.interrupted_at_end = self._request_handler.interrupt_for_shutdown()
        self.state = state
        if was_ready:
            words = {"restart": state is KernelLifecycleState.RESTARTING}
            kernel.request(Channel.CONTROL, "shutdown_request", words)
        self.reactor.call_later(DIE_WITHIN if was_ready else 0.0, partial(self._kill_after, kernel))

    def _kill_after(self, kernel: KernelProcess, number: int = signal.SIGTERM) -> None:
        """End a kernel by a signal, then by a harder one; its warden may have yet to name it."""
        if self.kernel is not kernel:
            return
        if not kernel.pid:
            self.reactor.call_later(NAMED_WITHIN, partial(self._kill_after, kernel, number))
            return
        kernel.signal(number)
        if number == signal.SIGTERM:
            self.reactor.call_later(KILL_WITHIN, partial(self._kill_after, kernel, signal.SIGKILL))

    def _describe(self) -> dict[str, Any]:
        return {
            "id": self.session.id,
            "state": self.state.value,
            "execution_state": "busy" if self._requests.running else "idle",
            "why": self.why,
            "encrypted": bool(self.kernel and self.kernel.is_encrypted),
            "keep": bool(self.session.about.get("keep")),
            **self._writer.describe_identity(),
        }


def _print_bug(error: Exception) -> None:
    traceback.print_exception(type(error), error, error.__traceback__)  # as Python 3.9 wants it
