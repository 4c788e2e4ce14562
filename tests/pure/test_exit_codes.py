"""How code ended: what ends a script is its own leaving, and no error that only looks like it."""

from __future__ import annotations

import pytest

from remoter_kernel.local.run.runner import exit_code, exit_code_of_all, quit_status

R = "ERROR"
PYTHON = "ValueError"


@pytest.mark.parametrize(
    ("ename", "evalue", "word"),
    [
        ("SystemExit", "", "0"),
        ("SystemExit", "3", "3"),
        ("SystemExit", "no data", "no data"),
        (R, "Error: quit(status = 0)\n", "0"),
        (R, "Fehler: quit(status = -3)\n", "-3"),
        (R, "Erreur : quit(status = 1)\n", "1"),
        (R, "Error in eval(expr, envir, enclos): quit(status = 0)\n", None),
        (R, "Error in f(): quit(status = 0)", None),
        (PYTHON, "quit(status = 0)", None),
        (PYTHON, "Error: quit(status = 0)", None),
    ],
)
def test_only_who_leaves_has_left(ename, evalue, word):
    content = {"status": "error", "ename": ename, "evalue": evalue}
    assert quit_status(content) == word
    assert exit_code(content) == (word != "0")


FAILS = {"status": "error", "ename": "KeyError", "evalue": "x"}
LEAVES = {"status": "error", "ename": "SystemExit", "evalue": "0"}


@pytest.mark.parametrize(
    ("replies", "code"),
    [
        ([], 0),
        ([{"status": "ok"}, {"status": "ok"}], 0),
        ([{"status": "ok"}, FAILS, {"status": "aborted"}], 1),
        ([LEAVES, {"status": "aborted"}], 0),
        ([{"status": "ok"}, {"status": "aborted"}], 1),
        ([{"status": "abort"}], 1),
        ([{}], 1),
    ],
)
def test_pieces_end_as_the_first_that_did_not_go_well(replies, code):
    """Called off before anything failed: nothing of it was run."""
    assert exit_code_of_all(replies) == code
