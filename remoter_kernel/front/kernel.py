"""The kernel that Jupyter sees: wires together who answers here, what is sent there, what is shown.

Never exits because something far away went wrong: Jupyter would start it again at once,
six times, and with passwords that locks accounts. What went wrong is told in the cell.
"""

from __future__ import annotations

import os
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import NoSuchSession, RemoteLacks, RemoterError
from remoter_kernel.front.configuration import kernelspec
from remoter_kernel.front.configuration.remotes import (
    Remote,
    find_remote,
    last_kernel_info,
    remember_kernel_info,
)
from remoter_kernel.front.jupyter import answers, handlers
from remoter_kernel.front.jupyter.arrival import Arrival
from remoter_kernel.front.jupyter.asker import Asker
from remoter_kernel.front.jupyter.ending import Ending
from remoter_kernel.front.jupyter.failures import DeadKernel, FailedLink
from remoter_kernel.front.jupyter.first_words import StartupCode
from remoter_kernel.front.jupyter.mouth import STATES, Mouth
from remoter_kernel.front.jupyter.news import News
from remoter_kernel.front.jupyter.presenters import EarlyBusy, NoRemoteLine, WaitingNotices
from remoter_kernel.front.jupyter.requests import (
    at_work,
    cells_there,
    find_there,
    note_what_has_left,
)
from remoter_kernel.front.jupyter.sockets import Sockets, digest, read_connection
from remoter_kernel.front.session.awakening import Awakening
from remoter_kernel.front.session.dialer import HERE, SessionDialer
from remoter_kernel.front.session.link import Link, State
from remoter_kernel.front.session.pacer import Pacer
from remoter_kernel.front.this_side.carrying import Carrier
from remoter_kernel.front.this_side.cells import CellsHere
from remoter_kernel.front.this_side.permission import Permission
from remoter_kernel.front.this_side.turns import Turns
from remoter_kernel.front.verbs.completer import Completer
from remoter_kernel.front.verbs.help import HELP
from remoter_kernel.front.verbs.magic import Surroundings, Verbs
from remoter_kernel.wire.frames import Bytes, Channel, from_json
from remoter_kernel.wire.messages import (
    CONTENT,
    HEADER,
    PARENT,
    TOPIC,
    execution_state,
    header_of,
)
from remoter_kernel.wire.reactor import Reactor
from remoter_kernel.wire.requests import Request, Requests, has_idle

if TYPE_CHECKING:
    from collections.abc import Sequence


class Kernel:
    """The front: Jupyter's sockets on one side, the link on the other."""

    def __init__(
        self,
        connection: dict[str, Any],
        remote_name: str | None,
        arguments: tuple[str, ...] = (),
        session: str = "",
    ) -> None:
        """Remember; `run` begins. A broken configuration is told in the first cell.

        `session`: the id of one that is there, which outlives this front.
        """
        self.reactor = Reactor()
        self.reactor.on_bug = traceback.print_exception
        self.sockets = Sockets(self.reactor, connection)
        self.dialer = SessionDialer(partial(find_remote, remote_name))
        self.link = Link(self.reactor, self.dialer)
        self._name = remote_name
        kernel_id = digest(str(connection.get("key", "")))
        self.dialer.wish = replace(
            self.dialer.wish, kernel_id=kernel_id, arguments=arguments, session=session
        )
        self._requests = Requests()
        self._mouth = Mouth(self.sockets, kernel_id, self._requests)
        found = self._find()
        self._kernel = handlers.KernelThere(last_kernel_info(found), kernelspec.language_of(found))
        self._asker = Asker(self.reactor, self._mouth, partial(at_work, self._requests))
        self._ending = Ending(self.reactor, self.link, self.dialer, self._find)
        self._arrival = Arrival(self.reactor, self.link, self.dialer, lambda: self._find().name)
        self._context = handlers.Context(
            reactor=self.reactor,
            requests=self._requests,
            mouth=self._mouth,
            link=self.link,
            dialer=self.dialer,
            kernel=self._kernel,
            asker=self._asker,
            ending=self._ending,
            introduction=self._arrival.introduction,
            startup=StartupCode(self._requests, self._mouth, self.link),
            dead=DeadKernel(self.reactor, self._mouth, partial(self._ending.leave, "stop")),
        )
        self._failed = FailedLink(
            self.link, self._requests, self._mouth, self._asker, self._context.startup
        )
        self._make_ready_for_this_side()
        self._present()

    def _make_ready_for_this_side(self) -> None:
        """Set up what answers cells that ask something of this machine."""
        send_cell = partial(handlers.send_cell, self._context)
        self._turns = Turns(self._requests, self._may_begin, send_cell, self._mouth.abort)
        permission = Permission(self._asker, lambda: self._find().local, Path.cwd())
        around = Surroundings(
            self.reactor,
            self.link,
            self.dialer,
            self._mouth.publish,
            self._describe_requests,
            self._turns,
            permission,
            self._ending,
        )
        self._verbs = Verbs(around)
        self._completer = Completer(self.reactor, self.dialer, HELP, self._mouth.reply)
        self._here = CellsHere(self.reactor, self._mouth, permission, self.link, self._turns)
        self._here.carrier = Carrier(
            self.reactor,
            self._mouth,
            self._asker,
            permission,
            self._here.own_code,
            self.link,
            self.dialer,
            language=lambda: answers.language_of(self._kernel.info, self._kernel.language),
            count=self._verbs.count,
        )
        self._context.turns, self._context.verbs = self._turns, self._verbs
        self._context.here, self._context.completer = self._here, self._completer

    def _present(self) -> None:
        """Let those look at the requests who show a person how they are."""
        publish, requests = self._mouth.publish, self._requests
        self._news = News(publish, lambda: self._kernel.is_ready)
        self._no_remote = NoRemoteLine(publish, requests, lambda: self.dialer.is_here)
        self._notices = WaitingNotices(
            self.reactor, publish, requests, self.link, lambda: self._find().name
        )
        early = EarlyBusy(self.reactor, publish)
        observers = (early, self._no_remote, self._news, self._notices, self._verbs.timer)
        requests.observers += [each.on_move for each in (self._turns, *observers)]

    def run(self) -> None:
        """Serve until Jupyter says that it is enough."""
        self.dialer.questions = self._asker
        self._asker.remote_name = lambda: self.dialer.remote.name
        self.dialer.may_ask = self._asker.has_somebody
        self.sockets.on_request = self._take
        self.link.on_item = self._hear
        if os.environ.get("JPY_SESSION_NAME"):  # jupyter_server, which drops what is too much
            most = self._find().waiting_limit
            self.link.pacer = Pacer(self.reactor, time.monotonic, self._hear, self.link.flush, most)
        self.link.on_change = self._note_change
        self.sockets.bind()
        self._ending.watch()
        Awakening(self.reactor, self.link.look_again).start()
        self._mouth.publish("status", {"execution_state": "starting"})
        self._arrival.begin()
        self.link.wake()
        self.reactor.run()
        self._turns.interrupt()
        self._arrival.end(is_dismissed=not self._ending.has_begun)
        self._here.close()
        self.sockets.close()
        self.dialer.close()

    def _find(self) -> Remote:
        """Return the remote as it is configured now; one that cannot be read has its name."""
        try:
            return find_remote(self._name) or HERE
        except RemoterError:
            return Remote(name=self._name or "default", host="")

    def _describe_requests(self) -> list[dict[str, Any]]:
        self._note_what_has_left()
        return self._requests.rows()

    def _note_what_has_left(self, why: str = "") -> None:
        has_left = lambda each: self.link.has_left(each.channel, each.number)  # noqa: E731 - one use
        note_what_has_left(self._requests, has_left, why)

    def _may_begin(self) -> bool:
        """Is it known whose session is heard from here, or will it not be soon?"""
        return self._kernel.is_ready or self.link.state in {State.FAILED, State.WAITING}

    # From Jupyter ----------------------------------------------------------------------

    def _take(self, channel: Channel, identities: list[bytes], parts: list[Bytes]) -> None:
        """Take one message of a client."""
        request = Request(channel, parts, header_of(parts[HEADER]), identities=identities)
        handlers.handle(self._context, request)

    # From the link ---------------------------------------------------------------------

    def _hear(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Take one item of the evaluator."""
        if channel in {Channel.IOPUB, Channel.SHELL} and self._here.take_own(parts):
            return
        if channel is Channel.IOPUB:
            self._hear_published(parts)
        elif channel is Channel.NOTE:
            self._hear_note(from_json(parts[TOPIC]))
        else:
            self._hear_reply(channel, parts)

    def _hear_published(self, parts: Sequence[Bytes]) -> None:
        """Pass an output on to all; a state that clients have heard is not said again."""
        state = execution_state(parts)
        # VS Code would open its sockets anew, and never say so to itself: no cell would be
        # sent any more.
        if state == "restarting" and self._arrival.is_for_vscode:
            return
        self._verbs.notice(parts)
        is_new = True
        if state in STATES:
            asker = str(header_of(parts[PARENT]).get("msg_id", ""))
            is_new = self._requests.on_state(asker, state).is_new
        if is_new:
            self.sockets.publish([bytes(parts[TOPIC]), *parts[HEADER:]])
        self._here.notice(parts)

    def _hear_reply(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Pass a reply, or a question, on to whoever has asked."""
        name = str(header_of(parts[PARENT]).get("msg_id", ""))
        request = find_there(self._requests, name)
        if request is None:
            return
        send = partial(self.sockets.reply, channel, request.identities)
        if channel is Channel.STDIN:
            self._asker.relay(request, list(parts), send, partial(self.link.say, channel))
            return
        self._requests.on_reply(name, has_idle=has_idle(parts))
        if request.is_cell:
            self._verbs.last_reply = bytes(parts[CONTENT])
        send(self._here.amend(request, self._completer.amend(request, parts)))
        if channel is Channel.SHELL:
            self._here.notice_reply(request, parts)

    def _hear_note(self, words: dict[str, Any]) -> None:
        event = str(words.get("event"))
        if event in {"ready", "failed", "died"}:  # what a kernel before has asked is void
            self._asker.forget(is_here=False)
        if event == "ready":
            self._be_ready(words)
        elif event == "failed":
            self._give_up(str(words.get("why", "")))
        elif event == "died" and not self._kernel.is_asked:
            self._context.dead.begin(str(words.get("why", "")))

    def _be_ready(self, words: dict[str, Any]) -> None:
        """The far kernel is there: from now on, what we say carries its session."""
        self._kernel.is_ready = True
        self._verbs.is_encrypted = words.get("encrypted", False)  # older evaluators have none
        self.sockets.voice.speak_as(str(words.get("session", "")), str(words.get("username", "")))
        self._news.tell(cells_there(self._requests))
        handlers.send_held(self._context)
        self._turns.look()
        info = words.get("kernel_info")
        if isinstance(info, dict) and info and info != self._kernel.info:
            self._kernel.info = info
            address = self.dialer.address
            if address and not address.is_joined:  # else it may be older than the configuration
                remember_kernel_info(self.dialer.remote, info)

    def _note_change(self, state: State) -> None:
        if state is State.WAITING:
            self._note_what_has_left("the link was lost meanwhile")
        self._no_remote.on_link_state()
        self._notices.on_link_state()
        if state is State.UP:
            self._note_up()
        elif state is State.FAILED and self.link.error:
            is_over = self._kernel.trouble is not None
            error = self.link.error.at(self._find().name)
            self._failed.answer(error, is_over=is_over, is_asked=self._kernel.is_asked)
            self._here.lose(error, is_over=is_over or isinstance(error, NoSuchSession))
        self._turns.look()

    def _note_up(self) -> None:
        self._kernel.trouble = None
        welcome, address = self.link.welcome, self.dialer.address
        if self.link.pacer and address:
            self.link.pacer.waiting.session = address.session
        if welcome.get("keep"):
            self._ending.keep()
        if address:
            is_busy = welcome.get("execution_state") == "busy"
            self._news.hear(address, self.dialer.claim.notebook, is_busy=is_busy)
        if welcome.get("state") == "failed":
            self._give_up(str(welcome.get("why", "")))
        elif welcome.get("kernel_info"):
            self._be_ready(welcome)

    def _give_up(self, why: str) -> None:
        """There is a session, but its kernel did not start."""
        remote = self.dialer.remote.name
        trouble = RemoteLacks(why, "Mend that, then run the cell again.", remote=remote)
        self._kernel.trouble = trouble
        self.link.fail(trouble)


def serve(
    connection_file: Path,
    remote_name: str | None,
    arguments: tuple[str, ...] = (),
    session: str = "",
) -> None:
    """Be the kernel of a connection file, for one remote or the default one."""
    connection = read_connection(connection_file)
    Kernel(connection, remote_name, arguments, session).run()
