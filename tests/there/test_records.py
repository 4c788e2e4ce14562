"""A journal's bytes: cut anywhere, with flipped bits, of a newer version, while it is written."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remoter_kernel.evaluator import query, records
from remoter_kernel.evaluator.journal import GAP, Journal
from remoter_kernel.evaluator.outbox import ClientOutbox
from remoter_kernel.evaluator.records import (
    EVERYONE,
    JournalFollower,
    JournalTooNewError,
    Record,
    encode_record,
    first_line,
    parse_marker,
    read_journal,
)
from remoter_kernel.evaluator.recovery import RecoveredState
from remoter_kernel.protocol.frames import Channel, Lane
from tests.there.test_journal import ME, Desk

RECORDS = st.lists(
    st.tuples(
        st.integers(1, 5),  # how much further the number is
        st.sampled_from(Channel),
        st.booleans(),
        st.sampled_from([EVERYONE, ME]),
        st.one_of(st.binary(max_size=60), st.just(b"\xfe\xffrk" * 20)),
    ),
    max_size=12,
)
SOON = settings(max_examples=300, deadline=None)


def made(drawn: list) -> list[Record]:
    """Turn what was drawn into records whose numbers grow."""
    said: list[Record] = []
    for step, channel, is_from_front, front, body in drawn:
        number = (said[-1].number if said else 0) + step
        own = number if is_from_front else 0
        said.append(Record(number, channel, is_from_front, front, body, 1.5 * number, own))
    return said


def on_disk(said: list[Record]) -> tuple[bytes, list[int]]:
    """Return a journal's bytes, and where each record ends."""
    raw = first_line()
    ends = []
    for record in said:
        raw += encode_record(record)
        ends.append(len(raw))
    return raw, ends


def read(raw: bytes) -> list[Record]:
    """Read bytes as a journal."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        path.write_bytes(raw)
        return list(read_journal(path))


@SOON
@given(RECORDS, st.data())
def test_a_journal_cut_at_any_byte_keeps_all_that_was_whole(drawn, data):
    """What was written whole before the cut is read; nothing else is."""
    said = made(drawn)
    raw, ends = on_disk(said)
    cut = data.draw(st.integers(0, len(raw)))
    assert read(raw[:cut]) == [record for record, end in zip(said, ends, strict=True) if end <= cut]


@SOON
@given(RECORDS, st.data())
def test_flipped_bits_cost_the_records_that_they_hit_and_no_other(drawn, data):
    """Wherever bits are flipped, every untouched record is read, and a mark tells of others."""
    said = made(drawn)
    raw, ends = on_disk(said)
    hurt = bytearray(raw)
    flips = data.draw(st.lists(st.integers(0, len(raw) * 8 - 1), max_size=4, unique=True))
    for flip in flips:
        hurt[flip // 8] ^= 1 << flip % 8
    begins = [len(first_line()), *ends]
    untouched = [
        record
        for record, begin, end in zip(said, begins, ends, strict=False)
        if raw[begin:end] == hurt[begin:end]
    ]
    heard = read(bytes(hurt))
    assert [record for record in heard if not record.is_marker] == untouched
    numbers = [record.number for record in heard]
    assert numbers == sorted(set(numbers))
    between = [r for r in said if untouched and r.number < untouched[-1].number]
    is_told = any(parse_marker(record).get("mark") == "missing" for record in heard)
    assert is_told or set(between) <= set(untouched)
    assert flips or not is_told


@SOON
@given(RECORDS, st.data())
def test_recovery_cuts_off_the_tail_and_goes_on(drawn, data):
    """After any cut and any flips a journal opens, and what is said then is read back."""
    said = made(drawn)
    raw, _ = on_disk(said)
    hurt = bytearray(raw[: data.draw(st.integers(0, len(raw)))])
    for flip in data.draw(st.lists(st.integers(0, max(0, len(hurt) * 8 - 1)), max_size=3)):
        if hurt:
            hurt[flip // 8] ^= 1 << flip % 8
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        path.write_bytes(hurt)
        before = [record for record in read_journal(path) if not record.is_marker]
        desk = Desk(path)
        number = desk.journal.append(Channel.IOPUB, b"since then")
        desk.settle()
        for record in before:
            assert desk.body(record.number) == record.body
        desk.journal.close()
        after = [record for record in read_journal(path) if not record.is_marker]
    assert [*before, (number, b"since then")] == [*after[:-1], (after[-1].number, after[-1].body)]
    last = before[-1].number if before else 0
    assert number > last + GAP if hurt else number == 1


def test_whatever_the_cut_the_journal_goes_on(tmp_path):
    """Every cut of a journal as it is written: what was whole is kept, and the next record, too."""
    desk = Desk(tmp_path / "whole")
    for channel, body, front in [
        (Channel.SHELL, b"request", ME),
        (Channel.IOPUB, b"output", EVERYONE),
        (Channel.STDIN, b"", ME),
        (Channel.SHELL, b"reply", ME),
    ]:
        own = 7 if front is ME else 0
        desk.journal.append(
            channel, body, client=front, client_number=own, is_from_client=bool(own)
        )
    desk.journal.append_marker({"mark": "handed", "request": "x"})
    desk.settle()
    desk.journal.close()
    raw = (tmp_path / "whole").read_bytes()
    said = list(read_journal(tmp_path / "whole"))
    ends = [raw.index(encode_record(record)) + len(encode_record(record)) for record in said]
    for cut in range(len(raw)):
        path = tmp_path / str(cut)
        path.write_bytes(raw[:cut])
        desk, past = Desk(path), RecoveredState()
        number = desk.journal.append(Channel.IOPUB, b"since then")
        desk.settle()
        desk.journal.close()
        heard = list(read_journal(path))
        for record in heard:
            past.apply(record)
        kept = [record for record, end in zip(said, ends, strict=True) if end <= cut]
        assert heard[:-1] == kept
        assert (heard[-1].number, heard[-1].body) == (number, b"since then")
        assert not past.is_damaged
        path.unlink()


@SOON
@given(RECORDS, st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 4)), max_size=12))
def test_a_journal_that_is_read_in_portions_while_it_grows(drawn, portions):
    """Each reading goes on where the one before has stopped; nothing is read twice or left out."""
    said = made(drawn)
    raw, _ = on_disk(said)
    place, heard, read_again = None, [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        for size, most in [*portions, (len(raw), 0), (len(raw), 0)]:
            path.open("ab").close()
            path.write_bytes(raw[: max(size, path.stat().st_size)])
            reader = JournalFollower(path, place)
            wanted = 0
            for record in reader.records():
                if heard and record.number <= heard[-1].number:
                    read_again += 1
                    continue
                heard.append(record)
                wanted += 1
                if wanted == most:
                    break
            place = reader.place
    assert heard == said
    assert read_again <= len(portions)  # the one at which a reading has stopped


@SOON
@given(
    st.lists(st.tuples(st.sampled_from([ME, EVERYONE]), st.integers(0, 40)), max_size=8), st.data()
)
def test_no_damage_makes_a_request_run_twice(drawn, data):
    """What an evaluator has written it may have handed over: another one takes it for that.

    Wherever bits are flipped, a proxy that says again all it has ever said is told so of each.
    """
    said = [
        Record(
            number,
            Channel.SHELL if front == ME else Channel.IOPUB,
            front == ME,
            front,
            b"x" * size,
            0.0,
            number if front == ME else 0,
        )
        for number, (front, size) in enumerate(drawn, 1)
    ]
    raw, _ = on_disk(said)
    hurt = bytearray(raw)
    for flip in data.draw(st.lists(st.integers(0, len(raw) * 8 - 1), max_size=6, unique=True)):
        hurt[flip // 8] ^= 1 << flip % 8
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        path.write_bytes(hurt)
        for _ in range(2):  # the first of them finds the damage, the second its mark
            past = RecoveredState()
            journal = Journal(path, lambda _call: None)
            journal.open(past.apply)
            journal.close()
            for record in said:
                is_taken = record.client_number <= past.seen.get(ME, {}).get(Lane.BULK, 0)
                assert is_taken or not past.is_seen_exact(ME, Lane.BULK)
    assert past.is_damaged <= (raw != hurt)


@SOON
@given(RECORDS, st.data(), st.sampled_from(["", "missed", "events"]))
def test_whoever_asks_about_a_damaged_journal_gets_an_answer(drawn, data, only):
    """`outputs` and `log` go over whatever is there, and never fail because of it."""
    raw, _ = on_disk(made(drawn))
    hurt = bytearray(raw[: data.draw(st.integers(0, len(raw)))])
    for flip in data.draw(st.lists(st.integers(0, max(0, len(hurt) * 8 - 1)), max_size=3)):
        if hurt:
            hurt[flip // 8] ^= 1 << flip % 8
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "remoter-kernel" / "sessions" / "7f3a9c"
        place.mkdir(parents=True)
        (place / "journal").write_bytes(hurt)
        (place / "state.json").write_text(json.dumps({"fronts": {ME.hex(): {"here": False}}}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_DATA_HOME", folder)
            answer, chunks = query.read_outputs({"session": "7f3a9c", "only": only})
            said = b"".join(chunks)
    assert "lacks" not in answer
    assert said or only or not [r for r in read(bytes(hurt)) if not r.is_marker]


def test_what_was_damaged_at_the_end_leaves_a_mark(tmp_path):
    """A record that was whole and is not any more is told from one that never was whole."""
    raw, ends = on_disk([Record(n, Channel.IOPUB, False, EVERYONE, b"x" * 99) for n in (1, 2)])
    for place, is_told in ((ends[0] + 30, True), (ends[1] - 3, True), (None, False)):
        hurt = bytearray(raw[: None if place else -1])
        if place:
            hurt[place] ^= 1
        path = tmp_path / f"journal-{place}"
        path.write_bytes(hurt)
        desk = Desk(path)
        desk.settle()
        desk.journal.close()
        marks = [parse_marker(record) for record in read_journal(path) if record.is_marker]
        assert [mark["bytes"] for mark in marks] == [ends[1] - ends[0]] * is_told


def test_a_newer_journal_is_refused_politely(tmp_path):
    """Neither an evaluator nor a reader touches a format that it does not know."""
    path = tmp_path / "journal"
    path.write_bytes(first_line(2) + b"whatever that may be")
    with pytest.raises(JournalTooNewError, match=r"newer version \(format 2"):
        list(read_journal(path))
    with pytest.raises(JournalTooNewError, match="Update"):
        Journal(path, lambda call: call()).open()
    assert path.read_bytes() == first_line(2) + b"whatever that may be"


def test_a_journal_inside_a_journal_is_not_mistaken_for_it():
    """A cell may print a journal: its records are a body's bytes and nothing else."""
    inner = encode_record(Record(50, Channel.IOPUB, False, EVERYONE, b"printed"))
    said = [Record(n, Channel.IOPUB, False, EVERYONE, inner * 2) for n in (1, 2)]
    assert read(on_disk(said)[0]) == said


def test_what_a_damaged_record_has_inside_is_not_mistaken_for_its_neighbours():
    """If a cell printed the journal and that very record is damaged, no number comes again."""
    said = [Record(n, Channel.IOPUB, False, EVERYONE, b"said %d" % n) for n in (1, 2, 3, 4)]
    said[2] = said[2]._replace(body=encode_record(said[0]) + encode_record(said[1]))
    raw, ends = on_disk(said)
    hurt = bytearray(raw)
    hurt[ends[1] + 20] ^= 1  # in the head of the third
    heard = read(bytes(hurt))
    assert [record.number for record in heard] == [1, 2, 3, 4]
    assert [record for record in heard if not record.is_marker] == [said[0], said[1], said[3]]
    assert parse_marker(heard[2])["bytes"] == ends[2] - ends[1]


def test_a_front_goes_on_beyond_the_gap(tmp_path):
    """After a restart numbers go on a million later, and a proxy gets old and new in order."""
    desk = Desk(tmp_path / "journal")
    for body in (b"one", b"two"):
        desk.journal.append(Channel.IOPUB, body)
    desk.settle()
    desk.journal.close()
    desk = Desk(tmp_path / "journal")
    assert desk.journal.append(Channel.IOPUB, b"three") == 3 + GAP
    outbox, number, heard = ClientOutbox(desk.journal, ME), 0, []
    while entry := desk.next_after(outbox, number):
        number = entry.number
        heard.append(entry.body)
    assert heard == [b"one", b"two", b"three"]
    unwritten = 2 + 500  # it was sent and never written: the proxy has seen it
    assert outbox.next_after(Lane.BULK, unwritten).body == b"three"
    desk.settle()
    desk.journal.close()


def test_a_journal_is_read_while_it_is_written(tmp_path):
    """A reader sees each record whole or not at all."""
    desk = Desk(tmp_path / "journal")
    bodies = [os.urandom(2000) for _ in range(200)]
    for body in bodies:
        desk.journal.append(Channel.IOPUB, body)
        read_so_far = [record.body for record in read_journal(desk.journal.path)]
        assert read_so_far == bodies[: len(read_so_far)]
    desk.settle()
    assert [record.body for record in read_journal(desk.journal.path)] == bodies
    desk.journal.close()


def test_a_reader_goes_on_where_a_file_is_cut_under_it(tmp_path, monkeypatch):
    """What was found is gone a moment later: it is looked for again, and that is no error."""
    raw = first_line() + b"damage" + encode_record(Record(1, Channel.SHELL, False, ME, b"one"))
    (tmp_path / "journal").write_bytes(raw)
    head, asked = records.Scan._header_at, []

    def vanish(scan, offset):
        asked.append(offset)
        return None if asked.count(offset) == 2 else head(scan, offset)

    monkeypatch.setattr(records.Scan, "_header_at", vanish)
    assert [record.body for record in read_journal(tmp_path / "journal")] == [b"one"]
