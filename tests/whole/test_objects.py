"""Objects that are carried from one side to the other: `%remoter push` and `pull`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.real_jupyter import started_kernel
from tests.whole.talk import Talk
from tests.whole.test_this_side import reply, run, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere


@pytest.fixture(scope="module")
def talk(here: JupyterHere, python_remote: dict[str, Any]) -> Iterator[Talk]:
    """Somebody who talks to a Python far away."""
    spec = here.add_remote("carries", local="allow", **python_remote)
    with started_kernel(spec) as kernel:
        talk = Talk(kernel.client)
        yield talk


def test_an_object_goes_there_and_comes_back(talk: Talk) -> None:
    """Under the same name, or another."""
    run(talk, "%local x = {'a': [1, 2.5, None], (1, 2): b'3'}")
    said = run(talk, "%remoter push x")
    assert reply(said)["status"] == "ok", reply(said)
    assert text_of(said) == "x is there now (dict, 2).\n"
    assert text_of(run(talk, "x")) == "{'a': [1, 2.5, None], (1, 2): b'3'}"
    said = run(talk, "%remoter pull x as y")
    assert reply(said)["status"] == "ok", reply(said)
    assert text_of(run(talk, "%local x == y")) == "True"
