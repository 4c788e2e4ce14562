"""A line that is typed at a terminal gets to whoever asks there, and half a line to nobody."""

from __future__ import annotations

import os
import pty
import select
import sys
import termios
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.cli.run import _prompt_for_input
from remoter_kernel.cli.terminal import TerminalPrompter, read_line
from remoter_kernel.local.login.prompts import Prompt, Withdrawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WITHIN = 10.0  # seconds
A_MOMENT = 0.4  # seconds: a question that stood there would be seen by then


class Typist:
    """Sits at the other end of a terminal."""

    def __init__(self, handle: int, streams: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
        self._handle = handle
        self._streams = streams
        self._patch = patch
        self.text = ""

    def sit(self) -> None:
        """Begin: until a test itself runs, pytest puts streams of its own there."""
        for name, stream in self._streams.items():
            self._patch.setattr(sys, name, stream)

    def look(self, seconds: float) -> bool:
        if not select.select([self._handle], [], [], seconds)[0]:
            return False
        self.text += os.read(self._handle, 4096).decode()
        return True

    def see(self, words: str) -> None:
        limit = time.monotonic() + WITHIN
        while words not in self.text:
            assert time.monotonic() < limit, self.text
            self.look(0.1)

    def see_hidden(self, words: str) -> None:
        """Wait until what is typed is hidden: what came before that is thrown away."""
        self.see(words)
        limit = time.monotonic() + WITHIN
        while termios.tcgetattr(self._handle)[3] & termios.ECHO:
            assert time.monotonic() < limit
            self.look(0.01)

    def type(self, words: str) -> None:
        os.write(self._handle, words.encode())


class Asked(threading.Thread):
    """A question that waits for its answer in a thread."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.got: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.got = self._ask()
        except Withdrawn as error:
            self.got = error

    def answer(self) -> Any:
        self.join(WITHIN)
        assert not self.is_alive()
        return self.got


@pytest.fixture
def typist(monkeypatch: pytest.MonkeyPatch) -> Iterator[Typist]:
    """Let this process sit at a terminal of its own."""
    far, near = pty.openpty()
    with os.fdopen(near, encoding="utf-8") as stdin, os.fdopen(os.dup(near), "w") as out:
        streams = {"stdin": stdin, "stdout": out, "stderr": out}
        try:
            yield Typist(far, streams, monkeypatch)
        finally:
            monkeypatch.undo()
            os.close(far)  # whoever still reads there hears so


@pytest.mark.parametrize("aside", [True, False])
@pytest.mark.parametrize("is_secret", [True, False])
def test_a_logins_question_waits_until_the_code_has_its_answer(typist, aside, is_secret):
    """Else a password would be what `input()` returns there."""
    typist.sit()
    code = Asked(lambda: _prompt_for_input("name: ", is_secret, aside=aside))
    (typist.see_hidden if is_secret else typist.see)("name: ")
    login = Asked(lambda: TerminalPrompter().ask("gpu", [Prompt("Password of ada:")]))
    while typist.look(A_MOMENT):
        pass
    assert "Password" not in typist.text
    typist.type("ada\n")
    assert code.answer() == "ada"
    typist.see_hidden("Password of ada:")
    typist.type("hunter2\n")
    assert login.answer() == ["hunter2"]
    assert "hunter2" not in typist.text


def test_the_code_waits_until_a_login_has_its_answer(typist):
    typist.sit()
    login = Asked(lambda: TerminalPrompter().ask("gpu", [Prompt("Code:", is_shown=True)]))
    typist.see("Code:")
    assert TerminalPrompter().is_asking
    code = Asked(lambda: _prompt_for_input("name: ", False, aside=False))
    typist.type("771902\n")
    assert login.answer() == ["771902"]
    typist.see("name: ")
    typist.type("ada\n")
    assert code.answer() == "ada"
    assert not TerminalPrompter().is_asking


@pytest.mark.parametrize("is_shown", [True, False])
def test_half_an_answer_to_a_question_that_was_taken_back_gets_to_nobody(typist, is_shown):
    typist.sit()
    withdrawn = threading.Event()
    asked = Asked(lambda: read_line("Code: ", withdrawn, is_shown=is_shown))
    (typist.see if is_shown else typist.see_hidden)("Code: ")
    typist.type("771902")
    if is_shown:
        typist.see("771902")
    withdrawn.set()
    assert isinstance(asked.answer(), Withdrawn)
    asked = Asked(lambda: read_line("name: "))
    typist.see("name: ")
    typist.type("ada\n")
    assert asked.answer() == "ada"
