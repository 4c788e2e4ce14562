"""Who joins what: a notebook's new proxy, and the sessions that live."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from remoter_kernel.evaluator.session_match import Candidate, match_session
from remoter_kernel.local.launch.launcher import SessionInfo
from remoter_kernel.local.proxy.presenters import WEEK, joined_text, other_sessions_text
from remoter_kernel.local.session.notebook_identity import mark_local_files

# The session; then: same path, a cell in common, free, can be joined.
LEFT = Candidate("left", True, True, True)
LEFT_TOO = Candidate("left-too", True, True, True)
AT_WORK = Candidate("at-work", True, True, False)
STRANGE = Candidate("strange", True, False, True)
RENAMED = Candidate("renamed", False, True, True)
OF_A_COPY = Candidate("of-a-copy", False, True, False)
ELSEWHERE = Candidate("elsewhere", True, True, True, can_be_joined=False)

WHO_JOINS_WHOM = [
    ("nothing is there", [], "", []),
    ("one was left behind", [LEFT], "left", []),
    ("two were left behind", [LEFT, LEFT_TOO], "", ["left", "left-too"]),
    ("its front lives, or another is there", [AT_WORK], "", ["at-work"]),
    ("one of two is free", [AT_WORK, LEFT], "left", []),
    ("no cell in common: another Untitled.ipynb", [STRANGE], "", ["strange"]),
    ("its own and a strange one", [STRANGE, LEFT], "left", []),
    ("the file was renamed, or copied", [RENAMED], "", ["renamed"]),
    ("a copy, and the other is at work", [OF_A_COPY], "", []),
    ("a copy that has one of its own", [RENAMED, LEFT], "left", []),
    ("on another host, or its evaluator hangs", [ELSEWHERE], "", ["elsewhere"]),
    ("one here, one on another host", [ELSEWHERE, LEFT], "left", []),
]


@pytest.mark.parametrize(
    ("candidates", "heir", "told"),
    [row[1:] for row in WHO_JOINS_WHOM],
    ids=[row[0] for row in WHO_JOINS_WHOM],
)
def test_who_joins_whom(candidates, heir, told):
    """One is joined only if nothing else could be meant and nobody is at it; no order matters."""
    assert match_session(candidates) == (heir, told)
    assert match_session(candidates[::-1]) == (heir, told[::-1])


# What the person hears ------------------------------------------------------------------


def an_address(*, begun=0.0, others=()):
    others = tuple({"session": name, "notebook": path} for name, path in others)
    return SessionInfo("7f3a9c", "", 1, "", True, "", "", "", "", begun=begun, others=others)


def test_a_joined_session_is_named_with_when_it_began():
    """The day's name says which for six days, then the date does; a shell takes the file's name."""
    begun = time.mktime((2026, 3, 2, 22, 10, 0, 0, 0, -1))
    address = an_address(begun=begun)
    assert joined_text(address, "/x/a.ipynb", begun + 3600, is_busy=False) == (
        "[remoter] Joined session 7f3a9c of this notebook, begun Mon 22:10. What came meanwhile: "
        "%remoter outputs, or remoter outputs 7f3a9c --into a.ipynb\n"
    )
    later = joined_text(address, "/x/$(id) b.ipynb", begun + WEEK, is_busy=True)
    assert "begun 2026-03-02 22:10. A cell is still running there. What" in later
    assert later.endswith("--into '$(id) b.ipynb'\n")
    assert joined_text(address, "/x/a\nb.ipynb", begun, is_busy=False).count("\n") == 1


def test_sessions_that_were_not_joined_are_named(tmp_path):
    """Own ones first; another notebook's only if its file is gone."""
    own, copied = str(tmp_path / "a.ipynb"), tmp_path / "b.ipynb"
    copied.touch()
    gone = str(tmp_path / "gone.ipynb")

    def told(*others):
        address = an_address(others=others)
        return other_sessions_text(replace(address, others=mark_local_files(address.others)), own)

    assert told() == told(("1", str(copied))) == ""
    assert told(("1", own)) == (
        "[remoter] Session 1 of this notebook is there, too: remoter attach 1\n"
    )
    assert told(("1", own), ("2", own), ("3", gone)) == (
        "[remoter] Sessions 1 and 2 of this notebook are there, too: remoter attach 1\n"
    )
    assert told(("1", gone)) == (
        "[remoter] Session 1 has cells of this notebook, as gone.ipynb, and is there, too: "
        "remoter attach 1\n"
    )
