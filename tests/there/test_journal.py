"""The journal on a real disk: what is written is read back, and numbers are positions."""

from __future__ import annotations

import queue
import resource
import time
from typing import TYPE_CHECKING

import pytest

from remoter_kernel.evaluator import journal as journals
from remoter_kernel.evaluator.journal import Journal
from remoter_kernel.evaluator.outbox import ClientOutbox
from remoter_kernel.evaluator.records import EVERYONE
from remoter_kernel.protocol.frames import Channel, Lane

if TYPE_CHECKING:
    from collections.abc import Callable

ME, OTHER = b"front--1", b"front--2"


class Desk:
    """A journal, and the thread that its calls are made in: this one."""

    def __init__(self, path, **options):
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.journal = Journal(path, self.calls.put, **options)
        self.journal.open()

    def settle(self):
        """Make calls until all is written."""
        self.wait_for(lambda: self.journal.written >= self.journal.last)

    def body(self, number):
        """Return the body of a record; if it is read from the disk, wait for that."""
        self.wait_for(lambda: self.journal.body(number) is not None)
        return self.journal.body(number)

    def next_after(self, outbox, number):
        """Return what comes next for a proxy, also if it is read from the disk."""
        while (entry := outbox.next_after(Lane.BULK, number)) is None and self.journal._being_read:
            self.calls.get(timeout=10)()
        return entry

    def wait_for(self, fact):
        """Make calls until something is true."""
        limit = time.monotonic() + 10
        while not fact():
            assert time.monotonic() < limit
            self.calls.get(timeout=10)()


@pytest.fixture
def desk(tmp_path):
    """An open journal in a folder of its own."""
    desk = Desk(tmp_path / "journal")
    yield desk
    desk.journal.close()


def test_bodies_come_back_from_memory_and_from_disk(desk, monkeypatch):
    """What is no longer at hand is read from the file, byte for byte."""
    monkeypatch.setattr(journals, "RECENT_BYTES", 1000)
    bodies = [bytes([number]) * 300 for number in range(20)]
    for body in bodies:
        desk.journal.append(Channel.IOPUB, body)
    desk.settle()
    assert len(desk.journal._recent) < 5
    assert [desk.body(number) for number in range(1, 21)] == bodies


def test_a_front_gets_what_is_for_all_and_what_is_for_it(desk):
    """Requests are not sent back, and replies go to the proxy that asked."""
    for channel, front, is_request in [
        (Channel.SHELL, ME, True),
        (Channel.IOPUB, EVERYONE, False),
        (Channel.SHELL, OTHER, False),
        (Channel.CONTROL, ME, False),
        (Channel.SHELL, ME, False),
    ]:
        desk.journal.append(channel, b"", client=front, is_from_client=is_request)
    outbox = ClientOutbox(desk.journal, ME)

    def numbers(lane):
        number, found = 0, []
        while entry := outbox.next_after(lane, number):
            number = entry.number
            found.append(number)
        return found

    assert numbers(Lane.BULK) == [2, 5]
    assert numbers(Lane.URGENT) == [4]
    desk.journal.append(Channel.IOPUB, b"")
    assert numbers(Lane.BULK) == [2, 5, 6]
    assert outbox.next_after(Lane.URGENT, 4) is None


def test_what_is_to_happen_after_writing_happens_then_and_in_order(desk):
    """`then` is called once the record is on disk, in the order of the numbers."""
    happened = []
    for number in range(5):
        desk.journal.append(Channel.SHELL, b"", then=lambda number=number: happened.append(number))
    assert happened == []
    desk.settle()
    assert happened == [0, 1, 2, 3, 4]


def test_what_nobody_waits_for_wakes_nobody(tmp_path):
    """An output that is written is noted with the next pass; what is waited for comes at once."""
    woken: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    noted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    journal = Journal(tmp_path / "journal", woken.put, call_without_wakeup=noted.put)
    journal.open()
    try:
        journal.append(Channel.IOPUB, b"an output")
        noted.get(timeout=10)()
        assert (journal.written, woken.qsize()) == (1, 0)
        kept = []
        journal.append(Channel.SHELL, b"a request", then=lambda: kept.append(True))
        woken.get(timeout=10)()
        assert (journal.written, kept, noted.qsize()) == (2, [True], 0)
    finally:
        journal.close()


def test_a_full_disk_loses_nothing_and_is_told(desk, monkeypatch):
    """A record that the disk refuses stays in memory, and is written when there is room again."""
    monkeypatch.setattr(journals, "RECENT_BYTES", 10)
    desk.journal.append(Channel.IOPUB, b"before")
    desk.settle()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        desk.journal.append(Channel.IOPUB, b"x" * 100)
        desk.settle()
        assert desk.journal.write_error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    desk.journal.append(Channel.IOPUB, b"after")
    desk.settle()
    assert not desk.journal.write_error
    assert len(desk.journal._recent) == 1
    assert [desk.body(number) for number in (1, 2, 3)] == [b"before", b"x" * 100, b"after"]


def test_what_goes_wrong_after_one_record_holds_up_nobody_behind_it(desk):
    done = []

    def fail():
        raise KeyError("msg_id")

    for then in (lambda: done.append(1), fail, lambda: done.append(3)):
        desk.journal.append(Channel.SHELL, b"x", then=then)
    desk.settle()
    assert done == [1, 3]
