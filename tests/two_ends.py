"""The two ends of a transfer over a real socket, and whoever says to one of them what it likes."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.errors import RemoterError
from remoter_kernel.local.transfer.file_transfer import SocketEnds
from remoter_kernel.transfer.framed_stream import (
    BODY_START,
    FileEntry,
    FramedStream,
    FrameType,
    pack_frame,
    to_body,
)
from remoter_kernel.transfer.plan import make_plan
from remoter_kernel.transfer.receiver import Receiver
from remoter_kernel.transfer.sender import Sender

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """A folder from which something is sent."""
    folder = tmp_path / "src"
    folder.mkdir()
    return folder


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    """A folder into which something is sent."""
    folder = tmp_path / "dst"
    folder.mkdir()
    return folder


def carry(sending: Sender, receiving: Receiver) -> list[Exception]:
    """Connect both ends, and return what each ended with."""
    near, far = socket.socketpair()
    troubles: list[Exception] = []

    def run(end: Any, connection: socket.socket) -> None:
        duplex = FramedStream(SocketEnds(connection))
        duplex.start()
        try:
            end.run(duplex)
        except RemoterError as error:
            troubles.append(error)
        finally:
            duplex.stop()
            duplex.close()

    with near, far:
        thread = threading.Thread(target=run, args=(receiving, far))
        thread.start()
        run(sending, near)
        thread.join(20)
        assert not thread.is_alive()
    return troubles


def send(*words: Any, to: Any, **options: Any) -> tuple[Sender, Receiver]:
    """Carry sources to a place; it must go well."""
    sending = Sender(make_plan([str(word) for word in words], "/"), **options)
    receiving = Receiver(str(to), "/")
    assert carry(sending, receiving) == []
    return sending, receiving


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def start(*sources: str, is_folder: bool = True, **numbers: int) -> bytes:
    tops = [{"name": name, "is_folder": is_folder} for name in sources]
    told = {"files": 1000, "size": 1_000_000, "entries": 3000} | numbers
    return pack_frame(FrameType.START, to_body({"tops": tops, **told}))


def entry(path: str, number: int = 1, content: bytes = b"evil", **words: Any) -> bytes:
    told = FileEntry(path, size=len(content)).to_dict(number, asks=False) | words
    digest = hashlib.sha256(content).hexdigest()
    return (
        pack_frame(FrameType.ENTRY, to_body(told))
        + pack_frame(FrameType.BODY, BODY_START.pack(number, 0))
        + pack_frame(FrameType.DATA, content)
        + pack_frame(FrameType.END, to_body({"number": number, "sha256": digest}))
    )


def link(path: str, target: str, number: int = 9) -> bytes:
    return pack_frame(
        FrameType.ENTRY, to_body(FileEntry(path, "link", target=target).to_dict(number, asks=False))
    )


def say(said: bytes, dst: Path, *asked: str, is_folder: bool = True) -> Exception | None:
    """Say something to a receiver, and hang up; return what it ended with."""
    near, far = socket.socketpair()
    with near, far:
        duplex = FramedStream(SocketEnds(far))
        duplex.start()

        def speak() -> None:
            with contextlib.suppress(OSError):
                near.sendall(said)
                near.shutdown(socket.SHUT_WR)
                while near.recv(65536):
                    pass

        thread = threading.Thread(target=speak)
        thread.start()
        try:
            Receiver(f"{dst}/" if is_folder else str(dst), "/", asked=asked).run(duplex)
        except RemoterError as error:
            return error
        finally:
            duplex.stop()
            duplex.close()
            far.close()
            thread.join(5)
    return None
