"""Asks the person in the cell that waits, through Jupyter's own input box.

A login runs in a thread and may take as long as a person does; all else of the front goes on.
Where no cell waits that may be asked in, nobody is asked: the next one that is run asks.

Kernels ask, too (`input()`), and not every client says which question it answers. At such a
client one question is open at a time: ours waits for the answer to a kernel's, and a kernel's
for that to ours. So no answer is ever taken for one to another question.

A question of ours moves to the cell that was run last by another page, since the page in which
it is open may be gone; its box stays, see `input_boxes`.

Jupyter has no way to close an input box. What is typed into one whose question has moved, or was
taken back, is used for nothing. A client that does not say which question it answers may have
such a box open before any other one: the next thing that it answers was typed there.

What kernels ask (`input()`), until it has its answer: which question a reply is for. Not every
client says that: jupyter_client, consoles, nbclassic and JupyterLab 3 send replies without a
parent, JupyterLab 4 and VS Code name the question.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import unicodedata
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.errors import ProtocolError
from remoter_kernel.local.login.prompts import (
    NEVER_WITHDRAWN,
    OWN_TAG,
    NeedsPerson,
    NotAnswered,
    Prompt,
    Trust,
    Withdrawn,
    host_key_question,
    prompt_prefix,
    strip_controls,
)
from remoter_kernel.local.proxy.client_startup_code import is_client_code
from remoter_kernel.protocol.frames import Channel, to_json
from remoter_kernel.protocol.messages import (
    CONTENT,
    HEADER,
    METADATA,
    PARENT,
    content_of,
    header_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request

MOST_TRIES = 3  # at a word that is neither yes, nor once, nor no
ONE_AT_A_TIME = (
    "[remoter] There is a question to be asked here. First answer the one that is open, which "
    "code of this notebook has asked, or interrupt the kernel.\n"
)
CLOSE_THAT_BOX = (
    "[remoter] There is a question to be asked here. First press Enter in the box that is open: "
    "its question was answered elsewhere, and what is typed there is used for nothing.\n"
)
NOT_USED = (
    "[remoter] What was typed there was not used: that question is not open any more, or is "
    "asked elsewhere.\n"
)

POLL_EVERY = 0.1  # seconds between two looks at whether a question was taken back
WITHDRAWN_WITHIN = 2.0  # seconds
MOST_OPEN = 20  # boxes that are left open, of all pages
AnswerQueue = queue.SimpleQueue[str | NotAnswered | NeedsPerson]

SIMILARITY = 0.8  # of the letters of our own beginning: a question that has more of them is marked
LONGEST_PROMPT = 16 * 1024  # characters of a question
_LINES = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")


class _HeldInputRequest(NamedTuple):
    """A kernel's question that waits until ours has its answer."""

    request: KernelInputRequest
    parts: list[Bytes]
    send: Callable[[list[Bytes]], object]


class StdinPrompter:
    """Whom a login may ask (see `Prompter`): whoever has run a cell that waits for it."""

    def __init__(
        self, reactor: Reactor, replies: ReplySender, open_cells: Callable[[], Iterable[Request]]
    ) -> None:
        """Remember; `open_cells` lists the requests without a reply, the oldest first."""
        self.remote_name: Callable[[], str] = lambda: "the remote"
        self.notebook: Callable[[], str] = lambda: ""  # its path, as far as that is known
        self._kernel_input = KernelInputRequests()
        self._held: list[_HeldInputRequest] = []
        self._reactor = reactor
        self._replies = replies
        self._open_cells = open_cells
        self._pending: PendingPrompt | None = None
        self._boxes = OpenInputBoxes(self._kernel_input.is_naming)
        self._waiting_elsewhere: list[
            AnswerQueue
        ] = []  # of those who wait while another one is asked
        self._busy_sent: set[str] = set()  # cells that were told to be at work
        self._lock = threading.Lock()  # there is one input box

    def attach(self, dialer: SessionDialer) -> None:
        """Be whom the logins of a dialer ask."""
        dialer.prompter, dialer.can_prompt = self, self.can_prompt
        self.remote_name = lambda: dialer.remote.name
        self.notebook = lambda: dialer.notebook_identity.notebook

    # --- from the login's thread, or that of a cell which is answered here ---

    def place(self) -> str:
        """Say where the person sits."""
        name = Path(self.notebook().replace("\\", "/")).name
        return f"in {name}" if name else f"in a notebook or console (process {os.getpid()})"

    def confirm_host_key(
        self, host: str, kind: str, fingerprint: str, withdrawn: threading.Event = NEVER_WITHDRAWN
    ) -> Trust:
        """Ask whether a host's key is the right one."""
        text = f"{host_key_question(host, kind, fingerprint)} yes, once (do not remember it) or no:"
        for _ in range(MOST_TRIES):
            said = self._prompt(text, is_hidden=False, withdrawn=withdrawn).strip().lower()
            if said in {each.value for each in Trust}:
                return Trust(said)
        return Trust.NO

    def ask(
        self,
        host: str,
        prompts: Sequence[Prompt],
        instruction: str = "",
        withdrawn: threading.Event = NEVER_WITHDRAWN,
    ) -> list[str]:
        """Ask what a server, or a key, wants to know."""
        texts = [f"{prompt_prefix(host)}{prompt.text.strip()}" for prompt in prompts]
        if instruction and not texts:  # touch the token, say: nothing is to be typed
            self._reactor.call_soon_threadsafe(
                partial(self._show_text, f"{prompt_prefix(host)}{instruction}")
            )
        elif instruction:
            texts[0] = f"{instruction}\n{texts[0]}"
        return [
            self._prompt(text, is_hidden=not prompt.is_shown, withdrawn=withdrawn)
            for text, prompt in zip(texts, prompts, strict=True)
        ]

    def wait_elsewhere(self, sentence: str, withdrawn: threading.Event) -> None:
        """Say in the cell where somebody is asked, and wait; an interrupt ends that."""
        answer: AnswerQueue = queue.SimpleQueue()
        self._reactor.call_soon_threadsafe(partial(self._start_waiting, sentence, answer))
        wait_for_answer(answer, withdrawn, self._in_reactor(self._stop_waiting, answer))

    def _show_text(self, text: str) -> None:
        request = self._find_cell()
        if request:
            words = {"name": "stderr", "text": f"{text}\n"}
            self._replies.publish("stream", words, request.header)

    def can_prompt(self) -> bool:
        """Is there a cell that waits, and in which one may ask?"""
        return self._find_cell() is not None

    def prompt_in(self, cell: Request, text: str) -> str:
        """Ask in this very cell, which has said that it is at work; a RemoterError: no answer."""
        if not can_prompt_in(cell):
            raise NeedsPerson("nobody can be asked in this cell.")
        self._busy_sent.add(message_id(cell))
        return self._prompt(text, is_hidden=False, cell=cell)

    def _prompt(
        self,
        text: str,
        *,
        is_hidden: bool,
        cell: Request | None = None,
        withdrawn: threading.Event = NEVER_WITHDRAWN,
    ) -> str:
        answer: AnswerQueue = queue.SimpleQueue()
        begin = partial(self._start_prompt, f"{text} ", answer, is_hidden=is_hidden, cell=cell)
        while not self._lock.acquire(timeout=POLL_EVERY):
            if withdrawn.is_set():
                raise Withdrawn
        try:
            self._reactor.call_soon_threadsafe(begin)
            return wait_for_answer(answer, withdrawn, self._in_reactor(self._withdraw, answer))
        finally:
            self._lock.release()

    def _in_reactor(
        self, do: Callable[[AnswerQueue], None], answer: AnswerQueue
    ) -> Callable[[], object]:
        return lambda: self._reactor.call_soon_threadsafe(partial(do, answer))

    # --- from the proxy's thread ---

    def _find_cell(self) -> Request | None:
        """Find the oldest cell of the page in which somebody has run one last."""
        return oldest_of_last_client(
            [request for request in list(self._open_cells()) if can_prompt_in(request)]
        )

    def _start_prompt(
        self, text: str, answer: AnswerQueue, *, is_hidden: bool, cell: Request | None
    ) -> None:
        request = cell or self._find_cell()
        if request is None:
            message = "the login has a question, and no cell is waiting in which to ask it."
            answer.put(NeedsPerson(message, "Run a cell to be asked."))
            return
        self._show_prompt(PendingPrompt(request, {"prompt": text, "password": is_hidden}, answer))

    def _show_prompt(self, asked: PendingPrompt) -> None:
        """Ask in a cell, as soon as one question at a time lets it be."""
        self._send_busy(asked.request)
        self._pending = asked._replace(
            message_id=self._boxes.reopen(asked)
        )  # it may stand there still
        self._send_next()
        if not self._pending.message_id:
            is_left = self._boxes.is_ambiguous(asked.request.identities)
            self._write_stderr(CLOSE_THAT_BOX if is_left else ONE_AT_A_TIME, asked.request.header)

    def _send_busy(self, request: Request) -> None:
        name = message_id(request)
        if name not in self._busy_sent:
            self._busy_sent.add(name)
            self._replies.publish("status", {"execution_state": "busy"}, request.header)

    def _write_stderr(self, text: str, header: dict[str, Any]) -> None:
        self._replies.publish("stream", {"name": "stderr", "text": text}, header)

    def _send_next(self) -> None:
        """Ask what has yet to be asked, as far as one question at a time lets it be."""
        asked = self._pending
        if asked and not asked.message_id and not self._is_ambiguous(asked.request.identities):
            name = self._replies.send_input_request(asked.request, asked.content)
            self._boxes.headers[name] = asked.request.header
            self._pending = asked._replace(message_id=name)
        held, self._held = self._held, []
        for each in held:
            if self._must_hold(each):
                self._held.append(each)
            else:
                self._forward(each)

    def _is_ambiguous(self, client: Sequence[bytes]) -> bool:
        """Could this client's answer to anything be one to another question?"""
        return self._kernel_input.is_ambiguous(client) or self._boxes.is_ambiguous(client)

    def _must_hold(self, held: _HeldInputRequest) -> bool:
        """Must a kernel's question wait?"""
        client, asked = list(held.request.client), self._pending
        is_ours_open = asked and asked.message_id and asked.request.identities == client
        is_exact = self._kernel_input.is_naming(client)
        return bool(is_ours_open and not is_exact) or self._boxes.is_ambiguous(client)

    # --- a question goes elsewhere, or is taken back ---

    def on_cell(self, request: Request, is_over: Callable[[str], bool]) -> None:
        """A cell was run: if that was in another page, an open question moves there.

        `is_over` says whether a cell, by its id, has its reply by now.
        """
        self._boxes.on_cell(request)
        asked = self._pending
        if asked is None or not can_prompt_in(request) or is_over(message_id(request)):
            return
        is_same_page = request.identities == asked.request.identities
        if is_same_page and not is_rerun_of(request, asked.request):
            return
        if not is_same_page:  # what is run again in its page has closed its box
            self._boxes.leave_open(asked)
        self._show_prompt(PendingPrompt(request, asked.content, asked.answer))

    def _withdraw(self, answer: AnswerQueue) -> None:
        asked = self._pending
        if asked is None or asked.answer is not answer:
            return
        self._pending = None
        self._boxes.leave_open(asked)
        answer.put(Withdrawn())
        self._send_next()

    def _start_waiting(self, sentence: str, answer: AnswerQueue) -> None:
        self._waiting_elsewhere.append(answer)
        request = self._find_cell()
        if request:
            self._send_busy(request)
            how = "This cell goes on then; an interrupt ends it."
            self._write_stderr(
                f"[remoter] {self.remote_name()}: {sentence} {how}\n", request.header
            )

    def _stop_waiting(self, answer: AnswerQueue) -> None:
        if answer in self._waiting_elsewhere:
            self._waiting_elsewhere.remove(answer)
            answer.put(Withdrawn())

    @property
    def is_asking(self) -> bool:
        """Is a person being waited for?"""
        return self._pending is not None or bool(self._waiting_elsewhere)

    def relay_input_request(
        self,
        request: Request,
        parts: list[Bytes],
        send: Callable[[list[Bytes]], object],
        answer: Callable[[list[Bytes]], object],
        *,
        is_here: bool = False,
    ) -> None:
        """Pass on what a kernel asks; `send` says it to the client, `answer` the reply to it.

        `is_here`: it is the kernel on this side.
        """
        name = str(header_of(parts[HEADER]).get("msg_id", ""))
        if name in self._boxes.headers or self._kernel_input.has(name):  # as if it had none
            name = ""
        cell = str(request.header.get("msg_id", ""))
        question = KernelInputRequest(tuple(request.identities), name, cell, answer, is_here)
        whose = "code on this machine" if is_here else self.remote_name()
        held = _HeldInputRequest(question, mark_lookalike(parts, whose), send)
        if self._boxes.is_ambiguous(request.identities):
            self._write_stderr(CLOSE_THAT_BOX, request.header)
        if self._must_hold(held):
            self._held.append(held)
        else:
            self._forward(held)

    def _forward(self, held: _HeldInputRequest) -> None:
        self._kernel_input.add(held.request)
        held.send(held.parts)

    def on_input_reply(self, reply: Request) -> bool:
        """Give what was typed to whoever has asked for it; False: nobody that is known here.

        A reply that names a question is for that one alone. What comes late is for nobody.
        """
        client = reply.identities
        parent = str(header_of(reply.parts[PARENT]).get("msg_id") or "")
        asked = (
            self._pending if self._pending and self._pending.request.identities == client else None
        )
        if parent in self._boxes.headers:
            self._kernel_input.mark_naming(client)
            if asked and parent == asked.message_id:
                self._accept_input(asked, reply)
            else:
                self._discard_input(parent)
            return True
        if box := self._boxes.left_open_for(client, parent):
            self._discard_input(box)
            return True
        question = self._kernel_input.pop_for(client, parent)
        if question:
            question.reply(list(reply.parts))
            self._send_next()
            return True
        cells = {"", asked.request.header.get("msg_id")} if asked and asked.message_id else set()
        if asked and parent in cells:
            self._accept_input(asked, reply)
            return True
        return not parent and bool(
            self._boxes.headers
        )  # it may be a secret that was asked for here

    def _discard_input(self, name: str) -> None:
        """Use for nothing what was typed for a question that is not open any more."""
        self._boxes.close(name)
        self._write_stderr(NOT_USED, self._boxes.headers[name])
        self._send_next()

    def _accept_input(self, asked: PendingPrompt, reply: Request) -> None:
        value = str(content_of(reply.parts).get("value", ""))  # an odd reply leaves it open
        self._pending = None
        asked.answer.put(value)
        self._send_next()

    def drop_kernel_input(self, *, is_here: bool) -> None:
        """Hear that a kernel waits for no answer any more: it has ended, or was interrupted."""
        self._held = [each for each in self._held if each.request.is_local is not is_here]
        self._kernel_input.drop(is_here=is_here)
        self._send_next()

    def cancel(self, *, is_here: bool = False, client: Sequence[bytes] = ()) -> bool:
        """Let a question go unanswered: the person has interrupted. False: there was none.

        Then a kernel is interrupted; `is_here`: it is that on this side. `client` interrupts.
        """
        asked, self._pending = self._pending, None
        self._boxes.on_interrupt(client, asked)
        if asked is None and self._waiting_elsewhere:
            waiting, self._waiting_elsewhere = self._waiting_elsewhere, []
            for answer in waiting:
                answer.put(NotAnswered("the login was not waited for.", "Run the cell again."))
            return True
        if asked is None:
            self.drop_kernel_input(is_here=is_here)
            return False
        if not asked.message_id:  # it waited for an answer that the person does not give
            self._kernel_input.drop_client(asked.request.identities)
        message = "the question of the login was not answered."
        asked.answer.put(NotAnswered(message, "Run a cell to be asked again."))
        self._send_next()
        return True


def can_prompt_in(request: Request) -> bool:
    """Is this a cell of a person who can be asked?"""
    if request.channel is not Channel.SHELL or request.header.get("msg_type") != "execute_request":
        return False
    content: dict[str, Any] = content_of(request.parts)
    can_answer = content.get("allow_stdin", True) and not content.get("silent")
    return bool(can_answer) and not is_client_code(content)


class PendingPrompt(NamedTuple):
    """A question that waits for its answer."""

    request: Request
    content: dict[str, Any]
    answer: AnswerQueue
    message_id: str = ""  # of the message that asked; none: it has yet to be asked


class OpenInputBoxes:
    """The boxes that were opened, and those of them that were left open."""

    def __init__(self, is_naming: Callable[[Sequence[bytes]], bool]) -> None:
        """Remember; `is_naming`: does a client say which question it answers?"""
        self.headers: dict[str, dict[str, Any]] = {}  # of the cells, by the message that asked
        self._is_naming = is_naming
        self._left_open: list[PendingPrompt] = []
        self._clients: list[list[bytes]] = []  # clients that have run cells, the last ones

    def leave_open(self, asked: PendingPrompt) -> None:
        """A question is not open any more, and its box is."""
        if asked.message_id:
            self._left_open = [*self._left_open, asked][-MOST_OPEN:]

    def reopen(self, asked: PendingPrompt) -> str:
        """Return the message of a box that was left open with the very same question, once."""
        for box in self._left_open:
            if box.request is asked.request and box.content == asked.content:
                self._left_open.remove(box)
                return box.message_id
        return ""

    def is_ambiguous(self, client: Sequence[bytes]) -> bool:
        """Could what a client answers next have been typed into a box that was left open?"""
        return bool(self._left_open_at(client)) and not self._is_naming(client)

    def left_open_for(self, client: Sequence[bytes], parent: str) -> str:
        """Name the box into which that was typed if it was left open; `parent`: what it names."""
        if not self.is_ambiguous(client):
            return ""
        box = self._left_open_at(client)[0]
        return box.message_id if parent in {"", message_id(box.request)} else ""

    def close(self, name: str) -> None:
        """A person has closed one."""
        self._left_open = [box for box in self._left_open if box.message_id != name]

    def on_cell(self, request: Request) -> None:
        """A cell that is run again has closed the box that it showed before."""
        self._left_open = [box for box in self._left_open if not is_rerun_of(request, box.request)]
        if list(request.identities) not in self._clients:
            self._clients = [*self._clients, list(request.identities)][-MOST_OPEN:]

    def on_interrupt(self, client: Sequence[bytes], asked: PendingPrompt | None) -> None:
        """A client has interrupted, and with that closed its boxes.

        A server does that for one of its pages, and does not say for which: for that where the
        question is open, `asked`, if there is one. Boxes of other pages stay on their screens.
        """
        page = list(client)
        if page not in self._clients:
            if asked is None:
                self._left_open.clear()
                return
            page = list(asked.request.identities)
        self._left_open = [box for box in self._left_open if list(box.request.identities) != page]

    def _left_open_at(self, client: Sequence[bytes]) -> list[PendingPrompt]:
        return [box for box in self._left_open if list(box.request.identities) == list(client)]


def message_id(request: Request) -> str:
    """Return the message id of a request."""
    return str(request.header.get("msg_id", ""))


def oldest_of_last_client(cells: Sequence[Request]) -> Request | None:
    """Return the oldest cell of the page in which somebody has run one last."""
    if not cells:
        return None
    last = cells[-1]
    same = [each for each in cells if each.identities == last.identities]
    return next(each for each in same if not is_rerun_of(last, each))


def is_rerun_of(request: Request, before: Request) -> bool:
    """Is this the same cell of the same page, run again? What it showed before is gone."""
    cells = [header_of(each.parts[METADATA]).get("cellId") for each in (request, before)]
    is_same_page = request.identities == before.identities
    return request is not before and is_same_page and bool(cells[0]) and cells[0] == cells[1]


def wait_for_answer(
    answer: AnswerQueue, withdrawn: threading.Event, take_back: Callable[[], object]
) -> str:
    """Wait for an answer, as long as one is wanted; raise why there is none."""
    limit = POLL_EVERY
    while True:
        try:
            said = answer.get(timeout=limit)
            break
        except queue.Empty:
            if limit == WITHDRAWN_WITHIN:  # this process is ending
                raise Withdrawn from None
            if withdrawn.is_set():
                take_back()  # and says so, unless an answer has just come
                limit = WITHDRAWN_WITHIN
    if isinstance(said, str):
        return said
    raise said


class KernelInputRequest(NamedTuple):
    """A question of a kernel that has no answer yet."""

    client: tuple[bytes, ...]  # who was asked
    message_id: str  # the id of the message that asks
    request_id: str  # the id of the request in which it is asked
    reply: Callable[[list[Bytes]], object]  # gives the kernel its reply
    is_local: bool  # is it of the kernel on this side?


class KernelInputRequests:
    """Those without an answer, the oldest first."""

    def __init__(self) -> None:
        self._open: list[KernelInputRequest] = []
        self._naming_clients: set[tuple[bytes, ...]] = (
            set()
        )  # clients that say which question they answer

    def add(self, question: KernelInputRequest) -> None:
        """A kernel has asked."""
        self._open.append(question)

    def has(self, name: str) -> bool:
        """Is there a question with this id that has no answer?"""
        return any(each.message_id == name for each in self._open)

    def mark_naming(self, client: Sequence[bytes]) -> None:
        """A client has said which question it answers: it does so each time."""
        self._naming_clients.add(tuple(client))

    def is_naming(self, client: Sequence[bytes]) -> bool:
        """Does this client say which question it answers, as far as is known?"""
        return tuple(client) in self._naming_clients

    def is_ambiguous(self, client: Sequence[bytes]) -> bool:
        """Could this client's answer to anything else be one to a kernel's question?"""
        who = tuple(client)
        return who not in self._naming_clients and any(each.client == who for each in self._open)

    def pop_for(self, client: Sequence[bytes], parent: str) -> KernelInputRequest | None:
        """Return the question that a reply is for, once; `parent`: what the reply names, or "".

        What names none, or only the cell, is for the kernel that has asked first.
        """
        own = [each for each in self._open if each.client == tuple(client)]
        is_named = parent not in {"", *(each.request_id for each in own)}
        found = next((each for each in own if is_named and each.message_id == parent), None)
        if found:
            self.mark_naming(client)
        else:
            found = next((each for each in own if parent in {"", each.request_id}), None)
        if found:
            self._open.remove(found)
        return found

    def drop(self, *, is_here: bool) -> None:
        """A kernel waits no more."""
        self._open = [each for each in self._open if each.is_local is not is_here]

    def drop_client(self, client: Sequence[bytes]) -> None:
        """A person will not answer what this client was asked."""
        self._open = [each for each in self._open if each.client != tuple(client)]


def mark_lookalike(parts: list[Bytes], whose: str) -> list[Bytes]:
    """Return a kernel's question as it came, unless it looks like one of our own: then marked."""
    try:
        content = content_of(parts)
    except ProtocolError:  # no client makes sense of it, either
        return parts
    prompt = content.get("prompt")
    if not isinstance(prompt, str) or not looks_like_ours(prompt):
        return parts
    lines = [strip_controls(line) for line in _LINES.split(prompt[:LONGEST_PROMPT])]
    marked = "\n".join(f"[{whose} asks] {line}" for line in lines if line.strip())
    words = to_json({**content, "prompt": f"{marked} "})
    return [*parts[:CONTENT], words, *parts[CONTENT + 1 :]]


def looks_like_ours(prompt: str) -> bool:
    """Would a person take this for a question of this program?

    Wherever the words stand, and also with signs that look like their letters in between.
    """
    if len(prompt) > LONGEST_PROMPT:  # nobody reads that, and what it hides would take long to find
        return True
    wanted = _bare_letters(OWN_TAG)
    if wanted in _bare_letters(prompt):
        return True
    starts = (_bare_letters(line)[: len(wanted)] for line in _LINES.split(prompt))
    return any(SequenceMatcher(None, start, wanted).ratio() > SIMILARITY for start in starts)


def _bare_letters(text: str) -> str:
    """Return the letters alone, without what is not seen, small, in their plainest form."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return "".join(sign for sign in plain if sign.isalpha())
