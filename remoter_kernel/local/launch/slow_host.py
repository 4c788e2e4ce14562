"""Says that a host takes long to start a command: start-up files of a shell may, for a minute."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOTIFY_AFTER = 8.0  # seconds: with cold disks most hosts are quicker


@contextlib.contextmanager
def notify_if_slow(host: str, notify: Callable[[str], None]) -> Iterator[None]:
    """Tell once, from another thread, if what is done meanwhile takes long."""
    sentence = f"waiting for {host} to start a command (its login shell may take long)"
    timer = threading.Timer(NOTIFY_AFTER, notify, (sentence,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
