"""The soak's ledger: what it calls lost, told, doubled, disordered and wrong."""

from __future__ import annotations

import pytest

from tests.soak.ledger import Count, Entry, Heard, Ledger, Word, judge

CLEAN = Count(sent=7, delivered=7)  # five marks, a reply, an idle


def entry_with(*marks, replies=1, idles=1, words=(), **options):
    """Make an entry of five marks that has heard these."""
    entry = Entry("t1", "lines", marks=5, replies=replies, idles=idles, **options)
    for mark in marks:
        entry.heard.take_mark("t1", mark)
    entry.words.update(words)
    return entry


def kept(*marks):
    """Make what `remoter outputs` has of it."""
    heard = Heard("t1")
    for mark in marks:
        heard.take_mark("t1", mark)
    return heard


def said(name, text):
    """Make a stream's message."""
    return "stream", {"name": name, "text": text}, {}


def test_all_that_was_due_and_nothing_else():
    assert judge(entry_with(0, 1, 2, 3, 4)) == CLEAN


@pytest.mark.parametrize(
    ("marks", "lost", "doubled", "disordered"),
    [
        ((0, 1, 3, 4), 1, 0, 0),
        ((), 5, 0, 0),
        ((0, 1, 2, 3, 3, 4), 0, 1, 0),
        ((0, 1, 2, 3, 4, 0), 0, 1, 0),
        ((0, 2, 1, 3, 4), 0, 0, 1),
        ((4, 3, 2, 1, 0), 0, 0, 4),
    ],
)
def test_lines_that_are_lost_or_doubled_or_out_of_order(marks, lost, doubled, disordered):
    count = judge(entry_with(*marks))
    assert (count.lost, count.doubled, count.disordered, count.wrong) == (
        lost,
        doubled,
        disordered,
        0,
    )
    assert count.told == 0
    assert not count.is_clean


@pytest.mark.parametrize("end", ["replies", "idles"])
def test_a_reply_and_an_idle_come_once(end):
    assert judge(entry_with(*range(5), **{end: 0})).lost == 1
    assert judge(entry_with(*range(5), **{end: 2})).doubled == 1


def test_a_cell_that_ran_twice_is_doubled():
    assert judge(entry_with(*range(5), runs=2)).doubled == 1
    assert judge(entry_with(*range(5), runs=1)) == CLEAN


@pytest.mark.parametrize(
    ("words", "marks", "lost", "told"),
    [
        ({Word.CUT}, (0, 1), 0, 3),
        ({Word.CUT}, (0, 2), 1, 2),  # what is missing before the end was not told
        ({Word.GAPS}, (0, 2), 0, 3),
        ({Word.NOT_RUN}, (), 0, 5),
        ({Word.NOT_RUN}, (0,), 4, 0),
    ],
)
def test_what_a_cell_has_told_is_not_lost(words, marks, lost, told):
    count = judge(entry_with(*marks, words=words))
    assert (count.lost, count.told, count.is_clean) == (lost, told, not lost)


def test_nothing_excuses_what_comes_twice():
    assert judge(entry_with(0, 0, words={Word.GAPS})).doubled == 1


def test_what_a_dead_fronts_cell_has_said_is_in_remoter_outputs():
    words = {Word.FRONT_DIED}
    one = entry_with(0, 1, replies=0, idles=0, words=words, runs=1, kept=kept(*range(5)))
    assert judge(one) == Count(sent=7, delivered=2, told=5)
    one.kept = kept(0, 1, 3, 4)
    assert judge(one).lost == 1
    one.kept = kept(0, 1, 2, 3, 3, 4)
    assert judge(one).doubled == 1
    one.kept, one.runs = None, 0
    one.heard.marks.clear()
    assert judge(one).lost == 0  # it had not left when its proxy died


def test_what_was_not_to_run_must_not():
    assert judge(entry_with(words={Word.NOT_RUN}, runs=1)).wrong == 1
    assert judge(entry_with(0, words={Word.INTERRUPTED})).wrong == 1
    assert judge(entry_with(0, words={Word.INTERRUPTED}, may_be_interrupted=True)).is_clean


def test_a_later_update_may_take_the_place_of_earlier_ones():
    assert judge(entry_with(0, 2, 4, optional={0, 1, 2, 3})).is_clean
    assert judge(entry_with(0, 1, 2, 3, optional={0, 1, 2, 3})).lost == 1
    assert judge(entry_with(2, 1, 4, optional={0, 1, 2, 3})).disordered == 1


def test_marks_are_found_in_all_that_a_cell_shows():
    heard = Heard("t1")
    heard.take(*said("stdout", "Waiting for the link …\n<t1:0> xx\n<t1"))
    heard.take(*said("stdout", ":1>\n<t1:2>"))
    heard.take(*said("stdout", "\n"))
    heard.take("display_data", {"data": {"text/plain": "<t1:3>"}}, {})
    heard.take("error", {"ename": "ValueError", "evalue": "<t1:4>"}, {})
    assert (heard.marks, heard.words, heard.strange) == ([0, 1, 2, 3, 4], set(), [])


def test_what_is_told_is_read_from_what_a_cell_shows():
    heard = Heard("t1")
    heard.take("stream", {"name": "stderr", "text": "held back"}, {"remoter_held_back": 9})
    heard.take(*said("stderr", "[remoter] outputs between then and now may be missing.\n"))
    heard.take("error", {"ename": "KernelDied", "evalue": "by signal 9"}, {})
    heard.take("error", {"ename": "KeyboardInterrupt", "evalue": ""}, {})
    assert heard.words == {Word.HELD_BACK, Word.GAPS, Word.CUT, Word.INTERRUPTED}


def test_a_mark_under_another_cell_and_an_error_of_nobodys_are_wrong():
    entry = entry_with(0, 1, 2, 3, 4)
    entry.heard.take(*said("stdout", "<t2:0>\n"))
    entry.heard.take("error", {"ename": "NameError", "evalue": "x"}, {})
    assert judge(entry).wrong == 2


def test_a_ledger_adds_up_and_tells_of_what_is_not_clean():
    ledger = Ledger()
    for name in ("t1", "t2", "t3"):
        ledger.entries[name] = Entry(name, "lines", marks=1, replies=1, idles=1)
        ledger.entries[name].heard.take_mark(name, 0)
    ledger.entries["t2"].words.add(Word.FRONT_DIED)
    ledger.note_runs(["t1", "t3", "t2", "t1"])
    outputs = [{"output_type": "stream", "name": "stdout", "text": "<t2:0>\n"}]
    ledger.note_outputs([{"id": "t2", "outputs": outputs}])
    total = ledger.total()
    assert (total.sent, total.delivered, total.lost, total.doubled) == (9, 9, 0, 1)
    assert ledger.strange == ["t3 ran before t2", "t2 ran before t1"]
    assert total.wrong == 2
    assert len(ledger.complaints()) == 3
