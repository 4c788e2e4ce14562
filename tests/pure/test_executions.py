"""From messages to a notebook's cells, as nbclient makes them; and what a notebook missed."""

from __future__ import annotations

import copy
import json

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remoter_kernel.local.history.executions import (
    CellExecution,
    ExecutionHistory,
    as_terminal_shows,
    build_notebook,
    comparable,
    plan_updates,
)
from remoter_kernel.protocol.frames import Channel, pack_parts, to_json
from remoter_kernel.protocol.journal_entries import JournalEntry
from remoter_kernel.protocol.messages import HEADER, METADATA, MessageSigner, header_of

VOICE = MessageSigner(b"")
FRONT = b"frontone"


class Journal:
    """Writes records as a session does."""

    def __init__(self):
        self.said = []

    def _say(self, channel, parts, *, is_from_front):
        front = FRONT if is_from_front else bytes(8)
        said = JournalEntry(
            len(self.said) + 1, 0.0, channel, is_from_front, front, pack_parts(parts)
        )
        self.said.append(said)

    def asks(self, code, cell_id="", **content):
        parts = VOICE.compose("execute_request", {"code": code, **content})
        parts[METADATA] = to_json({"cellId": cell_id} if cell_id else {})
        self._say(Channel.SHELL, parts, is_from_front=True)
        return header_of(parts[HEADER])

    def says(self, message, parent):
        kind, content = message
        parts = VOICE.compose(kind, content, parent)
        self._say(Channel.IOPUB, parts, is_from_front=False)

    def story(self):
        story = ExecutionHistory()
        for said in self.said:
            story.add_record(said)
        return story


def text(words, name="stdout"):
    return "stream", {"name": name, "text": words}


def a_display(data, display_id=None, kind="display_data"):
    transient = {"display_id": display_id} if display_id else {}
    count = {"execution_count": 1} if kind == "execute_result" else {}
    return kind, {"data": {"text/plain": data}, "metadata": {}, "transient": transient, **count}


words = st.text("ab\n", max_size=3)
ids = st.sampled_from([None, "x", "y"])
messages = st.lists(
    st.one_of(
        st.builds(text, words, st.sampled_from(["stdout", "stderr"])),
        st.builds(a_display, words, ids),
        st.builds(a_display, words, ids, st.just("execute_result")),
        st.builds(a_display, words, st.sampled_from("xy"), st.just("update_display_data")),
        st.builds(lambda wait: ("clear_output", {"wait": wait}), st.booleans()),
        st.just(("error", {"ename": "E", "evalue": "e", "traceback": ["t"]})),
        st.just(("comm_msg", {"comm_id": "c", "data": {}})),
        st.just(("of tomorrow", {"what": 1})),
    ),
    max_size=12,
)


def by_nbclient(said):
    """Return the outputs that nbclient makes of the same messages; text of a stream joined."""
    from nbclient import NotebookClient

    client = NotebookClient(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("")]))
    client.reset_execution_trackers()
    client.clear_before_next_output = False
    cell = client.nb.cells[0]
    for kind, content in said:
        if kind != "of tomorrow":
            header = {"msg_type": kind, "msg_id": "1"}
            message = {"msg_type": kind, "header": header, "parent_header": {"msg_id": "0"}}
            client.process_message({**message, "content": copy.deepcopy(content)}, cell, 0)
    run = CellExecution("", "")
    for output in json.loads(json.dumps(cell.outputs)):
        run.add(output)
    return run.outputs


@given(messages)
def test_outputs_are_those_that_nbclient_makes(said):
    """Whatever a kernel publishes, the cell's outputs are what nbclient would have written."""
    journal = Journal()
    parent = journal.asks("x")
    for message in said:
        journal.says(message, parent)
    (run,) = journal.story().executions.values()
    assert run.outputs == by_nbclient(said)


def test_an_update_reaches_the_display_of_an_earlier_cell():
    """`update_display_data` in one cell changes what another one shows."""
    journal = Journal()
    one, two = journal.asks("1"), journal.asks("2")
    journal.says(a_display("old", "bar"), one)
    journal.says(a_display("new", "bar", "update_display_data"), two)
    first, second = journal.story().executions.values()
    assert first.outputs[0]["data"] == {"text/plain": "new"}
    assert second.outputs == []


def test_what_is_silent_or_makes_no_sense_is_no_cell():
    """Silent requests, torn bodies and other messages leave no cell behind."""
    journal = Journal()
    journal.asks("__vsc__", silent=True)
    journal.asks("__vsc__", store_history=False)
    journal.said.append(JournalEntry(9, 0.0, Channel.IOPUB, False, bytes(8), b"torn"))
    journal.said.append(
        JournalEntry(10, 0.0, Channel.SHELL, True, FRONT, pack_parts([b"", b"{}", b"{}"]))
    )
    assert journal.story().executions == {}


@given(st.lists(st.sampled_from(["", "a", "a", "not an id!", "b"]), max_size=6))
def test_a_whole_notebook_is_valid(cell_ids):
    """Whatever clients call their cells, nbformat finds nothing wrong with the notebook."""
    journal = Journal()
    for cell_id in cell_ids:
        parent = journal.asks("1", cell_id)
        journal.says(("execute_input", {"code": "1", "execution_count": 3}), parent)
        journal.says(text("x"), parent)
        journal.says(a_display("1", kind="execute_result"), parent)
    notebook = build_notebook(journal.story(), "remoter-box", "Remote (box)")
    assert len(notebook["cells"]) == len(cell_ids)
    nbformat.validate(notebook)


def test_what_a_display_shows_is_text_unless_it_is_called_json():
    """A kernel sends what a cell wishes; a notebook with a number as its text is none."""
    journal = Journal()
    parent = journal.asks("1", "a")
    data = {"text/plain": 5, "text/html": ["<b>", "x"], "application/vnd.x+json": {"a": 1}}
    journal.says(("display_data", {"data": data}), parent)
    notebook = build_notebook(journal.story(), "remoter-box", "Remote (box)")
    nbformat.validate(notebook)
    assert notebook["cells"][0]["outputs"][0]["data"] == {**data, "text/plain": "5"}


# --------------------------------------------------------------- what a notebook missed


def a_cell(source, *, id="", outputs=(), count=None):  # noqa: A002 - nbformat's own name
    cell = {"cell_type": "code", "source": source, "outputs": list(outputs)}
    return {**cell, "execution_count": count, **({"id": id} if id else {})}


def a_run(source="", cell_id="", texts=("one\ntwo\n",), count=1, asked=100.0):
    run = CellExecution(source + cell_id, source, cell_id, asked, count, is_over=True)
    for each in texts:
        run.add({"output_type": "stream", "name": "stdout", "text": each})
    return run


def stream(words):
    return {"output_type": "stream", "name": "stdout", "text": words}


BEFORE, AFTER = 50.0, 150.0  # the notebook was saved before the run's request, or after


@pytest.mark.parametrize("saved", [BEFORE, AFTER])
@pytest.mark.parametrize("there", [[], [stream(["one\n"])], [stream("one\ntw")]])
def test_a_cell_that_has_nothing_or_the_first_of_it_is_filled(there, saved):
    """No outputs, or the beginning of the run's: the run's take their place."""
    run = a_run(cell_id="a")
    ((place, filled, _),) = plan_updates([a_cell("x", id="a", outputs=there)], [run], saved)
    assert (place, filled) == (0, run)


def test_a_cell_that_has_it_all_is_not_mentioned():
    """A notebook that missed nothing is not changed."""
    cell = a_cell("x", id="a", outputs=[stream(["one\n", "two\n"])], count=1)
    assert plan_updates([cell], [a_run(cell_id="a")], AFTER) == []


def test_outputs_of_another_origin_stay_unless_they_are_older():
    """What another session computed after this run is not overwritten; what is older is."""
    cell = a_cell("x", id="a", outputs=[stream("from elsewhere")], count=9)
    ((_, left, why),) = plan_updates([cell], [a_run(cell_id="a")], AFTER)
    assert left is None
    assert "did not make" in why
    ((_, filled, _),) = plan_updates([cell], [a_run(cell_id="a")], BEFORE)
    assert filled is not None


def test_outputs_of_an_earlier_run_give_way_to_the_last_one():
    """A cell that was run twice and shows the first run gets the outputs of the second."""
    first, second = a_run(cell_id="a", texts=["first"]), a_run(cell_id="a", texts=["second"])
    cell = a_cell("x", id="a", outputs=[stream("first")], count=1)
    ((_, filled, _),) = plan_updates([cell], [first, second], AFTER)
    assert filled is second


def test_without_an_id_the_source_decides_if_it_stands_there_once():
    """A client that names no cells: equal source, and only where there is no doubt."""
    run = a_run("x = 1")
    assert [f.cell_index for f in plan_updates([a_cell("y"), a_cell("x = 1")], [run], BEFORE)] == [
        1
    ]
    assert plan_updates([a_cell("x = 1"), a_cell("x = 1")], [run], BEFORE) == []
    assert plan_updates([{"cell_type": "markdown", "source": "x = 1"}], [run], BEFORE) == []


def test_a_run_that_never_began_fills_nothing():
    """A queued request that the kernel has not begun has no outputs to give."""
    assert (
        plan_updates([a_cell("x", id="a")], [a_run(cell_id="a", texts=(), count=None)], BEFORE)
        == []
    )


def test_a_progress_bar_that_was_half_way_is_the_beginning_of_one_that_is_done():
    """What is overwritten later counts as seen before."""
    run = a_run(cell_id="a", texts=["go\n", "10%\r", "50%\r", "100%\n", "done\n"])
    cell = a_cell("x", id="a", outputs=[stream("go\n50%\r")])
    assert plan_updates([cell], [run], AFTER)[0].execution is run


@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=4))
def test_what_is_seen_of_a_line_is_what_was_not_overwritten(pieces):
    """Column by column, the last stroke that reached it is seen."""
    seen = as_terminal_shows("\r".join(pieces))
    assert len(seen) == max(map(len, pieces))
    for column, letter in enumerate(seen):
        assert letter == [piece[column] for piece in pieces if len(piece) > column][-1]


def test_lists_of_lines_and_text_are_the_same_output():
    """A file has a list of lines where a message has text."""
    assert comparable(stream(["a\n", "b"])) == comparable(stream("a\nb"))
