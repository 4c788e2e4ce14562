"""A launch for a notebook: which sessions it looks at, what it takes for free, what it leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.evaluator import launch, query
from remoter_kernel.evaluator.processes import boot_id, started_at
from remoter_kernel.evaluator.registry import Session
from remoter_kernel.evaluator.session_match import Candidate, candidates, match_session
from tests.real_jupyter import MARK, THIS_RUN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATH = "/home/me/a.ipynb"
WISH = {
    "client_key": "0" * 40,
    "kernel_id": "new",
    "laptop": "l",
    "remote": "r",
    "kernel": "python3",
    "notebook": PATH,
    "cells": ["one", "two"],
    "fronts": ["new"],
}
ABOUT = {key: WISH[key] for key in ("laptop", "remote", "kernel", "notebook")}


@pytest.fixture(autouse=True)
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A home of the test's own, and a port at which this process answers for its sessions."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv(MARK, THIS_RUN)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


def a_session(
    port: int, cells: object = ("two", "old"), fronts: object = None, **about: Any
) -> Session:
    """Make a session that was left behind, but for what is said otherwise."""
    session = Session.create({**ABOUT, "kernel_id": "old", "created": 1000.0, **about})
    me = {"pid": os.getpid(), "started": started_at(os.getpid()), "port": port, "public_key": ""}
    session.write("door.json", {"host": socket.gethostname(), "boot": boot_id(), **me})
    session.write("cells.json", {"cells": cells, "future": 1})
    session.write("state.json", {"fronts": fronts, "future": 1})
    (session.folder / "journal").mkdir()  # whoever reads it fails
    session.authorize_key("1" * 40, "old")
    return session


def found(**wish: Any) -> list[Candidate]:
    return list(candidates({**WISH, **wish}))


def asked(**wish: Any) -> dict[str, Any]:
    return launch.find_or_create({**WISH, **wish}, 0o022)


def test_a_session_that_was_left_behind_goes_to_the_new_front(port):
    """It belongs to the new kernel's id from then on, and is found by that; the old one is void."""
    session = a_session(port)
    answer = asked()
    assert (answer["session"], answer["joined"], answer["begun"]) == (session.id, True, 1000.0)
    about = session.read("session.json")
    assert (about["kernel_id"], about["kernels_before"]) == ("new", ["old"])
    again = asked(notebook="", laptop="")
    assert (again["session"], "begun" in again) == (session.id, False)
    # A third one while the second lives, and once it does not.
    assert [each.is_free for each in found(kernel_id="3", fronts=["3", "new"])] == [False]
    assert asked(kernel_id="3", fronts=["3"])["session"] == session.id
    assert session.read("session.json")["kernels_before"] == ["old", "new"]


def test_two_launches_at_once_do_not_both_join(port, monkeypatch):
    """They take turns: while one looks, the other waits, and then finds it taken."""
    session = a_session(port)
    both_look = threading.Barrier(2)

    def choose_together(candidates):
        with contextlib.suppress(threading.BrokenBarrierError):
            both_look.wait(0.3)
        return match_session(candidates)

    monkeypatch.setattr(launch, "match_session", choose_together)
    monkeypatch.setattr(launch, "create_session", lambda *_: a_session(port, laptop="another"))
    with ThreadPoolExecutor() as pool:
        wishes = [{"kernel_id": name, "fronts": ["a", "b"]} for name in ("a", "b")]
        answers = list(pool.map(lambda wish: asked(**wish), wishes))
    assert sorted(answer["joined"] for answer in answers) == [False, True]
    (fresh,) = [answer for answer in answers if not answer["joined"]]
    assert fresh["others"] == [{"session": session.id, "notebook": PATH}]


@pytest.mark.parametrize("order", ["restart", "stop"])
def test_an_order_for_a_front_before_is_void(port, monkeypatch, order):
    """Carried out by another launch already, or never: whoever is there now did not give it."""
    session = a_session(port)
    asked()
    sent = []
    monkeypatch.setattr(os, "kill", lambda *words: sent.append(words))
    monkeypatch.setattr(query, "STOP_WITHIN", 0.1)
    monkeypatch.setattr(query, "KILL_WITHIN", 0.1)
    words = {"order": order, "session": session.id, "kernel_id": "old"}
    launch.handle_request({**WISH, "session": session.id, "orders": [words]}, 0o022)
    assert sent == []
    words["kernel_id"] = "new"
    launch.handle_request({**WISH, "session": session.id, "orders": [words]}, 0o022)
    assert sent[0] == (os.getpid(), signal.SIGUSR1 if order == "restart" else signal.SIGTERM)


ANOTHER = {
    "laptop": {"laptop": "another"},
    "remote": {"remote": "another"},
    "kernel": {"kernel": "ir"},
    "before there were laptops": {"laptop": None},
    "of another kind": {"laptop": ["l"]},
    "notebook and cells": {"notebook": "/b.ipynb", "cells": ["x"]},
    "ended": {"ended": 5.0},
}


@pytest.mark.parametrize("about", ANOTHER.values(), ids=ANOTHER)
def test_what_is_anothers_is_not_looked_at(port, about):
    """Neither joined nor told of."""
    a_session(port, **about)
    assert found() == []


def test_a_dead_one_is_not_looked_at(port):
    """Neither evaluator nor kernel: it has ended, though nobody has noted that."""
    session = a_session(port)
    session.write("door.json", {**session.read("door.json"), "started": "0"})
    assert found() == []


def test_one_of_another_host_is_told_of_alone(port):
    """Whether it lives is not for this host to say."""
    session = a_session(port)
    session.write("door.json", {**session.read("door.json"), "host": "login1"})
    assert [(each.session, each.can_be_joined) for each in found()] == [(session.id, False)]


def test_one_whose_evaluator_hangs_is_told_of_alone(port):
    """Two evaluators would be worse than none; a notebook can begin afresh."""
    session = a_session(port)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        free = nobody.getsockname()[1]
    session.write("door.json", {**session.read("door.json"), "port": free})
    assert [(each.session, each.can_be_joined) for each in found()] == [(session.id, False)]


HERE = {"here": True, "taken": 1}
OUR_DEAD = {**HERE, "laptop": "l", "kernel_id": "dead"}
WHO_IS_THERE = {
    "nobody": (None, [], True),
    "nobody any more": ({"a": {**OUR_DEAD, "here": False}}, [], True),
    "its own front, which was killed a moment ago": ({"a": OUR_DEAD}, [], True),
    "its own front": ({"a": OUR_DEAD}, ["dead"], False),
    "its first front, whose link is down": ({}, ["old"], False),
    "somebody from another laptop": ({"a": {**OUR_DEAD, "laptop": "m"}}, [], False),
    "an older front, which does not say whose it is": ({"a": HERE}, [], False),
    "somebody in the words of another version": ([HERE], [], False),
    "what makes no sense": ({"a": 5}, [], False),
    "a command of this laptop": ({"a": {**OUR_DEAD, "kernel_id": ""}}, [], False),
}


@pytest.mark.parametrize(("fronts", "living", "free"), WHO_IS_THERE.values(), ids=WHO_IS_THERE)
def test_who_is_at_a_session(port, fronts, living, free):
    """The laptop says who of its own lives; who is there from elsewhere is on the board."""
    a_session(port, fronts=fronts)
    assert [each.is_free for each in found(fronts=["new", *living])] == [free]


def test_who_was_attached_and_lives_is_at_it(port):
    """Its link may be down, too: any proxy that was ever let in counts while it lives."""
    session = a_session(port)
    session.authorize_key("2" * 40, "guest")
    session.authorize_key("3" * 40)
    assert session.authorized_kernels() == {"old", "guest"}
    assert [each.is_free for each in found(fronts=["guest"])] == [False]


@pytest.mark.parametrize("cells", [None, 5, "two", {"two": 1}, [5, None, ["two"]], []])
def test_cells_that_make_no_sense_are_none(port, cells):
    """Another version may write something else there."""
    a_session(port, cells=cells)
    assert [(each.is_same_notebook, each.shares_cells) for each in found()] == [(True, False)]


@pytest.mark.timing
def test_a_fresh_start_is_not_slowed_by_what_has_ended(port):
    """300 ended sessions cost a launch for a notebook no more than a tenth of a second."""
    for number in range(300):
        session = Session.create({**ABOUT, "ended": 1.0})
        session.write("cells.json", {"cells": [f"{number}-{n}" for n in range(100)]})
    began = time.monotonic()
    assert found() == []
    assert time.monotonic() - began < 0.1
