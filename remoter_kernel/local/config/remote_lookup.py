"""What is known of a remote before any login, for a thread that may not wait for a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import RemoterError
from remoter_kernel.local.config.kernelspec import language_of
from remoter_kernel.local.config.remotes import Remote, find_remote, last_kernel_info
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

READ_WITHIN = 0.05  # seconds: reading takes a tenth of that, unless the disk hangs
RECALL_WITHIN = 0.3  # seconds, once, before Jupyter is answered
LANGUAGE = "python"  # of most kernels

KernelInfoAndLanguage = tuple[dict[str, Any] | None, str]


class RemoteLookup:
    """Finds one remote by its name; while its file cannot be read, as it was read last."""

    def __init__(
        self,
        name: str | None,
        local: Remote,
        find: Callable[[str | None], Remote | None] = find_remote,
    ) -> None:
        """Remember; `local` stands for this machine, which serves where there is no remote."""
        self._name = name
        self._local = local
        self._find = find
        self._last = self._unknown = Remote(name=name or "default", host="")
        self._read_thread: Thread | None = None

    def find(self) -> Remote:
        """Return the remote as it is configured now; one that cannot be read has its name."""
        reading = self._read_thread
        if reading is None or not reading.is_alive():
            reading = self._read_thread = _start_reading(self._read)
            reading.join(READ_WITHIN)  # once: who asks again meanwhile has waited
        return self._last

    def recall(self) -> KernelInfoAndLanguage:
        """Return the last `kernel_info_reply` of the remote, if any, and its kernel's language."""
        known: list[KernelInfoAndLanguage] = [(None, LANGUAGE)]

        def recall() -> None:
            self._read()
            known.append((last_kernel_info(self._last), language_of(self._last)))

        _start_reading(recall).join(RECALL_WITHIN)
        return known[-1]

    def _read(self) -> None:
        try:
            self._last = self._find(self._name) or self._local
        except (RemoterError, OSError):  # what is wrong is told in the first cell
            self._last = self._unknown


def _start_reading(read: Callable[[], None]) -> Thread:
    thread = Thread(read, name="configuration")
    thread.start()
    return thread
