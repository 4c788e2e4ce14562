"""What a cell can ask of this side: `%remoter VERB`, for a kernel of any language.

Answered at once, whatever the kernel or the link is doing. What must be asked of the far
side is asked over the login, in a thread.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.errors import NoSuchSession, RemoterError, Unreachable, Usage
from remoter_kernel.local.history.executions import ExecutionHistory
from remoter_kernel.local.history.link_status import (
    LinkStatus,
    format_requests,
    format_size,
    format_status,
)
from remoter_kernel.local.history.remote_query import (
    MOST_IN_MEMORY,
    JournalReader,
    resolve_session_id,
)
from remoter_kernel.local.history.transcript import SessionLogFormatter
from remoter_kernel.local.launch.launcher import query_remote
from remoter_kernel.local.proxy.canned_replies import error_content
from remoter_kernel.local.proxy.magics.cell_timer import CellTimer
from remoter_kernel.local.proxy.magics.cell_transfer import (
    CellTransfer,
    QueuedTransfer,
    TransferRequest,
    parse_transfer_request,
)
from remoter_kernel.local.proxy.magics.help import (
    HELP,
    summary_text,
    unknown_verb_error,
    usage_of,
    verb_text,
)
from remoter_kernel.local.session import undelivered_commands
from remoter_kernel.local.session.link import LinkState
from remoter_kernel.protocol.frames import Channel, to_json
from remoter_kernel.protocol.messages import METADATA, ODD, PARENT, header_of
from remoter_kernel.protocol.output_backlog import HELD_BACK
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.local.proxy.here.cell_queue import CellQueue
    from remoter_kernel.local.proxy.here.permission import Permission
    from remoter_kernel.local.proxy.replies import Publish
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
_FIRST_LINE = re.compile(r"%remoter(?:[ \t]+(.*))?$")
REQUESTS_OPTION = "--requests"
TRANSFERS = ("put", "get")  # files; they take their turn among the kernel's cells

Header = dict[str, Any]
IopubMessage = tuple[str, dict[str, Any]]  # kind and content of a message on iopub
FinishCell = Callable[
    [dict[str, Any], dict[str, Any] | None], None
]  # says the error, and the reply


class ParsedMagic(NamedTuple):
    """What the first line of a cell asks for."""

    verb: str
    arguments: tuple[str, ...] = ()
    transfer: TransferRequest | None = None  # about files


def parse_magic(code: str) -> ParsedMagic | None:
    """Read what a cell asks of this side; None: nothing. `Usage` if that cannot be."""
    first, _, rest = code.partition("\n")
    found = _FIRST_LINE.match(first.rstrip())
    if found is None:
        return None
    said = (found[1] or "").strip() or "help"
    verb, *words = said.split()
    if verb not in HELP:
        raise unknown_verb_error(verb, HELP)
    if verb not in TRANSFERS and len(words) > len(usage_of(verb).kinds):
        raise Usage(f"%remoter {verb} takes no further words.", f"See %remoter help {verb}.")
    if verb == "status" and words not in ([], [REQUESTS_OPTION]):
        raise Usage(f"%remoter status takes no further words but {REQUESTS_OPTION}.")
    if rest.strip():
        raise Usage(f"%remoter {verb} stands alone in its cell; nothing was run.")
    if verb in TRANSFERS:
        return ParsedMagic(verb, transfer=parse_transfer_request(verb, said.removeprefix(verb)))
    return ParsedMagic(verb, tuple(words))


@dataclass
class MagicContext:
    """What of the front the verbs need."""

    reactor: Reactor
    link: Link
    dialer: SessionDialer
    publish: Callable[[str, dict[str, Any], Header], None]
    open_requests: Callable[[], list[dict[str, Any]]]  # described, as `Requests.rows` does
    cell_queue: CellQueue
    permission: Permission
    shutdown: ShutdownPolicy


class Magics:
    """Answers cells that ask something of this side."""

    def __init__(self, context: MagicContext) -> None:
        """Remember."""
        self._context = context
        self.last_reply = b"{}"  # of the kernel, to a cell
        self.is_encrypted: bool | None = None  # is the kernel, there? None: not known
        traffic = lambda: (context.link.sent, context.link.received)  # noqa: E731 - one use
        self.timer = CellTimer(context.publish, traffic)
        self._held_back: list[str] = []  # the requests whose text was not given to us in full

    def on_output(self, parts: Sequence[Bytes]) -> None:
        """Look at an output: was text of its cell held back? Is the cell over?"""
        if len(parts[METADATA]) > len(b"{}") and HELD_BACK_MARK in bytes(parts[METADATA]):
            with contextlib.suppress(*ODD):
                self._held_back.append(str(header_of(parts[PARENT]).get("msg_id", "")))
        if self.timer.is_on:
            self.timer.on_output(parts)

    def handle(
        self,
        request: Request,
        content: dict[str, Any],
        finish: FinishCell,
    ) -> bool:
        """Answer a cell if it asks something of this side; return whether it does.

        `finish(reply, error)` says the error, if there is one, and the reply.
        """
        code, header = str(content.get("code", "")), request.header
        if code.strip() in EXIT_COMMANDS and self._context.shutdown.keeps_session:
            cell = MagicCell(self._context.publish, header, self.execution_count(), finish)
            cell.start(code)
            cell.finish(payload=[{"source": "ask_exit", "keepkernel": False}])
            return True
        try:
            asked: ParsedMagic | Usage | None = parse_magic(code)
        except Usage as error:
            asked = error
        if asked is None:
            return False
        cell = MagicCell(self._context.publish, header, self.execution_count(), finish)
        if isinstance(asked, ParsedMagic) and asked.transfer:
            self._queue_transfer(cell, request, code, asked.transfer)
            return True
        cell.start(code)
        if isinstance(asked, Usage):
            cell.finish(asked)
        else:
            self._run_verb(cell, asked)
        return True

    def execution_count(self) -> int:
        """Return the number of the last cell; 1 before any, for at 0 JupyterLab's star stays."""
        with contextlib.suppress(ValueError, LookupError, TypeError):
            return max(1, int(json.loads(self.last_reply)["execution_count"]))
        return 1

    def _queue_transfer(
        self, cell: MagicCell, request: Request, code: str, order: TransferRequest
    ) -> None:
        """Carry files when it is this cell's turn."""
        context, begin = self._context, partial(cell.start, code)
        errand = partial(
            CellTransfer,
            order,
            cell,
            request,
            reactor=context.reactor,
            dialer=context.dialer,
            permission=context.permission,
        )
        context.cell_queue.enqueue_local(QueuedTransfer(request, begin, errand, context.cell_queue))

    def _run_verb(self, cell: MagicCell, asked: ParsedMagic) -> None:
        look: Callable[[], Iterator[IopubMessage]] | None = None
        if asked.arguments == (REQUESTS_OPTION,) and asked.verb == "status":
            rows = [row for row in self._context.open_requests() if row["id"] != cell.request_id]
            look = partial(self._open_requests, rows)
        elif asked.verb in {"log", "outputs"}:
            look = partial(self._log if asked.verb == "log" else self._outputs, *asked.arguments)
        if look is not None:
            Thread(self._run_in_thread, args=(cell, look), name="inquiry").start()
            return
        say: dict[str, Callable[..., str]] = {
            "status": self._status,
            "keep": self._keep,
            "stop": self._stop,
            "timer": self._toggle_timer,
            "help": _help_text,
        }
        try:
            text = say[asked.verb](*asked.arguments)
        except RemoterError as error:
            cell.finish(error)
        else:
            cell.publish("stream", {"name": "stdout", "text": text})
            cell.finish()

    # What this side knows or does ------------------------------------------------------

    def _status(self) -> str:
        link, dialer = self._context.link, self._context.dialer
        login, address = dialer.login, dialer.session_info
        round_trip = link.round_trip
        if round_trip is None and login is not None and login.round_trip:
            round_trip = login.round_trip
        return format_status(
            LinkStatus(
                state=link.state.value,
                state_age=link.state_age,
                next_try=link.next_try,
                last_error=_last_error(link),
                losses=link.losses,
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
                keeps_session=self._context.shutdown.keeps_session,
                is_encrypted=self.is_encrypted,
            )
        )

    def _keep(self) -> str:
        self._context.shutdown.keep_session()
        self._send_command("keep")
        return f"{self._session_label()} stays when this kernel is shut down.\n"

    def _stop(self) -> str:
        session = self._session_label()
        if not self._context.link.ever_connected:
            raise NoSuchSession("There is no session yet, so there is nothing to stop.")
        self._send_command("stop")
        if self._context.link.state is LinkState.UP:
            return f"{session} ends now. Restart the kernel to begin a fresh one.\n"
        address = self._context.dialer.session_info
        undelivered_commands.save_command(
            self._context.dialer.remote.name,
            self._context.dialer.session_request.kernel_id,
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

    def _send_command(self, order: str) -> None:
        self._context.link.send(Channel.COMMAND, [to_json({"order": order})])

    def _session_label(self) -> str:
        address = self._context.dialer.session_info
        return f"Session {address.session}" if address else "The session"

    # What the far side knows: in a thread ----------------------------------------------

    def _run_in_thread(self, cell: MagicCell, look: Callable[[], Iterator[IopubMessage]]) -> None:
        call = self._context.reactor.call_soon_threadsafe
        try:
            found = list(look())
        except RemoterError as error:
            call(partial(cell.finish, error))
        except Exception as error:  # noqa: BLE001 - a bug must reach the cell, too
            trouble = RemoterError(f"That failed unexpectedly: {type(error).__name__}: {error}")
            call(partial(cell.finish, trouble))
        else:
            call(partial(cell.publish_all, found))

    def _read_journal(self, only: str, session: str = "") -> JournalReader:
        """Read the journal of this session, or of another one there."""
        dialer = self._context.dialer
        login, address = dialer.login, dialer.session_info
        if login is None or address is None or self._context.link.state is not LinkState.UP:
            raise Unreachable(
                "The link is down, and only the far side knows.",
                "%remoter status shows when it is tried again.",
                remote=dialer.remote.name,
            )
        ask = partial(query_remote, login, dialer.remote)
        name = resolve_session_id(session, ask, dialer.remote.name) if session else address.session
        return JournalReader(ask, name, only, cells=self._held_back, most=MOST_IN_MEMORY)

    def _log(self, session: str = "") -> Iterator[IopubMessage]:
        reading = self._read_journal("events", session)
        chronicle = SessionLogFormatter()
        lines = [line for line in map(chronicle.line_of, reading) if line]
        about = reading.answer["session"]
        text = "".join(f"{line}\n" for line in [chronicle.first_line(about), *lines])
        yield "stream", {"name": "stdout", "text": text[-MOST_TEXT:]}

    def _outputs(self, session: str = "") -> Iterator[IopubMessage]:
        reading = self._read_journal("" if session else "missed", session)
        story = ExecutionHistory()
        for said in reading:
            story.add_record(said)
        left = MOST_TEXT
        for run in story.executions.values():
            first, *rest = run.source.strip().split("\n")
            count = " " if run.count is None else run.count
            head = f"In [{count}]: {first}{' …' if rest else ''}\n"
            yield "stream", {"name": "stdout", "text": head}
            for output in run.outputs:
                shown = _as_message(output, max(left, 0), session or self._session_id())
                left -= len(str(shown[1].get("text", "")))
                yield shown
        if not story.executions:
            text = (
                "Nothing was run there.\n" if session else "No output of this session was missed.\n"
            )
            yield "stream", {"name": "stdout", "text": text}

    def _open_requests(self, rows: list[dict[str, Any]]) -> Iterator[IopubMessage]:
        """Tell which requests are open here (`rows`) and, where it can be asked, there."""
        dialer = self._context.dialer
        text = format_requests(rows, "Here")
        login, address = dialer.login, dialer.session_info
        if login is None or address is None or self._context.link.state is not LinkState.UP:
            text += "There: not known, as the link is down\n"
        else:
            words = {"verb": "requests", "session": address.session}
            answer, _ = query_remote(login, dialer.remote, words)
            text += format_requests(answer.get("requests"), f"In session {address.session}")
        yield "stream", {"name": "stdout", "text": text}

    def _session_id(self) -> str:
        address = self._context.dialer.session_info
        return address.session if address else ""


def _as_message(output: dict[str, Any], room: int, session: str) -> IopubMessage:
    """Return an output as a message that any client shows."""
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


def _help_text(verb: str = "") -> str:
    return verb_text(verb, HELP) if verb else summary_text(HELP)


def _last_error(link: Link) -> str:
    """Say what went wrong last; a login that failed is no news once another one has worked."""
    error = link.error
    is_past = link.state is LinkState.UP and error is not None and not error.worth_retrying
    return "" if error is None or is_past else str(error)


# A cell that this side answers: how it begins, what it shows, how it ends.
class MagicCell:
    """A cell with `%remoter`."""

    def __init__(self, publish: Publish, header: Header, count: int, finish: FinishCell) -> None:
        self.request_id = str(header.get("msg_id", ""))
        self._publish_for = publish
        self._header = header
        self._count = count
        self._finish_cell = finish

    def start(self, code: str) -> None:
        """Say that it runs."""
        self.publish("status", {"execution_state": "busy"})
        self.publish("execute_input", {"code": code, "execution_count": self._count})

    def publish(self, kind: str, content: dict[str, Any]) -> None:
        """Say something in it."""
        self._publish_for(kind, content, self._header)

    def publish_all(self, found: list[IopubMessage]) -> None:
        """Say all that was found, and end it."""
        for kind, content in found:
            self.publish(kind, content)
        self.finish()

    def finish(
        self, error: RemoterError | None = None, payload: Sequence[dict[str, Any]] = ()
    ) -> None:
        """Say how it ended; `payload`: what the client should do."""
        reply: dict[str, Any] = {"execution_count": self._count, "payload": list(payload)}
        trouble = error_content(error.name or type(error).__name__, str(error)) if error else None
        if trouble:
            self._finish_cell({"status": "error", **reply, **trouble}, trouble)
        else:
            self._finish_cell({"status": "ok", "user_expressions": {}, **reply}, None)
        self.publish("status", {"execution_state": "idle"})
