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

from remoter_kernel.local.config.kernelspec import RemoteLookup
from remoter_kernel.local.config.remotes import Remote, find_remote
from remoter_kernel.local.proxy import canned_replies, handlers
from remoter_kernel.local.proxy.client_startup_code import ClientStartupCode
from remoter_kernel.local.proxy.failures import DeadKernel, UndeliverableMessageNotice
from remoter_kernel.local.proxy.here.cell_queue import CellQueue
from remoter_kernel.local.proxy.here.local_cells import LocalCells
from remoter_kernel.local.proxy.here.permission import Permission
from remoter_kernel.local.proxy.here.push_pull import ObjectTransferContext
from remoter_kernel.local.proxy.identity import ProxyIdentity
from remoter_kernel.local.proxy.magics.completer import Completer
from remoter_kernel.local.proxy.magics.help import HELP
from remoter_kernel.local.proxy.magics.magic import MagicContext, Magics
from remoter_kernel.local.proxy.presenters import (
    EarlyBusy,
    FirstCellNotice,
    RunsLocallyNotice,
    WaitingNotices,
)
from remoter_kernel.local.proxy.prompter import StdinPrompter
from remoter_kernel.local.proxy.replies import ReplySender
from remoter_kernel.local.proxy.request_queries import running_cells
from remoter_kernel.local.proxy.session_messages import SessionMessages
from remoter_kernel.local.proxy.shutdown import ShutdownPolicy
from remoter_kernel.local.proxy.sockets import key_fingerprint
from remoter_kernel.local.session.dialer import THIS_MACHINE, SessionDialer
from remoter_kernel.local.session.iopub_pacer import IopubPacer
from remoter_kernel.local.session.link import Link, LinkState
from remoter_kernel.local.session.machine import SuspendDetector
from remoter_kernel.protocol.messages import HEADER, header_of
from remoter_kernel.protocol.requests import ENDS, OUTGOING, Request, Requests, Stage

if TYPE_CHECKING:
    from remoter_kernel.local.proxy.sockets import Sockets
    from remoter_kernel.protocol.frames import Bytes, Channel


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
        self._beforehand = RemoteLookup(remote_name, THIS_MACHINE)
        kernel_id = key_fingerprint(str(sockets.connection.get("key", "")))
        self.dialer.session_request = replace(
            self.dialer.session_request, kernel_id=kernel_id, arguments=arguments, session=session
        )
        self._requests = Requests()
        self._replies = ReplySender(self.sockets, kernel_id, self._requests)
        self._remote_kernel = handlers.RemoteKernelFacts(*self._beforehand.recall())
        self._prompter = StdinPrompter(
            self.reactor, self._replies, partial(running_cells, self._requests)
        )
        self._shutdown = ShutdownPolicy(self.reactor, self.link, self.dialer, self._find_remote)
        self._identity = ProxyIdentity(
            self.reactor, self.link, self.dialer, lambda: self._find_remote().name
        )
        self._context = handlers.ProxyContext(
            reactor=self.reactor,
            requests=self._requests,
            replies=self._replies,
            link=self.link,
            dialer=self.dialer,
            kernel=self._remote_kernel,
            prompter=self._prompter,
            shutdown=self._shutdown,
            notebook_detector=self._identity.notebook_detector,
            startup_code=ClientStartupCode(self._requests, self._replies, self.link),
            dead_kernel=DeadKernel(
                self.reactor, self._replies, partial(self._shutdown.exit, "stop")
            ),
            find_remote=self._find_remote,
        )
        self._wire_local_cells()
        self._add_presenters()

    def _wire_local_cells(self) -> None:
        """Set up what answers cells that ask something of this machine."""
        send_cell = partial(handlers.send_cell, self._context)
        self._cell_queue = CellQueue(
            self._requests, self._may_start_local_cell, send_cell, self._replies.reply_aborted
        )
        permission = Permission(self._prompter, lambda: self._find_remote().local, Path.cwd())
        context = MagicContext(
            self.reactor,
            self.link,
            self.dialer,
            self._replies.publish,
            self._describe_requests,
            self._cell_queue,
            permission,
            self._shutdown,
        )
        self._magics = Magics(context)
        self._completer = Completer(self.reactor, self.dialer, HELP, self._replies.reply)
        self._local_cells = LocalCells(
            self.reactor, self._replies, permission, self.link, self._cell_queue
        )
        self._local_cells.object_transfer = ObjectTransferContext(
            self.reactor,
            self._replies,
            self._prompter,
            permission,
            self._local_cells.internal_exec,
            self.link,
            self.dialer,
            language=lambda: canned_replies.kernel_language(
                self._remote_kernel.info, self._remote_kernel.language
            ),
            count=self._magics.execution_count,
        )
        self._context.cell_queue, self._context.magics = self._cell_queue, self._magics
        self._context.local_cells, self._context.completer = self._local_cells, self._completer

    def _add_presenters(self) -> None:
        """Let those look at the requests who show a person how they are."""
        publish, requests = self._replies.publish, self._requests
        news = FirstCellNotice(publish, lambda: self._remote_kernel.is_ready)
        no_remote = RunsLocallyNotice(publish, requests, lambda: self.dialer.is_this_machine)
        name = lambda: self._find_remote().name  # noqa: E731 - one use
        notices = WaitingNotices(self.reactor, publish, requests, self.link, name)
        call = self.reactor.call_soon_threadsafe
        tell_wait = lambda sentence: call(partial(notices.show_slow_host, sentence))  # noqa: E731
        self.dialer.on_slow_host = tell_wait  # in the dialler's thread
        requests.observe(self._cell_queue.on_move, Stage.FAILED, Stage.CANCELLED)
        requests.observe(EarlyBusy(self.reactor, publish).on_move, *OUTGOING, *ENDS)
        for presenter in (no_remote, news, notices):
            requests.observe(presenter.on_move, Stage.QUEUED)
        requests.observe(self._magics.timer.on_move, *OUTGOING, *ENDS)
        self._session_messages = SessionMessages(
            self._context, self.sockets, self._identity, news, presenters=(no_remote, notices)
        )

    def run(self) -> None:
        """Serve until Jupyter says that it is enough."""
        self._prompter.attach(self.dialer)
        self.sockets.on_request = self._on_client_message
        self.link.on_item = self._session_messages.on_message
        self.link.on_rejected = UndeliverableMessageNotice(self._replies, self._requests).report
        if os.environ.get("JPY_SESSION_NAME"):  # jupyter_server, which drops what is too much
            most = self._find_remote().waiting_limit
            self.link.pacer = IopubPacer(
                self.reactor,
                time.monotonic,
                self._session_messages.on_message,
                self.link.flush,
                most,
            )
        self.link.on_state = self._session_messages.on_link_state
        self._shutdown.start()
        SuspendDetector(self.reactor, self.link.probe_now).start()
        self.sockets.welcome_subscribers()
        self._replies.publish("status", {"execution_state": "starting"})
        self._identity.start()
        self.link.connect()
        self.reactor.run()
        self._cell_queue.interrupt()
        self._identity.close(is_without_command=not self._shutdown.is_exiting)
        self._local_cells.close()
        self.sockets.close()
        self.dialer.close()

    def _find_remote(self) -> Remote:
        """Return the remote as it is configured now; one that cannot be read has its name."""
        return self._beforehand.find()

    def _describe_requests(self) -> list[dict[str, Any]]:
        handlers.mark_sent(self._context)
        return self._requests.describe()

    def _may_start_local_cell(self) -> bool:
        """Is it known whose session is heard from here, or will it not be soon?"""
        return self._remote_kernel.is_ready or self.link.state in {
            LinkState.FAILED,
            LinkState.WAITING,
        }

    # From Jupyter ----------------------------------------------------------------------

    def _on_client_message(
        self, channel: Channel, identities: list[bytes], parts: list[Bytes]
    ) -> None:
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
