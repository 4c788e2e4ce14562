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

from remoter_kernel.front.configuration.remote_lookup import RemoteLookup
from remoter_kernel.front.configuration.remotes import Remote, find_remote
from remoter_kernel.front.jupyter import answers, handlers
from remoter_kernel.front.jupyter.arrival import Arrival
from remoter_kernel.front.jupyter.asker import Asker
from remoter_kernel.front.jupyter.ending import ShutdownPolicy
from remoter_kernel.front.jupyter.failures import DeadKernel
from remoter_kernel.front.jupyter.first_words import StartupCode
from remoter_kernel.front.jupyter.from_session import FromSession
from remoter_kernel.front.jupyter.mouth import Mouth
from remoter_kernel.front.jupyter.news import News
from remoter_kernel.front.jupyter.presenters import EarlyBusy, NoRemoteLine, WaitingNotices
from remoter_kernel.front.jupyter.refused import RejectedMessageReporter
from remoter_kernel.front.jupyter.requests import at_work
from remoter_kernel.front.jupyter.sockets import digest
from remoter_kernel.front.session.awakening import Awakening
from remoter_kernel.front.session.dialer import HERE, SessionDialer
from remoter_kernel.front.session.link import Link, LinkState
from remoter_kernel.front.session.pacer import Pacer
from remoter_kernel.front.this_side.carrying import ObjectTransferContext
from remoter_kernel.front.this_side.cells import CellsHere
from remoter_kernel.front.this_side.permission import Permission
from remoter_kernel.front.this_side.turns import Turns
from remoter_kernel.front.verbs.completer import Completer
from remoter_kernel.front.verbs.help import HELP
from remoter_kernel.front.verbs.magic import MagicContext, Magics
from remoter_kernel.wire.messages import HEADER, header_of
from remoter_kernel.wire.requests import Request, Requests

if TYPE_CHECKING:
    from remoter_kernel.front.jupyter.sockets import Sockets
    from remoter_kernel.wire.frames import Bytes, Channel


class KernelProxy:
    """The front: Jupyter's sockets on one side, the link on the other."""

    def __init__(
        self,
        sockets: Sockets,
        remote_name: str | None,
        arguments: tuple[str, ...] = (),
        session: str = "",
    ) -> None:
        """`run` begins. A broken configuration is told in the first cell.

        `sockets` are bound: what is said meanwhile waits there. `session`: the id of one that is
        there, which outlives this front.
        """
        self.reactor = sockets.reactor
        self.reactor.on_bug = traceback.print_exception
        self.sockets = sockets
        self.dialer = SessionDialer(partial(find_remote, remote_name))
        self.link = Link(self.reactor, self.dialer, self.sockets.has_room)
        self._beforehand = RemoteLookup(remote_name, HERE)
        kernel_id = digest(str(sockets.connection.get("key", "")))
        self.dialer.wish = replace(
            self.dialer.wish, kernel_id=kernel_id, arguments=arguments, session=session
        )
        self._requests = Requests()
        self._mouth = Mouth(self.sockets, kernel_id, self._requests)
        self._kernel = handlers.KernelThere(*self._beforehand.known())
        self._asker = Asker(self.reactor, self._mouth, partial(at_work, self._requests))
        self._ending = ShutdownPolicy(self.reactor, self.link, self.dialer, self._find)
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
            remote=self._find,
        )
        self._make_ready_for_this_side()
        self._present()

    def _make_ready_for_this_side(self) -> None:
        """Set up what answers cells that ask something of this machine."""
        send_cell = partial(handlers.send_cell, self._context)
        self._turns = Turns(self._requests, self._may_begin, send_cell, self._mouth.abort)
        permission = Permission(self._asker, lambda: self._find().local, Path.cwd())
        around = MagicContext(
            self.reactor,
            self.link,
            self.dialer,
            self._mouth.publish,
            self._describe_requests,
            self._turns,
            permission,
            self._ending,
        )
        self._verbs = Magics(around)
        self._completer = Completer(self.reactor, self.dialer, HELP, self._mouth.reply)
        self._here = CellsHere(self.reactor, self._mouth, permission, self.link, self._turns)
        self._here.carrier = ObjectTransferContext(
            self.reactor,
            self._mouth,
            self._asker,
            permission,
            self._here.own_code,
            self.link,
            self.dialer,
            language=lambda: answers.kernel_language(self._kernel.info, self._kernel.language),
            count=self._verbs.count,
        )
        self._context.turns, self._context.verbs = self._turns, self._verbs
        self._context.here, self._context.completer = self._here, self._completer

    def _present(self) -> None:
        """Let those look at the requests who show a person how they are."""
        publish, requests = self._mouth.publish, self._requests
        news = News(publish, lambda: self._kernel.is_ready)
        no_remote = NoRemoteLine(publish, requests, lambda: self.dialer.is_here)
        name = lambda: self._find().name  # noqa: E731 - one use
        notices = WaitingNotices(self.reactor, publish, requests, self.link, name)
        tell_wait = lambda sentence: self.reactor.call(partial(notices.tell, sentence))  # noqa: E731
        self.dialer.on_wait = tell_wait  # in the dialler's thread
        observers = (EarlyBusy(self.reactor, publish), no_remote, news, notices, self._verbs.timer)
        requests.observers += [each.on_move for each in (self._turns, *observers)]
        self._session = FromSession(
            self._context, self.sockets, self._arrival, news, presenters=(no_remote, notices)
        )

    def run(self) -> None:
        """Serve until Jupyter says that it is enough."""
        self._asker.serve(self.dialer)
        self.sockets.on_request = self._take
        self.link.on_item = self._session.on_message
        self.link.on_refused = RejectedMessageReporter(self._mouth, self._requests).tell
        if os.environ.get("JPY_SESSION_NAME"):  # jupyter_server, which drops what is too much
            most = self._find().waiting_limit
            self.link.pacer = Pacer(
                self.reactor, time.monotonic, self._session.on_message, self.link.flush, most
            )
        self.link.on_change = self._session.on_link_state
        self._ending.watch()
        Awakening(self.reactor, self.link.look_again).start()
        self.sockets.welcome()
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

    def _describe_requests(self) -> list[dict[str, Any]]:
        handlers.note_what_has_left(self._context)
        return self._requests.rows()

    def _may_begin(self) -> bool:
        """Is it known whose session is heard from here, or will it not be soon?"""
        return self._kernel.is_ready or self.link.state in {LinkState.FAILED, LinkState.WAITING}

    # From Jupyter ----------------------------------------------------------------------

    def _take(self, channel: Channel, identities: list[bytes], parts: list[Bytes]) -> None:
        """Take one message of a client."""
        request = Request(channel, parts, header_of(parts[HEADER]), identities=identities)
        handlers.handle(self._context, request)


def serve(
    sockets: Sockets,
    remote_name: str | None,
    arguments: tuple[str, ...] = (),
    session: str = "",
) -> None:
    """Be the kernel of these bound sockets, for one remote or the default one."""
    KernelProxy(sockets, remote_name, arguments, session).run()
