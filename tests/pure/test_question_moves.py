"""A question of this side moves to the page that is open, and what is typed late is for nobody."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.local.login.prompts import NotAnswered, Prompt, Withdrawn
from remoter_kernel.local.proxy.prompter import CLOSE_THAT_BOX, NOT_USED
from remoter_kernel.protocol.frames import Channel
from remoter_kernel.protocol.messages import header_of
from remoter_kernel.protocol.requests import Request
from tests.attacks.test_questions import ANOTHER, CLIENT, VOICE, Page, page
from tests.real_jupyter import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["page"]
PASSWORD, CODE = Prompt("Password:"), Prompt("Code:", is_shown=True)


def cell(client: list[bytes], cell_id: str) -> Request:
    """Return a cell as JupyterLab and VS Code send it."""
    content = {"code": "1", "allow_stdin": True}
    parts = VOICE.compose("execute_request", content, metadata={"cellId": cell_id})
    return Request(Channel.SHELL, parts, header_of(parts[1]), identities=client)


def run(page: Page, route: Request) -> None:
    """Run a cell, behind those that wait."""
    page.cells.append(route)
    page.asker.on_cell(route, lambda _name: False)


class Login:
    """A login that asks, in a thread of its own."""

    def __init__(self, page: Page, *prompts: Prompt) -> None:
        self.withdrawn = threading.Event()
        self.outcome: list[Any] = []
        ask: Callable[[], list[str]] = lambda: page.asker.ask(  # noqa: E731 - one use
            "box", prompts, withdrawn=self.withdrawn
        )
        self._thread = threading.Thread(target=self._go, args=(ask,))
        self._thread.start()
        wait_for(lambda: page.asker.is_asking, what="the question")

    def _go(self, ask: Callable[[], list[str]]) -> None:
        try:
            self.outcome += ask()
        except NotAnswered as error:
            self.outcome.append(error)

    def take_back(self) -> None:
        self.withdrawn.set()
        self._thread.join(5)
        assert isinstance(self.outcome[0], Withdrawn)

    def ended(self) -> list[Any]:
        self._thread.join(5)
        return self.outcome


def test_a_question_moves_to_the_page_that_is_open(page: Page) -> None:
    """The page was loaded anew: its old input box is gone with it."""
    login = Login(page, PASSWORD)
    run(page, page.cell())  # in the same page: the box stands there
    assert len(page.shown) == 1
    run(page, cell(ANOTHER, "1"))
    assert page.prompts == ["[box] Password:"] * 2
    page.answer("secret", page.shown[-1]["name"], client=ANOTHER)
    assert login.ended() == ["secret"]


def test_the_next_question_is_asked_in_the_open_page_too(page: Page) -> None:
    login = Login(page, PASSWORD, CODE)
    run(page, cell(ANOTHER, "1"))
    page.answer("secret", client=ANOTHER)
    wait_for(lambda: page.prompts[-1] == "[box] Code:", what="the next one")
    page.answer("123", client=CLIENT)  # nobody was asked there
    page.answer("456", client=ANOTHER)
    assert login.ended() == ["secret", "456"]


def test_a_cell_that_is_run_again_is_asked_again(page: Page) -> None:
    """Its outputs, the input box among them, were taken away."""
    page.cells[:] = [cell(CLIENT, "1")]
    login = Login(page, PASSWORD)
    run(page, cell(CLIENT, "2"))
    assert len(page.shown) == 1
    run(page, cell(CLIENT, "1"))
    assert len(page.shown) == 2
    page.answer("secret", page.shown[-1]["name"])
    assert login.ended() == ["secret"]


@pytest.mark.parametrize("is_over", [True, False])
def test_a_cell_that_is_over_or_may_not_ask_is_not_asked_in(page: Page, *, is_over: bool) -> None:
    login = Login(page, PASSWORD)
    route = cell(ANOTHER, "1")
    if not is_over:
        parts = VOICE.compose("execute_request", {"code": "1", "allow_stdin": False})
        route = Request(Channel.SHELL, parts, header_of(parts[1]), identities=ANOTHER)
    page.asker.on_cell(route, lambda _name: is_over)
    assert len(page.shown) == 1
    page.answer("secret")
    assert login.ended() == ["secret"]


def test_an_answer_in_the_old_box_is_used_for_nothing_and_told(page: Page) -> None:
    login = Login(page, PASSWORD)
    run(page, cell(ANOTHER, "1"))
    assert page.answer("old", page.shown[0]["name"])
    assert page.answer("old")
    assert not login.outcome
    assert page.told[-1] == NOT_USED
    page.answer("secret", client=ANOTHER)
    assert login.ended() == ["secret"]
    assert not page.kernels


def test_a_kernel_gets_nothing_that_was_typed_for_a_question_taken_back(page: Page) -> None:
    """A console answers its boxes in order, and does not say which one it answers."""
    login = Login(page, PASSWORD)
    login.take_back()
    page.kernel_asks("Name?", page.cells[0])
    assert page.prompts == ["[box] Password:"]
    assert page.told[-1] == CLOSE_THAT_BOX
    page.answer("secret")
    assert page.kernels == []
    assert NOT_USED in page.told
    assert page.prompts[-1] == "Name?"
    page.answer("Ada")
    assert page.kernels == [("Name?", "Ada")]


def test_the_next_host_gets_nothing_that_was_typed_for_a_question_taken_back(page: Page) -> None:
    Login(page, PASSWORD).take_back()
    login = Login(page, CODE)
    page.answer("secret")
    assert not login.outcome
    assert page.prompts[-1] == "[box] Code:"
    page.answer("123")
    assert login.ended() == ["123"]


def test_the_same_question_comes_back_to_its_box(page: Page) -> None:
    """The other one who was asked meanwhile has declined: nobody needs two boxes."""
    Login(page, PASSWORD).take_back()
    login = Login(page, PASSWORD)
    assert len(page.shown) == 1
    page.answer("secret")
    assert login.ended() == ["secret"]


def test_a_client_that_names_questions_is_asked_beside_an_old_box(page: Page) -> None:
    first = Login(page, PASSWORD)
    page.answer("wrong", page.shown[0]["name"])
    first.ended()
    Login(page, PASSWORD).take_back()
    page.kernel_asks("Name?", page.cells[0])
    assert page.prompts[-1] == "Name?"
    page.answer("secret", page.shown[1]["name"])
    assert page.kernels == []
    page.answer("Ada", page.shown[-1]["name"])
    assert page.kernels == [("Name?", "Ada")]


def test_an_interrupt_ends_the_wait_for_another_ones_answer(page: Page) -> None:
    """And the cell says where that one is asked."""
    login, withdrawn = [], threading.Event()

    def wait() -> None:
        try:
            page.asker.wait_elsewhere("the login waits for a password.", withdrawn)
        except NotAnswered as error:
            login.append(error)

    for is_interrupt in (True, False):
        thread = threading.Thread(target=wait)
        thread.start()
        wait_for(lambda: page.asker.is_asking, what="the wait")
        assert "gpu-box: the login waits for a password." in page.told[-1]
        if is_interrupt:
            assert page.asker.cancel()
        else:
            withdrawn.set()
        thread.join(5)
        assert not page.asker.is_asking
    assert [type(each) for each in login] == [NotAnswered, Withdrawn]


def test_a_place_is_named_by_its_notebook(page: Page) -> None:
    assert "process" in page.asker.place()
    page.asker.notebook = lambda: "C:\\work\\analysis.ipynb"
    assert page.asker.place() == "in analysis.ipynb"


def test_a_cell_that_is_run_again_has_closed_its_box(page: Page) -> None:
    """Its answer was given elsewhere; what is asked next needs no other box to be closed first."""
    page.cells.clear()
    run(page, cell(CLIENT, "1"))
    login = Login(page, PASSWORD)
    login.take_back()
    assert page.asker._boxes.is_ambiguous(CLIENT)
    page.cells.clear()
    again = cell(CLIENT, "1")
    run(page, again)
    assert not page.asker._boxes.is_ambiguous(CLIENT)


@pytest.mark.parametrize("is_server", [True, False])
def test_an_interrupt_closes_no_box_of_another_page(page: Page, *, is_server: bool) -> None:
    """It stays on its screen: what is typed there is a password still, and for nobody."""
    run(page, cell(CLIENT, "1"))
    login = Login(page, PASSWORD)
    run(page, cell(ANOTHER, "1"))
    page.asker.cancel(client=[b"server"] if is_server else ANOTHER)
    login._thread.join(5)
    assert page.asker._boxes.is_ambiguous(CLIENT)
    assert not page.asker._boxes.is_ambiguous(ANOTHER)
