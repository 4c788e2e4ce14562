"""The kernel that Jupyter sees: wires together who answers here, what is sent there, what is shown.

It never exits because something remote went wrong: Jupyter would start it again at once, six times,
and with passwords that locks accounts. What went wrong is shown in the cell.
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
from remoter_kernel.local.config.remotes import find_remote
from remoter_kernel.local.proxy import handlers
from remoter_kernel.local.proxy.client_startup_code import ClientStartupCode
from remoter_kernel.local.proxy.failures import DeadKernel, UndeliverableMessageNotice
from remoter_kernel.local.proxy.here.cell_queue import CellQueue
from remoter_kernel.local.proxy.here.local_cell import InternalExec, LocalCellContext
from remoter_kernel.local.proxy.here.local_cells import LocalCells
from remoter_kernel.local.proxy.here.local_kernel import LocalKernel
from remoter_kernel.local.proxy.here.permission import Permission
from remoter_kernel.local.proxy.identity import ProxyIdentity
from remoter_kernel.local.proxy.magics.completer import Completer
from remoter_kernel.local.proxy.magics.magic import Magics
from remoter_kernel.local.proxy.presenters import (
    NO_REMOTE,
    EarlyBusy,
    FirstCellNotice,
    SessionBanner,
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
    """Jupyter's sockets on one side, the link on the other."""

    def __init__(
        self,
        sockets: Sockets,
        remote_name: str | None,
        arguments: tuple[str, ...] = (),
        session: str = "",
    ) -> None:
        """`run` begins. A broken configuration is shown in the first cell.

        `sockets` are bound: what clients send meanwhile waits there. `session`: the id of one that
        is there, and stays when this process ends.
        """
        self.sockets = sockets
        self.reactor = sockets.reactor
        self.reactor.on_bug = traceback.print_exception  # into Jupyter's log, and go on
        self.dialer = SessionDialer(partial(find_remote, remote_name))
        self.dialer.session_request = replace(
            self.dialer.session_request,
            kernel_id=key_fingerprint(str(sockets.connection.get("key", ""))),
            arguments=arguments,
            session=session,
        )
        # A link that hands on no more than clients take leaves the rest in the session's journal.
        self.link = Link(self.reactor, self.dialer, sockets.has_room)
        # A remote that cannot be read has its name all the same.
        self._lookup = RemoteLookup(remote_name, THIS_MACHINE)
        self._requests = Requests()
        self._identity = ProxyIdentity(self.reactor, self.link, self.dialer, self._remote_name)
        self._context = self._make_context()
        self._session_messages = self._add_presenters()

    def _make_context(self) -> handlers.ProxyContext:
        """Make the parts that handlers need."""
        reactor, link, dialer, requests = self.reactor, self.link, self.dialer, self._requests
        find = self._lookup.find
        replies = ReplySender(self.sockets, dialer.session_request.kernel_id, requests)
        kernel = handlers.RemoteKernelFacts(*self._lookup.recall())
        prompter = StdinPrompter(reactor, replies, partial(running_cells, requests))
        shutdown = ShutdownPolicy(reactor, link, dialer, find)
        permission = Permission(prompter, lambda: find().local, Path.cwd())
        queue = CellQueue(
            requests, self._may_start_local_cell, self._send_cell, replies.reply_aborted
        )
        magics = Magics(
            reactor, link, dialer, replies, self._describe_requests, queue, permission, shutdown
        )
        internal_exec = InternalExec(link, LocalKernel(reactor))
        # In the order of the fields of `LocalCellContext`.
        common = reactor, replies, prompter, permission, internal_exec, link, dialer
        local = LocalCellContext(*common, lambda: kernel.language, magics.execution_count)
        return handlers.ProxyContext(
            *(reactor, requests, replies, link, dialer, kernel, prompter, shutdown),
            notebook_detector=self._identity.notebook_detector,
            startup_code=ClientStartupCode(requests, replies, link),
            dead_kernel=DeadKernel(reactor, replies, partial(shutdown.exit, "stop")),
            completer=Completer(reactor, dialer, replies),
            local_cells=LocalCells(local, queue),
            magics=magics,
            cell_queue=queue,
            find_remote=find,
        )

    def _add_presenters(self) -> SessionMessages:
        """Let those observe the requests and the link who show a person how they are."""
        context, dialer, requests = self._context, self.dialer, self._requests
        replies, call = context.replies, self.reactor.call_soon_threadsafe
        banner = SessionBanner(replies, requests, lambda: context.kernel.is_ready)
        no_remote = FirstCellNotice(replies, requests, lambda: dialer.is_this_machine, NO_REMOTE)
        notices = WaitingNotices(self.reactor, replies, requests, self.link, self._remote_name)
        # The dialler calls from its own thread.
        dialer.on_slow_host = lambda sentence: call(partial(notices.show_slow_host, sentence))
        requests.observe(context.cell_queue.on_move, Stage.FAILED, Stage.CANCELLED)
        requests.observe(EarlyBusy(self.reactor, replies).on_move, *OUTGOING, *ENDS)
        for observer in (no_remote, banner, notices):
            requests.observe(observer.on_move, Stage.QUEUED)
        requests.observe(context.magics.timer.on_move, *OUTGOING, *ENDS)
        presenters = (no_remote, notices)
        return SessionMessages(context, self.sockets, self._identity, banner, presenters)

    def run(self) -> None:
        """Serve until Jupyter says that it is enough."""
        context, link = self._context, self.link
        context.prompter.attach(self.dialer)
        self.sockets.on_request = self._on_client_message
        link.on_item = on_message = self._session_messages.on_message
        link.on_rejected = UndeliverableMessageNotice(context.replies, self._requests).report
        if os.environ.get("JPY_SESSION_NAME"):  # jupyter_server, which drops what is too much
            limit = self._lookup.find().waiting_limit
            link.pacer = IopubPacer(self.reactor, time.monotonic, on_message, link.flush, limit)
        link.on_state = self._session_messages.on_link_state
        context.shutdown.start()
        SuspendDetector(self.reactor, link.probe_now).start()
        # They have subscribed while this process was starting.
        self.sockets.welcome_subscribers()
        context.replies.publish("status", {"execution_state": "starting"})
        self._identity.start()
        link.connect()
        self.reactor.run()
        # A local cell would keep its thread, and this process, alive.
        context.cell_queue.interrupt()
        self._identity.close(is_without_command=not context.shutdown.is_exiting)
        context.local_cells.close()
        self.sockets.close()
        self.dialer.close()

    def _remote_name(self) -> str:
        return self._lookup.find().name

    def _describe_requests(self) -> list[dict[str, Any]]:
        handlers.mark_sent(self._context)
        return self._requests.describe()

    def _may_start_local_cell(self) -> bool:
        # Its messages carry the remote kernel's session: that is known, or will not be soon.
        is_out_of_reach = self.link.state in {LinkState.FAILED, LinkState.WAITING}
        return self._context.kernel.is_ready or is_out_of_reach

    def _send_cell(self, cell: Request) -> None:
        handlers.send_cell(self._context, cell)

    def _on_client_message(
        self, channel: Channel, identities: list[bytes], parts: list[Bytes]
    ) -> None:
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
