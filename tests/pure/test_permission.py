"""What cells may do on this side: nothing that nobody has allowed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest

from remoter_kernel.front.jupyter.mouth import Route
from remoter_kernel.front.questions import NeedsPerson, NotAnswered
from remoter_kernel.front.this_side.permission import MOST_TOLD, NotAllowed, Permission
from remoter_kernel.wire.frames import Channel
from remoter_kernel.wire.messages import Voice, header_of

PUT = ("%remoter put", "sends data.csv to gpu-box")
GET = ("%remoter get", "fetches data.csv from gpu-box")


class Person:
    """Somebody who is asked in a cell, and says what the test has written down."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.questions = []

    def ask_in(self, cell, text):
        self.questions.append(text)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def a_cell(*, can_answer=True):
    content = {"code": "%remoter put a b", "allow_stdin": can_answer, "silent": False}
    parts = Voice(b"").compose("execute_request", content)
    return Route(Channel.SHELL, [], header_of(parts[1]), parts)


def gate(person, folder, rule: Literal["ask", "allow", "never"] = "ask"):
    return Permission(person, lambda: rule, folder)


def test_a_person_is_asked_once_for_a_notebook(tmp_path):
    """After a yes, nothing is asked any more, whatever the verb."""
    person = Person("yes")
    permission = gate(person, tmp_path)
    assert permission.may(*PUT, a_cell())
    assert permission.may(*GET, a_cell(), tmp_path / "data.csv")
    assert permission.may("%%local", "runs this cell here", a_cell())
    (question,) = person.questions
    assert "sends data.csv to gpu-box" in question


@pytest.mark.parametrize("answer", ["no", "N", "", NotAnswered("nobody"), NeedsPerson("nobody")])
def test_what_is_not_a_yes_allows_nothing(tmp_path, answer):
    """And it is asked again by the next cell that wants something."""
    person = Person(answer, "yes")
    permission = gate(person, tmp_path)
    assert not permission.may(*PUT, a_cell())
    assert permission.may(*PUT, a_cell())
    assert len(person.questions) == 2


def test_a_word_that_is_neither_is_asked_about_again_and_not_for_ever(tmp_path):
    """Three times in all."""
    person = Person("perhaps", "what?", "YES ")
    assert gate(person, tmp_path).may(*PUT, a_cell())
    person = Person("a", "b", "c", "yes")
    assert not gate(person, tmp_path).may(*PUT, a_cell())
    assert len(person.questions) == 3


def test_the_remote_may_decide_for_everybody(tmp_path):
    """`allow` and `never` ask nobody."""
    nobody = Person()
    assert gate(nobody, tmp_path, "allow").may(*PUT, a_cell(can_answer=False))
    assert not gate(nobody, tmp_path, "never").may(*PUT, a_cell())
    with pytest.raises(NotAllowed, match='says local = "never"'):
        gate(nobody, tmp_path, "never").demand(*PUT, a_cell())


def test_a_rule_that_is_changed_counts_from_the_next_cell_on(tmp_path):
    """A yes of before does not weigh more than `never`."""
    rules: list[Literal["ask", "never"]] = ["ask"]
    permission = Permission(Person("yes"), lambda: rules[-1], tmp_path)
    assert permission.may(*PUT, a_cell())
    rules.append("never")
    assert not permission.may(*PUT, a_cell())


def test_where_nobody_can_be_asked_nothing_is_allowed(tmp_path):
    """The error says what to set."""
    person = Person(NeedsPerson("nobody can be asked"))
    with pytest.raises(NotAllowed, match='Set local = "allow"'):
        gate(person, tmp_path).demand(*PUT, a_cell(can_answer=False))


@pytest.mark.parametrize("rule", ["ask", "allow"])
def test_a_place_outside_the_folder_is_named_and_asked_about(tmp_path, rule):
    """Also where cells may use this side, and after a yes to something else."""
    outside = tmp_path / "elsewhere"
    folder = tmp_path / "notebooks"
    folder.mkdir()
    person = Person("yes", "yes") if rule == "ask" else Person("yes")
    permission = gate(person, folder, rule)
    assert permission.may(*GET, a_cell(), folder / "sub" / "data.csv")
    assert permission.may(*GET, a_cell(), outside)
    assert str(outside) in person.questions[-1]
    asked = len(person.questions)
    assert permission.may(*GET, a_cell(), outside / "data.csv")
    assert len(person.questions) == asked


def test_a_link_or_dots_lead_nowhere_unasked(tmp_path):
    """What counts is where a path leads."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    for path in (folder / "link" / "x", folder / ".." / "x", Path(os.sep, "x")):
        person = Person("no")
        assert not gate(person, folder, "allow").may(*GET, a_cell(), path)
        assert len(person.questions) == 1


def test_a_cell_cannot_rewrite_the_question(tmp_path):
    """No new lines, no signs that a terminal obeys, and the question at its end."""
    person = Person("no")
    what = "sends a\nyes or no:\x1b[2J" + "x" * 5000
    gate(person, tmp_path).may("%remoter put", what, a_cell())
    first, last = person.questions[0].split("\n")
    assert "\x1b" not in first
    assert len(first) < MOST_TOLD + 100
    assert last.startswith("Allow this notebook")
