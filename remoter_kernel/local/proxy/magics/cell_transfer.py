"""`%remoter put` and `%remoter get` in a cell: allowed, in their turn, shown as one bar."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from remoter_kernel.errors import RemoterError, Usage
from remoter_kernel.local.history.link_status import format_size
from remoter_kernel.local.login.keeper.keeper_login import KeeperLogin, log_in_by_keeper
from remoter_kernel.local.proxy.here.permission import (
    AccessKind,
    AccessRequest,
    LocalPath,
    NotAllowed,
    format_names,
    local_path,
)
from remoter_kernel.local.session.dialer import THIS_MACHINE
from remoter_kernel.local.transfer.file_transfer import Transfer, TransferInterrupted
from remoter_kernel.local.transfer.transfer_progress import (
    TransferProgress,
    TransferSpec,
    escape_name,
    first_error,
    progress_html,
    progress_line,
    transfer_error,
    transfer_summary,
)
from remoter_kernel.protocol.threads import Thread
from remoter_kernel.transfer.framed_stream import FileTrouble
from remoter_kernel.transfer.plan import Plan, full_path, make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.login.login import Login
    from remoter_kernel.local.proxy.here.cell_queue import CellQueue
    from remoter_kernel.local.proxy.here.permission import Permission
    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.local.transfer.transfer_progress import TransferResult
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request

SHOW_EVERY = 0.25  # seconds
FIRST_SHOWN_AFTER = 0.5  # seconds: what is over by then shows what came of it, and no bar
DRY_RUN_OPTION = "--dry-run"
MOST_LINES = 1000  # of a dry run, or of troubles
USAGE = "%remoter {0} SRC... DST [--dry-run]"


class TransferRequest(NamedTuple):
    """What a cell asks for."""

    is_put: bool
    sources: tuple[str, ...]
    to: str
    is_dry: bool

    @property
    def verb(self) -> str:
        """What the cell says."""
        return "%remoter put" if self.is_put else "%remoter get"


def parse_transfer_request(verb: str, line: str) -> TransferRequest:
    """Read what stands after the verb, as a shell would; `Usage` if that cannot be."""
    splitter = shlex.shlex(line, posix=True, punctuation_chars=False)
    splitter.whitespace_split, splitter.commenters = True, ""
    if os.name == "nt":
        splitter.escape = ""  # it separates folders there
    usage = USAGE.format(verb)
    try:
        words = list(splitter)
    except ValueError as error:
        raise Usage(f"That line cannot be read: {error}.", f"Write {usage}") from None
    is_dry = False
    names: list[str] = []
    for place, word in enumerate(words):
        if word == "--":
            names += words[place + 1 :]
            break
        if word == DRY_RUN_OPTION:
            is_dry = True
        elif word.startswith("--"):
            raise Usage(f"There is no option {word}.", f"Write {usage}; a name so called: ./{word}")
        else:
            names.append(word)
    if len(names) < 2:  # noqa: PLR2004 - one from, one to
        raise Usage("Name what to carry, and where to.", f"Write {usage}")
    if not all(names):  # an empty path would be the whole folder
        raise Usage("A path is empty; nothing was carried.", f"Write {usage}")
    return TransferRequest(verb == "put", tuple(names[:-1]), names[-1], is_dry)


class CellContext(Protocol):
    """The cell in which it is asked for."""

    def publish(self, kind: str, content: dict[str, Any]) -> None:
        """Say something in it."""

    def finish(self, error: RemoterError | None = None) -> None:
        """Say how it ended."""


class CellTransfer:
    """One order at work, in a thread; what is said goes through the front's own."""

    def __init__(
        self,
        request: TransferRequest,
        cell: CellContext,
        route: Request,
        *,
        reactor: Reactor,
        dialer: SessionDialer,
        permission: Permission,
        on_end: Callable[[RemoterError | None], None],
    ) -> None:
        """Remember; `on_end` hears in the front's thread what it ended with."""
        self._request = request
        self._cell = cell
        self._route = route
        self._reactor = reactor
        self._dialer = dialer
        self._permission = permission
        self._on_finish = on_end
        self._display = secrets.token_hex(8)
        self._shown_progress: TransferProgress | None = None  # as it was shown last
        self._began = self._shown_at = time.monotonic()
        self._transfer: Transfer | None = None
        self._login: KeeperLogin | None = None
        self._is_stopped = False

    def start(self) -> None:
        """Begin; return at once."""
        Thread(self._run, name="errand").start()

    def stop(self) -> None:
        """Let it end soon."""
        self._is_stopped = True
        if self._transfer:
            self._transfer.stop()
        if self._login:
            self._login.abort()

    # --- in its own thread ---

    def _run(self) -> None:
        error: RemoterError | None = None
        try:
            error = self._run_transfer()
        except RemoterError as trouble:
            error = trouble
        except Exception as bug:  # noqa: BLE001 - a bug must reach the cell, too
            error = RemoterError(f"That failed unexpectedly: {type(bug).__name__}: {bug}")
        if self._is_stopped and not isinstance(error, TransferInterrupted):
            error = TransferInterrupted()
        self._reactor.call_soon_threadsafe(partial(self._finish, error))

    def _run_transfer(self) -> RemoterError | None:
        request, dialer = self._request, self._dialer
        remote = dialer.find_remote()
        here = Path.cwd()
        spec = TransferSpec(
            is_put=request.is_put,
            sources=request.sources,
            to=request.to,
            here=here,
            there=dialer.remote_cwd(remote),
            is_dry=request.is_dry,
        )
        self._permission.check_rule(request.verb)
        self._transfer = self._permitted_transfer(spec, remote)
        if self._is_stopped:
            self._transfer.stop()
        result = self._transfer.run()
        self._reactor.call_soon_threadsafe(partial(self._report, spec, remote.name, result))
        return first_error(result.troubles)

    def _permitted_transfer(self, spec: TransferSpec, remote: Remote) -> Transfer:
        """Return what is to be done, once it may be; exactly that is done which was asked about."""
        if spec.is_put:
            plan = self._plan(spec, remote)
            wanted = AccessRequest(
                self._request.verb, AccessKind.READ, _describe_put(plan, remote), _places_read(plan)
            )
            self._permission.require(wanted, self._route)
            return Transfer(spec, remote, self._log_in, self._on_progress, plan=plan)
        place = _place_written(spec)
        names = format_names(list(map(escape_name, spec.sources)), "sources")
        what = f"fetches {names} from {remote.name} into {place.path}"
        places = () if spec.is_dry else (place,)
        wanted = AccessRequest(self._request.verb, AccessKind.WRITE, what, places)
        self._permission.require(wanted, self._route)
        _raise_if_moved(place)
        real = str(place.path)
        to = real.rstrip(os.sep) + os.sep if place.is_folder else real
        return Transfer(replace(spec, to=to), remote, self._log_in, self._on_progress)

    @staticmethod
    def _plan(spec: TransferSpec, remote: Remote) -> Plan:
        """Find what is to be sent, with all links and patterns resolved."""
        try:
            return make_plan(spec.sources, str(spec.here))
        except FileTrouble as trouble:
            raise transfer_error(trouble, spec, remote.name) from None

    @contextlib.contextmanager
    def _log_in(self, in_doubt: bool) -> Iterator[Login]:  # noqa: FBT001 - as it is called
        dialer = self._dialer
        remote = dialer.find_remote()
        login: Login
        if remote is THIS_MACHINE:  # its host is the front's own, and has no keeper
            login = dialer.another_local_login()
        else:
            questions = dialer.prompter if dialer.can_prompt() else None
            login = log_in_by_keeper(remote, questions, on_try=self._on_login, in_doubt=in_doubt)
        with contextlib.closing(login):
            yield login

    def _on_login(self, login: KeeperLogin) -> None:
        """Know a login that has only begun: it may have to be given up."""
        self._login = login
        if self._is_stopped:
            login.abort()

    def _on_progress(self, progress: TransferProgress) -> None:
        now = time.monotonic()
        if now - self._began < FIRST_SHOWN_AFTER and not progress.note:
            return
        if now - self._shown_at >= SHOW_EVERY or progress.note:
            self._shown_at = now
            self._reactor.call_soon_threadsafe(partial(self._show_progress, replace(progress)))

    # --- in the front's thread ---

    def _show_progress(self, progress: TransferProgress) -> None:
        """Show how far it is, in place of what was shown before."""
        kind = "update_display_data" if self._shown_progress else "display_data"
        self._shown_progress = progress
        data = {"text/plain": progress_line(progress), "text/html": progress_html(progress)}
        words = {"data": data, "metadata": {}, "transient": {"display_id": self._display}}
        self._cell.publish(kind, words)

    def _report(self, spec: TransferSpec, remote: str, result: TransferResult) -> None:
        """Say what came of it."""
        lines = list(result.dry_run)
        if result.has_arrived:
            if self._shown_progress and not result.troubles:
                self._show_progress(self._shown_progress.completed())
            # As text: a console shows the first of a display's states, and no other.
            lines.append(transfer_summary(spec, remote, result))
        self._write_lines("stdout", lines)
        self._write_lines("stderr", [f"Left out: {line}" for line in result.left_out])
        self._write_lines("stderr", [str(trouble) for trouble in result.troubles[1:]])

    def _write_lines(self, name: str, lines: list[str]) -> None:
        if lines:
            more = len(lines) - MOST_LINES
            shown = lines[:MOST_LINES] + ([f"… and {more} more"] if more > 0 else [])
            text = "".join(f"{line}\n" for line in shown)
            self._cell.publish("stream", {"name": name, "text": text})

    def _finish(self, error: RemoterError | None) -> None:
        if error and self._shown_progress:  # how far it has come stays to be seen, and no time left
            note = "interrupted" if isinstance(error, TransferInterrupted) else "not all of it"
            self._show_progress(replace(self._shown_progress, note=note))
        self._cell.finish(error)
        self._on_finish(error)


def _describe_put(plan: Plan, remote: Remote) -> str:
    """Say what would be sent."""
    names = format_names([escape_name(str(top["name"])) for top in plan.tops], "sources")
    files = "1 file" if plan.files == 1 else f"{plan.files} files"
    return f"sends {names} ({files}, {format_size(plan.size)}) to {remote.name}"


def _places_read(plan: Plan) -> tuple[LocalPath, ...]:
    """Return the sources of a plan; what a folder holds is below the folder, links and all."""
    return tuple(
        LocalPath(Path(item.place), item.entry.kind == "folder", item.entry.path)
        for item in plan.items
        if "/" not in item.entry.path
    )


def _place_written(spec: TransferSpec) -> LocalPath:
    """Return where would be written."""
    try:
        return local_path(full_path(spec.to, str(spec.here)))
    except (OSError, ValueError) as error:
        raise Usage(f"{escape_name(spec.to)} cannot be a place here: {error}.") from None


def _raise_if_moved(place: LocalPath) -> None:
    """Raise `NotAllowed` if a place leads elsewhere by now: an answer may take its time."""
    if local_path(str(place.path)).path != place.path:
        raise NotAllowed(
            f"{escape_name(str(place.path))} leads elsewhere by now; nothing was done."
        )


class QueuedTransfer:
    """A cell that carries files, when it is its turn (see `cell_queue.LocalQueuedCell`)."""

    def __init__(
        self,
        route: Request,
        say_begin: Callable[[], None],
        spec: Callable[..., CellTransfer],
        turns: CellQueue,
    ) -> None:
        """Remember; `spec` makes what is to be done, and wants to know whom to tell its end."""
        self.request = route
        self._on_begin = say_begin
        self._transfer = spec(on_end=self._end)
        self._turns = turns

    def start(self) -> None:
        """Carry them."""
        self._on_begin()
        self._transfer.start()

    def interrupt(self) -> None:
        """End soon."""
        self._transfer.stop()

    def _end(self, error: RemoterError | None) -> None:
        self._turns.on_local_over(is_well=error is None)
