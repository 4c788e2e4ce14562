"""Processes of this machine, and how they ended.

A process number recurs, with another start time: both together name one process.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
from pathlib import Path
from typing import Any

from remoter_kernel.errors import RemoterError

_log = logging.getLogger(__name__)


def boot_id() -> str:
    """Return what changes with each boot of this machine; empty on others than Linux."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def pid_namespace() -> str:
    """Return what containers of one machine differ in; empty on others than Linux."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def set_process_name(name: str) -> None:
    """Give this process a name in `ps` and `top`, of which they show 15 bytes; on Linux alone.

    Its command line stays as it is: `pgrep -f` goes by that.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name, encoding="ascii")


def started_at(pid: int) -> str:
    """Return when a process began, as a text that is only to be compared; empty: no process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        fields = stat.rpartition(")")[2].split()  # the name before it may have blanks and brackets
        return "" if fields[0] == "Z" else fields[19]  # field 22 of proc(5): in ticks since boot
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    # macOS and the BSDs have no such file.
    asked = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip()


def is_running(pid: int, started: str) -> bool:
    """Does the process that began then still run?"""
    return bool(pid and started) and started_at(pid) == started


def describe_exit(words: dict[str, Any]) -> str:
    """Return in one sentence what the warden's last line means.

    `status` is an exit code or the negative of a signal's number, `peak_kib` the most
    memory that the process ever held, in KiB; `failed` says why it was never started.
    """
    if "failed" in words:
        place = f": {words['file']}" if words.get("file") else ""
        return f"it could not run: {words['failed']}{place}."
    status = int(words.get("status", 0))
    memory = format_memory(int(words.get("peak_kib", 0)))
    if status >= 0:
        return f"it ended with exit code {status}, having used up to {memory} of memory."
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "unknown"
    if -status == signal.SIGKILL:
        return (
            f"it was killed by signal 9 (SIGKILL), having used up to {memory} of memory; "
            "when a machine runs out of memory it does this."
        )
    return f"it was ended by signal {-status} ({name}), having used up to {memory} of memory."


def was_killed_by_signal(words: dict[str, Any]) -> bool:
    """Did a signal end the process, so that its last outputs may be missing?

    What it had in its own buffers is lost; one that ends by itself flushes them.
    """
    return int(words.get("status", 0)) < 0


def format_memory(kibibytes: int) -> str:
    """Return an amount of memory in the unit that reads best."""
    value = float(kibibytes)
    for unit in ("KiB", "MiB", "GiB"):
        if value < 1024:  # noqa: PLR2004 - KiB in a MiB, MiB in a GiB
            return f"{value:.0f} {unit}" if unit == "KiB" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def describe_failed_start(error: Exception) -> str:
    """Return why a kernel could not even be started."""
    if isinstance(error, (RemoterError, OSError)):
        return str(error)
    _log.error("The kernel could not be started.", exc_info=error)
    what = f"{type(error).__name__}: {error}"
    return f"The kernel could not be started ({what}). Look at its kernel.json there."
