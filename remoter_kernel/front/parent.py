"""Is Jupyter, whose kernel this process is, still there?"""

from __future__ import annotations

import os
import sys

_PARENT = os.environ.get("JPY_PARENT_PID", "")
_FIRST_PARENT = os.getppid()


def is_named() -> bool:
    """Was this process started by a Jupyter that wants its kernels to go with it?"""
    return _PARENT.isdigit()


def is_gone() -> bool:
    """Has that process ended? On Windows the variable holds a handle, elsewhere a number."""
    if sys.platform == "win32":
        import ctypes  # noqa: PLC0415 - Windows alone needs it

        has_ended = 0  # WAIT_OBJECT_0
        return bool(ctypes.windll.kernel32.WaitForSingleObject(int(_PARENT), 0) == has_ended)
    return os.getppid() != _FIRST_PARENT
