"""Both ends of a transfer, over a real socket: what arrives, what is refused, what goes on."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from remoter_kernel.errors import ProtocolError
from remoter_kernel.evaluator.transfer_command import PIPE_HOLDS, _enlarge_pipe
from remoter_kernel.local.transfer.file_transfer import SocketEnds
from remoter_kernel.protocol import stream
from remoter_kernel.transfer import partial_file as parts
from remoter_kernel.transfer import receiver as receiving_end
from remoter_kernel.transfer.framed_stream import (
    ASK_FROM,
    BODY_START,
    CHUNK,
    Cut,
    FileEntry,
    FileTrouble,
    FramedStream,
    FrameType,
    TroubleCode,
    pack_frame,
    to_body,
)
from remoter_kernel.transfer.plan import make_plan
from remoter_kernel.transfer.receiver import Receiver
from remoter_kernel.transfer.safe_paths import partial_name
from remoter_kernel.transfer.sender import Sender
from tests.two_ends import carry, dst, entry, link, names, say, send, src, start

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["dst", "src"]  # fixtures

ODD = ["a b", "-rf", "ä", "new\nline", "$HOME", "*", "[x]", "~", "#"]
BIG = 3 * ASK_FROM + 12345


def tree(folder: Path) -> dict[str, Any]:
    """All that is in a folder: contents, modes, times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        content = path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        times = (stat.S_IMODE(about.st_mode), about.st_mtime_ns)
        found[str(path.relative_to(folder))] = (content, None if path.is_symlink() else times)
    return found


# --------------------------------------------------------------- what arrives


def test_a_fast_path_has_few_acknowledgements(src, dst, monkeypatch):
    """How many come while 64 chunks do depends on time, not on the size alone."""
    monkeypatch.setattr(receiving_end, "PAUSE", 0.05)  # a busy machine is no pause
    monkeypatch.setattr(stream, "LEAST", 64 * CHUNK)
    words: list[FrameType] = []
    take = Sender._on_frame

    def listen(sending: Sender, word: FrameType, body: memoryview) -> None:
        words.append(word)
        take(sending, word, body)

    monkeypatch.setattr(Sender, "_on_frame", listen)
    (src / "file").write_bytes(os.urandom(64 * CHUNK))
    counts = []
    for seconds in (0.0, 60.0):
        monkeypatch.setattr(receiving_end, "ACK_AFTER", seconds)
        words.clear()
        send(src / "file", to=dst / f"after {seconds}")
        counts.append(words.count(FrameType.ACK))
    assert counts[0] > 40
    assert 0 < counts[1] < 30


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a pipe hold more")
def test_a_pipe_holds_as_much_as_the_system_allows(tmp_path):
    import fcntl

    ends = os.pipe()
    _enlarge_pipe(ends[0])
    try:
        assert fcntl.fcntl(ends[1], fcntl.F_GETPIPE_SZ) == PIPE_HOLDS
    finally:
        for end in ends:
            os.close(end)
    with (tmp_path / "no pipe").open("wb") as file:
        _enlarge_pipe(file.fileno())


def test_a_folder_arrives_as_it_is(src, dst):
    """Names of all kinds, modes, times, empty folders and files, and what is large."""
    for name in ODD:
        (src / name).write_text(name)
    (src / os.fsdecode(b"no text \xff\xfe")).write_bytes(b"x")
    (src / "empty").mkdir()
    (src / "nothing").write_bytes(b"")
    (src / "deep/er").mkdir(parents=True)
    (src / "deep/er/big").write_bytes(os.urandom(BIG))
    (src / "run.sh").write_text("#!/bin/sh")
    (src / "run.sh").chmod(0o750)
    (src / "secret").write_text("s")
    (src / "secret").chmod(0o600)
    (src / "empty").chmod(0o500)
    os.utime(src / "nothing", ns=(1, 1_234_567_890_123_456_789))
    os.utime(src / "deep", ns=(1, 1_000_000_000_000_000_000))
    send(src, to=f"{dst}/")
    assert tree(dst / "src") == tree(src)
    assert (dst / "src").stat().st_mtime_ns == src.stat().st_mtime_ns


def test_where_things_go(src, dst):
    """A file gets the name that was named, a folder keeps its own inside one that is there."""
    (src / "a").write_text("a")
    (src / "b").write_text("b")
    send(src / "a", to=dst / "c")
    send(src / "a", src / "b", to=f"{dst}/made/deep/")
    send(f"{src}/*", to=dst)
    send(src, to=dst / "copy")
    found = sorted(str(path.relative_to(dst)) for path in dst.rglob("*"))
    deep = ["made", "made/deep", "made/deep/a", "made/deep/b"]
    assert found == ["a", "b", "c", "copy", "copy/a", "copy/b", *deep]


def test_links_stay_inside(src, dst):
    """A link to a file is that file, one to a folder stays a link; no other is followed."""
    (src / "a").write_text("a")
    (src / "sub").mkdir()
    (src / "sub/file").symlink_to("../a")
    (src / "sub/folder").symlink_to(src / "sub2")
    (src / "sub2").mkdir()
    (src / "sub2/circle").symlink_to("..")
    for name, target in {"out": "/etc", "up": "..", "self": "self", "gone": "nothing"}.items():
        (src / name).symlink_to(target)
    sending, _ = send(src, to=f"{dst}/")
    assert (dst / "src/sub/file").read_text() == "a"
    assert not (dst / "src/sub/file").is_symlink()
    assert str((dst / "src/sub/folder").readlink()) == "../sub2"
    assert sorted(line.partition(":")[0] for line in sending.plan.left_out) == [
        "src/gone",
        "src/out",
        "src/self",
        "src/sub2/circle",
        "src/up",
    ]
    assert names(dst / "src") == ["a", "sub", "sub2"]


def test_a_pattern_leaves_out_what_cannot_be_sent(src, dst):
    """A link to nothing, or a pipe, that happens to match does not keep the others back."""
    (src / "a").write_text("a")
    (src / "gone").symlink_to("nothing")
    os.mkfifo(src / "pipe")
    sending, _ = send(f"{src}/*", to=dst)
    assert names(dst) == ["a"]
    told = [line.removeprefix(f"{src}/") for line in sending.plan.left_out]
    assert told == ["gone: a link that leads nowhere", "pipe: neither a file nor a folder"]
    with pytest.raises(FileTrouble, match="neither a file nor a folder"):
        send(src / "pipe", to=dst)


def test_what_is_empty_on_one_disk_is_so_on_the_other(src, dst):
    """Sparse files stay sparse, also with an end that is a hole."""
    with (src / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(40_000_000)
        file.write(b"middle")
        file.truncate(60_000_000)
    send(src / "sparse", to=dst / "sparse")
    assert (dst / "sparse").stat().st_size == 60_000_000
    assert (dst / "sparse").stat().st_blocks * 512 < 5_000_000
    assert (dst / "sparse").read_bytes() == (src / "sparse").read_bytes()


def test_a_dry_run_touches_nothing(src, dst):
    (src / "a").write_text("a")
    sending = Sender(make_plan([str(src)], "/"))
    receiving = Receiver(f"{dst}/new/", "/", is_dry=True)
    assert carry(sending, receiving) == []
    assert [place for _, place in receiving.entries] == [f"{dst}/new/src", f"{dst}/new/src/a"]
    assert not list(dst.iterdir())


def test_several_sources_need_a_folder(src, dst):
    (src / "a").write_text("a")
    (src / "b").write_text("b")
    sending = Sender(make_plan([f"{src}/*"], "/"))
    troubles = carry(sending, Receiver(f"{dst}/c", "/"))
    assert {getattr(trouble, "code", None) for trouble in troubles} == {TroubleCode.WORDS}
    with pytest.raises(FileTrouble, match="two of the sources"):
        make_plan([f"{src}/a", f"{src}/../src/a"], "/")


@pytest.mark.parametrize("word", ["nothing", "*.csv", "/dev/null", "\0"])
def test_a_source_that_is_none_is_told_before_anything_is_sent(src, word):
    with pytest.raises(FileTrouble):
        make_plan([word], str(src))


def test_a_file_may_be_called_like_a_pattern(src, dst):
    (src / "a[1].txt").write_text("1")
    (src / "a1.txt").write_text("2")
    send(src / "a[1].txt", to=f"{dst}/")
    assert names(dst) == ["a[1].txt"]


def test_one_files_trouble_is_not_the_others(src, dst):
    """A folder in the place of a file: told, and the rest arrives."""
    for name in "abc":
        (src / name).write_text(name)
    (dst / "src/b").mkdir(parents=True)
    sending, receiving = send(src, to=dst)
    assert [trouble.code for trouble in sending.troubles] == [TroubleCode.IS_FOLDER]
    assert sending.troubles[0].is_from_peer
    assert not receiving.troubles[0].is_from_peer
    assert (dst / "src/a").read_text() + (dst / "src/c").read_text() == "ac"


# --------------------------------------------------------------- what goes on


def cut_after(size: int, near: socket.socket) -> Any:
    """A way to hear of progress that cuts the connection once so much is sent."""

    def note(sent: int, _files: int) -> None:
        if sent >= size:
            with contextlib.suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)

    return note


def carry_cut(plan: Any, to: Any, after: int) -> None:
    near, far = socket.socketpair()
    receiving = Receiver(str(to), "/")
    sending = Sender(plan, cut_after(after, near))
    with near, far:
        ends = [FramedStream(SocketEnds(each)) for each in (far, near)]
        for each in ends:
            each.start()

        def receive() -> None:
            with pytest.raises(Cut):
                receiving.run(ends[0])

        thread = threading.Thread(target=receive)
        thread.start()
        with pytest.raises(Cut):
            sending.run(ends[1])
        thread.join(20)
        for each in ends:
            each.stop()
            each.close()


def test_after_a_cut_only_the_rest_is_sent(src, dst):
    (src / "big").write_bytes(os.urandom(BIG))
    carry_cut(make_plan([str(src / "big")], "/"), dst / "big", BIG // 2)
    (found,) = dst.iterdir()
    assert found.name.endswith(".part")
    assert stat.S_IMODE(found.stat().st_mode) == 0o600
    there = found.stat().st_size
    assert there > BIG // 4
    sent: list[int] = []
    sending, _ = send(src / "big", to=dst / "big", on_progress=lambda size, _: sent.append(size))
    assert sent[0] > there
    assert (dst / "big").read_bytes() == (src / "big").read_bytes()
    assert names(dst) == ["big"]
    assert sending._run.stream.sent_bytes < BIG - there + 10_000


def test_a_part_that_is_not_the_sources_beginning_counts_for_nothing(src, dst):
    (src / "big").write_bytes(os.urandom(BIG))
    about = (src / "big").stat()
    part = dst / partial_name("big", about.st_size, about.st_mtime_ns)
    for content in (b"x" * ASK_FROM, b"x" * BIG):
        part.write_bytes(content)
        sending, _ = send(src / "big", to=dst / "big")
        assert (dst / "big").read_bytes() == (src / "big").read_bytes()
        assert sending._run.stream.sent_bytes < BIG + 10_000
        (dst / "big").unlink()


def test_nothing_of_a_wrong_part_shines_through(src, dst):
    """Nor where the source is empty, and nothing is written."""
    with (src / "holes").open("wb") as file:
        file.truncate(BIG)
    about = (src / "holes").stat()
    (dst / partial_name("holes", about.st_size, about.st_mtime_ns)).write_bytes(b"x" * BIG)
    send(src / "holes", to=dst / "holes")
    assert (dst / "holes").read_bytes() == bytes(BIG)


def test_a_source_that_has_changed_begins_anew(src, dst):
    """What was there of the old one is not mixed into the new one."""
    (src / "big").write_bytes(b"a" * BIG)
    carry_cut(make_plan([str(src / "big")], "/"), dst / "big", BIG // 2)
    (src / "big").write_bytes(b"b" * BIG)
    send(src / "big", to=dst / "big")
    assert (dst / "big").read_bytes() == b"b" * BIG


def test_what_is_there_whole_is_not_sent_again(src, dst):
    (src / "big").write_bytes(os.urandom(BIG))
    send(src / "big", to=dst / "big")
    inode = (dst / "big").stat().st_ino
    sending, _ = send(src / "big", to=dst / "big")
    assert sending._run.stream.sent_bytes < 10_000
    assert (dst / "big").stat().st_ino == inode


def test_small_parts_do_not_stay(src, dst):
    (src / "small").write_bytes(os.urandom(ASK_FROM - 1))
    carry_cut(make_plan([str(src / "small")], "/"), dst / "small", 100_000)
    assert not list(dst.iterdir())


@pytest.mark.parametrize("size", [1000, BIG])
@pytest.mark.parametrize("times", [1, 10**6])
def test_a_file_that_changes_while_it_is_sent_is_sent_once_more(src, dst, size, times):
    """And not for ever: then it is an error that names it, and the old file stays."""
    (src / "log").write_bytes(b"a" * size)
    (src / "other").write_bytes(b"o")
    (dst / "log").write_bytes(b"before")
    left = [times]

    def change(_size: int, _files: int) -> None:
        if left[0]:
            left[0] -= 1
            with (src / "log").open("ab") as file:
                file.write(b"more")

    sending, _ = send(src / "log", src / "other", to=f"{dst}/", on_progress=change)
    if times == 1:
        assert (dst / "log").read_bytes() == (src / "log").read_bytes()
        assert not sending.troubles
    else:
        assert [trouble.path for trouble in sending.troubles] == ["log"]
        assert (dst / "log").read_bytes() == b"before"
    assert names(dst) == ["log", "other"]


def test_a_file_that_arrives_damaged_is_sent_once_more(src, dst, monkeypatch):
    (src / "a").write_bytes(b"a" * 1000)
    write, left = parts.PartialFile.write, [1]

    def damage(self: Any, data: memoryview) -> None:
        if left.pop(0) if left else 0:
            self._digest.update(b"a bit too much")
        write(self, data)

    monkeypatch.setattr(parts.PartialFile, "write", damage)
    sending, receiving = send(src / "a", to=dst / "a")
    assert (dst / "a").read_bytes() == b"a" * 1000
    assert sending.troubles == receiving.troubles == []


def test_two_transfers_of_one_file_do_not_meet(src, dst, monkeypatch):
    """Who comes second waits, and says so if it is in vain."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(parts, "ALONE_WITHIN", 0.3)
    (src / "big").write_bytes(os.urandom(BIG))
    about = (src / "big").stat()
    with (dst / partial_name("big", about.st_size, about.st_mtime_ns)).open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        sending, _ = send(src / "big", to=dst / "big")
    assert "another transfer" in sending.troubles[0].reason
    assert not (dst / "big").exists()


# --------------------------------------------------------------- hostile senders


EVIL = {
    "dots": start("top") + entry("../../.bashrc"),
    "dots inside": start("top") + entry("top/../../x"),
    "absolute": start("top") + entry("/tmp/x"),
    "another top": start("top") + entry("other"),
    "no name": start("top") + entry(""),
    "nul": start("top") + entry("top/a\0b"),
    "top that climbs": start("..") + entry("../x"),
    "top with a slash": start("a/b"),
    "no start": entry("x"),
    "link out": start("top") + link("top", "../outside"),
    "link far out": start("top") + link("top/l", "/etc"),
    "link with a detour": start("top") + link("top/l", "a/../../../outside"),
    "through a link": start("way") + entry("way/x"),
    "over a long way": start("top")
    + pack_frame(FrameType.ENTRY, to_body(FileEntry("top", "folder").to_dict(1, asks=False)))
    + pack_frame(FrameType.ENTRY, to_body(FileEntry("top/a", "folder").to_dict(2, asks=False)))
    + link("top/a/up", "..")
    + link("top/a/up/a/up/a/l", "../../../../outside", number=10),
    "more than was said": start("top", is_folder=False) + entry("top", size=1),
    "bytes of nothing": start("top") + pack_frame(FrameType.DATA, b"x"),
    "an end of nothing": start("top")
    + pack_frame(FrameType.END, to_body({"number": 1, "sha256": "0" * 64})),
    "never told": start("top") + pack_frame(FrameType.BODY, BODY_START.pack(5, 0)),
    "short body": start("top") + pack_frame(FrameType.BODY, b"x"),
    "negative size": start("top", is_folder=False) + entry("top", size=-5),
    "no json": pack_frame(FrameType.START, b"{"),
    "a list": pack_frame(FrameType.START, b"[]"),
    "no word": b"\xff\0\0\0\0",
    "too large": b"\x07\xff\xff\xff\xff",
    "a receiver's word": start("top") + pack_frame(FrameType.OVER, b"{}"),
}


@pytest.mark.parametrize("what", EVIL)
def test_a_hostile_sender_writes_nothing_outside(what, dst, tmp_path):
    (tmp_path / "outside").mkdir()
    (dst / "way").symlink_to(tmp_path / "outside")
    before = names(tmp_path)
    error = say(EVIL[what], dst)
    assert isinstance(error, (FileTrouble, ProtocolError)), error
    assert not isinstance(error, Cut)
    assert names(tmp_path) == before
    assert not list((tmp_path / "outside").iterdir())
    assert not [path for path in dst.rglob("*") if path.name.endswith(".part")]


def test_what_was_not_asked_for_is_refused(dst):
    """A remote that is asked for results does not write the notebook beside them."""
    error = say(start("work.ipynb") + entry("work.ipynb"), dst, "runs/*.csv")
    assert isinstance(error, FileTrouble)
    assert error.code is TroubleCode.UNSAFE
    assert not list(dst.iterdir())


def test_a_wrong_checksum_gives_no_file(dst):
    told = FileEntry("top", size=4).to_dict(1, asks=False)
    said = start("top", is_folder=False) + pack_frame(FrameType.ENTRY, to_body(told))
    said += pack_frame(FrameType.BODY, BODY_START.pack(1, 0)) + pack_frame(FrameType.DATA, b"evil")
    said += pack_frame(FrameType.END, to_body({"number": 1, "sha256": "0" * 64}))
    assert isinstance(say(said, dst), Cut)
    assert not list(dst.iterdir())


def test_a_sender_cannot_fill_the_memory_with_entries(dst):
    told = [FileEntry(f"top/{i}").to_dict(i, asks=False) for i in range(1, 5000)]
    said = start("top", files=5000, entries=5000)
    said += b"".join(pack_frame(FrameType.ENTRY, to_body(words)) for words in told)
    error = say(said, dst)
    assert isinstance(error, ProtocolError)
    assert "than one can remember" in str(error)


PIECES = some.one_of(
    some.builds(
        start, some.sampled_from(["top", "..", "a/b", "", "way"]), is_folder=some.booleans()
    ),
    some.builds(
        entry,
        some.sampled_from(["top", "top/a", "top/../x", "../x", "/x", "way/x", "top/l/x"]),
        some.integers(0, 4),
        some.binary(max_size=8),
    ),
    some.builds(
        link,
        some.sampled_from(["top", "top/l", "top/a/l", "way/l", "l"]),
        some.sampled_from(["..", "../..", "a", "../outside", "/", "l"]),
    ),
    some.builds(pack_frame, some.sampled_from(FrameType), some.binary(max_size=20)),
)


@given(some.lists(PIECES, max_size=8))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_a_sender_says_nothing_is_written_outside(tmp_path_factory, pieces):
    """And whatever it is, the receiver ends in words."""
    folder = tmp_path_factory.mktemp("said")
    dst, outside = folder / "dst", folder / "outside"
    dst.mkdir()
    outside.mkdir()
    (dst / "way").symlink_to(outside)
    say(b"".join(pieces), dst)
    assert not list(outside.iterdir())
    assert names(folder) == ["dst", "outside"]
    for path in dst.rglob("*"):
        if path.is_symlink() and path.name != "way":
            assert path.resolve().is_relative_to(dst), path.readlink()
