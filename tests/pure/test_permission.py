"""What cells may do on this side: nothing that nobody has allowed, and each thing apart."""

from __future__ import annotations

from typing import Literal

import pytest

from remoter_kernel.local.login.prompts import OWN_TAG, NeedsPerson, NotAnswered
from remoter_kernel.local.proxy.here.permission import (
    LONGEST_LINE,
    LONGEST_PATH,
    MOST_PATHS,
    AccessKind,
    AccessRequest,
    NotAllowed,
    Permission,
    format_names,
    local_path,
)
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.messages import MessageSigner, header_of
from remoter_kernel.protocol.requests import Request

LOCAL = AccessRequest("%%local", AccessKind.RUN, "runs this cell")


class Person:
    """Somebody who is asked in a cell, and says what the test has written down."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.questions = []

    def prompt_in(self, cell, text):
        self.questions.append(text)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def a_cell(*, can_answer=True):
    content = {"code": "%remoter put a b", "allow_stdin": can_answer, "silent": False}
    parts = MessageSigner(b"").compose("execute_request", content)
    return Request(Channel.SHELL, parts, header_of(parts[1]))


def put(*paths):
    places = tuple(local_path(str(path), path.name) for path in paths)
    return AccessRequest("%remoter put", AccessKind.READ, "sends data.csv to gpu-box", places)


def get(path):
    places = (local_path(str(path)),)
    return AccessRequest("%remoter get", AccessKind.WRITE, "fetches data.csv from gpu-box", places)


def gate(person, folder, rule: Literal["ask", "allow", "never"] = "ask"):
    return Permission(person, lambda: rule, folder)


def may(permission, wanted, cell=None):
    try:
        permission.require(wanted, cell or a_cell())
    except NotAllowed:
        return False
    return True


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    return folder.resolve()


@pytest.fixture
def outside(tmp_path):
    file = tmp_path / "secret.txt"
    file.write_text("secret")
    return file.resolve()


def test_a_person_is_asked_once_for_each_kind(folder):
    person = Person("yes", "yes", "yes")
    permission = gate(person, folder)
    for _ in range(2):
        for wanted in (put(folder / "data.csv"), get(folder / "data.csv"), LOCAL):
            assert may(permission, wanted)
    reads, writes, runs = person.questions
    assert "wants to read files here: it sends data.csv to gpu-box." in reads
    assert f"send any file below {folder} to the remote, and nothing else" in reads
    assert f"write or replace any file below {folder}, and nothing else" in writes
    assert "run any code on this machine, with your files and your rights" in runs


@pytest.mark.parametrize("answer", ["no", "N", "", NotAnswered("nobody"), NeedsPerson("nobody")])
def test_what_is_not_a_yes_allows_nothing(folder, answer):
    """And it is asked again by the next cell that wants something."""
    person = Person(answer, "yes")
    permission = gate(person, folder)
    assert not may(permission, LOCAL)
    assert may(permission, LOCAL)
    assert len(person.questions) == 2


def test_a_word_that_is_neither_is_asked_about_again_and_not_for_ever(folder):
    """Three times in all."""
    person = Person("perhaps", "what?", "YES ")
    assert may(gate(person, folder), LOCAL)
    person = Person("a", "b", "c", "yes")
    assert not may(gate(person, folder), LOCAL)
    assert len(person.questions) == 3


def test_the_remote_may_decide_for_everybody(folder):
    """`allow` and `never` ask nobody."""
    nobody = Person()
    for wanted in (LOCAL, put(folder / "a"), get(folder / "a")):
        assert may(gate(nobody, folder, "allow"), wanted, a_cell(can_answer=False))
        with pytest.raises(NotAllowed, match='says local = "never"'):
            gate(nobody, folder, "never").require(wanted, a_cell())


def test_a_rule_that_is_changed_counts_from_the_next_cell_on(folder):
    """A yes of before does not weigh more than `never`."""
    rules: list[Literal["ask", "never"]] = ["ask"]
    permission = Permission(Person("yes"), lambda: rules[-1], folder)
    assert may(permission, LOCAL)
    rules.append("never")
    assert not may(permission, LOCAL)


def test_where_nobody_can_be_asked_nothing_is_allowed(folder, outside):
    """The error says what to do: for a place outside of the folder `allow` would not do."""
    cell = a_cell(can_answer=False)
    with pytest.raises(NotAllowed, match=r'nobody can be asked.*Set local = "allow"'):
        gate(Person(), folder).require(put(folder / "a"), cell)
    with pytest.raises(NotAllowed, match=rf"about {outside}, .* nobody can be asked") as caught:
        gate(Person(), folder, "allow").require(put(outside), cell)
    assert "allow" not in str(caught.value)


@pytest.mark.parametrize("rule", ["ask", "allow"])
@pytest.mark.parametrize("wanted", [put, get])
def test_a_place_outside_the_folder_is_a_question_of_its_own(folder, outside, rule, wanted):
    """Also where cells may use this side, and after a yes to something else; a yes is for it."""
    other = outside.with_name("other.txt")
    person = Person("yes", "yes", "no") if rule == "ask" else Person("yes", "no")
    permission = gate(person, folder, rule)
    assert may(permission, wanted(folder / "sub" / "data.csv"))
    assert may(permission, wanted(outside))
    assert f"\n  {outside}\n" in person.questions[-1]
    assert may(permission, wanted(outside))
    assert not may(permission, wanted(other))
    assert f"\n  {other}\n" in person.questions[-1]
    assert not person.answers


def test_a_yes_to_a_folder_is_one_to_what_is_in_it_and_not_to_write_there(folder, tmp_path):
    outside = tmp_path.resolve() / "there"
    (outside / "sub").mkdir(parents=True)
    person = Person("yes", "no", "no")
    permission = gate(person, folder)
    assert may(permission, put(outside))
    assert may(permission, put(outside / "sub" / "a.txt"))
    assert not may(permission, get(outside / "sub" / "a.txt"))
    assert not may(permission, put(outside.with_name("there-too")))
    assert not person.answers


def test_a_yes_to_what_is_below_the_folder_is_not_asked_for_where_nothing_of_it_is_meant(
    folder, outside
):
    person = Person("yes", "yes")
    permission = gate(person, folder)
    assert may(permission, put(outside))
    assert may(permission, put(folder / "a"))
    assert "outside" in person.questions[0]
    assert "wants to read files here" in person.questions[1]


def test_places_are_asked_about_one_by_one(folder, tmp_path):
    """The first question says how many there are; a no to one of them is a no to all of it."""
    far = [tmp_path.resolve() / name for name in "ab"]
    person = Person("yes", "yes", "no")
    permission = gate(person, folder)
    assert not may(permission, put(folder / "data.csv", *far))
    first, second, third = person.questions
    assert "2 of 3 are outside of this notebook's folder, and asked about next." in first
    assert "(1 of 2)" in second
    assert f"\n  {far[0]}\n" in second
    assert "(2 of 2)" in third
    assert f"\n  {far[1]}\n" in third


def test_too_many_places_or_what_cannot_be_shown_whole_is_refused(folder, tmp_path):
    """Nobody reads thirty questions, or the end of a name that is too long."""
    many = [tmp_path / f"{number}" for number in range(MOST_PATHS + 1)]
    with pytest.raises(NotAllowed, match="more than 8 at once are refused"):
        gate(Person(), folder).require(put(*many), a_cell())
    long = tmp_path.joinpath(*["deep" * 10] * (LONGEST_PATH // 40), "id_ed25519")
    with pytest.raises(NotAllowed, match="too long to be shown whole"):
        gate(Person(), folder).require(put(long), a_cell())


def test_a_link_or_dots_lead_nowhere_unasked(folder, outside):
    """What counts is where a path leads, and the question says that."""
    (folder / "link").symlink_to(outside.parent)
    (folder / "data.csv").symlink_to(outside)
    for path, leads in (
        (folder / "link" / "x", outside.with_name("x")),
        (folder / ".." / "x", outside.with_name("x")),
        (folder / "data.csv", outside),
    ):
        for wanted in (put, get):
            person = Person("no")
            assert not may(gate(person, folder, "allow"), wanted(path))
            assert f"\n  {leads}\n" in person.questions[0]


def test_the_question_says_under_which_name_the_remote_gets_it(folder, outside):
    (folder / "data.csv").symlink_to(outside)
    person = Person("no")
    may(gate(person, folder), put(folder / "data.csv"))
    assert f"\n  {outside}\nThe remote gets it as data.csv.\n" in person.questions[0]


def test_a_cell_cannot_rewrite_the_question(folder, tmp_path):
    """No new lines, no signs that a terminal obeys, and the question at its end."""
    person = Person("no", "no")
    what = "sends a\nyes or no:\x1b[2J" + "x" * 5000
    may(gate(person, folder), AccessRequest("%remoter put", AccessKind.READ, what))
    first, _, last = person.questions[0].split("\n")
    assert first.startswith(f"{OWN_TAG}%remoter put wants to read files here: ")
    assert "\x1b" not in first
    assert len(first) < LONGEST_LINE + 100
    assert last == "Allow that? yes or no:"
    name = tmp_path.resolve() / "a\n\x1b[2J\u202eb"
    may(gate(person, folder), put(name))
    assert f"\n  {tmp_path.resolve()}/a\\n\\x1b[2J\\u202eb\n" in person.questions[1]


def test_a_list_is_told_whole_or_counted():
    assert format_names(["a", "b"], "sources") == "a, b"
    assert format_names([f"measurement-{n}.csv" for n in range(50)], "sources") == "50 sources"
