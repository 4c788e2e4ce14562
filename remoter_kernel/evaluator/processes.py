"""Whether a process is still the one that it was: numbers recur, times of birth do not."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path


def boot_id() -> str:
    """Return what changes when this machine starts anew; empty where nothing says it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def pid_namespace() -> str:
    """Return what containers of one machine differ in; empty where nothing says it."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def set_process_name(name: str) -> None:
    """Show this process by a name to those who look with `ps` or `top`; 15 bytes of it.

    Its command line stays: others find it by that. Elsewhere than on Linux nothing happens.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name, encoding="ascii")


def started_at(pid: int) -> str:
    """Return when a process began, in words that only need to be compared; empty: no process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
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
