"""Asks the person in the cell that waits, through Jupyter's own input box.

A login runs in a thread and may take as long as a person does; all else of the proxy goes on.
Where no cell waits that may be asked in, nobody is asked: the next one that is run asks.

Kernels ask, too (`input()`), and not every client says which question it answers: jupyter_client,
consoles, nbclassic and JupyterLab 3 send replies without a parent, JupyterLab 4 and VS Code name
the question. At a client that does not, one question is open at a time: ours waits for the answer
to a kernel's, and a kernel's for that to ours. So no answer is ever taken for one to another
question.

A question of ours moves to the cell that was run last by another page, since the page in which
it is open may be gone; its box stays, see `OpenInputBoxes`.

Jupyter has no way to close an input box. What is typed into one whose question has moved, or was
taken back, is used for nothing. A client that does not name questions may have such a box open
before any other one: the next thing that it answers was typed there.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import unicodedata
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.errors import ProtocolError
from remoter_kernel.local.login.prompts import (
    NEVER_WITHDRAWN,
    OWN_TAG,
    HostKeyDecision,
    NeedsPerson,
    NotAnswered,
    Prompt,
    Withdrawn,
    host_key_question,
    prompt_prefix,
    strip_controls,
)
from remoter_kernel.local.proxy.client_startup_code import is_client_code
from remoter_kernel.local.proxy.sockets import notice_text
from remoter_kernel.protocol.frames import Channel, to_json
from remoter_kernel.protocol.messages import (
    CONTENT,
    HEADER,
    METADATA,
    PARENT,
    content_of,
    header_of,
)
from remoter_kernel.protocol.requests import BUSY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request

MOST_TRIES = 3  # at a word that is neither yes, nor once, nor no
ONE_AT_A_TIME = notice_text(
    "There is a question to be asked here. First answer the one that is open, which "
    "code of this notebook has asked, or interrupt the kernel."
)
CLOSE_THAT_BOX = notice_text(
    "There is a question to be asked here. First press Enter in the box that is open: "
    "its question was answered elsewhere, and what is typed there is used for nothing."
)
NOT_USED = notice_text(
    "What was typed there was not used: that question is not open any more, or is asked elsewhere."
)

POLL_EVERY = 0.1  # seconds between two looks at whether a question was taken back
WITHDRAWN_WITHIN = 2.0  # seconds in which the proxy's thread takes a question back
MOST_OPEN = 20  # boxes that are left open, of all pages
AnswerQueue = queue.SimpleQueue[str | NotAnswered | NeedsPerson]

SIMILARITY = 0.8  # of the letters of our own beginning: a question that has more of them is marked
LONGEST_PROMPT = 16 * 1024  # characters of a question
_LINES = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")


class StdinPrompter:
    """Whom a login may ask (see `Prompter`): whoever has run a cell that waits for it."""

    # Logins and cells ask from threads: whatever is not said here to be theirs, and `_lock` apart,
    # is touched by the proxy's thread alone (`_call`).
    def __init__(
        self, reactor: Reactor, replies: ReplySender, open_cells: Callable[[], Iterable[Request]]
    ) -> None:
        """`open_cells` returns the cells without a reply, the oldest first."""
        self.remote_name: Callable[[], str] = lambda: "the remote"
        self.notebook: Callable[[], str] = lambda: ""  # its path, as far as that is known
        self._reactor = reactor
        self._replies = replies
        self._open_cells = open_cells
        self._kernel_input = KernelInputRequests()
        self._boxes = OpenInputBoxes(self._kernel_input.is_naming)
        self._held: list[KernelInputRequest] = []  # they wait until ours has its answer
        self._pending: PendingPrompt | None = None
        # Of those who wait while another process asks for the same login.
        self._waiting_elsewhere: list[AnswerQueue] = []
        self._lock = threading.Lock()  # one question of ours at a time

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
    ) -> HostKeyDecision:
        """Ask whether a host's key is the right one."""
        text = f"{host_key_question(host, kind, fingerprint)} yes, once (do not remember it) or no:"
        for _ in range(MOST_TRIES):
            answer = self._prompt(text, is_hidden=False, withdrawn=withdrawn).strip().lower()
            if answer in {each.value for each in HostKeyDecision}:
                return HostKeyDecision(answer)
        return HostKeyDecision.NO

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
            self._call(self._show_text, f"{prompt_prefix(host)}{instruction}")
        elif instruction:
            # In the question itself: what is printed may scroll away before its box opens.
            texts[0] = f"{instruction}\n{texts[0]}"
        return [
            self._prompt(text, is_hidden=not prompt.is_shown, withdrawn=withdrawn)
            for text, prompt in zip(texts, prompts, strict=True)
        ]

    def wait_elsewhere(self, sentence: str, withdrawn: threading.Event) -> None:
        """Say in a cell that somebody is asked elsewhere, and wait; an interrupt ends that."""
        answer: AnswerQueue = queue.SimpleQueue()
        self._call(self._start_waiting, sentence, answer)
        wait_for_answer(answer, withdrawn, partial(self._call, self._stop_waiting, answer))

    def prompt_in(self, cell: Request, text: str) -> str:
        """Ask in this very cell; a RemoterError: no answer."""
        if not can_prompt_in(cell):
            raise NeedsPerson("nobody can be asked in this cell.")
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
        content = {"prompt": f"{text} ", "password": is_hidden}
        # By polling: a question that is taken back must not wait for the one before it.
        while not self._lock.acquire(timeout=POLL_EVERY):
            if withdrawn.is_set():
                raise Withdrawn
        try:
            self._call(self._start_prompt, content, answer, cell)
            return wait_for_answer(answer, withdrawn, partial(self._call, self._withdraw, answer))
        finally:
            self._lock.release()

    def _call(self, do: Callable[..., None], *words: object) -> None:
        self._reactor.call_soon_threadsafe(partial(do, *words))

    # --- from the proxy's thread: questions of ours ---

    @property
    def is_asking(self) -> bool:
        """Is a person being waited for?"""
        return self._pending is not None or bool(self._waiting_elsewhere)

    def can_prompt(self) -> bool:
        """Is there a cell that waits, and in which one may ask?"""
        return self._find_cell() is not None

    def _find_cell(self) -> Request | None:
        """Find the oldest cell of the page in which somebody has run one last."""
        cells = [cell for cell in list(self._open_cells()) if can_prompt_in(cell)]
        if not cells:
            return None
        same = [cell for cell in cells if cell.identities == cells[-1].identities]
        return next(cell for cell in same if not is_rerun_of(same[-1], cell))

    def _show_text(self, text: str) -> None:
        cell = self._find_cell()
        if cell:
            self._replies.write(cell.header, f"{text}\n")

    def _start_prompt(
        self, content: dict[str, Any], answer: AnswerQueue, cell: Request | None
    ) -> None:
        cell = cell or self._find_cell()
        if cell is None:
            message = "the login has a question, and no cell is waiting in which to ask it."
            answer.put(NeedsPerson(message, "Run a cell to be asked."))
            return
        self._show_prompt(PendingPrompt(cell, content, answer))

    def _show_prompt(self, prompt: PendingPrompt) -> None:
        """Ask in a cell, as soon as one question at a time lets it be."""
        # A console looks at a cell only once that is busy, and a question is no sign of that.
        self._replies.send_state(prompt.request, BUSY)
        self._pending = prompt
        prompt.message_id = self._boxes.reopen(prompt)  # its box may stand there still
        self._send_next()
        if not prompt.message_id:
            is_left = self._boxes.is_ambiguous(prompt.request.identities)
            text = CLOSE_THAT_BOX if is_left else ONE_AT_A_TIME
            self._replies.write(prompt.request.header, text)

    def _send_next(self) -> None:
        """Ask what has yet to be asked, as far as one question at a time lets it be."""
        prompt = self._pending
        if prompt and not prompt.message_id:
            client = prompt.request.identities
            if not (self._kernel_input.is_ambiguous(client) or self._boxes.is_ambiguous(client)):
                name = self._replies.send_input_request(prompt.request, prompt.content)
                # From now on a reply that names it is for nobody else, however late.
                self._boxes.headers[name] = prompt.request.header
                prompt.message_id = name
        # Each may have to wait again, for one that goes out before it.
        held, self._held = self._held, []
        for question in held:
            self._forward_or_hold(question)

    def on_cell(self, request: Request, is_over: Callable[[str], bool]) -> None:
        """Move an open question to a cell that was run in another page.

        `is_over` says whether a cell, by its id, has its reply by now.
        """
        self._boxes.on_cell(request)
        prompt = self._pending
        if prompt is None or not can_prompt_in(request) or is_over(request.id):
            return
        is_same_page = request.identities == prompt.request.identities
        if is_same_page and not is_rerun_of(request, prompt.request):
            return
        if not is_same_page:  # what is run again in its page has closed its box
            self._boxes.leave_open(prompt)
        self._show_prompt(PendingPrompt(request, prompt.content, prompt.answer))

    def _withdraw(self, answer: AnswerQueue) -> None:
        prompt = self._pending
        if prompt is None or prompt.answer is not answer:  # it has just been answered
            return
        self._boxes.leave_open(prompt)
        self._end_prompt(prompt, Withdrawn())

    def _end_prompt(self, prompt: PendingPrompt, outcome: str | NotAnswered) -> None:
        self._pending = None
        prompt.answer.put(outcome)
        self._send_next()

    def _start_waiting(self, sentence: str, answer: AnswerQueue) -> None:
        self._waiting_elsewhere.append(answer)
        cell = self._find_cell()
        if cell:
            self._replies.send_state(cell, BUSY)
            how = "This cell goes on then; an interrupt ends it."
            self._replies.notify(cell.header, f"{self.remote_name()}: {sentence} {how}")

    def _stop_waiting(self, answer: AnswerQueue) -> None:
        if answer in self._waiting_elsewhere:
            self._waiting_elsewhere.remove(answer)
            answer.put(Withdrawn())

    def cancel(self, *, is_here: bool = False, client: Sequence[bytes] = ()) -> bool:
        """End a question without an answer: `client` has interrupted. False: there was none.

        Then a kernel is interrupted, and its own questions with it; `is_here`: the local one.
        """
        prompt, self._pending = self._pending, None
        self._boxes.on_interrupt(list(client), prompt)
        if prompt:
            if not prompt.message_id:  # it waited for an answer that the person does not give
                self._kernel_input.drop_client(prompt.request.identities)
            message = "the question of the login was not answered."
            self._end_prompt(prompt, NotAnswered(message, "Run a cell to be asked again."))
            return True
        waiting, self._waiting_elsewhere = self._waiting_elsewhere, []
        for answer in waiting:
            answer.put(NotAnswered("the login was not waited for.", "Run the cell again."))
        if not waiting:
            self.drop_kernel_input(is_here=is_here)
        return bool(waiting)

    # --- from the proxy's thread: questions of kernels, and what is typed ---

    def relay_input_request(
        self,
        request: Request,
        parts: list[Bytes],
        send: Callable[[list[Bytes]], object],
        answer: Callable[[list[Bytes]], object],
        *,
        is_here: bool = False,
    ) -> None:
        """Pass on a question of a kernel: `send` to the client, `answer` the reply to the kernel.

        `is_here`: it is the local kernel's.
        """
        name = str(header_of(parts[HEADER]).get("msg_id", ""))
        if name in self._boxes.headers or self._kernel_input.has(name):
            name = ""  # a kernel chooses its ids: nothing that names another question is for this
        whose = "code on this machine" if is_here else self.remote_name()
        ask = partial(send, mark_lookalike(parts, whose))
        if self._boxes.is_ambiguous(request.identities):
            self._replies.write(request.header, CLOSE_THAT_BOX)
        self._forward_or_hold(
            KernelInputRequest(request.identities, name, request.id, ask, answer, is_here)
        )

    def _forward_or_hold(self, question: KernelInputRequest) -> None:
        client, prompt = question.client, self._pending
        is_ours_open = prompt and prompt.message_id and prompt.request.identities == client
        is_naming = self._kernel_input.is_naming(client)
        if (is_ours_open and not is_naming) or self._boxes.is_ambiguous(client):
            self._held.append(question)
        else:
            self._kernel_input.open.append(question)
            question.ask()

    def drop_kernel_input(self, *, is_here: bool) -> None:
        """Forget a kernel's questions: it has ended, or was interrupted."""
        self._held = [each for each in self._held if each.is_local is not is_here]
        self._kernel_input.drop(is_here=is_here)
        self._send_next()

    def on_input_reply(self, reply: Request) -> bool:
        """Give what was typed to whoever has asked for it; False: nobody that is known here.

        A reply that names a question is for that one alone. What comes late is for nobody.
        """
        client = reply.identities
        parent = str(header_of(reply.parts[PARENT]).get("msg_id") or "")
        prompt = self._pending
        # Who else is connected to this kernel was not asked.
        if prompt and prompt.request.identities != client:
            prompt = None
        if parent in self._boxes.headers:
            self._kernel_input.mark_naming(client)
            if prompt and parent == prompt.message_id:
                self._accept_input(prompt, reply)
            else:
                self._discard_input(parent)
        elif box := self._boxes.left_open_for(client, parent):
            self._discard_input(box)
        elif question := self._kernel_input.pop_for(client, parent):
            question.reply(list(reply.parts))
            self._send_next()
        elif prompt and prompt.message_id and parent in {"", prompt.request.id}:
            self._accept_input(prompt, reply)
        else:  # a kernel that asks without our knowing, unless it may be a secret asked for here
            return not parent and bool(self._boxes.headers)
        return True

    def _discard_input(self, name: str) -> None:
        """Use for nothing what was typed for a question that is not open any more."""
        self._boxes.close(name)
        self._replies.write(self._boxes.headers[name], NOT_USED)
        self._send_next()

    def _accept_input(self, prompt: PendingPrompt, reply: Request) -> None:
        # If the content is odd this raises, and the question stays open.
        self._end_prompt(prompt, str(reply.content.get("value", "")))


def can_prompt_in(request: Request) -> bool:
    """Is this a cell of a person who can be asked?"""
    if request.channel is not Channel.SHELL or not request.is_cell:
        return False
    content = request.content
    can_answer = content.get("allow_stdin", True) and not content.get("silent")
    return bool(can_answer) and not is_client_code(content)


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
            outcome = answer.get(timeout=limit)
            break
        except queue.Empty:
            if limit == WITHDRAWN_WITHIN:  # nobody takes it back: this process is ending
                raise Withdrawn from None
            if withdrawn.is_set():
                take_back()  # puts `Withdrawn` there, unless an answer has just come
                limit = WITHDRAWN_WITHIN
    if isinstance(outcome, str):
        return outcome
    raise outcome


@dataclass
class PendingPrompt:
    """A question of ours that waits for its answer."""

    request: Request
    content: dict[str, Any]  # of the message that asks
    answer: AnswerQueue
    message_id: str = ""  # of the message that asked; none: it has yet to be asked


@dataclass
class OpenInputBoxes:
    """The boxes of our questions, and those of them that were left open."""

    is_naming: Callable[[list[bytes]], bool]  # does a client say which question it answers?
    # Headers of the cells in which we have asked, by the id of the message that asked. They stay:
    # an answer may come at any time, and is a secret, perhaps.
    headers: dict[str, dict[str, Any]] = field(default_factory=dict)
    _left_open: list[PendingPrompt] = field(default_factory=list)
    _clients: list[list[bytes]] = field(default_factory=list)  # that have run cells, the last ones

    def leave_open(self, prompt: PendingPrompt) -> None:
        """Keep the box of a question that is not open any more."""
        if prompt.message_id:
            self._left_open = [*self._left_open, prompt][-MOST_OPEN:]

    def reopen(self, prompt: PendingPrompt) -> str:
        """Return the message of a box that was left open with the very same question, once."""
        for box in self._left_open:
            if box.request is prompt.request and box.content == prompt.content:
                self._left_open.remove(box)
                return box.message_id
        return ""

    def is_ambiguous(self, client: list[bytes]) -> bool:
        """Could what a client answers next have been typed into a box that was left open?"""
        return bool(self._left_open_at(client)) and not self.is_naming(client)

    def left_open_for(self, client: list[bytes], parent: str) -> str:
        """Name the box into which that was typed if it was left open; `parent`: what it names."""
        if not self.is_ambiguous(client):
            return ""
        box = self._left_open_at(client)[0]
        return box.message_id if parent in {"", box.request.id} else ""

    def close(self, name: str) -> None:
        """Forget a box that a person has closed."""
        self._left_open = [box for box in self._left_open if box.message_id != name]

    def on_cell(self, request: Request) -> None:
        """Forget the box of a cell that is run again: its output is gone, and that with it."""
        self._left_open = [box for box in self._left_open if not is_rerun_of(request, box.request)]
        if request.identities not in self._clients:
            self._clients = [*self._clients, request.identities][-MOST_OPEN:]

    def on_interrupt(self, client: list[bytes], prompt: PendingPrompt | None) -> None:
        """Forget the boxes of a client that has interrupted: it has closed them.

        A server interrupts for one of its pages, and does not say for which: for that where
        `prompt` is open, if there is one. Boxes of other pages stay on their screens.
        """
        if client not in self._clients:
            if prompt is None:
                self._left_open.clear()
                return
            client = prompt.request.identities
        self._left_open = [box for box in self._left_open if box.request.identities != client]

    def _left_open_at(self, client: list[bytes]) -> list[PendingPrompt]:
        return [box for box in self._left_open if box.request.identities == client]


class KernelInputRequest(NamedTuple):
    """A question of a kernel that has no answer yet."""

    client: list[bytes]  # who is asked
    message_id: str  # of the message that asks
    request_id: str  # of the request in which it is asked
    ask: Callable[[], object]  # sends it to the client
    reply: Callable[[list[Bytes]], object]  # gives the kernel its reply
    is_local: bool  # is it the local kernel's?


@dataclass
class KernelInputRequests:
    """What kernels have asked, the oldest first; and which clients name what they answer."""

    open: list[KernelInputRequest] = field(default_factory=list)
    _naming_clients: list[list[bytes]] = field(default_factory=list)

    def has(self, name: str) -> bool:
        """Is there a question with this id that has no answer?"""
        return any(each.message_id == name for each in self.open)

    def mark_naming(self, client: list[bytes]) -> None:
        """Note that a client has named the question it answers: it does so each time."""
        if client not in self._naming_clients:
            self._naming_clients.append(client)

    def is_naming(self, client: list[bytes]) -> bool:
        """Does this client say which question it answers, as far as is known?"""
        return client in self._naming_clients

    def is_ambiguous(self, client: list[bytes]) -> bool:
        """Could this client's answer to anything else be one to a kernel's question?"""
        return not self.is_naming(client) and any(each.client == client for each in self.open)

    def pop_for(self, client: list[bytes], parent: str) -> KernelInputRequest | None:
        """Return the question that a reply is for, once; `parent`: what the reply names, or "".

        What names none, or only the cell, is for the kernel that has asked first.
        """
        own = [each for each in self.open if each.client == client]
        is_named = parent not in {"", *(each.request_id for each in own)}
        found = next((each for each in own if is_named and each.message_id == parent), None)
        if found:
            self.mark_naming(client)
        else:
            found = next((each for each in own if parent in {"", each.request_id}), None)
        if found:
            self.open.remove(found)
        return found

    def drop(self, *, is_here: bool) -> None:
        """Forget the questions of the local kernel, or of the remote one."""
        self.open = [each for each in self.open if each.is_local is not is_here]

    def drop_client(self, client: list[bytes]) -> None:
        """Forget what this client was asked: the person will not answer."""
        self.open = [each for each in self.open if each.client != client]


def mark_lookalike(parts: list[Bytes], whose: str) -> list[Bytes]:
    """Return a kernel's question as it came, unless it looks like one of our own: then marked."""
    try:
        content = content_of(parts)
    except ProtocolError:  # no client makes sense of it, either
        return parts
    prompt = content.get("prompt")
    if not isinstance(prompt, str) or not looks_like_ours(prompt):
        return parts
    # Each line says whose it is: a kernel could write what looks like the end of its question.
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
    # Letters alone: signs in between, or other forms of the same letters, change nothing.
    wanted = _bare_letters(OWN_TAG)
    if wanted in _bare_letters(prompt):
        return True
    starts = (_bare_letters(line)[: len(wanted)] for line in _LINES.split(prompt))
    return any(SequenceMatcher(None, start, wanted).ratio() > SIMILARITY for start in starts)


def _bare_letters(text: str) -> str:
    """Return the letters alone, without what is not seen, small, in their plainest form."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return "".join(sign for sign in plain if sign.isalpha())
