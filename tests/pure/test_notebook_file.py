"""A notebook file gets outputs under some cells; every other byte stays."""

from __future__ import annotations

import errno
import json
import os
import stat

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remoter_kernel.errors import HereLacks, Usage
from remoter_kernel.local.history.executions import CellExecution
from remoter_kernel.local.history.notebook_file import (
    NotebookText,
    check_destination,
    is_valid,
    replace_file,
    write_notebook,
)

STREAM = {"output_type": "stream", "name": "stdout", "text": "one\ntwo \u00e9"}


def a_notebook(cells=3):
    made = [nbformat.v4.new_code_cell(f"x = {n}", id=f"cell-{n}") for n in range(cells)]
    made.insert(1, nbformat.v4.new_markdown_cell('"outputs": []', id="words"))
    return nbformat.v4.new_notebook(cells=made, metadata={"outputs": [], "ümlaut": {"cells": []}})


def write(path, text):
    path.write_bytes(text.encode())
    return NotebookText(path)


def a_run():
    run = CellExecution("r", "", count=7)
    run.add(dict(STREAM))
    return run


def without_what_changes(text):
    """Return the bytes of a notebook but for outputs and counts of its cells."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        cell.pop("outputs", None)
        cell.pop("execution_count", None)
    return json.dumps(notebook)


@given(
    st.fixed_dictionaries(
        {
            "indent": st.sampled_from([None, 1, 2, 4, "\t"]),
            "ensure_ascii": st.booleans(),
            "sort_keys": st.booleans(),
        }
    ),
    st.sampled_from(["", "\n", "\n\n"]),
    st.sets(st.sampled_from([0, 2, 3])),
)
def test_all_but_the_outputs_of_the_filled_cells_stays(tmp_path_factory, manner, end, filled):
    """However a file is written, what was not to be changed is the same text as before."""
    text = json.dumps(a_notebook(), **manner) + end
    file = write(tmp_path_factory.mktemp("nb") / "n.ipynb", text)
    after = file.with_outputs({place: a_run() for place in filled})
    assert without_what_changes(after) == without_what_changes(text)
    for place, cell in enumerate(json.loads(after)["cells"]):
        if place in filled:
            assert "".join(cell["outputs"][0]["text"]) == STREAM["text"]
            assert cell["execution_count"] == 7
        else:
            assert cell == json.loads(text)["cells"][place]
    assert is_valid(after)
    if not filled:
        assert after == text
    assert after.endswith("}" + end)


def test_a_file_of_nbformat_stays_one_of_nbformat(tmp_path):
    """What nbformat wrote is, filled, byte for byte what nbformat would write."""
    notebook = a_notebook()
    file = write(tmp_path / "n.ipynb", nbformat.writes(notebook) + "\n")
    notebook.cells[2].outputs = [nbformat.from_dict(STREAM)]
    notebook.cells[2].execution_count = 7
    assert file.with_outputs({2: a_run()}) == nbformat.writes(notebook) + "\n"


def test_windows_line_ends_stay(tmp_path):
    """A file with CRLF keeps them, and what is new has them, too."""
    text = nbformat.writes(a_notebook()).replace("\n", "\r\n")
    after = write(tmp_path / "n.ipynb", text).with_outputs({0: a_run()})
    assert after.count("\n") == after.count("\r\n") > text.count("\r\n")


def test_an_odd_hand_written_file_keeps_its_oddities(tmp_path):
    """Spaces, key order and repeated blanks of other cells are no concern of ours."""
    text = (
        '{"nbformat_minor" : 5,\n\n "cells":[ {"cell_type":"code","id":"a","outputs":[ ],'
        '"metadata":{"b":1,  "a":2},"source":"1","execution_count" :null} ],'
        '"metadata":{},   "nbformat":4}'
    )
    after = write(tmp_path / "n.ipynb", text).with_outputs({0: a_run()})
    head, _, rest = after.partition('"outputs":')
    assert text.startswith(head)
    assert rest.endswith('"metadata":{},   "nbformat":4}')
    assert '"metadata":{"b":1,  "a":2},"source":"1","execution_count" :7} ]' in rest
    assert is_valid(after)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"nbformat": 3, "worksheets": []}', "null"])
def test_what_is_no_notebook_is_refused_in_words(tmp_path, text):
    """Not JSON, not a notebook, too old: a sentence, and the file stays."""
    path = tmp_path / "n.ipynb"
    with pytest.raises(Usage, match=r"n\.ipynb"):
        write(path, text)
    assert path.read_text() == text


def test_a_replaced_file_keeps_its_mode_and_its_link(tmp_path):
    """Mode and symbolic link stay; nothing is left beside it."""
    path, link = tmp_path / "n.ipynb", tmp_path / "link.ipynb"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    replace_file(link, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o640)
    assert link.is_symlink()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link.ipynb", "n.ipynb"]


def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path):
    path = tmp_path / f"{'ä' * 124}.ipynb"
    replace_file(path, "new")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_new_notebook_is_what_nbformat_reads(tmp_path):
    """A written notebook is valid and ends with a newline."""
    path = tmp_path / "new.ipynb"
    write_notebook(path, json.loads(nbformat.writes(a_notebook())))
    assert path.read_text().endswith("}\n")
    assert len(nbformat.read(path, as_version=4).cells) == 4


def test_what_nbformat_finds_fault_with_is_written_all_the_same(tmp_path, caplog):
    """One odd output must not cost those of a whole night; nbformat itself says what is odd."""
    notebook = json.loads(nbformat.writes(a_notebook()))
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["outputs"] = [{"output_type": "stream", "name": "stdout", "text": 5}]
    write_notebook(tmp_path / "odd.ipynb", notebook)
    assert json.loads((tmp_path / "odd.ipynb").read_text())["cells"] == notebook["cells"]
    assert "invalid" in caplog.text


def test_a_read_only_file_is_left_alone(tmp_path):
    """To rename another file over it would work."""
    path = tmp_path / "n.ipynb"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(HereLacks, match="is read-only; it stays as it was"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["n.ipynb"]


def test_a_file_that_is_there_is_replaced_only_if_that_was_asked_for(tmp_path):
    path = tmp_path / "n.ipynb"
    check_destination(path)
    path.write_text("old")
    with pytest.raises(Usage, match=r"is there already\. Name a new file, or replace it"):
        check_destination(path)
    check_destination(path, may_replace=True)
    path.chmod(0o444)
    with pytest.raises(HereLacks, match="read-only"):
        check_destination(path, may_replace=True)
    assert path.read_text() == "old"


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_appeared_since_it_was_looked_for_stays(tmp_path, monkeypatch, has_links):
    """A run may take hours, and somebody else may have written there."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "n.ipynb"
    notebook = json.loads(nbformat.writes(a_notebook()))
    check_destination(path)
    path.write_text("of somebody else")
    path.chmod(0o444)
    assert write_notebook(path, notebook) == tmp_path / "n-1.ipynb"
    assert write_notebook(path, notebook) == tmp_path / "n-2.ipynb"
    path.chmod(0o644)
    assert path.read_text() == "of somebody else"
    assert write_notebook(path, notebook, may_replace=True) == path
    assert len({each.read_text() for each in tmp_path.iterdir()}) == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["n-1.ipynb", "n-2.ipynb", "n.ipynb"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    """A missing folder is told in words."""
    with pytest.raises(HereLacks, match="cannot be written"):
        replace_file(tmp_path / "missing" / "n.ipynb", "x")
