"""Is Jupyter, whose kernel this process is, still there?"""

from __future__ import annotations

import os
import stat
import sys

_PARENT = os.environ.get("JPY_PARENT_PID", "")
_FIRST_PARENT = os.getppid()


def has_pid() -> bool:
    """Was this process started by a Jupyter that wants its kernels to go with it?"""
    return _PARENT.isdigit()


def can_watch() -> bool:
    """Should this process end with the one that started it?

    VS Code does not name itself, but holds the other end of its kernels' stdin. Whoever starts a
    kernel by hand to stay there gives it none, or a terminal.
    """
    return has_pid() or (sys.platform != "win32" and _is_pipe(0))


def _is_pipe(descriptor: int) -> bool:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def has_exited() -> bool:
    """Has that process ended? On Windows the variable holds a handle, elsewhere a number."""
    if sys.platform == "win32":
        import ctypes  # noqa: PLC0415 - Windows alone needs it

        has_ended = 0  # WAIT_OBJECT_0
        return bool(ctypes.windll.kernel32.WaitForSingleObject(int(_PARENT), 0) == has_ended)
    return os.getppid() != _FIRST_PARENT
