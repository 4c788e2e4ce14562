"""What becomes of a transfer when somebody changes things under it, or an end says nonsense."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from remoter_kernel.errors import ProtocolError
from remoter_kernel.local.transfer.file_transfer import SocketEnds
from remoter_kernel.transfer import partial_file as parts
from remoter_kernel.transfer.framed_stream import (
    ACK_BODY,
    Cut,
    FileEntry,
    FileTrouble,
    FramedStream,
    FrameType,
    TroubleCode,
    pack_frame,
    to_body,
)
from remoter_kernel.transfer.partial_file import PartialFile
from remoter_kernel.transfer.plan import make_plan
from remoter_kernel.transfer.receiver import Receiver
from remoter_kernel.transfer.sender import Sender
from tests.two_ends import carry, dst, entry, link, names, say, send, src, start

__all__ = ["dst", "src"]  # fixtures

LARGE = 16 * 1024 * 1024


# --------------------------------------------------------------- while it is sent


def to_link(file: Path, secret: Path) -> None:
    file.unlink()
    file.symlink_to(secret)


def to_linked_folder(file: Path, secret: Path) -> None:
    shutil.rmtree(file.parent)
    file.parent.symlink_to(secret.parent)


def to_pipe(file: Path, _secret: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def to_folder(file: Path, _secret: Path) -> None:
    file.unlink()
    file.mkdir()


def to_nothing(file: Path, _secret: Path) -> None:
    file.unlink()


CHANGES = [to_link, to_linked_folder, to_pipe, to_folder, to_nothing]


@pytest.mark.parametrize("become", CHANGES, ids=lambda change: str(change.__name__))
def test_what_becomes_something_else_after_the_plan_is_not_followed(src, dst, tmp_path, become):
    """Nothing from outside is sent, nobody waits for a pipe's writer, and the others arrive."""
    secret = tmp_path / "private/file"
    for path in (secret, src / "sub/file", src / "other"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("secret" if path is secret else "public")
        os.utime(path, ns=(1, 1))
    plan = make_plan([str(src)], "/")
    become(src / "sub/file", secret)
    sending, receiving = Sender(plan), Receiver(f"{dst}/", "/")
    assert carry(sending, receiving) == []
    assert [trouble.path for trouble in sending.troubles] == ["src/sub/file"]
    assert (dst / "src/other").read_text() == "public"
    assert names(dst / "src/sub") == []
    assert sending.arrived == (1, len("public"))


def test_what_is_refused_is_not_sent_to_its_end(src, dst, monkeypatch):
    """Nor is it begun, where that is known before; what comes after it arrives."""

    def fail(_self: Any, _data: memoryview) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("large", "other large"):
        with (src / name).open("wb") as file:
            file.write(b"x" * LARGE)
    (src / "small").write_text("small")
    (dst / "src/large").mkdir(parents=True)
    write = PartialFile.write
    monkeypatch.setattr(
        PartialFile,
        "write",
        lambda self, data: (write if self.entry.size < LARGE else fail)(self, data),
    )
    sending, receiving = send(src, to=dst)
    assert sending._run.stream.sent_bytes < LARGE / 2
    assert [trouble.reason for trouble in sending.troubles] == [
        "a folder is in its place",
        "Input/output error",
    ]
    assert len(receiving.troubles) == 2
    assert names(dst / "src") == ["large", "small"]
    assert sending.arrived == (1, len("small"))


def test_who_waits_for_a_part_never_gets_what_bears_the_name(src, dst, monkeypatch):
    """The lock is held until the file is renamed: another one would begin by emptying it."""
    fcntl = pytest.importorskip("fcntl")
    tried: list[str] = []

    def settle(path: str, _entry: FileEntry, _mask: int, _before: int | None) -> None:
        with Path(path).open("rb") as part, pytest.raises(BlockingIOError):
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        tried.append(path)

    monkeypatch.setattr(parts, "set_mode_and_time", settle)
    (src / "a").write_text("a")
    send(src / "a", to=dst / "a")
    assert len(tried) == 1


def test_thousands_of_sources(src, dst):
    """As a shell makes them of a glob: their names together are more than one frame holds."""
    for number in range(2000):
        (src / f"{'ä' * 100} {number}").touch()
    sending, _ = send(*src.iterdir(), to=f"{dst}/")
    assert len(names(dst)) == 2000
    assert sending.targets[0] == f"{dst}/{sending.plan.tops[0]['name']}"


def test_a_file_without_a_size_is_not_taken_for_an_empty_one(dst):
    """Those of the kernel itself say 0, and have something."""
    about = Path("/proc/self/status")
    if not about.exists():
        pytest.skip("there is no /proc here")
    sending, _ = send(about, to=dst / "status")
    assert [trouble.code for trouble in sending.troubles] == [TroubleCode.CHANGED]
    assert names(dst) == []


# --------------------------------------------------------------- hostile ends


def words(word: FrameType, **said: Any) -> bytes:
    return pack_frame(word, to_body(said))


def test_a_folder_outside_gets_no_mode_through_a_link(dst, tmp_path):
    """A link that is there may lead to a folder that nobody else should look into."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (dst / "top").mkdir()
    (dst / "top/way").symlink_to(private)
    folder = FileEntry("top/way", "folder", mode=0o777).to_dict(1, asks=False)
    error = say(start("top") + words(FrameType.ENTRY, **folder) + pack_frame(FrameType.FINISH), dst)
    assert isinstance(error, FileTrouble)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


def test_a_link_that_is_there_may_lead_to_a_folder_inside(src, dst):
    (dst / "src/real").mkdir(parents=True)
    (dst / "src/way").symlink_to("real")
    (src / "way").mkdir()
    (src / "way/a").write_text("a")
    send(src, to=dst)
    assert (dst / "src/real/a").read_text() == "a"


FAULTS = {
    "the whole is a link": start("top") + link("top", "elsewhere"),
    "all was said, and a file is missing": start("top", is_folder=False)
    + words(FrameType.ENTRY, **FileEntry("top").to_dict(1, asks=False))
    + pack_frame(FrameType.FINISH),
    "two files of one number": start("top", is_folder=False) + entry("top", 1) + entry("top", 1),
    "an endless number": start("top") + words(FrameType.ERROR, trouble=float("inf")),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_sender_that_says_nonsense_is_told_so(what, dst, tmp_path):
    """In words, and whoever receives one file is no worse off than with a folder."""
    error = say(FAULTS[what], dst / "new", is_folder=False)
    assert isinstance(error, (FileTrouble, ProtocolError)), error
    assert not isinstance(error, Cut)
    assert names(tmp_path) == ["dst"]


def test_a_name_that_cannot_be_is_one_files_trouble(dst):
    """Half a pair of surrogates, as Windows may have one, is no name here."""
    said = start("top") + words(
        FrameType.ENTRY, **FileEntry("top", "folder").to_dict(1, asks=False)
    )
    said += entry("top/\ud800", 2) + entry("top/b", 3) + link("top/c", "\ud800", 4)
    assert isinstance(say(said, dst), Cut)
    assert names(dst / "top") == ["b"]


REPLIES = {
    "an endless number": words(FrameType.READY, place="/x")
    + words(FrameType.ERROR, trouble=float("inf")),
    "no place": words(FrameType.READY, place=5, is_folder=7) + words(FrameType.ERROR),
    "a list": pack_frame(FrameType.READY, b"[]"),
    "more bytes than were said": pack_frame(FrameType.ACK, ACK_BODY.pack(2**40, 0)),
    "more files than were told of": pack_frame(FrameType.ACK, ACK_BODY.pack(0, 5)),
    "what is there of nothing": words(FrameType.HAVE, number=7, size=2**70)
    + pack_frame(FrameType.DATA),
    "all is done before it was sent": pack_frame(FrameType.OVER, b"{}"),
    "a short position": pack_frame(FrameType.ACK, b"x"),
    "a sender's word": pack_frame(FrameType.FINISH),
}


@pytest.mark.parametrize("what", REPLIES)
def test_a_receiver_that_says_nonsense_is_left(src, what):
    """The sender ends in words, and waits for nothing."""
    (src / "a").write_bytes(bytes(LARGE))
    near, far = socket.socketpair()
    with near, far:
        duplex = FramedStream(SocketEnds(near))
        duplex.start()
        far.sendall(REPLIES[what])
        try:
            with pytest.raises((FileTrouble, ProtocolError)) as ended:
                Sender(make_plan([str(src)], "/")).run(duplex)
        finally:
            duplex.stop()
            duplex.close()
    assert not isinstance(ended.value, Cut)


def test_a_sender_cannot_fill_the_memory_with_sources(dst):
    tops = words(FrameType.START, more=True, tops=[{"name": f"{n}"} for n in range(10_000)])
    assert isinstance(say(tops * 11, dst), ProtocolError)


def test_a_source_of_more_names_than_can_be_told(src, monkeypatch):
    from remoter_kernel.transfer import plan as sources

    monkeypatch.setattr(sources, "MOST_SOURCES", 2)
    for name in "abc":
        (src / name).touch()
    with pytest.raises(FileTrouble, match="name the folder") as refused:
        make_plan([f"{src}/*"], "/")
    assert refused.value.code is TroubleCode.WORDS
