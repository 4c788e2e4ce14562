"""The child kernel's parent process: a few lines that outlive the evaluator.

Reads one line of JSON (argv, env, cwd, umask, log) from stdin, starts the kernel, says
its process number in one line, and when it has ended says how in another. The same words
are in `child.json` and `exit.json` of the session's folder, for whoever asks later.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from remoter_kernel.daemon.kernel_log import LogTrimmer
from remoter_kernel.daemon.processes import call_this_process, started_at

RETRY_AFTER = 1.0  # seconds


def main() -> None:
    """Start the kernel, wait for its end, tell it."""
    wish = json.loads(sys.stdin.readline())
    folder = Path(wish["folder"])
    call_this_process(f"remoterw {folder.name}")
    umask = os.umask(0o077)
    try:
        child = _start_kernel(wish)
    except OSError as error:
        _tell(folder / "exit.json", {"failed": error.strerror, "file": str(error.filename)})
        return
    finally:
        os.umask(umask)
    bound = LogTrimmer(Path(wish["log"]))
    about = {"pid": child.pid, "started": started_at(child.pid), "warden": os.getpid()}
    is_written = _tell(folder / "child.json", about)
    while not is_written and child.poll() is None:  # a full disk may have room again
        time.sleep(RETRY_AFTER)
        is_written = _write_json(folder / "child.json", about)
    status = child.wait()
    bound.end()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    kibibytes = used.ru_maxrss // (1024 if sys.platform == "darwin" else 1)
    _tell(folder / "exit.json", {"pid": child.pid, "status": status, "peak_kib": kibibytes})


def _start_kernel(wish: dict[str, Any]) -> subprocess.Popen[bytes]:
    def be_ordinary() -> None:
        os.umask(wish["umask"])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)

    with open(wish["log"], "ab") as log:  # noqa: PTH123 - no pathlib on the way to the kernel
        return subprocess.Popen(
            wish["argv"],
            env=wish["env"],
            cwd=wish["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # an interrupt goes to the kernel's whole group
            preexec_fn=be_ordinary,  # noqa: PLW1509 - this process has one thread so far
        )


def _tell(path: Path, words: dict[str, Any]) -> bool:
    """Tell it to a file and to the evaluator; return whether the file has it."""
    is_written = _write_json(path, words)
    with contextlib.suppress(OSError):  # the evaluator is gone; the file is there
        os.write(1, (json.dumps(words) + "\n").encode())
    return is_written


def _write_json(path: Path, words: dict[str, Any]) -> bool:
    beside = path.with_suffix(".part")
    try:
        beside.write_text(json.dumps(words), encoding="utf-8")
        beside.replace(path)
    except OSError:
        return False
    return True
