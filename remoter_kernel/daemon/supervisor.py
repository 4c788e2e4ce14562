"""Owns one child kernel: start, interrupt, restart, stop, notice and explain its death.

Decides; the child, the door and the journal touch. What fronts ask for is the desk's.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from remoter_kernel.daemon import registry
from remoter_kernel.daemon.adoption import Adoption
from remoter_kernel.daemon.board import Board
from remoter_kernel.daemon.child import Child
from remoter_kernel.daemon.deaths import describe_exit, describe_failed_start, is_by_signal
from remoter_kernel.daemon.desk import RequestHandler
from remoter_kernel.daemon.ear import Ear
from remoter_kernel.daemon.lost_ports import LostPorts
from remoter_kernel.daemon.patience import Patience
from remoter_kernel.daemon.registry import ServedSession
from remoter_kernel.daemon.slow_start import SlowStart
from remoter_kernel.daemon.speaker import Speaker
from remoter_kernel.wire.frames import Bytes, Channel
from remoter_kernel.wire.requests import Stage
from remoter_kernel.wire.threads import Thread
from remoter_kernel.wire.waiting import MOST_WAITING

if TYPE_CHECKING:
    from remoter_kernel.daemon.door import Door
    from remoter_kernel.daemon.journal import Journal
    from remoter_kernel.daemon.past import Past
    from remoter_kernel.daemon.registry import Session
    from remoter_kernel.wire.reactor import Reactor
    from remoter_kernel.wire.requests import Request

DIE_WITHIN = 4.0  # seconds that a kernel has for its own shutdown, before a signal
KILL_WITHIN = 2.0  # seconds after that signal
NAMED_WITHIN = 0.5  # seconds: the warden says which process it has started
RESTART_AFTER = 0.2  # seconds: JupyterLab cancels cells whose errors come later than this news
LINGER = 30.0  # seconds that a session which could not start still tells why
LINGER_LOOK = 0.5  # seconds
LOOK_AGAIN = 0.005  # seconds until a thread has probably done its work
SWEEP_AFTER = 10.0  # seconds: nobody should wait for it
ORDERS = (signal.SIGTERM, signal.SIGUSR1)  # stop, restart


class KernelState(Enum):
    """How the child is."""

    STARTING = "starting"
    ADOPTING = "adopting"  # it lives, but has yet to answer a new evaluator
    READY = "ready"
    RESTARTING = "restarting"  # the old process has yet to end
    DEAD = "dead"  # it ended by itself; another one is about to start
    STOPPING = "stopping"
    FAILED = "failed"  # it could not be started


WITH_CHILD = {KernelState.READY, KernelState.ADOPTING}


class Supervisor:
    """The will of the evaluator."""

    def __init__(
        self,
        reactor: Reactor,
        session: Session,
        journal: Journal,
        door: Door,
        *,
        wish: dict[str, Any],
        umask: int,
        past: Past | None = None,
    ) -> None:
        """Remember; `run` begins."""
        self.reactor = reactor
        self.session = session = ServedSession(session.folder, reactor.call)
        self.journal = journal
        self.door = door
        self.wish = wish
        self.umask = umask
        self.past = past  # of an evaluator that died, and left its child
        self.state = KernelState.STARTING
        self.why = ""
        self.child: Child | None = None
        self._speaker = Speaker(journal)
        self._board = Board(reactor, session, journal, door)
        self._desk = RequestHandler(
            session, journal, door, self._speaker, past.requests if past else None
        )
        self._requests = self._desk.requests
        self._interrupts = self._desk.interrupts
        self._ear = Ear(journal, door, self._desk, self._speaker, past)
        self._slow_start = SlowStart(reactor, session.id, self._requests, self._speaker, wish)
        self._patience = Patience(reactor, door, self._requests, self.stop)
        self._ports = LostPorts(reactor)
        self._told_trouble = ""  # of the journal

    def run(self) -> None:
        """Serve until the session ends."""
        self._desk.child_for = self._child_for
        self._desk.on_order = self._obey
        self._desk.on_cell = self._board.note_cell
        self._board.requests = self._requests
        self._desk.on_doubt = self._doubt
        self.door.on_item = self._desk.take
        self.door.on_refused = self._speaker.tell_refused
        self.door.describe = self._describe
        self.door.most_waiting = int(self.wish.get("waiting_limit") or MOST_WAITING)
        self.door.on_visit = self._speaker.note_visit
        self.reactor.after_pass = self._end_pass
        self._board.open()
        is_finishing = bool(self.session.about.get("finish"))
        self._patience.begin(self.wish, is_finishing=is_finishing)
        self.reactor.on_bug = lambda error: traceback.print_exception(
            type(error), error, error.__traceback__
        )
        self.reactor.hear_signals()
        for number in ORDERS:
            signal.signal(number, self._hear_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERS)
        if self.past:
            self._adopt(self.past)
        else:
            self._start()
        self.reactor.later(SWEEP_AFTER, Thread(registry.sweep, name="sweep").start)
        self.reactor.run()
        self.journal.close()
        self.door.close(self.why)
        self._board.close()
        self.session.close()
        self.session.forget_keys()

    def _hear_signal(self, number: int, _frame: object) -> None:
        """Hear an order that was given while no wire was up: stop, or restart."""
        order = "stop" if number == signal.SIGTERM else "restart"
        self.reactor.call(partial(self._obey, order))

    def _end_pass(self) -> None:
        if self.journal.trouble != self._told_trouble:
            self._tell_trouble()
        self.door.flush_soon()
        is_ready = self.state is KernelState.READY
        self._board.look(
            ("busy" if self._requests.is_busy else "idle") if is_ready else self.state.value
        )

    def _tell_trouble(self) -> None:
        """Say in the running cell that the disk takes nothing any more, once each time."""
        cell, trouble = self._requests.running, self.journal.trouble
        if trouble and not cell:
            return  # the next one hears of it
        self._told_trouble = trouble
        if trouble and cell:
            self._speaker.tell(
                cell,
                f"The journal of session {self.session.id} cannot be written there "
                f"({trouble}). The session goes on, with what is said kept in memory alone.",
            )

    def _child_for(self, channel: Channel) -> Child | None:
        """Return the child if it gets what comes on this channel at once."""
        is_asked_late = self.state is KernelState.ADOPTING and channel is not Channel.SHELL
        return self.child if self.state is KernelState.READY or is_asked_late else None

    def _obey(self, order: str) -> None:
        if order == "stop":
            self.stop("It was stopped.")
        elif order == "finish":
            self._patience.finish()
        else:
            self._end_child(KernelState.RESTARTING)

    # From the child --------------------------------------------------------------------

    def _start(self) -> None:
        self.state = KernelState.STARTING
        try:
            self.child = child = self._new_child()
            child.on_ready = self._be_ready
            child.start(
                arguments=self.wish.get("arguments") or (),
                env=self.wish.get("env") or {},
                cwd=os.path.expanduser(os.path.expandvars(self.wish.get("cwd") or "~")),  # noqa: PTH111 - as a shell would
                init=self.wish.get("init") or (),
                umask=self.umask,
            )
        except Exception as error:  # noqa: BLE001 - a kernelspec may be odd in any way
            self._fail(describe_failed_start(error))
        else:
            starts = lambda: self.child is child and self.state is KernelState.STARTING  # noqa: E731
            self._ports.watch(child, starts)
            self._slow_start.watch(child, starts)

    def _new_child(self) -> Child:
        kernel = self.wish.get("kernel") or "python3"
        me, is_own = self.session.id.encode(), bool(self.wish.get("python"))
        child = Child(self.reactor, self.session.folder, kernel, me, is_own=is_own)
        child.on_message = self._hear
        child.on_exit = self._hear_of_end
        child.on_question_reached = self._hear_of_question
        return child

    def _hear(self, channel: Channel, parts: list[Bytes]) -> None:
        # What a kernel publishes while it starts belongs to no request: of a kernel that
        # runs here, too, nobody hears it.
        if channel is not Channel.IOPUB or self.state is not KernelState.STARTING:
            self._ear.hear(channel, parts)

    def _be_ready(self, header: dict[str, Any], kernel_info: dict[str, Any]) -> None:
        """The child answers, and is heard on iopub: whoever waits gets its turn."""
        child = self.child
        if self.state is KernelState.STARTING and child is not None:
            self._ports.check(child, partial(self._go_ready, child, header, kernel_info))

    def _go_ready(self, child: Child, header: dict[str, Any], kernel_info: dict[str, Any]) -> None:
        if self.state is not KernelState.STARTING or self.child is not child:
            return
        self._ports.begin_anew()
        self.state = KernelState.READY
        self._speaker.sound_like(header, kernel_info)
        self._note_ready(child)
        self._desk.dispatch.serve()

    def _note_ready(self, child: Child) -> None:
        words = self._speaker.describe()
        self._speaker.note("ready", encrypted=child.is_encrypted, **words)

    def _adopt(self, past: Past) -> None:
        """Take over the child of an evaluator that has died, and what was asked of it."""
        self.state = KernelState.ADOPTING
        for front, seen in past.seen.items():
            self.door.remember(front, seen)
        self.door.is_sure_of = past.is_sure_of
        self._requests.is_logged = True
        self._speaker.sound_like(past.kernel, past.kernel.get("kernel_info") or {})
        if not self.session.read("child.json").get("pid"):
            self._start_in_place_of(past)
            return
        for asker in past.begun:
            self._interrupts.note_begin(asker)
        self._begin_adoption(past)
        self.child = child = self._new_child()
        child.on_ready = partial(self._hear_adopted, child)
        child.adopt()
        if past.unfinished:
            self._obey(past.unfinished)

    def _start_in_place_of(self, past: Past) -> None:
        """Go on where an evaluator died between two kernels, or before the first."""
        self._desk.fail_all("KernelDied", "The kernel died, and its evaluator with it.")
        self._speaker.kernel_info = {}
        if past.kernel:
            self.state = KernelState.DEAD
            self._start_again()
        else:
            self._start()

    def _begin_adoption(self, past: Past) -> Adoption:
        adoption = Adoption(self.reactor, past, self._requests, self._speaker)
        adoption.on_settled = self._settle
        adoption.on_lost_interrupt = lambda cell, number: self._interrupts.aim(
            cell.id, cell.client, number
        )
        self._ear.adoption = adoption
        return adoption

    def _doubt(self, request: Request) -> None:
        """Make sure of something that the child may have got: it is not handed over again."""
        is_missed = request.expects_reply and not (self.past and request.id in self.past.answered)
        if self.past is None or not is_missed:
            self._requests.move(request, Stage.DONE, "an evaluator before may have sent it")
            return
        if self.child and self.child.is_adopted and self.state in WITH_CHILD:
            adoption = self._ear.adoption or self._begin_adoption(self.past)
            adoption.doubt(request)
            self.child.ask_again()
        else:
            self._desk.fail(request, "OutputsMissing", "It may have run in a kernel that is gone.")

    def _hear_adopted(
        self, child: Child, header: dict[str, Any], kernel_info: dict[str, Any]
    ) -> None:
        if not self._speaker.kernel_info:  # the journal was damaged there
            self._speaker.sound_like(header, kernel_info)
            self._note_ready(child)
        if self._ear.adoption:
            self._ear.adoption.hear_answer(child)

    def _hear_of_question(self) -> None:
        if self._ear.adoption:
            self._ear.adoption.hear_of_question()

    def _settle(self) -> None:
        self._ear.adoption = None
        if self.state is KernelState.ADOPTING:
            self.state = KernelState.READY
            self._interrupts.forget()
            self._desk.dispatch.serve()

    def _hear_of_end(self, words: dict[str, Any]) -> None:
        """The child has ended: as it should, or not."""
        child, self.child = self.child, None
        if child is None:
            return
        self._ear.adoption = None
        self._interrupts.forget()
        child.close()
        self._speaker.kernel_info = {}
        if self.state is KernelState.STOPPING:
            self._leave()
        elif self.state is KernelState.RESTARTING:
            self._desk.fail_all("KernelRestarted", "The kernel was restarted.")
            self._start()
        elif self.state is KernelState.STARTING:
            self._ports.read(child, partial(self._hear_why_not_started, words))
        else:
            self.state = KernelState.DEAD
            why = f"The kernel died: {describe_exit(words)} Its variables are gone; it starts anew."
            self._desk.fail_all("KernelDied", why, is_cut=is_by_signal(words))
            self._speaker.note("died", why=why)
            child.forget()
            self.reactor.later(RESTART_AFTER, self._start_again)

    def _hear_why_not_started(self, words: dict[str, Any], last_words: str) -> None:
        if self.state is not KernelState.STARTING:
            return  # it is to end
        if self._ports.is_to_try_again(last_words):
            self._start()
        else:
            self._fail(f"The kernel did not start: {describe_exit(words)}\n{last_words}".rstrip())

    def _start_again(self) -> None:
        if self.state is not KernelState.DEAD:
            return  # it is to end
        self._speaker.publish("status", {"execution_state": "restarting"})
        self._start()

    def _fail(self, why: str) -> None:
        """End a session whose kernel does not start, once it has told why."""
        self.state = KernelState.FAILED
        self.why = why
        self._speaker.note("failed", why=why)
        self.session.end(self.why)
        self._linger(time.monotonic() + LINGER)

    def _linger(self, until: float) -> None:
        """Stay until a front has come, heard and left."""
        has_told = self.door.guests and not self.door.has_visitors
        if has_told or time.monotonic() > until:
            self.reactor.stop()
        self.reactor.later(LINGER_LOOK, partial(self._linger, until))

    # Ends ------------------------------------------------------------------------------

    def stop(self, why: str) -> None:
        """End the session."""
        if self.state is KernelState.STOPPING:
            return
        self.why = why
        self.session.end(self.why)
        if self.child:
            self._end_child(KernelState.STOPPING)
        else:
            self.state = KernelState.STOPPING
            self._leave()

    def _leave(self) -> None:
        """End this process once all is written, so that the last orders are confirmed."""
        if self.journal.written == self.journal.last:
            self.reactor.stop()
        else:
            self.reactor.later(LOOK_AGAIN, self._leave)

    def _end_child(self, state: KernelState) -> None:
        """Ask the child to end; a signal follows where asking does not help."""
        child, was_ready = self.child, self.state in WITH_CHILD
        if child is None or self.state is KernelState.STOPPING:
            return  # it is about to start anew by itself, or ends for good
        if was_ready:
            self._ear.cut_short = self._desk.cut_short()
        self.state = state
        if was_ready:
            words = {"restart": state is KernelState.RESTARTING}
            child.ask(Channel.CONTROL, "shutdown_request", words)
        self.reactor.later(DIE_WITHIN if was_ready else 0.0, partial(self._insist, child))

    def _insist(self, child: Child, number: int = signal.SIGTERM) -> None:
        """End a child by a signal, then by a harder one; its warden may have yet to name it."""
        if self.child is not child:
            return
        if not child.pid:
            self.reactor.later(NAMED_WITHIN, partial(self._insist, child, number))
            return
        child.signal(number)
        if number == signal.SIGTERM:
            self.reactor.later(KILL_WITHIN, partial(self._insist, child, signal.SIGKILL))

    # What the evaluator says itself ----------------------------------------------------

    def _describe(self) -> dict[str, Any]:
        return {
            "id": self.session.id,
            "state": self.state.value,
            "execution_state": "busy" if self._requests.running else "idle",
            "why": self.why,
            "encrypted": bool(self.child and self.child.is_encrypted),
            "keep": bool(self.session.about.get("keep")),
            **self._speaker.describe(),
        }
