"""What comes from the session, and what becomes of it here: outputs, replies, events, the link."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from remoter_kernel.errors import NoSuchSession, RemoteLacks
from remoter_kernel.front.configuration.remotes import remember_kernel_info
from remoter_kernel.front.jupyter.failures import FailedLink, answer_what_is_lost_there
from remoter_kernel.front.jupyter.handlers import note_what_has_left, send_held
from remoter_kernel.front.jupyter.mouth import STATES
from remoter_kernel.front.jupyter.requests import cells_there, find_there
from remoter_kernel.front.session.link import LinkState
from remoter_kernel.wire.frames import Channel, from_json
from remoter_kernel.wire.messages import (
    CONTENT,
    HEADER,
    PARENT,
    TOPIC,
    execution_state,
    header_of,
)
from remoter_kernel.wire.requests import BUSY, IDLE, has_idle
from remoter_kernel.wire.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.front.jupyter.arrival import Arrival
    from remoter_kernel.front.jupyter.handlers import Context
    from remoter_kernel.front.jupyter.news import News
    from remoter_kernel.front.jupyter.sockets import Sockets
    from remoter_kernel.wire.frames import Bytes


class Presenter(Protocol):
    """Shows a person how the link is."""

    def on_link_state(self) -> None:
        """It has changed."""


@dataclass
class FromSession:
    """Hears the session and the link."""

    around: Context
    sockets: Sockets
    arrival: Arrival
    news: News
    presenters: Sequence[Presenter] = ()

    def on_message(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Take one item of the evaluator."""
        if channel in {Channel.IOPUB, Channel.SHELL} and self.around.here.take_own(parts):
            return
        if channel is Channel.IOPUB:
            self._on_output(parts)
        elif channel is Channel.EVENT:
            self._on_event(from_json(parts[TOPIC]))
        else:
            self._on_reply(channel, parts)

    def on_link_state(self, state: LinkState) -> None:
        """Hear that the link is in another state."""
        around = self.around
        if state is LinkState.WAITING:
            note_what_has_left(around, "the link was lost meanwhile")
        for presenter in self.presenters:
            presenter.on_link_state()
        if state is LinkState.UP:
            self._on_up()
        elif state is LinkState.FAILED and around.link.error:
            is_over = around.kernel.trouble is not None
            error = around.link.error.at(around.remote().name)
            if is_over or isinstance(error, NoSuchSession):
                around.link.hand_on_all()  # what has come belongs before the end
            failed = FailedLink(
                around.link, around.requests, around.mouth, around.asker, around.startup
            )
            failed.answer(error, is_over=is_over, is_asked=around.kernel.is_asked)
            around.here.lose(error, is_over=is_over or isinstance(error, NoSuchSession))
        around.turns.look()

    def _on_output(self, parts: Sequence[Bytes]) -> None:
        """Pass an output on to all; a state that clients have heard is not said again."""
        around, state = self.around, execution_state(parts)
        # VS Code would open its sockets anew, and never say so to itself: no cell would be
        # sent any more.
        if state == "restarting" and self.arrival.is_for_vscode:
            return
        around.verbs.notice(parts)
        is_new = True
        if state in STATES:
            asker = str(header_of(parts[PARENT]).get("msg_id", ""))
            is_new = around.requests.on_state(asker, state).is_new
            if not is_new and state == BUSY and around.mouth.last_state == IDLE:
                # It was said early, and the idle of another request has come since: clients
                # take that for the kernel's, and this cell runs.
                request = around.requests.get(asker)
                is_new = request is not None and request.is_open
            if is_new:
                around.mouth.last_state = state
        if is_new:
            self.sockets.publish([bytes(parts[TOPIC]), *parts[HEADER:]])
        around.here.notice(parts)

    def _on_reply(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Pass a reply, or a question, on to whoever has asked."""
        around = self.around
        name = str(header_of(parts[PARENT]).get("msg_id", ""))
        if channel is Channel.STDIN:
            self._on_question(name, parts)
            return
        request = find_there(around.requests, name)
        if request is None:
            return
        send = partial(self.sockets.reply, channel, request.identities)
        if request.is_cell:
            around.verbs.last_reply = bytes(parts[CONTENT])
        # What goes wrong here is told in the place of the reply, which is still awaited then.
        send(around.here.amend(request, around.completer.amend(request, parts)))
        around.requests.on_reply(name, has_idle=has_idle(parts))
        if channel is Channel.SHELL:
            around.here.notice_reply(request, parts)

    def _on_question(self, name: str, parts: Sequence[Bytes]) -> None:
        """Pass a question on to whoever has sent the request in which it is asked."""
        around, request = self.around, self.around.sender_of(name)
        if request is not None:
            send = partial(self.sockets.reply, Channel.STDIN, request.identities)
            answer = partial(around.link.say, Channel.STDIN)
            around.asker.relay(request, list(parts), send, answer)

    def _on_event(self, words: dict[str, Any]) -> None:
        event = str(words.get("event"))
        if event in {"ready", "failed", "died"}:  # what a kernel before has asked is void
            self.around.asker.forget(is_here=False)
        if event == "ready":
            self._on_ready(words)
        elif event == "failed":
            self._on_no_kernel(str(words.get("why", "")))
        elif event == "died" and not self.around.kernel.is_asked:
            self.around.dead.begin(str(words.get("why", "")))

    def _on_ready(self, words: dict[str, Any]) -> None:
        """The far kernel is there: from now on, what we say carries its session."""
        around, kernel = self.around, self.around.kernel
        kernel.is_ready = True
        around.verbs.is_encrypted = words.get("encrypted", False)  # older evaluators have none
        self.sockets.voice.speak_as(str(words.get("session", "")), str(words.get("username", "")))
        self.news.tell(cells_there(around.requests))
        send_held(around)
        around.turns.look()
        info = words.get("kernel_info")
        if isinstance(info, dict) and info and info != kernel.info:
            kernel.info = info
            address = around.dialer.address
            if address and not address.is_joined:  # else it may be older than the configuration
                remember = partial(remember_kernel_info, around.dialer.remote, info)
                Thread(remember, name="kernel info").start()  # a disk may be slow

    def _on_up(self) -> None:
        around = self.around
        around.kernel.trouble = None
        answer_what_is_lost_there(around.link, around.requests, around.mouth)
        welcome, address = around.link.welcome, around.dialer.address
        if around.link.pacer and address:
            around.link.pacer.waiting.session = address.session
        if welcome.get("keep"):
            around.ending.keep()
        if address:
            is_busy = welcome.get("execution_state") == "busy"
            self.news.hear(address, around.dialer.claim.notebook, is_busy=is_busy)
        if welcome.get("state") == "failed":
            self._on_no_kernel(str(welcome.get("why", "")))
        elif welcome.get("kernel_info"):
            self._on_ready(welcome)

    def _on_no_kernel(self, why: str) -> None:
        """There is a session, but its kernel did not start."""
        remote = self.around.dialer.remote.name
        trouble = RemoteLacks(why, "Mend that, then run the cell again.", remote=remote)
        self.around.kernel.trouble = trouble
        self.around.link.fail(trouble)
