"""Answers that are to be taken for those to another question, and questions that look like ours."""

from __future__ import annotations

import queue
import threading
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from remoter_kernel.local.login.prompts import OWN_TAG, NotAnswered
from remoter_kernel.local.proxy.prompter import ONE_AT_A_TIME, StdinPrompter
from remoter_kernel.local.proxy.replies import ReplySender
from remoter_kernel.local.proxy.sockets import notice_text
from remoter_kernel.protocol.frames import Channel, to_json
from remoter_kernel.protocol.messages import CONTENT, MessageSigner, content_of, header_of
from remoter_kernel.protocol.requests import Request
from tests.real_jupyter import started_kernel, wait_for
from tests.whole.talk import QUIET, Talk
from tests.whole.test_this_side import kernels_here, reply, run, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere, StartedKernel

VOICE = MessageSigner(b"")
CLIENT, ANOTHER = [b"console"], [b"another"]
FROM_A_THREAD = """
import threading, time
heard = []
asks = lambda: heard.append(input("Delete the temporary files? yes or no:"))
threading.Thread(target=asks, daemon=True).start()
time.sleep(0.5)
"""


class Page:
    """What a client sees, the kernels' ends of its answers, and who asks on this side."""

    def __init__(self) -> None:
        self.shown: list[dict[str, Any]] = []  # questions, in order
        self.told: list[str] = []
        self.kernels: list[tuple[str, str]] = []  # whose question, what was typed
        self.ours: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()
        self._number = count()
        reactor: Any = SimpleNamespace(call_soon_threadsafe=lambda do: do())
        mouth: Any = SimpleNamespace(
            send_input_request=self._ask,
            send_state=lambda _cell, _state: None,
            write=lambda _header, text: self.told.append(text),
            notify=lambda _header, sentence: self.told.append(notice_text(sentence)),
        )
        self.cells = [self.cell()]
        self.asker = StdinPrompter(reactor, mouth, lambda: self.cells)
        self.asker.remote_name = lambda: "gpu-box"

    def cell(self, client: list[bytes] = CLIENT) -> Request:
        parts = VOICE.compose("execute_request", {"code": "1", "allow_stdin": True})
        return Request(Channel.SHELL, parts, header_of(parts[1]), identities=client)

    def _ask(self, _route: Request, content: dict[str, Any]) -> str:
        name = f"ours-{next(self._number)}"
        self.shown.append({"name": name, **content})
        return name

    def kernel_asks(
        self, prompt: str, cell: Request, *, is_here: bool = False, name: str | None = None
    ) -> str:
        """Let a kernel ask, with an id of its own choice; return the id of its question."""
        parts = VOICE.compose("input_request", {"prompt": prompt, "password": False})
        if name is not None:
            parts[1] = to_json({**header_of(parts[1]), "msg_id": name})
        name = str(header_of(parts[1])["msg_id"])
        show = lambda parts: self.shown.append({"name": name, **content_of(parts)})  # noqa: E731
        heard = lambda parts: self.kernels.append((prompt, content_of(parts)["value"]))  # noqa: E731
        self.asker.relay_input_request(cell, parts, show, heard, is_here=is_here)
        return name

    def we_ask(self, text: str, cell: Request) -> threading.Thread:
        """Ask on this side, in a thread as permissions and logins do."""

        def ask() -> None:
            try:
                self.ours.put(self.asker.prompt_in(cell, text))
            except NotAnswered as error:
                self.ours.put(error)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: self.asker.is_asking, what="the question")
        return thread

    def answer(self, value: str, parent: str = "", client: list[bytes] = CLIENT) -> bool:
        """Type an answer; without a parent, as consoles do."""
        header = {"msg_id": parent} if parent else {}
        parts = VOICE.compose("input_reply", {"value": value}, header)
        return self.asker.on_input_reply(
            Request(Channel.STDIN, parts, header_of(parts[1]), identities=client)
        )

    @property
    def prompts(self) -> list[str]:
        return [each["prompt"].strip() for each in self.shown]


@pytest.fixture
def page() -> Iterator[Page]:
    """A page with one cell; no thread waits for an answer at its end."""
    before = set(threading.enumerate())
    page = Page()
    yield page
    page.asker.cancel()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize("is_here", [False, True])
def test_an_answer_to_a_kernels_question_is_no_answer_to_ours(page: Page, *, is_here: bool) -> None:
    """Code of a notebook asks something harmless, so that its yes lets the next cell run here."""
    page.kernel_asks("Delete?", page.cells[0], is_here=is_here)
    thread = page.we_ask("Run code here?", page.cell())
    assert page.prompts == ["Delete?"]
    assert page.told[-1] == ONE_AT_A_TIME
    page.answer("yes")
    assert page.kernels == [("Delete?", "yes")]
    assert page.ours.empty()
    assert page.prompts == ["Delete?", "Run code here?"]
    page.answer("no")
    thread.join(5)
    assert page.ours.get_nowait() == "no"
    assert page.kernels == [("Delete?", "yes")]


def test_a_question_without_an_id_is_not_named_by_a_reply_without_a_parent(page: Page) -> None:
    """A kernel leaves the id out, so that its client would count as one that names questions."""
    page.kernel_asks("What?", page.cells[0], name="")
    page.answer("this")
    thread = page.we_ask("Run code here?", page.cell())
    page.kernel_asks("Delete?", page.cells[0], name="")
    assert page.prompts == ["What?", "Run code here?"]
    page.answer("no")
    thread.join(5)
    assert page.ours.get_nowait() == "no"
    assert page.kernels == [("What?", "this")]


def test_a_kernels_question_with_the_id_of_ours_takes_nothing_from_it(page: Page) -> None:
    """A page that names questions has both open, and each answer goes to its own."""
    named = page.kernel_asks("What?", page.cells[0])
    page.answer("this", named)
    thread = page.we_ask("Run code here?", page.cell())
    ours = page.shown[-1]["name"]
    page.kernel_asks("Delete?", page.cells[0], name=ours)
    page.answer("no", ours)
    thread.join(5)
    assert page.ours.get_nowait() == "no"
    page.answer("yes", "")
    assert page.kernels[1:] in ([], [("Delete?", "yes")])


def test_our_questions_have_ids_that_nobody_guesses(here: JupyterHere) -> None:
    """A kernel hears the session of the proxy, and could count its messages."""
    del here
    replies: list[Any] = []
    sockets: Any = SimpleNamespace(voice=VOICE, reply=lambda *words: replies.append(words))
    mouth = ReplySender(sockets, "1")
    names = {
        mouth.send_input_request(Page().cells[0], {"prompt": "Run code here?"}) for _ in range(3)
    }
    assert len(names) == 3
    assert not any(VOICE.session in name for name in names)
    assert {str(header_of(parts[1])["msg_id"]) for _, _, parts in replies} == names


def test_a_kernels_question_waits_while_ours_is_open(page: Page) -> None:
    """It would get what a person types for this side: a password, say."""
    thread = page.we_ask("Password?", page.cell())
    page.kernel_asks("Name?", page.cells[0])
    assert page.prompts == ["Password?"]
    page.answer("secret")
    thread.join(5)
    assert page.ours.get_nowait() == "secret"
    assert page.prompts == ["Password?", "Name?"]
    page.answer("Ada")
    assert page.kernels == [("Name?", "Ada")]


@pytest.mark.parametrize("is_ours_first", [True, False])
def test_answers_that_name_their_question_go_there_in_any_order(
    page: Page, *, is_ours_first: bool
) -> None:
    """Where a client names them, two questions may be open at once."""
    known = page.kernel_asks("First?", page.cells[0])
    page.answer("1", known)
    if is_ours_first:
        thread = page.we_ask("Ours?", page.cell())
        theirs = page.kernel_asks("Theirs?", page.cells[0])
    else:
        theirs = page.kernel_asks("Theirs?", page.cells[0])
        thread = page.we_ask("Ours?", page.cell())
    assert sorted(page.prompts) == ["First?", "Ours?", "Theirs?"]
    (ours,) = [each["name"] for each in page.shown if each["prompt"].strip() == "Ours?"]
    page.answer("to theirs", theirs)
    assert page.ours.empty()
    page.answer("to ours", ours)
    thread.join(5)
    assert page.ours.get_nowait() == "to ours"
    assert page.kernels == [("First?", "1"), ("Theirs?", "to theirs")]


def test_of_several_questions_the_oldest_gets_an_answer_that_names_none(page: Page) -> None:
    """And ours is asked only when none of a kernel's is open at that client."""
    page.kernel_asks("there?", page.cells[0])
    page.kernel_asks("here?", page.cells[0], is_here=True)
    thread = page.we_ask("Ours?", page.cell())
    page.answer("1")
    assert "Ours?" not in page.prompts
    page.answer("2")
    assert page.kernels == [("there?", "1"), ("here?", "2")]
    page.answer("3")
    thread.join(5)
    assert page.ours.get_nowait() == "3"


def test_an_answer_of_another_client_is_none(page: Page) -> None:
    """Whoever else is connected to the kernel was not asked."""
    thread = page.we_ask("Run code here?", page.cell())
    page.answer("yes", client=ANOTHER)
    page.answer("yes", page.shown[0]["name"], client=ANOTHER)
    assert page.ours.empty()
    page.answer("no", page.shown[0]["name"])
    thread.join(5)
    assert page.ours.get_nowait() == "no"


def test_what_comes_late_for_a_question_of_ours_goes_to_no_kernel(page: Page) -> None:
    """It may be a password, in a box that was left open."""
    thread = page.we_ask("Password?", page.cell())
    assert page.asker.cancel()
    thread.join(5)
    assert isinstance(page.ours.get_nowait(), NotAnswered)
    assert page.answer("secret")
    assert page.answer("secret", page.shown[0]["name"])
    assert not page.kernels


def test_an_interrupt_gives_up_the_question_that_is_in_the_way(page: Page) -> None:
    """A kernel may have swallowed its own interrupt: nobody is held up for ever."""
    page.kernel_asks("Name?", page.cells[0])
    thread = page.we_ask("Ours?", page.cell())
    assert page.asker.cancel()
    thread.join(5)
    assert isinstance(page.ours.get_nowait(), NotAnswered)
    thread = page.we_ask("Ours?", page.cell())
    assert page.prompts == ["Name?", "Ours?"]
    page.answer("yes")
    thread.join(5)
    assert page.ours.get_nowait() == "yes"


def test_a_kernel_that_is_gone_waits_for_no_answer(page: Page) -> None:
    page.kernel_asks("Name?", page.cells[0])
    thread = page.we_ask("Ours?", page.cell())
    assert page.prompts == ["Name?"]
    page.asker.drop_kernel_input(is_here=False)
    assert page.prompts == ["Name?", "Ours?"]
    page.answer("yes")
    thread.join(5)
    assert page.ours.get_nowait() == "yes"


@pytest.mark.parametrize(
    "prompt",
    [
        f"{OWN_TAG}passphrase of ~/.ssh/id_ed25519:",
        f"Name?\n{OWN_TAG}%%local wants to run code here. yes or no:",
        f"Name?\r{OWN_TAG}",
        f"Name?{' ' * 200}{OWN_TAG}",
        f"\x1b[2K\x1b[1G{OWN_TAG}",
        "REMOTER , on\u00a0this \u200bmachine\uff1a password:",
        "r\u0435moter, on this m\u0430chine: password:",  # two Cyrillic letters
        "Remoter at this machine, password:",
    ],
)
def test_a_kernels_question_that_looks_like_ours_is_marked(page: Page, prompt: str) -> None:
    """Code there asks for the passphrase of a key of this side, as this program would."""
    page.kernel_asks(prompt, page.cells[0])
    lines = page.shown[0]["prompt"].split("\n")
    assert all(line.startswith("[gpu-box asks] ") for line in lines)
    assert not {"\x1b", "\r"} & set(page.shown[0]["prompt"])


@pytest.mark.parametrize(
    "prompt", ["", "name? ", "\x1b[1mwho?\x1b[0m ", "Remote machine: ", "a\nb:"]
)
def test_any_other_question_passes_byte_for_byte(page: Page, prompt: str) -> None:
    parts = VOICE.compose("input_request", {"prompt": prompt, "password": False})
    came = [bytes(part) for part in parts]
    passed: list[Any] = []
    page.asker.relay_input_request(page.cells[0], parts, passed.extend, lambda _parts: None)
    assert [bytes(part) for part in passed] == came
    assert passed[CONTENT] is parts[CONTENT]


# ------------------------------------------------------------------- two real kernels


@pytest.fixture(scope="module")
def kernel(here: JupyterHere, python_remote: dict[str, Any]) -> Iterator[StartedKernel]:
    """A kernel of a remote whose cells have to ask."""
    with started_kernel(here.add_remote("threads", **python_remote)) as kernel:
        Talk(kernel.client).case(lambda talk: talk.run("1"))
        yield kernel


def test_a_yes_to_a_thread_of_an_earlier_cell_lets_nothing_run_here(kernel: StartedKernel) -> None:
    """Remote code asks from a thread, its cell ends, and the yes to it is to let `%%local` run."""
    talk = Talk(kernel.client)

    def says(talk: Talk) -> None:
        first = talk.queue(FROM_A_THREAD)
        talk.listen(lambda: len(talk._of("stdin")) == 1)
        talk.done(first)
        local = talk.queue("%%local\n6 * 7")
        talk.listen(lambda: "First answer the one" in str(talk.heard) or len(talk._of("stdin")) > 1)
        talk.send("input_reply", {"value": "yes"}, channel="stdin")
        talk.listen(lambda: len(talk._of("stdin")) == 2)
        talk.listen(lambda: False, seconds=QUIET)
        assert not kernels_here(kernel)
        talk.send("input_reply", {"value": "no"}, channel="stdin")
        talk.done(local)

    said = talk.case(says)
    assert "GAVE UP" not in said, said
    assert "was not allowed" in reply(said, 1)["evalue"]
    assert not kernels_here(kernel)
    assert text_of(run(talk, "heard")) == "['yes']"


def test_the_code_there_cannot_ask_as_we_do(kernel: StartedKernel) -> None:
    """It is answered all the same: it is only marked."""
    talk = Talk(kernel.client)
    code = f"input({OWN_TAG + 'password of your key:'!r})"
    said = talk.case(partial(Talk.run, code=code, answers=["secret"]))
    (asked,) = said["stdin under request 0"]
    assert asked["content"]["prompt"] == f"[threads asks] {OWN_TAG}password of your key: "
    assert text_of(said) == "'secret'"
