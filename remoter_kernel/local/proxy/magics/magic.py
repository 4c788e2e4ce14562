"""Cells with `%remoter VERB`, for a kernel of any language.

Answered at once, whatever the kernel or the link is doing. What only the session knows is asked
over the login, in a thread.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.errors import NoSuchSession, RemoterError, Unreachable, Usage
from remoter_kernel.local.history.executions import ExecutionHistory
from remoter_kernel.local.history.remote_query import (
    MOST_IN_MEMORY,
    JournalReader,
    resolve_session_id,
)
from remoter_kernel.local.history.status_report import (
    LinkStatus,
    format_requests,
    format_size,
    format_status,
)
from remoter_kernel.local.history.transcript import SessionLogFormatter
from remoter_kernel.local.launch.launcher import query_remote
from remoter_kernel.local.proxy.magics.cell_timer import CellTimer
from remoter_kernel.local.proxy.magics.cell_transfer import (
    CellTransfer,
    TransferRequest,
    parse_transfer_request,
)
from remoter_kernel.local.proxy.magics.help import (
    HELP,
    summary_text,
    unknown_verb_error,
    verb_text,
)
from remoter_kernel.local.proxy.replies import AnsweredCell, IopubMessage, run_in_thread
from remoter_kernel.local.session import undelivered_commands
from remoter_kernel.local.session.link import LinkState
from remoter_kernel.protocol.frames import Channel, to_json
from remoter_kernel.protocol.messages import METADATA, ODD, PARENT, header_of
from remoter_kernel.protocol.output_backlog import HELD_BACK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from remoter_kernel.local.launch.launcher import SessionInfo
    from remoter_kernel.local.login.login import Login
    from remoter_kernel.local.proxy.here.cell_queue import CellQueue
    from remoter_kernel.local.proxy.here.permission import Permission
    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.local.proxy.shutdown import ShutdownPolicy
    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request

HELD_BACK_MARK = HELD_BACK.encode()
MOST_TEXT = 2 * 1024 * 1024  # characters in one cell: Jupyter's server drops what is more
# What ends a kernel when it is typed at a console; where the session stays, it only leaves.
EXIT_COMMANDS = frozenset({"exit", "quit", "exit()", "quit()", "q()"})
# From the first column of the first line: anywhere else it may be part of a text or a comment.
_FIRST_LINE = re.compile(r"%remoter(?:[ \t]+(.*))?$")
REQUESTS_OPTION = "--requests"
TRANSFERS = ("put", "get")  # files; they wait for the kernel's cells before them


class ParsedMagic(NamedTuple):
    """The first line of a cell, if it is a `%remoter` one."""

    verb: str
    arguments: tuple[str, ...] = ()
    transfer: TransferRequest | None = None  # about files


def parse_magic(code: str) -> ParsedMagic | None:
    """Read the first line of a cell; None: it is for the kernel. `Usage` if it cannot be run."""
    first, _, rest = code.partition("\n")
    found = _FIRST_LINE.match(first.rstrip())
    if found is None:
        return None
    line = (found[1] or "").strip() or "help"
    verb, *words = line.split()
    if verb not in HELP:
        raise unknown_verb_error(verb)
    # A transfer may have any number of paths, and words in quotes: it is split as a shell would.
    if verb not in TRANSFERS and len(words) > len(HELP[verb].kinds):
        raise Usage(f"%remoter {verb} takes no further words.", f"See %remoter help {verb}.")
    if verb == "status" and words not in ([], [REQUESTS_OPTION]):
        raise Usage(f"%remoter status takes no further words but {REQUESTS_OPTION}.")
    # What stands below would not be run by anybody: that must not happen in silence.
    if rest.strip():
        raise Usage(f"%remoter {verb} stands alone in its cell; nothing was run.")
    if verb in TRANSFERS:
        return ParsedMagic(verb, transfer=parse_transfer_request(verb, line.removeprefix(verb)))
    return ParsedMagic(verb, tuple(words))


@dataclass
class Magics:
    """Answers cells with `%remoter`."""

    reactor: Reactor
    link: Link
    dialer: SessionDialer
    replies: ReplySender
    open_requests: Callable[[], list[dict[str, Any]]]  # as `Requests.describe` has them
    cell_queue: CellQueue
    permission: Permission
    shutdown: ShutdownPolicy
    last_reply: bytes = b"{}"  # content of the remote kernel's last reply to a cell
    is_encrypted: bool | None = None  # are the kernel's sockets, there? None: not known
    _held_back: list[str] = field(default_factory=list)  # requests whose text did not come in full

    def __post_init__(self) -> None:
        self.timer = CellTimer(self.replies, lambda: (self.link.sent, self.link.received))

    def on_output(self, parts: Sequence[Bytes]) -> None:
        """Note if text of an output was held back; let the timer see it."""
        # Most outputs have empty metadata: of those no more than its length is looked at.
        if len(parts[METADATA]) > len(b"{}") and HELD_BACK_MARK in bytes(parts[METADATA]):
            with contextlib.suppress(*ODD):
                self._held_back.append(str(header_of(parts[PARENT]).get("msg_id", "")))
        if self.timer.is_on:  # asked here, as there are many outputs
            self.timer.on_output(parts)

    def handle(self, request: Request) -> bool:
        """Answer a cell if it is one of these; return whether it is."""
        # The count is that of the kernel's last cell: this one is none of its cells.
        code = str(request.content.get("code", ""))
        cell = AnsweredCell(self.replies, request, self.execution_count())
        if code.strip() in EXIT_COMMANDS and self.shutdown.keeps_session:
            cell.start()
            # Not True: then the console would leave its kernel, this process, running.
            cell.finish(payload=[{"source": "ask_exit", "keepkernel": False}])
            return True
        try:
            magic = parse_magic(code)
        except Usage as error:
            cell.start()
            cell.fail(error)
            return True
        if magic is not None and magic.transfer:
            # It says busy only when it starts: until then it waits, as cells behind others do.
            transfer = CellTransfer(
                magic.transfer, cell, self.reactor, self.dialer, self.permission, self.cell_queue
            )
            self.cell_queue.enqueue_local(transfer)
        elif magic is not None:
            cell.start()
            self._run_verb(cell, magic)
        return magic is not None

    def execution_count(self) -> int:
        """Return the number of the last cell; 1 before any, for at 0 JupyterLab's star stays."""
        with contextlib.suppress(ValueError, LookupError, TypeError):
            return max(1, int(json.loads(self.last_reply)["execution_count"]))
        return 1

    def _run_verb(self, cell: AnsweredCell, magic: ParsedMagic) -> None:
        is_about_requests = magic == ParsedMagic("status", (REQUESTS_OPTION,))
        if magic.verb in {"log", "outputs"} or is_about_requests:
            # Described now, in the proxy's thread: the table may not be read in another one.
            rows = [row for row in self.open_requests() if row["id"] != cell.request.id]
            queries: dict[str, Callable[..., Iterator[IopubMessage]]] = {
                "log": self._log,
                "outputs": self._outputs,
                "status": partial(self._open_requests, rows),
            }
            # `list` is where the journal is read, piece after piece.
            query = partial(queries[magic.verb], *magic.arguments)
            run_in_thread(self.reactor, "inquiry", lambda: list(query()), cell.finish, cell.fail)
            return
        verbs: dict[str, Callable[..., str]] = {
            "status": self._status,
            "keep": self._keep,
            "stop": self._stop,
            "timer": self._toggle_timer,
            "help": lambda verb="": verb_text(verb) if verb else summary_text(),
        }
        try:
            cell.write(verbs[magic.verb](*magic.arguments))
        except RemoterError as error:
            cell.fail(error)
        else:
            cell.finish()

    # What this process knows or does ---------------------------------------------------

    def _status(self) -> str:
        link, dialer = self.link, self.dialer
        login, address = dialer.login, dialer.session_info
        # The link has none before its first ping; the login has measured its own.
        round_trip = link.round_trip or (login.round_trip if login else None)
        return format_status(
            LinkStatus(
                state=link.state.value,
                state_age=link.state_age,
                next_try=link.next_try,
                last_error=_last_error(link),
                losses=link.losses,
                # Of a link that is down it is the last one that was measured.
                round_trip=round_trip if link.state is LinkState.UP else None,
                queue=link.unacknowledged,
                remote=dialer.remote.name,
                session=address.session if address else "",
                host=address.host if address else "",
                user=address.user if address else "",
                transport=login.transport if login else "",
                why_transport=login.why_transport if login else "",
                cipher=login.cipher if login else "",
                host_key=login.host_key if login else "",
                sent=link.sent,
                received=link.received,
                keeps_session=self.shutdown.keeps_session,
                is_encrypted=self.is_encrypted,
            )
        )

    def _keep(self) -> str:
        self.shutdown.keep_session()
        # The session must know it, too: another proxy may be the one that ends.
        self._send_command("keep")
        return f"{self._session_label()} stays when this kernel is shut down.\n"

    def _stop(self) -> str:
        session = self._session_label()
        # A command for a session that does not exist would stop the one that is made next.
        if not self.link.ever_connected:
            raise NoSuchSession("There is no session yet, so there is nothing to stop.")
        self._send_command("stop")
        if self.link.state is LinkState.UP:
            return f"{session} ends now. Restart the kernel to begin a fresh one.\n"
        address = self.dialer.session_info
        # This process may end before the link is back: then the next login delivers it.
        undelivered_commands.save_command(
            self.dialer.remote.name,
            self.dialer.session_request.kernel_id,
            address.session if address else "",
            "stop",
        )
        return f"{session} ends as soon as the link is back.\n"

    def _toggle_timer(self, word: str = "") -> str:
        if word not in {"on", "off", ""}:
            raise Usage(f'The timer is turned on or off, not "{word}".', "%remoter timer on")
        if word:
            self.timer.enable(on=word == "on")
        return f"The timer is {'on' if self.timer.is_on else 'off'}.\n"

    def _send_command(self, command: str) -> None:
        self.link.send(Channel.COMMAND, [to_json({"order": command})])

    def _session_label(self) -> str:
        address = self.dialer.session_info
        return f"Session {address.session}" if address else "The session"

    # What the session knows: over the login, in a thread -------------------------------

    def _login_and_session(self) -> tuple[Login, SessionInfo] | None:
        """Return both while the link is up; a login that is there may be about to end else."""
        login, address = self.dialer.login, self.dialer.session_info
        if login is None or address is None or self.link.state is not LinkState.UP:
            return None
        return login, address

    def _read_journal(self, only: str, session: str = "") -> JournalReader:
        """Read the journal of this session, or of another one there."""
        reach, remote = self._login_and_session(), self.dialer.remote
        if reach is None:
            raise Unreachable(
                "The link is down, and only the far side knows.",
                "%remoter status shows when it is tried again.",
                remote=remote.name,
            )
        login, address = reach
        # A query reads the session's files in a process of its own: a kernel may hang meanwhile.
        ask = partial(query_remote, login, remote)
        name = resolve_session_id(session, ask, remote.name) if session else address.session
        return JournalReader(ask, name, only, cells=self._held_back, most=MOST_IN_MEMORY)

    def _log(self, session: str = "") -> Iterator[IopubMessage]:
        records = self._read_journal("events", session)
        formatter = SessionLogFormatter()
        lines = [line for line in map(formatter.line_of, records) if line]
        first = formatter.first_line(records.answer["session"])
        text = "".join(f"{line}\n" for line in [first, *lines])
        # The end of it: what happened last is what is asked about.
        yield "stream", {"name": "stdout", "text": text[-MOST_TEXT:]}

    def _outputs(self, session: str = "") -> Iterator[IopubMessage]:
        history = ExecutionHistory()
        for record in self._read_journal("" if session else "missed", session):
            history.add_record(record)
        address = self.dialer.session_info
        this_session = address.session if address else ""
        # What does not fit is counted, and the command that shows it named.
        left = MOST_TEXT
        for run in history.executions.values():
            first, *rest = run.source.strip().split("\n")
            count = " " if run.count is None else run.count
            head = f"In [{count}]: {first}{' …' if rest else ''}\n"
            yield "stream", {"name": "stdout", "text": head}
            for output in run.outputs:
                shown = _as_message(output, max(left, 0), session or this_session)
                left -= len(str(shown[1].get("text", "")))
                yield shown
        if not history.executions:
            none = "Nothing was run there." if session else "No output of this session was missed."
            yield "stream", {"name": "stdout", "text": f"{none}\n"}

    def _open_requests(self, rows: list[dict[str, Any]], _option: str) -> Iterator[IopubMessage]:
        """Show which requests are open here (`rows`) and, where that can be asked, there."""
        text = format_requests(rows, "Here")
        reach = self._login_and_session()
        if reach is None:
            text += "There: not known, as the link is down\n"
        else:
            login, address = reach
            fields = {"verb": "requests", "session": address.session}
            answer, _ = query_remote(login, self.dialer.remote, fields)
            text += format_requests(answer.get("requests"), f"In session {address.session}")
        yield "stream", {"name": "stdout", "text": text}


def _as_message(output: dict[str, Any], room: int, session: str) -> IopubMessage:
    """Return an output as a message that any client shows; `room`: characters of its text."""
    kind = output["output_type"]
    if kind in {"display_data", "execute_result"}:
        content = {"data": output["data"], "metadata": output["metadata"], "transient": {}}
        return "display_data", content
    if kind == "error":
        return "stream", {"name": "stderr", "text": "\n".join(output["traceback"]) + "\n"}
    text = output["text"]
    if len(text) > room:
        more = f"\n[{format_size(len(text) - room)} more: remoter outputs {session}]\n"
        text = text[:room] + more
    return "stream", {"name": output["name"], "text": text}


def _last_error(link: Link) -> str:
    """Say what went wrong last; a login that failed is no news once another one has worked."""
    error = link.error
    # A cut stays to be seen when the link is up again: it says why there was one.
    is_past = link.state is LinkState.UP and error is not None and not error.worth_retrying
    return "" if error is None or is_past else str(error)
