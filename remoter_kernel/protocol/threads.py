"""Threads that do not die in silence, and one that does what must hold up nobody.

What goes wrong in a thread that nobody waits for is seen by nobody: whoever counts on it would
wait for ever. Here it is logged, and handed to who started the thread.
"""

from __future__ import annotations

import logging
import queue
import threading
from functools import partial
from typing import Any, Callable, TypeVar

from remoter_kernel.logs import reason

_log = logging.getLogger(__name__)

Call = Callable[[], None]
OnError = Callable[[BaseException], None]
Result = TypeVar("Result")


class ThreadEndedError(BaseException):
    """A thread without which a process cannot go on has ended; no loop goes on after that."""


def end_loop_with(error: BaseException) -> None:
    """End the loop in which this is called, and with it the process: a thread of it has died."""
    raise ThreadEndedError(f"A thread ended: {type(error).__name__}: {error}") from error


class Thread(threading.Thread):
    """A daemon thread. What it did not catch is logged, then handed to `on_error`, in it."""

    def __init__(
        self,
        target: Callable[..., None],
        *,
        name: str,
        args: tuple[Any, ...] = (),
        on_error: OnError | None = None,
    ) -> None:
        """Remember; `start` begins."""
        super().__init__(name=name, daemon=True)
        self._do = partial(target, *args)
        self._on_error = on_error

    def run(self) -> None:
        """Do it; whatever goes wrong is told."""
        try:
            self._do()
        except BaseException as error:  # noqa: BLE001 - nobody else would see it
            _log.exception("The thread %r ended: %s", self.name, reason(error))
            if self._on_error:
                self._on_error(error)


class Worker:
    """Does jobs in a thread of its own, one after the other, for a reactor that must not wait."""

    def __init__(self, name: str, call: Callable[[Call], None]) -> None:
        """Remember; `call` has a call made in the reactor's thread."""
        self._call = call
        self._jobs: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._thread = Thread(self._work, name=name)
        self._is_started = False
        self._logged = ""

    def submit(
        self,
        job: Callable[[], Result],
        then: Callable[[Result], None] = lambda _result: None,
        on_error: Callable[[Exception], None] = lambda _error: None,
    ) -> None:
        """Have a job done; the reactor's thread hears what it returned, or raised."""
        if not self._is_started:
            self._is_started = True
            self._thread.start()
        self._jobs.put(partial(self._run_job, job, then, on_error))

    def close(self, seconds: float | None = None) -> None:
        """Take no more, and wait (a while, perhaps) for what is to be done yet."""
        if self._is_started:
            self._jobs.put(None)
            self._thread.join(seconds)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _run_job(
        self,
        job: Callable[[], Result],
        then: Callable[[Result], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        try:
            result = job()
        except OSError as error:  # a disk's trouble: whoever asked knows what it means
            if str(error) != self._logged:  # not each second again
                self._logged = str(error)
                _log.warning("%s: %s", self._thread.name, reason(error))
            self._call(partial(on_error, error))
        except Exception as error:  # noqa: BLE001 - whoever asked hears it
            _log.exception("%s: %s", self._thread.name, reason(error))
            self._call(partial(on_error, error))
        else:
            self._logged = ""
            self._call(partial(then, result))
