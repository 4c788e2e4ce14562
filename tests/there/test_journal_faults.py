"""A disk that fails at any step of the journal: nothing is lost, it is told, and it goes on."""

from __future__ import annotations

import errno
import os
import pathlib
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.evaluator import compaction, records
from remoter_kernel.evaluator import journal as journals
from remoter_kernel.evaluator.compaction import compact
from remoter_kernel.evaluator.outbox import ClientOutbox
from remoter_kernel.evaluator.records import (
    EVERYONE,
    Record,
    encode_record,
    parse_marker,
    read_journal,
)
from remoter_kernel.logs import reason
from remoter_kernel.protocol.frames import Channel, Lane
from remoter_kernel.protocol.threads import ThreadEndedError
from tests.real_jupyter import wait_for
from tests.there.test_compaction import text, written
from tests.there.test_journal import ME, Desk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ERRORS = (errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EDQUOT)
STEPS = ("open", "write", "fstat", "ftruncate", "pread", "dup", "close", "replace", "unlink")
FRESH_LIMIT = 20_000  # bytes of a journal, so that room is made in each run
MANY = 40  # records


class Disk:
    """Counts what the journal asks of the system, and fails at one step (and at those after)."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failed: list[str] = []
        self._step, self._times, self._error = -1, 0, 0

    def fail_at(self, step: int, times: int, error: int) -> None:
        """Fail at a step, counted from here, and at as many as there are to be after it."""
        self._step, self._times, self._error = step, times, error

    def look(self, name: str) -> None:
        number = len(self.asked)
        self.asked.append(name)
        if self._step <= number and len(self.failed) < self._times:
            self.failed.append(name)
            raise OSError(self._error, os.strerror(self._error))


class FaultyOs:
    """The module `os`, on that disk; a write that fails has written a part before."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in STEPS:
            return real

        def step(*words: Any) -> Any:
            try:
                self._disk.look(name)
            except OSError:
                if name == "write":
                    real(words[0], bytes(words[1])[: len(words[1]) // 2])
                raise
            return real(*words)

        return step


@pytest.fixture
def disk(monkeypatch) -> Disk:
    """A disk that does not fail yet."""
    disk = Disk()
    for module in (journals, compaction, records):
        monkeypatch.setattr(module, "os", FaultyOs(disk))
    for name in ("replace", "unlink"):
        real = getattr(pathlib.Path, name)

        def step(path: Path, *words: Any, name: str = name, real: Any = real, **more: Any) -> Any:
            if path.name.startswith("journal"):
                disk.look(name)
            return real(path, *words, **more)

        monkeypatch.setattr(pathlib.Path, name, step)
    monkeypatch.setattr(journals, "RETRY_AFTER", 0.01)
    return disk


def bodies() -> list[bytes]:
    """What is written: requests, which stay, and text, which goes when room is made."""
    return [text("a", number, size=700) for number in range(MANY)]


def work(path: Path, disk: Disk, step: int, times: int, error: int) -> tuple[Desk, set[str]]:
    """Write a journal up to its bound, and beyond; return it, and which troubles were told."""
    desk = Desk(path, limit=FRESH_LIMIT)
    disk.fail_at(len(disk.asked) + step, times, error)
    told = set()
    for number, body in enumerate(bodies()):
        channel = Channel.SHELL if number % 4 == 0 else Channel.IOPUB
        is_request = channel is Channel.SHELL
        desk.journal.append(channel, body, client=ME if is_request else EVERYONE)
        desk.settle()
        told.add(desk.journal.write_error)
    desk.wait_for(lambda: not (desk.journal._is_compacting or desk.journal.write_error))
    return desk, told - {""}


@pytest.fixture
def close() -> Iterator[Callable[[Desk], Desk]]:
    """What closes a journal at the end, however the test ends."""
    open_ones: list[Desk] = []

    def remember(desk: Desk) -> Desk:
        open_ones.append(desk)
        return desk

    yield remember
    for desk in open_ones:
        desk.journal.close()


def kept(path: Path) -> dict[int, bytes]:
    """Return what is in a journal for good: requests by number."""
    return {r.number: r.body for r in read_journal(path) if r.channel is Channel.SHELL}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_whatever_fails_at_any_step_nothing_is_lost(tmp_path, disk, error, times, caplog):
    """Each step in turn: what is for good is in the file, each record once, at its place."""
    first, _ = work(tmp_path / "journal", disk, 10**9, 0, 0)
    first.journal.close()
    steps = len(disk.asked)
    assert {"write", "fstat", "replace", "dup"} <= set(disk.asked)
    wanted = {number + 1: body for number, body in enumerate(bodies()) if number % 4 == 0}
    for step in range(steps):
        path = tmp_path / f"journal-{step}"
        disk.failed = failed = []
        caplog.clear()
        desk, told = work(path, disk, step, times, error)
        disk.fail_at(10**9, 0, 0)
        assert kept(path) == wanted, (step, failed)
        numbers = [record.number for record in read_journal(path)]
        assert numbers == sorted(set(numbers)), (step, failed)
        assert not any(parse_marker(r).get("mark") == "missing" for r in read_journal(path)), failed
        if {"write", "fstat", "replace"} & set(failed):
            assert told or caplog.records, (step, failed)
        for number in desk.journal._index.numbers:
            assert desk.body(number) is not None
        desk.journal.close()


def test_a_writer_whose_repair_fails_too_goes_on(tmp_path, disk, close):
    """The write fails, and so does the cut after it: both are tried again, and it is told."""
    desk = close(Desk(tmp_path / "journal"))
    desk.journal.append(Channel.SHELL, b"before", client=ME)
    desk.settle()
    disk.fail_at(len(disk.asked), 8, errno.ESTALE)
    happened: list[int] = []
    desk.journal.append(Channel.SHELL, b"meanwhile", client=ME, then=lambda: happened.append(1))
    desk.settle()
    assert desk.journal.write_error == os.strerror(errno.ESTALE)
    desk.wait_for(lambda: not desk.journal.write_error)
    assert happened == [1]
    assert kept(tmp_path / "journal") == {1: b"before", 2: b"meanwhile"}


def test_an_error_that_is_none_of_the_disk_is_told_and_tried_again(tmp_path, monkeypatch, close):
    """Whatever encoding or writing raises is a trouble, and no end of the thread."""
    monkeypatch.setattr(journals, "RETRY_AFTER", 0.01)
    desk = close(Desk(tmp_path / "journal"))

    def refuse(record: Record) -> bytes:
        monkeypatch.setattr(journals, "encode_record", encode_record)
        raise MemoryError(record.number)

    monkeypatch.setattr(journals, "encode_record", refuse)
    desk.journal.append(Channel.SHELL, b"one", client=ME)
    desk.settle()
    assert desk.journal.write_error == "MemoryError: 1"
    desk.wait_for(lambda: not desk.journal.write_error)
    assert kept(tmp_path / "journal") == {1: b"one"}


def test_a_writer_that_ends_all_the_same_ends_the_loop(tmp_path, monkeypatch):
    """No evaluator goes on that keeps nothing: its process ends, and another one takes over."""
    desk = Desk(tmp_path / "journal")

    def end(*_words: Any) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(desk.journal, "_write", end)
    desk.journal.append(Channel.SHELL, b"one", client=ME)
    with pytest.raises(ThreadEndedError, match="SystemExit"):
        desk.settle()
    desk.journal.close()


def test_a_disk_that_takes_a_part_has_that_part(tmp_path, disk, close, monkeypatch):
    """However much is to be written at once: as many whole records as there is room for."""
    monkeypatch.setattr(journals, "RETRY_AFTER", 60.0)
    path = tmp_path / "journal"
    desk = Desk(path)
    body = b"x" * 1000
    room = (
        path.stat().st_size
        + 5 * len(encode_record(Record(1, Channel.SHELL, False, ME, body)))
        + 500
    )
    monkeypatch.setattr(journals, "os", SmallDisk(room))
    hold = threading.Event()
    collect = desk.journal._take_queued
    monkeypatch.setattr(
        desk.journal, "_take_queued", lambda wait: (hold.wait(10), collect(wait))[1]
    )
    for _ in range(8):
        desk.journal.append(Channel.SHELL, body, client=ME)
    hold.set()
    desk.settle()
    assert desk.journal.write_error == os.strerror(errno.ENOSPC)
    assert sorted(kept(path)) == [1, 2, 3, 4, 5]
    monkeypatch.setattr(journals, "os", os)
    desk.journal.append(Channel.SHELL, body, client=ME)
    desk.wait_for(lambda: not desk.journal.write_error)
    assert sorted(kept(path)) == list(range(1, 10))
    desk.journal.close()


class SmallDisk:
    """The module `os`, where files have a largest size."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, file: int, data: memoryview) -> int:
        room = self._size - os.fstat(file).st_size
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(file, data[:room])


def test_a_handle_that_the_server_has_forgotten_is_opened_anew(tmp_path, monkeypatch, close):
    """ESTALE stays for as long as a handle is used: both ways go through a new one."""
    monkeypatch.setattr(journals, "RETRY_AFTER", 0.01)
    monkeypatch.setattr(journals, "RECENT_BYTES", 1)
    monkeypatch.setattr(journals, "READ_CACHE_BYTES", 1)
    desk = close(Desk(tmp_path / "journal"))
    desk.journal.append(Channel.SHELL, b"before", client=ME)
    desk.settle()
    stale = StaleOs({desk.journal._write_fd, desk.journal._read_fd})
    for module in (journals, records):
        monkeypatch.setattr(module, "os", stale)
    assert desk.body(1) == b"before"
    desk.journal.append(Channel.SHELL, b"after", client=ME)
    desk.settle()
    desk.wait_for(lambda: not desk.journal.write_error)
    assert kept(tmp_path / "journal") == {1: b"before", 2: b"after"}
    assert desk.body(2) == b"after"


class StaleOs:
    """The module `os`, where some handles are good for nothing but to be closed."""

    def __init__(self, files: set[int]) -> None:
        self._files = files

    def _close(self, file: int) -> None:
        self._files.discard(file)
        os.close(file)

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name == "close":
            return self._close
        if name not in {"write", "fstat", "ftruncate", "pread"}:
            return real

        def step(file: int, *words: Any) -> Any:
            if file in self._files:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return real(file, *words)

        return step


# --- a journal that somebody cuts ---


def test_a_journal_that_was_cut_makes_no_room_and_does_not_hang(tmp_path):
    """What was written meanwhile is not there: that is an error, not a wait without end."""
    path = tmp_path / "journal"
    end = written(path, [text("a", number) for number in range(10)])
    compacted = compact(path, 10, end, 2**40, 5_000)
    file = os.open(path, os.O_RDWR)
    answer: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def take_over() -> None:
        try:
            compacted.catch_up_and_replace(file, end + 100, path)
        except OSError as error:
            answer.put(error)

    threading.Thread(target=take_over, daemon=True).start()
    error = answer.get(timeout=10)
    assert isinstance(error, OSError)
    assert "cut" in str(error)
    compacted.discard()
    os.close(file)
    assert [each.name for each in tmp_path.iterdir()] == ["journal"]


def test_a_journal_that_was_cut_goes_on(tmp_path, close, caplog):
    """What comes later is at its place, and whoever reads hears that something is missing."""
    desk = close(Desk(tmp_path / "journal"))
    for number in range(5):
        desk.journal.append(Channel.SHELL, b"%d" % number * 100, client=ME)
    desk.settle()
    os.truncate(tmp_path / "journal", 200)
    desk.journal.append(Channel.SHELL, b"after", client=ME)
    desk.settle()
    assert "was cut" in caplog.text
    found = list(read_journal(tmp_path / "journal"))
    assert (found[-1].number, found[-1].body) == (6, b"after")
    assert any(parse_marker(record).get("mark") == "missing" for record in found)


# --- making room ---


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError(), OSError(5, "EIO")])
def test_room_that_was_not_made_is_tried_again(tmp_path, monkeypatch, close, error, caplog):
    """Whatever ends the copying: the journal goes on, and later room is made."""
    desk = close(Desk(tmp_path / "journal", limit=20_000))
    tried: list[int] = []

    def refuse(*words: Any) -> Any:
        tried.append(1)
        if len(tried) == 1:
            raise error
        return compact(*words)

    monkeypatch.setattr(journals, "compact", refuse)
    limit = time.monotonic() + 20
    while len(tried) < 2:
        assert time.monotonic() < limit
        desk.journal.append(Channel.IOPUB, text("a", 1))
        desk.settle()
        desk.wait_for(lambda: not desk.journal._is_compacting)
    assert reason(error) in caplog.text
    desk.wait_for(lambda: not desk.journal._is_compacting)
    assert [each.name for each in tmp_path.iterdir()] == ["journal"]


def test_a_rename_whose_answer_was_lost_is_done(tmp_path, monkeypatch, close):
    """A server whose answer is lost is asked again, and finds nothing to rename: it is done."""
    desk = close(Desk(tmp_path / "journal", limit=20_000))
    replace = pathlib.Path.replace

    def lose_the_answer(path: Path, target: Path) -> None:
        replace(path, target)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(pathlib.Path, "replace", lose_the_answer)
    for number in range(40):
        desk.journal.append(Channel.SHELL if number % 4 else Channel.IOPUB, text("a", 1), client=ME)
        desk.settle()
        desk.wait_for(lambda: not desk.journal._is_compacting)
    desk.journal.append(Channel.SHELL, b"last", client=ME)
    desk.settle()
    assert kept(tmp_path / "journal")[41] == b"last"


# --- a disk that hangs ---


def test_a_disk_that_hangs_is_a_trouble(tmp_path, monkeypatch, close):
    """What has not been written for long is told like what is refused; then all is as before."""
    desk = close(Desk(tmp_path / "journal"))
    go = threading.Event()
    monkeypatch.setattr(journals, "os", HungOs(go))
    assert desk.journal.write_error == ""
    happened: list[int] = []
    desk.journal.append(Channel.SHELL, b"one", client=ME, then=lambda: happened.append(1))
    assert desk.journal.write_error == ""
    monkeypatch.setattr(journals, "HANGS_AFTER", 0.0)
    wait_for(lambda: desk.journal.write_error == "it does not answer")
    assert not happened
    go.set()
    desk.settle()
    assert (desk.journal.write_error, happened) == ("", [1])


class HungOs:
    """The module `os`, where a write waits."""

    def __init__(self, go: threading.Event) -> None:
        self._go = go

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, file: int, data: memoryview) -> int:
        assert self._go.wait(10)
        return os.write(file, data)


def test_what_is_read_from_a_disk_that_hangs_holds_up_nobody(tmp_path, monkeypatch, close):
    """The outbox says that there is nothing yet, and goes on in order when it has come."""
    monkeypatch.setattr(journals, "RECENT_BYTES", 1)
    desk = close(Desk(tmp_path / "journal"))
    for number in range(5):
        desk.journal.append(Channel.IOPUB, b"%d" % number)
    desk.settle()
    hang, go = threading.Event(), threading.Event()

    def wait(*words: Any) -> Any:
        hang.set()
        go.wait(10)
        return bodies_at(*words)

    bodies_at = records.bodies_at
    monkeypatch.setattr(records, "bodies_at", wait)
    outbox = ClientOutbox(desk.journal, ME)
    begin = time.monotonic()
    assert desk.journal.body(1) is None
    assert hang.wait(10)
    for _ in range(3):
        assert outbox.next_after(Lane.BULK, 0) is None
    assert time.monotonic() - begin < 5
    go.set()
    number, heard = 0, []
    while entry := desk.next_after(outbox, number):
        number = entry.number
        heard.append(entry.body)
    assert heard == [b"0", b"1", b"2", b"3", b"4"]
