"""What is known of a remote before any login, for a thread that may not wait for a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import RemoterError
from remoter_kernel.front.configuration.kernelspec import language_of
from remoter_kernel.front.configuration.remotes import Remote, find_remote, last_kernel_info
from remoter_kernel.wire.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

READ_WITHIN = 0.05  # seconds: reading takes a tenth of that, unless the disk hangs
KNOWN_WITHIN = 0.3  # seconds, once, before Jupyter is answered
LANGUAGE = "python"  # of most kernels

Known = tuple[dict[str, Any] | None, str]


class Beforehand:
    """Finds one remote by its name; while its file cannot be read, as it was read last."""

    def __init__(
        self,
        name: str | None,
        here: Remote,
        find: Callable[[str | None], Remote | None] = find_remote,
    ) -> None:
        """Remember; `here` stands for this machine, which serves where there is no remote."""
        self._name = name
        self._here = here
        self._find = find
        self._last = self._unknown = Remote(name=name or "default", host="")
        self._reading: Thread | None = None

    def find(self) -> Remote:
        """Return the remote as it is configured now; one that cannot be read has its name."""
        reading = self._reading
        if reading is None or not reading.is_alive():
            reading = self._reading = _aside(self._read)
            reading.join(READ_WITHIN)  # once: who asks again meanwhile has waited
        return self._last

    def known(self) -> Known:
        """Return the last `kernel_info_reply` of the remote, if any, and its kernel's language."""
        known: list[Known] = [(None, LANGUAGE)]

        def recall() -> None:
            self._read()
            known.append((last_kernel_info(self._last), language_of(self._last)))

        _aside(recall).join(KNOWN_WITHIN)
        return known[-1]

    def _read(self) -> None:
        try:
            self._last = self._find(self._name) or self._here
        except (RemoterError, OSError):  # what is wrong is told in the first cell
            self._last = self._unknown


def _aside(read: Callable[[], None]) -> Thread:
    thread = Thread(read, name="configuration")
    thread.start()
    return thread
