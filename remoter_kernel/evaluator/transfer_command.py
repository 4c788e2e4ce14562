"""Sends or receives files over stdin and stdout: `python ZIP transfer`, for one put or get.

Needs only what Python brings. When the other end is gone, so is this process.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from typing import Any

from remoter_kernel.errors import RemoterError
from remoter_kernel.transfer.framed_stream import (
    GREETING,
    MOST_PATH,
    TRANSFER_VERSION,
    FileTrouble,
    FramedStream,
    FrameType,
    TroubleCode,
    from_body,
)
from remoter_kernel.transfer.plan import full_path, make_plan, trouble_from_os
from remoter_kernel.transfer.receiver import Receiver
from remoter_kernel.transfer.sender import Sender

PIPE_HOLDS = 1024 * 1024  # bytes: what Linux lets anybody have
F_SETPIPE_SZ = 1031  # Python 3.10 and later know it


class StdioStream:
    """This process's stdin and stdout, as the ends of a stream."""

    def __init__(self) -> None:
        self._in = io.FileIO(0, "r", closefd=False)
        self._out = io.FileIO(1, "w", closefd=False)
        for descriptor in (0, 1):  # 64 KiB, where nobody asks for more
            _enlarge_pipe(descriptor)

    def fileno(self) -> int:
        """The descriptor to wait at for what comes."""
        return 0

    def read_into(self, view: memoryview) -> int:
        """Read what is there."""
        return self._in.readinto(view) or 0

    def write(self, view: memoryview) -> int:
        """Write some of it."""
        return self._out.write(view) or 0

    def end(self) -> None:
        """End the process, unless the main thread calls: that one may be blocked by a full pipe."""
        if threading.current_thread() is not threading.main_thread():
            os._exit(0)


def _enlarge_pipe(descriptor: int) -> None:
    """Let a pipe hold more, where the system can: at each full one, two processes take turns."""
    if sys.platform == "linux":
        import fcntl  # noqa: PLC0415 - Windows has it not

        with contextlib.suppress(OSError):  # no pipe, or the person has too many of that size
            fcntl.fcntl(descriptor, F_SETPIPE_SZ, PIPE_HOLDS)


def main() -> None:
    """Greet, read one request, serve it."""
    stream = FramedStream(StdioStream())
    stream.start()
    os.write(1, GREETING + b"\n")
    with contextlib.suppress(RemoterError):  # the other end was told, or is gone
        kind, body = stream.recv()
        if kind is FrameType.WISH:
            _serve(stream, from_body(body))
    os._exit(0)  # not sys.exit: threads may still wait for an end that is gone


def _serve(stream: FramedStream, request: dict[str, Any]) -> None:
    try:
        transfer = _parse_request(request)
    except FileTrouble as trouble:
        stream.send_json(FrameType.ERROR, trouble.to_dict())
        return
    if isinstance(transfer, Sender):
        for each in transfer.plan.troubles:
            stream.send_json(FrameType.FAILED, {**each.to_dict(), "number": 0})
    transfer.run(stream)


def _parse_request(request: dict[str, Any]) -> Receiver | Sender:
    """Return what serves a request; FileTrouble if nothing can."""
    if request.get("transfer") != TRANSFER_VERSION:
        raise FileTrouble("", f"the far side speaks transfer {TRANSFER_VERSION}, and no other")
    folder = _base_folder(_checked_text(request.get("cwd") or "~"))
    if request.get("do") == "receive":
        return Receiver(_checked_text(request.get("to")), folder, is_dry=request.get("dry") is True)
    sources = request.get("sources")
    if request.get("do") != "send" or not isinstance(sources, list) or not sources:
        raise FileTrouble("", "that asks neither to send nor to receive", TroubleCode.WORDS)
    plan = make_plan([_checked_text(word) for word in sources], folder)
    return Sender(plan, asks_always=request.get("asks") is True)


def _checked_text(word: object) -> str:
    if not isinstance(word, str) or len(word) > MOST_PATH:
        raise FileTrouble("", "what is asked for has no name that can be", TroubleCode.WORDS)
    return word


def _base_folder(cwd: str) -> str:
    """Return the folder in which paths begin."""
    try:
        folder = os.path.realpath(full_path(os.path.expandvars(cwd), "/"))
    except (OSError, ValueError) as error:
        raise trouble_from_os(error, cwd) from None
    if not os.path.isdir(folder):
        reason = "there is no such folder, and the remote's cwd names it"
        raise FileTrouble(folder, reason, TroubleCode.MISSING)
    return folder
