"""Carries frames of a transfer over a stream of bytes: a socket here, stdin and stdout there.

Several threads may say something; one hears. Small frames wait for each other until `flush`.
Each end gives signs of life, so that one which hears none for long knows that it is alone:
a connection that has died without a word must not keep a half file locked.
"""

from __future__ import annotations

import contextlib
import selectors
import threading
import time
from typing import Any, Protocol

from remoter_kernel.errors import Unreachable
from remoter_kernel.protocol.threads import Thread
from remoter_kernel.transfer.wire_format import (
    HEAD,
    MOST_BODY,
    FileTrouble,
    FrameType,
    pack_frame,
    to_body,
    unpack_head,
)

TOGETHER = 64 * 1024  # bytes of small frames that wait for each other
KEEPALIVE_EVERY = 3.0  # seconds
SILENT_FOR = 15.0  # seconds without a sign of life after which the other end is gone


class StreamEnds(Protocol):
    """The two ends of a stream of bytes that are here."""

    def fileno(self) -> int:
        """The descriptor to wait at for what comes."""

    def read_into(self, view: memoryview) -> int:
        """Read what is there, wait if nothing is; 0 is the end."""

    def write(self, view: memoryview) -> int:
        """Write some of it, wait if there is no room."""

    def end(self) -> None:
        """Let whoever waits in the other two fail; from any thread."""


class Cut(Unreachable):
    """The stream has ended before everything was said."""


class FramedStream:
    """One conversation over such a stream; `start` it, `stop` it."""

    def __init__(self, ends: StreamEnds) -> None:
        self.sent_bytes = 0  # bytes of all frames, from here
        self.received_bytes = 0  # bytes of the frames that came, up to the last one taken
        self._ends = ends
        self._selector = selectors.DefaultSelector()
        self._out = bytearray()
        self._send_lock = threading.Lock()
        self._in = bytearray(2 * MOST_BODY)
        self._view = memoryview(self._in)
        self._begin = self._end = 0  # of what has come and was not taken
        self._is_over = threading.Event()
        self._keepalive = Thread(
            self._send_keepalives, name="transfer-beat", on_error=lambda _error: self.stop()
        )
        self.keepalive_frame = pack_frame(FrameType.ALIVE)

    def start(self) -> None:
        """Give signs of life from now on."""
        self._selector.register(self._ends.fileno(), selectors.EVENT_READ)
        self._keepalive.start()

    def stop(self) -> None:
        """Give no more of them, and let whoever waits here fail."""
        self._is_over.set()
        self._ends.end()
        if self._keepalive.is_alive() and self._keepalive is not threading.current_thread():
            self._keepalive.join(KEEPALIVE_EVERY)

    def close(self) -> None:
        """Give back what it took, once nobody hears any more."""
        self._selector.close()

    # --- to the other end ---

    def send_later(self, word: FrameType, body: bytes | memoryview = b"") -> None:
        """Say something; it may wait for `flush`."""
        with self._send_lock:
            self._append(memoryview(pack_frame(word, body)))

    def send_json(self, word: FrameType, words: dict[str, Any]) -> None:
        """Say something in JSON, now."""
        with self._send_lock:
            self._append(memoryview(pack_frame(word, to_body(words))))
            self._flush()

    def send_error(self, trouble: FileTrouble) -> None:
        """Say why nothing goes on, unless the other end has said so itself, or is gone."""
        if not trouble.is_from_peer:
            with contextlib.suppress(Cut):
                self.send_json(FrameType.ERROR, trouble.to_dict())

    def send_frame(self, whole: memoryview) -> None:
        """Say a frame that is put together already."""
        with self._send_lock:
            self._append(whole)

    def flush(self) -> None:
        """Let what waits go."""
        with self._send_lock:
            self._flush()

    def _append(self, whole: memoryview) -> None:
        self.sent_bytes += len(whole)
        if len(self._out) + len(whole) > TOGETHER:
            self._flush()
        if len(whole) > TOGETHER:
            self._write(whole)
        else:
            self._out += whole

    def _flush(self) -> None:
        if self._out:
            out, self._out = self._out, bytearray()
            self._write(memoryview(out))

    def _write(self, rest: memoryview) -> None:
        try:
            while rest:
                rest = rest[self._ends.write(rest) :]
        except (OSError, ValueError) as error:
            raise Cut(f"the connection was cut ({error}).") from None

    def _send_keepalives(self) -> None:
        while not self._is_over.wait(KEEPALIVE_EVERY):
            with contextlib.suppress(Cut), self._send_lock:
                self._append(memoryview(self.keepalive_frame))
                self._flush()

    # --- from the other end ---

    def has_input(self, seconds: float = 0.0) -> bool:
        """Is there something to hear, now or within that time?"""
        return self._has_frame() or bool(self._selector.select(seconds))

    def recv(self) -> tuple[FrameType, memoryview]:
        """Return the next frame; its body is there until the next call. Raise Cut."""
        while not self._has_frame():
            self._read()
        word, size = unpack_head(self._in, self._begin)
        begin = self._begin + HEAD.size
        self._begin = begin + size
        self.received_bytes += HEAD.size + size
        return word, self._view[begin : begin + size]

    def _has_frame(self) -> bool:
        there = self._end - self._begin
        if there < HEAD.size:
            return False
        return there >= HEAD.size + unpack_head(self._in, self._begin)[1]

    def _read(self) -> None:
        if self._begin == self._end:
            self._begin = self._end = 0
        elif len(self._in) - self._end < MOST_BODY:
            rest = bytes(self._view[self._begin : self._end])
            self._begin, self._end = 0, len(rest)
            self._view[: len(rest)] = rest
        until = time.monotonic() + SILENT_FOR
        while not self._selector.select(max(0.0, until - time.monotonic())):
            if time.monotonic() >= until:
                raise Cut(f"nothing was heard for {SILENT_FOR:.0f} seconds.")
        try:
            size = self._ends.read_into(self._view[self._end :])
        except (OSError, ValueError) as error:
            raise Cut(f"the connection was cut ({error}).") from None
        if not size:
            raise Cut("the connection was cut.")
        self._end += size
