"""The log of one of our processes: what is logged, what a line looks like, and its file.

Each module logs with `logging.getLogger(__name__)`. A process that wants a file calls `open_log`
once. House rules:

- Logging never blocks: a line goes into a queue, and a thread writes it. A disk that is full, or
  hangs, costs lines and nothing else; their number is logged as soon as it takes some again.
- One entry is one line. What a terminal would act on is written as Python would write it.
- No contents: of cells, of outputs, of what somebody types. Why something failed is logged by
  `reason`, or by a traceback without the text of its error, which may hold any of these.

This file is shipped, so it stays within Python 3.9 and needs only the standard library.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Callable

from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

ROOT = "remoter_kernel"
FILE = "debug.log"  # of an evaluator, in its session's folder
LEVEL = "REMOTER_LOG"  # this variable says how much is logged
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
MOST_BYTES = 2**20  # of a file; then it becomes NAME.1, and the one before that goes
MOST_WAITING = 5000  # lines
MOST_AT_ONCE = 500  # lines
LONGEST = 1000  # characters of a line
LONGEST_REASON = 200  # characters
ENDS_WITHIN = 0.5  # seconds that the last lines have: a disk may hang
# Errors whose sentences quote a server or a program; the quotation comes after ": ".
QUOTING = {"RemoterError", "StrangeAnswer", "CommandEnded"}
QUOTED = ': "'  # in any error, a quotation begins so, and goes on to the end of the sentence

_open: list[LogFile] = []
logging.getLogger(ROOT).addHandler(logging.NullHandler())  # else logging prints warnings on stderr


def wanted() -> str:
    """Return how much is to be logged: a word of LEVELS; any other means info."""
    return os.environ.get(LEVEL, "")


def open_log(path: Path, level: str = "", *, chores: Callable[[], None] = lambda: None) -> None:
    """Log into this file from now on; the thread that writes runs `chores` once.

    Never fails: a process without a log works as well.
    """
    close_log()
    file = LogFile(path, chores)
    try:
        file.start()
    except RuntimeError:  # the system allows no more threads
        return
    _open.append(file)
    logger = logging.getLogger(ROOT)
    logger.setLevel(LEVELS.get(level.lower(), logging.INFO))
    logger.addHandler(file)


def close_log() -> None:
    """Write the last lines; needed before `os._exit`, which runs no exit handlers."""
    while _open:
        file = _open.pop()
        logging.getLogger(ROOT).removeHandler(file)
        file.close()


def reason(error: BaseException) -> str:
    """Return in a line why something failed, without quotations."""
    name = type(error).__name__
    if isinstance(error, OSError):
        return f"{name}: {os.strerror(error.errno)}" if error.errno else name
    first = own_words(error)
    return f"{name}: {first[:LONGEST_REASON]}" if first else name


def own_words(error: BaseException) -> str:
    """Return the first line of an error's sentence, without quotations.

    A server may quote a code with which somebody logs in.
    """
    first = str(getattr(error, "what", "")).partition("\n")[0].partition(QUOTED)[0]
    return first.partition(": ")[0] if type(error).__name__ in QUOTING else first


@contextlib.contextmanager
def noting(logger: logging.Logger, what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Go on after such an error, as `contextlib.suppress` does, and log it."""
    try:
        yield
    except kinds as error:
        logger.warning("%s: %s", what, reason(error))


class LogFile(logging.Handler):
    """A file of at most `MOST_BYTES`, and the one before it; written by a thread of its own."""

    def __init__(self, path: Path, chores: Callable[[], None]) -> None:
        super().__init__()
        self._path = path
        self._before = path.with_name(f"{path.name}.1")
        self._chores = chores
        # The one queue whose `put` a signal handler may call while its thread is within `put`.
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lost = 0  # lines
        self._is_torn = False  # was a line begun, and not ended?
        self._hooks: tuple[Any, Any] = (None, None)
        self._writer = threading.Thread(target=self._write_all, name="log", daemon=True)

    def start(self) -> None:
        """Begin to write; log uncaught exceptions, too, of the process and of threads."""
        self._writer.start()
        self._hooks = (sys.excepthook, threading.excepthook)
        sys.excepthook, threading.excepthook = self._note_end, self._note_end_of_thread

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line; whoever logs must not fail because a record cannot be formatted."""
        try:
            line = written(record)
        except Exception as error:  # noqa: BLE001 - a log must not end what it logs
            line = f"A line of {record.name} cannot be written: {type(error).__name__}\n"
        if self._lines.qsize() < MOST_WAITING:
            self._lines.put(line)
        else:
            self._lost += 1

    def close(self) -> None:
        """Write what waits, if the disk lets us; `logging` calls this, too, at an orderly end."""
        hooks, self._hooks = self._hooks, (None, None)
        if hooks[0]:
            sys.excepthook, threading.excepthook = hooks
            self._lines.put(None)
            self._writer.join(ENDS_WITHIN)
        super().close()

    # What ends unexpectedly --------------------------------------------------------------

    def _note_end(
        self, kind: type[BaseException], error: BaseException, where: TracebackType | None
    ) -> None:
        logging.getLogger(ROOT).critical("This process ends by a fault.", exc_info=error)
        self._hooks[0](kind, error, where)

    def _note_end_of_thread(self, about: threading.ExceptHookArgs) -> None:
        name = about.thread.name if about.thread else "unknown"
        logging.getLogger(ROOT).critical("Thread %s has died.", name, exc_info=about.exc_value)
        if self._hooks[1]:
            self._hooks[1](about)

    # The thread --------------------------------------------------------------------------

    def _write_all(self) -> None:
        if hasattr(signal, "pthread_sigmask"):  # signals are for the main thread, which may wait
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        chores: Callable[[], None] | None = self._chores
        is_over = False
        while not is_over:
            lines = [self._lines.get()]
            while len(lines) < MOST_AT_ONCE and not self._lines.empty():
                lines.append(self._lines.get())
            is_over = None in lines
            self._write([line for line in lines if line])
            if chores and not is_over:
                with contextlib.suppress(OSError):
                    chores()
                chores = None

    def _write(self, lines: list[str]) -> None:
        """Write lines; the file is opened each time, as it or its disk may be gone meanwhile."""
        lost, self._lost = self._lost, 0
        if lost:
            lines.insert(0, f"    Lines that could not be written here: {lost}\n")
        text = "\n" * self._is_torn + "".join(lines)
        try:
            if text:
                self._append(text.encode("utf-8", "backslashreplace"))
        except OSError:
            self._lost += lost + len(lines) - bool(lost)

    def _append(self, data: bytes) -> None:
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size = os.fstat(handle).st_size
            while data:
                written_now = os.write(handle, data)
                self._is_torn = data[written_now - 1 : written_now] != b"\n"
                data = data[written_now:]
                size += written_now
        finally:
            os.close(handle)
        if size > MOST_BYTES:
            os.replace(self._path, self._before)  # noqa: PTH105 - this side's Windows has it, too


def written(record: logging.LogRecord) -> str:
    """Format a record: time (UTC), level, module, message; and the traceback of an error."""
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.created))
    name = record.name[len(ROOT) + 1 :] or ROOT
    what = plain_text(record.getMessage(), escapes=True, most=LONGEST)
    head = f"{clock}.{int(record.msecs):03d}Z {record.levelname} {name}: "
    lines = [head + what]
    error = record.exc_info[1] if record.exc_info else None
    if error:
        lines += [f"    {plain_text(line, escapes=True, most=LONGEST)}" for line in _way_to(error)]
    return "".join(f"{line}\n" for line in lines)


def _way_to(error: BaseException) -> Iterator[str]:
    """Yield a traceback without source lines and texts, the innermost frame last."""
    place = error.__traceback__
    while place:
        name = place.tb_frame.f_globals.get("__name__", "?")
        yield f"{name}:{place.tb_lineno} {place.tb_frame.f_code.co_name}"
        place = place.tb_next
    yield reason(error)
