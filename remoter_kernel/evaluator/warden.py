"""The kernel's parent process: a few lines that outlive the evaluator.

Only a parent can wait for a process's exit status. Reads one line of JSON (argv, env, cwd, umask,
folder, log) from stdin, starts the kernel, writes its process number in one line to stdout, and
how it has ended in another. `child.json` and `exit.json` in the session's folder have the same,
for evaluators that come later.
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

from remoter_kernel.evaluator.kernel_log import LogTrimmer
from remoter_kernel.evaluator.processes import set_process_name, started_at

RETRY_AFTER = 1.0  # seconds


def main() -> None:
    """Start the kernel, wait for its end, report it."""
    request = json.loads(sys.stdin.readline())
    folder = Path(request["folder"])
    set_process_name(f"remoterw {folder.name}")
    umask = os.umask(0o077)
    try:
        kernel = _start_kernel(request)
    except OSError as error:
        _report(folder / "exit.json", {"failed": error.strerror, "file": str(error.filename)})
        return
    finally:
        os.umask(umask)
    trimmer = LogTrimmer(Path(request["log"]))  # after the fork: threads and preexec_fn do not mix
    about = {"pid": kernel.pid, "started": started_at(kernel.pid), "warden": os.getpid()}
    is_written = _report(folder / "child.json", about)
    while not is_written and kernel.poll() is None:  # a full disk may have room again
        time.sleep(RETRY_AFTER)
        is_written = _write_json(folder / "child.json", about)
    status = kernel.wait()
    trimmer.stop()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    kibibytes = used.ru_maxrss // (1024 if sys.platform == "darwin" else 1)  # bytes on macOS
    _report(folder / "exit.json", {"pid": kernel.pid, "status": status, "peak_kib": kibibytes})


def _start_kernel(request: dict[str, Any]) -> subprocess.Popen[bytes]:
    def reset_process_state() -> None:
        os.umask(request["umask"])
        # A login by `nohup` ignores SIGHUP, and a shell's background job SIGINT; exec keeps that.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)

    with open(request["log"], "ab") as log:  # noqa: PTH123 - no pathlib on the way to the kernel
        return subprocess.Popen(
            request["argv"],
            env=request["env"],
            cwd=request["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # an interrupt goes to the kernel's whole group
            preexec_fn=reset_process_state,  # noqa: PLW1509 - this process has one thread so far
        )


def _report(path: Path, words: dict[str, Any]) -> bool:
    """Write fields to a file and to the evaluator; return whether the file has them."""
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
