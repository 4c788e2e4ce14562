"""One login, several who wait for it: the question is where a person is, and holds up nobody."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pexpect
import pytest

from remoter_kernel.local.login.keeper.endpoint import end_logins
from tests.at_terminal import WIDE
from tests.real_jupyter import started_kernel
from tests.whole.talk import Talk
from tests.whole.test_login_questions import WHO, configure, found_in, said

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_logins import LoginGround, Way

AT_ONCE = 20.0  # seconds: far less than a server waits for an answer


@pytest.fixture
def way(ground: LoginGround) -> Way:
    """A host that asks for a password."""
    return ground.way("password")


@pytest.fixture
def remote(here: JupyterHere, way: Way, request: pytest.FixtureRequest) -> Iterator[str]:
    """A remote there of which nobody keeps a login before the test, or after it."""
    number = sum(map(ord, request.node.name))
    yield configure(here, way, "paramiko", f"shared-{number}")
    end_logins()


@pytest.fixture
def person(remote: str) -> Iterator[pexpect.spawn]:
    """`remoter run` at a terminal."""
    command = str(Path(sys.executable).with_name("remoter"))
    words = ["run", remote, "-c", WHO]
    options: dict[str, Any] = {"dimensions": WIDE, "encoding": "utf-8", "timeout": 60}
    child = pexpect.spawn(command, words, env=dict(os.environ), **options)
    yield child
    child.close(force=True)


def is_asked(talk: Talk, times: int = 1) -> None:
    """Wait until a page was asked so often."""
    talk.listen(lambda: len(talk._of("stdin")) == times)


def answer(talk: Talk, way: Way) -> None:
    """Type the password in a page."""
    talk.send("input_reply", {"value": way.questions[0].answer()}, channel="stdin")


def test_a_command_without_a_terminal_says_at_once_where_the_question_is(
    here: JupyterHere, remote: str, way: Way
) -> None:
    """It waits neither for the person nor for the kernel; the question stays where it is."""
    with started_kernel(f"remoter-{remote}") as kernel:
        talk = Talk(kernel.client)
        cell = talk.queue(WHO)
        is_asked(talk)
        for words in (("run", remote, "-c", "1"), ("sessions", remote), ("check", remote)):
            began = time.monotonic()
            ran = here.remoter(*words)
            assert ran.returncode == 3, ran
            assert time.monotonic() - began < AT_ONCE
            assert "waits for a password, which is asked for in a notebook or console" in ran.stderr
            assert f"remoter check {remote}" in ran.stderr
            assert not re.search("Traceback|fault", ran.stderr)
        answer(talk, way)
        talk.done(cell)
        assert f"ran as {way.user}" in said(talk)


def test_a_cell_of_another_notebook_is_asked_instead(
    here: JupyterHere, remote: str, way: Way
) -> None:
    """Both go in by the login that one person has answered for; one that may not ask says so."""
    spec, before = f"remoter-{remote}", way.sshd.accepted()
    with started_kernel(spec) as one, started_kernel(spec) as two:
        first, second = Talk(one.client), Talk(two.client)
        cell = first.queue(WHO)
        is_asked(first)
        second.done(second.queue(WHO, allow_stdin=False))
        assert "waits for a password, which is asked for in" in said(second)
        second.heard = []
        other = second.queue(WHO)
        is_asked(second)
        first.until_said("This cell goes on then; an interrupt ends it.")
        secret = f"{way.questions[0].answer()}-mistyped"
        first.send("input_reply", {"value": secret}, channel="stdin")
        first.until_said("What was typed there was not used")
        answer(second, way)
        for talk, which in ((first, cell), (second, other)):
            talk.done(which)
            assert f"ran as {way.user}" in said(talk)
            assert len(talk._of("stdin")) == 1
            assert not found_in(str(talk.heard), [secret])
    assert way.sshd.accepted() == before + 1
    assert here.remoter("stop", "--all", remote).returncode in {0, 5}


def test_an_interrupt_ends_a_cell_that_waits_for_another_ones_answer(remote: str, way: Way) -> None:
    """At once; whoever is asked meanwhile stays so."""
    spec = f"remoter-{remote}"
    with started_kernel(spec) as one, started_kernel(spec) as two:
        first, second = Talk(one.client), Talk(two.client)
        cell = first.queue(WHO)
        is_asked(first)
        other = second.queue(WHO)
        is_asked(second)
        first.until_said("This cell goes on then")
        one.manager.interrupt_kernel()
        first.done(cell)
        assert "was not waited for" in said(first)
        answer(second, way)
        second.done(other)
        assert f"ran as {way.user}" in said(second)


def test_a_terminal_takes_a_question_over_and_gives_it_back(
    remote: str, way: Way, person: pexpect.spawn
) -> None:
    """What was half typed when the question went is in nobody's way."""
    person.expect("Password")
    assert person.waitnoecho(30)
    with started_kernel(f"remoter-{remote}") as kernel:
        talk = Talk(kernel.client)
        person.send("half a passw")
        cell = talk.queue(WHO)
        is_asked(talk)
        person.expect("is asked for in a notebook or console .*Ctrl-C ends it")
        answer(talk, way)
        talk.done(cell)
        assert f"ran as {way.user}" in said(talk)
    person.expect(f"ran as {way.user}")
    person.expect(pexpect.EOF)
    person.close()
    assert person.exitstatus == 0


def test_a_terminal_is_asked_instead_of_a_page_and_ctrl_d_gives_that_back(
    here: JupyterHere, remote: str, way: Way
) -> None:
    """The page's own box is good again then."""
    command = str(Path(sys.executable).with_name("remoter"))
    with started_kernel(f"remoter-{remote}") as kernel:
        talk = Talk(kernel.client)
        cell = talk.queue(WHO)
        is_asked(talk)
        for key, status in (("\x04", 3), ("\x03", 130)):
            child = pexpect.spawn(
                command, ["sessions", remote], env=dict(os.environ), dimensions=WIDE, timeout=60
            )
            child.expect("Password")
            assert child.waitnoecho(30)
            child.send(key)
            child.expect(pexpect.EOF)
            child.close()
            assert child.exitstatus == status
        answer(talk, way)
        talk.done(cell)
        assert f"ran as {way.user}" in said(talk)
        assert len(talk._of("stdin")) == 1
    assert here.remoter("list").returncode == 0


def test_a_page_that_was_loaded_anew_is_asked_in_its_next_cell(remote: str, way: Way) -> None:
    """The old page cannot answer any more."""
    with started_kernel(f"remoter-{remote}") as kernel:
        talk = Talk(kernel.client)
        cell = talk.queue(WHO)
        is_asked(talk)
        page = kernel.manager.blocking_client()
        page.session.session = "another-page"
        page.start_channels()
        try:
            again = Talk(page)
            other = again.queue(WHO)
            is_asked(again)
            answer(again, way)
            again.done(other)
            talk.done(cell)
            assert said(again).count(f"ran as {way.user}") == 2
        finally:
            page.stop_channels()
