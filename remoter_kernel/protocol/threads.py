"""Threads whose errors are logged, and one that does jobs for a loop that must not block.

Nobody sees what goes wrong in a thread that nobody joins: whoever counts on it would wait for
ever. Here it is logged, and handed to the one that started the thread.
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
    """A thread without which a process cannot go on has ended.

    No `Exception`: the loop catches those of its calls, and goes on.
    """


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
        super().__init__(name=name, daemon=True)  # a disk that hangs must not keep the process
        self._do = partial(target, *args)
        self._on_error = on_error

    def run(self) -> None:
        """Call the target; whatever goes wrong is logged."""
        try:
            self._do()
        except BaseException as error:  # noqa: BLE001 - nobody else would see it
            _log.exception("The thread %r ended: %s", self.name, reason(error))
            if self._on_error:
                self._on_error(error)


class Worker:
    """Does jobs in a thread of its own, one after the other, for a reactor that must not block."""

    def __init__(self, name: str, call: Callable[[Call], None]) -> None:
        """`call` makes a call in the reactor's thread."""
        self._call = call
        self._jobs: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._thread = Thread(self._work, name=name)
        self._is_started = False  # most workers never get a job, and so no thread
        self._logged = ""  # the last trouble

    def submit(
        self,
        job: Callable[[], Result],
        then: Callable[[Result], None] = lambda _result: None,
        on_error: Callable[[Exception], None] = lambda _error: None,
    ) -> None:
        """Do a job; in the reactor's thread `then` gets its result, or `on_error` its error."""
        if not self._is_started:
            self._is_started = True
            self._thread.start()
        self._jobs.put(partial(self._run_job, job, then, on_error))

    def close(self, seconds: float | None = None) -> None:
        """Take no more jobs, and wait (no longer than `seconds`) for those that are left."""
        if self._is_started:
            self._jobs.put(None)  # behind all jobs: they are done first
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
        except OSError as error:  # a disk's trouble: who submitted the job knows what it means
            if str(error) != self._logged:  # not each second again
                self._logged = str(error)
                _log.warning("%s: %s", self._thread.name, reason(error))
            self._call(partial(on_error, error))
        except Exception as error:  # noqa: BLE001 - `on_error` gets it
            _log.exception("%s: %s", self._thread.name, reason(error))
            self._call(partial(on_error, error))
        else:
            self._logged = ""
            self._call(partial(then, result))
