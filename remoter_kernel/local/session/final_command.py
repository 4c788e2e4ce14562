"""The last order of a front: said, heard, and then it goes; left in writing if that takes long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoter_kernel.errors import NoSuchSession
from remoter_kernel.local.session import undelivered_commands
from remoter_kernel.local.session.link import LinkState
from remoter_kernel.protocol.frames import Channel, to_json

if TYPE_CHECKING:
    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.reactor import Reactor

EXIT_WITHIN = 4.0  # seconds that a shutdown may wait to be heard; Jupyter kills after 5
SAVE_AFTER = 0.3  # seconds


def send_and_exit(command: str, *, reactor: Reactor, link: Link, dialer: SessionDialer) -> None:
    """Say "restart" or "stop", and stop the reactor once it is heard."""
    remote, kernel_id = dialer.remote.name, dialer.session_request.kernel_id

    def write_down() -> None:
        session = dialer.session_info.session if dialer.session_info else ""
        undelivered_commands.save_command(remote, kernel_id, session, command)

    if not dialer.is_identified.is_set():  # nobody has said which session it is to be
        reactor.stop()
        return
    if link.state is LinkState.FAILED:  # and dials no more: there is nothing to wait for
        # A front before this one, with the same kernel, may have left a session there.
        if not isinstance(link.error, NoSuchSession):
            write_down()
        reactor.stop()
        return
    if link.state is LinkState.IDLE and not link.ever_connected:
        reactor.stop()
        return
    link.send(Channel.COMMAND, [to_json({"order": command})])

    def wait() -> None:
        if link.unacknowledged:
            reactor.call_later(0.01, wait)
        else:
            undelivered_commands.discard_commands(remote, kernel_id)
            reactor.stop()

    wait()
    reactor.call_later(SAVE_AFTER, write_down)
    reactor.call_later(EXIT_WITHIN, reactor.stop)
