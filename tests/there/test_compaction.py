"""A journal at its bound: what goes first, what stays, and that nobody is sent anything else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from remoter_kernel.evaluator import compaction
from remoter_kernel.evaluator import journal as journals
from remoter_kernel.evaluator.compaction import Catalogue, compact
from remoter_kernel.evaluator.outbox import ClientOutbox
from remoter_kernel.evaluator.records import (
    EVERYONE,
    Record,
    encode_record,
    first_line,
    parse_marker,
    read_journal,
    size_on_disk,
)
from remoter_kernel.protocol.frames import Channel, pack_parts, unpack_parts
from tests.there.test_journal import ME, Desk

if TYPE_CHECKING:
    from pathlib import Path

ALL_TAKEN = 2**40


def said(kind: str, cell: str, **content: Any) -> bytes:
    """Return the body of a message on iopub."""
    words = ({"msg_type": kind}, {"msg_id": cell}, {}, content)
    return pack_parts([b"", *(json.dumps(each).encode() for each in words)])


def text(cell: str, number: int, size: int = 1000) -> bytes:
    """Return some text of a cell."""
    return said("stream", cell, name="stdout", text=f"<{number}>" + "x" * size)


def written(path: Path, bodies: list[bytes]) -> int:
    """Write a journal of iopub messages; return its size."""
    raw = first_line()
    for number, body in enumerate(bodies, 1):
        raw += encode_record(Record(number, Channel.IOPUB, False, EVERYONE, body, float(number)))
    path.write_bytes(raw)
    return len(raw)


def after(path: Path, bodies: list[bytes], target: int, taken: int = ALL_TAKEN) -> list[Record]:
    """Compact a journal of these, and return what is in it then."""
    end = written(path, bodies)
    compacted = compact(path, len(bodies), end, taken, target)
    assert compacted.size == compacted.path.stat().st_size
    compacted.path.replace(path)
    return list(read_journal(path))


def kinds(records: list[Record]) -> list[str]:
    """Return what kinds of messages there are, and marks."""
    return [
        "mark" if r.is_marker else json.loads(bytes(unpack_parts(r.body)[1]))["msg_type"]
        for r in records
    ]


def test_the_middle_of_a_cells_text_goes_first(tmp_path, monkeypatch):
    """Head and tail stay, a mark in between says how much of which cell went; numbers stay."""
    monkeypatch.setattr(compaction, "ENDS", (3000, 1000))
    bodies = [text("a", n) for n in range(40)] + [said("execute_result", "a", data={})]
    small = [text("b", 1)]
    records = after(tmp_path / "j", bodies + small, target=20_000)
    assert kinds(records)[-2:] == ["execute_result", "stream"]
    numbers = [record.number for record in records]
    assert numbers == sorted(set(numbers))
    assert numbers[:3] == [1, 2, 3]
    assert numbers[-3:] == [40, 41, 42]
    (mark,) = [parse_marker(record) for record in records if record.is_marker]
    gone = set(range(1, 43)) - {r.number for r in records if not r.is_marker}
    size = sum(size_on_disk(Record(n, Channel.IOPUB, False, EVERYONE, bodies[n - 1])) for n in gone)
    told = {"cell": "a", "what": "stream", "bytes": size, "messages": len(gone)}
    assert mark == {"mark": "shortened", **told}


def test_a_second_time_the_mark_tells_of_both(tmp_path, monkeypatch):
    """What went before and what goes now is one mark."""
    monkeypatch.setattr(compaction, "ENDS", (3000,))
    path = tmp_path / "j"
    first = after(path, [text("a", n) for n in range(60)], target=40_000)
    (before,) = [parse_marker(record)["messages"] for record in first if record.is_marker]
    end = path.stat().st_size
    compact(path, 60, end, ALL_TAKEN, 15_000).path.replace(path)
    records = list(read_journal(path))
    (now,) = [parse_marker(record)["messages"] for record in records if record.is_marker]
    assert now > before
    assert now + len([r for r in records if not r.is_marker]) == 60


def test_then_superseded_displays_and_comms_and_results_last(tmp_path):
    """Each only as far as it is needed."""
    update = [
        said("update_display_data", "a", data="x" * 1000, transient={"display_id": f"d{n % 2}"})
        for n in range(10)
    ]
    comm = [said("comm_msg", "a", data="x" * 1000) for _ in range(10)]
    state = [said("status", "a", execution_state="x" * 1000)]
    result = [said("execute_result", "a", data="x" * 1000), said("error", "a", evalue="x" * 1000)]
    everything = update + comm + state + result
    path = tmp_path / "j"
    records = after(path, everything, target=17_500)
    assert kinds(records).count("update_display_data") == 2
    assert kinds(records).count("comm_msg") == 10
    records = after(path, everything, target=8_000)
    assert 0 < kinds(records).count("comm_msg") < 10
    records = after(path, everything, target=5_500)
    assert "comm_msg" not in kinds(records)
    assert kinds(records)[-2:] == ["execute_result", "error"]
    assert "status" not in kinds(after(path, everything, target=5_000))
    assert kinds(after(path, everything, target=0)).count("mark") == 4


def test_requests_replies_and_notes_stay(tmp_path):
    """Without them nobody could tell what was asked, and what was answered."""
    path = tmp_path / "j"
    raw = first_line()
    for number, (channel, is_from_front) in enumerate(
        [(Channel.SHELL, True), (Channel.SHELL, False), (Channel.EVENT, False)], 1
    ):
        raw += encode_record(Record(number, channel, is_from_front, ME, b"x" * 100))
    path.write_bytes(raw)
    end = len(raw)
    assert compact(path, 3, end, ALL_TAKEN, 0).size == end


def test_what_a_living_front_has_not_taken_goes_only_when_nothing_else_is_left(tmp_path):
    """The results that all have taken go before text that somebody waits for."""
    old = [said("execute_result", "a", data="x" * 1000) for _ in range(10)]
    new = [text("b", n) for n in range(10)]
    path = tmp_path / "j"
    records = after(path, old + new, target=14_000, taken=10)
    assert {r.number for r in records if not r.is_marker} >= set(range(11, 21))
    records = after(path, old + new, target=5_000, taken=10)
    assert "execute_result" not in kinds(records)
    assert 0 < kinds(records).count("stream") < 10


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["stream", "status", "comm_msg", "update_display_data", "error"]),
            st.sampled_from("abc"),
            st.integers(0, 300),
        ),
        max_size=40,
    ),
    st.integers(0, 12_000),
    st.integers(0, 40),
)
def test_it_fits_and_the_rest_is_as_it_was(drawn, target, taken):
    """As much goes as is needed; sums and marks agree with what is gone."""
    catalogue = Catalogue()
    records = [
        Record(
            n,
            Channel.IOPUB,
            False,
            EVERYONE,
            said(kind, cell, text="x" * size, transient={"display_id": cell}),
        )
        for n, (kind, cell, size) in enumerate(drawn, 1)
    ]
    for record in records:
        catalogue.add(record)
    whole = catalogue.total
    marks = catalogue.select_dropped(target, taken)
    gone = [r for r, is_gone in zip(records, catalogue.is_dropped, strict=True) if is_gone]
    assert catalogue.total == whole - sum(map(size_on_disk, gone))
    assert catalogue.total <= target or len(gone) == len(records)
    assert whole > target or not gone
    assert sum(mark["messages"] for mark in marks.values()) == len(gone)
    assert all(catalogue.is_dropped[place] for place in marks)


def test_a_journal_that_is_written_stays_within_its_bound(tmp_path, monkeypatch):
    """While records keep coming the file is rewritten beside; all positions stay valid."""
    monkeypatch.setattr(compaction, "ENDS", (10_000, 1000))
    monkeypatch.setattr(journals, "RECENT_BYTES", 1000)
    desk = Desk(tmp_path / "journal", limit=200_000)
    outbox, place, heard = ClientOutbox(desk.journal, ME), 0, []
    desk.journal.lowest_acked = lambda: place
    for number in range(1500):
        desk.journal.append(Channel.IOPUB, text(f"cell {number // 300}", number))
        if number % 10 == 0:
            desk.settle()
        while (number < 1000 or number % 100 == 0) and (entry := desk.next_after(outbox, place)):
            place = entry.number
            heard.append(place)
    desk.settle()
    desk.wait_for(lambda: not desk.journal._is_compacting)
    desk.journal.append(Channel.IOPUB, text("last", 1))
    desk.settle()
    desk.wait_for(lambda: not desk.journal._is_compacting)
    assert (tmp_path / "journal").stat().st_size < 400_000
    assert heard[:1000] == list(range(1, 1001))
    numbers = list(desk.journal._index.numbers)
    for record in read_journal(tmp_path / "journal"):
        assert desk.body(record.number) == record.body
        assert (desk.journal.channel_for(ME, record.number) is None) == record.is_marker
    assert numbers == [record.number for record in read_journal(tmp_path / "journal")]
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]
    desk.journal.close()


def test_no_room_for_the_second_file_harms_nobody(tmp_path, monkeypatch):
    """If it cannot be written, the journal goes on as it is, and nothing is left beside it."""

    def refuse(_file: int, _chunk: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compaction, "_write_chunk", refuse)
    desk = Desk(tmp_path / "journal", limit=10_000)
    for number in range(50):
        desk.journal.append(Channel.IOPUB, text("a", number))
    desk.settle()
    desk.wait_for(lambda: not desk.journal._is_compacting)
    assert len(list(read_journal(tmp_path / "journal"))) == 50
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]
    desk.journal.close()
