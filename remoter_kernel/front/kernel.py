"""The kernel that Jupyter sees: what is answered here, passed on, held back.

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
from remoter_kernel.front.configuration.beforehand import Beforehand
from remoter_kernel.front.configuration.remotes import (
    Remote,
    find_remote,
    remember_kernel_info,
)
from remoter_kernel.front.jupyter import answers
from remoter_kernel.front.jupyter.arrival import Arrival
from remoter_kernel.front.jupyter.asker import Asker
from remoter_kernel.front.jupyter.ending import Ending
from remoter_kernel.front.jupyter.first_signs import FirstSigns
from remoter_kernel.front.jupyter.first_words import FirstWords
from remoter_kernel.front.jupyter.giving_up import GivingUp
from remoter_kernel.front.jupyter.impatient import Impatient
from remoter_kernel.front.jupyter.last_words import LastWords
from remoter_kernel.front.jupyter.mouth import Mouth, Route
from remoter_kernel.front.jupyter.news import News
from remoter_kernel.front.jupyter.notices import NoRemote, Notices
from remoter_kernel.front.jupyter.refused import Refused
from remoter_kernel.front.jupyter.sockets import digest
from remoter_kernel.front.questions import NeedsPerson
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
from remoter_kernel.wire.frames import Bytes, Channel, from_json, to_json
from remoter_kernel.wire.messages import (
    CONTENT,
    HEADER,
    PARENT,
    TOPIC,
    content_of,
    header_of,
    says_restarting,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.front.jupyter.sockets import Sockets


class Kernel:
    """The front: Jupyter's sockets on one side, the link on the other."""

    def __init__(
        self,
        sockets: Sockets,
        remote_name: str | None,
        arguments: tuple[str, ...] = (),
        session: str = "",
    ) -> None:
        """Remember; `run` begins. A broken configuration is told in the first cell.

        `sockets` are bound: what is said meanwhile waits there. `session`: the id of one that is
        there, which outlives this front.
        """
        self.reactor = sockets.reactor
        self.reactor.on_bug = traceback.print_exception
        self.sockets = sockets
        self.dialer = SessionDialer(partial(find_remote, remote_name))
        self.link = Link(self.reactor, self.dialer, self.sockets.has_room)
        self._beforehand = Beforehand(remote_name, HERE)
        kernel_id = digest(str(sockets.connection.get("key", "")))
        self.dialer.wish = replace(
            self.dialer.wish, kernel_id=kernel_id, arguments=arguments, session=session
        )
        self.trouble: RemoterError | None = None  # why there is no kernel there
        self._mouth = Mouth(self.sockets, kernel_id)
        self._is_ready = False  # is the far kernel there, as far as we know?
        self._info, self._language = self._beforehand.known()
        self._routes: dict[str, Route] = {}
        self._impatient = Impatient(self.reactor, self._mouth)
        self._has_asker = False  # has any client allowed questions?
        self._ending = Ending(self.reactor, self.link, self.dialer, self._find)
        self._news = News(self._mouth.publish)
        self._first_signs = FirstSigns(self.reactor, self._mouth.publish, self._is_over)
        self._notices = Notices(self.reactor, self._mouth.publish, lambda: self._find().name)
        self._no_remote = NoRemote(self._mouth.publish)
        self._turns = Turns(self._cells, self._may_begin, self._run_there, self._mouth.abort)
        self._mouth.at_work = lambda: [*self._turns.running, *self._cells()]
        self._asker = Asker(
            self.reactor, self._mouth, lambda: [*self._turns.running, *self._routes.values()]
        )
        self._first_words = FirstWords(self._mouth)
        self._giving_up = GivingUp(
            self.link, self._mouth, self._asker, self._first_words, self._routes
        )
        self._arrival = Arrival(self.reactor, self.link, self.dialer, lambda: self._find().name)
        self._last_words = LastWords(self.reactor, self._mouth, partial(self._ending.leave, "stop"))
        self._make_ready_for_this_side()

    def _make_ready_for_this_side(self) -> None:
        """Set up what answers cells that ask something of this machine."""
        permission = Permission(self._asker, lambda: self._find().local, Path.cwd())
        around = Surroundings(
            self.reactor,
            self.link,
            self.dialer,
            self._mouth.publish,
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
            language=lambda: answers.language_of(self._info, self._language),
            count=self._verbs.count,
        )

    def run(self) -> None:
        """Serve until Jupyter says that it is enough."""
        self._asker.serve(self.dialer)
        self.sockets.on_request = self._take
        self.link.on_item = self._hear
        self.link.on_refused = Refused(self._mouth, self._routes, self._giving_up, self._turns).tell
        if os.environ.get("JPY_SESSION_NAME"):  # jupyter_server, which drops what is too much
            most = self._find().waiting_limit
            self.link.pacer = Pacer(self.reactor, time.monotonic, self._hear, self.link.flush, most)
        self.link.on_change = self._note_change
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
        return self._beforehand.find()

    # From Jupyter ----------------------------------------------------------------------

    def _take(self, channel: Channel, identities: list[bytes], parts: list[Bytes]) -> None:
        """Take one message of a client: answer it, pass it on, or hold it."""
        header = header_of(parts[HEADER])
        kind = str(header.get("msg_type", ""))
        route = Route(channel, identities, header, parts)
        if kind == "is_complete_request":
            self._first_signs.note_question(identities)
        if kind == "kernel_info_request" and not self._is_there:
            self._mouth.reply(route, answers.kernel_info(self._info, self._language))
        elif kind == "interrupt_request":
            self._interrupt(route)
        elif kind == "shutdown_request":
            self._shut_down(route)
        elif channel is Channel.STDIN:
            if not self._asker.hear(route):
                self.link.say(channel, parts)
        else:
            self._pass_on(kind, route)

    def _pass_on(self, kind: str, route: Route) -> None:
        if self._completer.take(route):
            return
        self._arrival.introduction.hear(route)
        is_early = self._waits_for_person or self._arrival.introduction.is_awaited
        if is_early and self._first_words.answer(route, is_kept=not self.link.has_met):
            return
        if kind == "execute_request":
            self._take_cell(route)
        elif self._here.take_other(kind, route):
            return
        elif self.link.state is State.FAILED or (self._asker.is_asking and kind in answers.EMPTY):
            self._impatient.answer_empty(route)
        elif kind in answers.IMPATIENT and not self._is_there:
            self._impatient.hold(route)
        else:
            self._say(route)

    def _take_cell(self, route: Route) -> None:
        """Take a cell: answer it here, or let it run on one side in its turn."""
        content = content_of(route.parts)
        self._has_asker |= bool(content.get("allow_stdin", True))
        self._first_signs.expect(route.identities, route.header)
        if not (
            self._last_words.refuse(route)
            or self._here.take_cell(route)
            or self._verbs.take(route, content, partial(self._mouth.finish, route))
            or self._turns.take_there(route)
        ):
            self._run_there(route)
        self._asker.note_cell(route, self._is_over)

    def _run_there(self, route: Route) -> None:
        if self.link.state in {State.FAILED, State.WAITING}:
            self._begin_anew(route)
        else:
            self._say(route)

    @property
    def _is_there(self) -> bool:
        """Would the far kernel answer, as far as we know?"""
        is_alive = self._is_ready and not self._last_words.have_begun
        return is_alive and self.link.state is State.UP

    @property
    def _waits_for_person(self) -> bool:
        """Is somebody being asked, or must a cell be run first in which to ask?"""
        is_needed = self.link.state is State.FAILED and isinstance(self.link.error, NeedsPerson)
        return is_needed or self._asker.is_asking

    def _say(self, route: Route) -> None:
        for first in self._first_words.take():
            self.link.say(Channel.SHELL, first)
        if self.dialer.is_here:
            self._no_remote.tell([route])
        if not self._giving_up.pass_on(route):
            return
        if self._is_ready:
            self._news.tell([route])
        self._notices.look(self.link, [route])

    def _interrupt(self, route: Route) -> None:
        """Interrupt the cell that runs, or that would run next."""
        self._mouth.reply(route, {"status": "ok"})
        is_ours = self._turns.interrupt()
        if self._asker.call_off(is_here=is_ours) or is_ours:
            return
        cells = [str(cell.header.get("msg_id", "")) for cell in self._cells()]
        if self.link.pacer:
            self.link.pacer.interrupt(*cells[:1])
        order = {"order": "interrupt", "cells": cells}
        self._ending.unless_it_follows(partial(self.link.say, Channel.ORDER, [to_json(order)]))

    def _may_begin(self) -> bool:
        """Is it known whose session is heard from here, or will it not be soon?"""
        return self._is_ready or self.link.state in {State.FAILED, State.WAITING}

    def _cells(self) -> list[Route]:
        """Return the cells without a reply; the first one runs, as far as is known here."""
        routes = self._routes.values()
        return [each for each in routes if each.header.get("msg_type") == "execute_request"]

    def _shut_down(self, route: Route) -> None:
        """End this process; the session ends, restarts or stays, as it is meant."""
        if self._ending.has_begun:
            return
        is_restart = bool(content_of(route.parts).get("restart"))
        content = {"status": "ok", "restart": is_restart}
        self._mouth.reply(route, content, is_quiet=True)
        self._mouth.publish("shutdown_reply", content, route.header)
        self._ending.leave("restart" if is_restart else "stop")

    def _is_over(self, name: str) -> bool:
        return name not in self._routes and not self._turns.has(name)

    # From the link ---------------------------------------------------------------------

    def _hear(self, channel: Channel, parts: Sequence[Bytes]) -> None:
        """Take one item of the evaluator."""
        if channel in {Channel.IOPUB, Channel.SHELL} and self._here.take_own(parts):
            return
        if channel is Channel.IOPUB:
            # VS Code would open its sockets anew, and never say so to itself: no cell would be
            # sent any more.
            if self._arrival.is_for_vscode and says_restarting(parts):
                return
            self._first_signs.hear(parts)
            self._verbs.notice(parts)
            self.sockets.publish([bytes(parts[TOPIC]), *parts[HEADER:]])
            self._here.notice(parts)
        elif channel is Channel.NOTE:
            self._hear_note(from_json(parts[TOPIC]))
        else:
            asker = str(header_of(parts[PARENT]).get("msg_id", ""))
            route = self._routes.get(asker)
            if route is None:
                return
            send = partial(self.sockets.reply, channel, route.identities)
            if channel is Channel.STDIN:
                self._asker.relay(route, list(parts), send, partial(self.link.say, channel))
                return
            del self._routes[asker]
            self._giving_up.ending = route
            if route.header.get("msg_type") == "execute_request":
                self._verbs.last_reply = bytes(parts[CONTENT])
            send(self._here.amend(route, self._completer.amend(route, parts)))
            if channel is Channel.SHELL:
                self._here.notice_reply(route, parts)

    def _hear_note(self, words: dict[str, Any]) -> None:
        event = str(words.get("event"))
        if event in {"ready", "failed", "died"}:  # what a kernel before has asked is void
            self._asker.forget(is_here=False)
        if event == "ready":
            self._be_ready(words)
        elif event == "failed":
            self._give_up(str(words.get("why", "")))
        elif event == "died" and not self._has_asker:
            self._last_words.begin(str(words.get("why", "")))

    def _be_ready(self, words: dict[str, Any]) -> None:
        """The far kernel is there: from now on, what we say carries its session."""
        self._is_ready = True
        self._verbs.is_encrypted = words.get("encrypted", False)  # older evaluators have none
        self.sockets.voice.speak_as(str(words.get("session", "")), str(words.get("username", "")))
        self._news.tell(self._routes.values())
        for route in self._impatient.take():
            self._say(route)
        self._turns.look()
        info = words.get("kernel_info")
        if isinstance(info, dict) and info and info != self._info:
            self._info = info
            address = self.dialer.address
            if address and not address.is_joined:  # else it may be older than the configuration
                remember_kernel_info(self.dialer.remote, info)

    def _note_change(self, state: State) -> None:
        if self.dialer.is_here:
            self._no_remote.tell(self._routes.values())
        self._notices.look(self.link, self._routes.values())
        if state is State.UP:
            self.trouble = None
            welcome = self.link.welcome
            if self.link.pacer and self.dialer.address:
                self.link.pacer.waiting.session = self.dialer.address.session
            if welcome.get("keep"):
                self._ending.keep()
            if self.dialer.address:
                is_busy = welcome.get("execution_state") == "busy"
                self._news.hear(self.dialer.address, self.dialer.claim.notebook, is_busy=is_busy)
            if welcome.get("state") == "failed":
                self._give_up(str(welcome.get("why", "")))
            elif welcome.get("kernel_info"):
                self._be_ready(welcome)
        elif state is State.FAILED and self.link.error:
            error, is_over = self.link.error.at(self._find().name), self.trouble is not None
            self._giving_up.answer(error, is_over=is_over, is_asked=self._has_asker)
            self._here.lose(error, is_over=is_over or isinstance(error, NoSuchSession))
        self._turns.look()

    def _give_up(self, why: str) -> None:
        """There is a session, but its kernel did not start."""
        remote = self.dialer.remote.name
        self.trouble = RemoteLacks(why, "Mend that, then run the cell again.", remote=remote)
        self.link.fail(self.trouble)

    def _begin_anew(self, route: Route) -> None:
        """Someone wants to compute: try now. A session without a kernel is left behind."""
        if self.trouble:
            self.trouble = None
            self.dialer.forget()
            self.link.start_over()
        self._say(route)  # first: what the login asks is asked in a cell that waits
        self.link.wake()


def serve(
    sockets: Sockets,
    remote_name: str | None,
    arguments: tuple[str, ...] = (),
    session: str = "",
) -> None:
    """Be the kernel of these bound sockets, for one remote or the default one."""
    Kernel(sockets, remote_name, arguments, session).run()
