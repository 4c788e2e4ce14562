"""What a soak may not leave behind: processes of either side, sockets, files."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import psutil

from tests.real_jupyter import MARK, THIS_RUN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GONE_WITHIN = 30.0  # seconds


def processes(*, but: set[int]) -> Iterator[str]:
    """Yield every process, of either side, that was started for this run."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_ours = process.environ().get(MARK) == THIS_RUN and process.pid not in but
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                sockets = [c.laddr for c in process.net_connections() if c.status == "LISTEN"]
                yield f"process {process.pid} {' '.join(process.cmdline())[:120]} {sockets or ''}"


def files(*folders: Path) -> set[str]:
    """Return every path below folders, but for what R leaves itself when it is killed."""
    found = (path for folder in folders for path in folder.glob("*"))
    return {str(path) for path in found if not path.name.startswith("Rtmp")}


def left_behind(folders: tuple[Path, ...], before: set[str], *, but: set[int]) -> list[str]:
    """Wait until nothing is there that was not there before; return what stays."""
    until = time.monotonic() + GONE_WITHIN
    while True:
        left = [*processes(but=but), *sorted(files(*folders) - before)]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.2)


def end_all() -> None:
    """End what was started for this run, but for this process's own children."""
    ours = {os.getpid(), *(child.pid for child in psutil.Process().children())}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid not in ours and process.environ().get(MARK) == THIS_RUN:
                process.kill()
