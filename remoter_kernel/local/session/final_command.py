"""The last command of a proxy: it sends it, and exits once that is acknowledged, or saved."""

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

EXIT_WITHIN = 4.0  # seconds for the acknowledgement; Jupyter kills a kernel after 5
SAVE_AFTER = 0.3  # seconds: a client may kill sooner than Jupyter; a file is quickly written


def send_and_exit(command: str, *, reactor: Reactor, link: Link, dialer: SessionDialer) -> None:
    """Send "restart" or "stop", and stop the reactor once the evaluator has it."""
    remote, kernel_id = dialer.remote.name, dialer.session_request.kernel_id

    def save() -> None:
        session = dialer.session_info.session if dialer.session_info else ""
        undelivered_commands.save_command(remote, kernel_id, session, command)

    # Without a client that has named the notebook, or a dial, there is no session to command.
    is_unused = link.state is LinkState.IDLE and not link.ever_connected
    if not dialer.is_identified.is_set() or is_unused:
        reactor.stop()
        return
    if link.state is LinkState.FAILED:  # it dials no more, so there is nothing to wait for
        # A proxy before this one, with the same kernel id, may have left a session there.
        if not isinstance(link.error, NoSuchSession):
            save()
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
    reactor.call_later(SAVE_AFTER, save)
    reactor.call_later(EXIT_WITHIN, reactor.stop)
