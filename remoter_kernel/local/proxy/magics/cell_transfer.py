"""`%remoter put` and `%remoter get` in a cell: allowed first, then carried, shown as one bar."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from remoter_kernel.errors import Usage
from remoter_kernel.local.history.status_report import format_size
from remoter_kernel.local.login.keeper.keeper_login import KeeperLogin, log_in_by_keeper
from remoter_kernel.local.proxy.here.permission import (
    AccessKind,
    AccessRequest,
    LocalPath,
    NotAllowed,
    format_names,
    local_path,
)
from remoter_kernel.local.proxy.replies import AnsweredCell, run_in_thread
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
from remoter_kernel.transfer.framed_stream import FileTrouble
from remoter_kernel.transfer.plan import Plan, full_path, make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.errors import RemoterError
    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.login.login import Login
    from remoter_kernel.local.proxy.here.cell_queue import CellQueue
    from remoter_kernel.local.proxy.here.permission import Permission
    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.local.transfer.transfer_progress import TransferResult
    from remoter_kernel.protocol.reactor import Reactor

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
        """The magic in the cell."""
        return "%remoter put" if self.is_put else "%remoter get"


def parse_transfer_request(verb: str, line: str) -> TransferRequest:
    """Read what stands after the verb, as a shell would; `Usage` if that cannot be."""
    splitter = shlex.shlex(line, posix=True, punctuation_chars=False)
    # Else `#`, and every sign that is no letter, would end a word: paths have all of them.
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
        # As in a shell: what follows may begin with dashes.
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


@dataclass
class TransferDisplay:
    """The bar of one transfer: one display of its cell, of which each state replaces the last."""

    cell: AnsweredCell
    shown: TransferProgress | None = None  # as it was shown last
    # Clients find the display by this, among those of all cells.
    _id: str = field(default_factory=lambda: secrets.token_hex(8))

    def show(self, progress: TransferProgress) -> None:
        """Show how far it is."""
        kind = "update_display_data" if self.shown else "display_data"
        self.shown = progress
        data = {"text/plain": progress_line(progress), "text/html": progress_html(progress)}
        transient = {"display_id": self._id}
        self.cell.publish(kind, {"data": data, "metadata": {}, "transient": transient})


@dataclass
class CellTransfer:
    """A cell that carries files, when it is its turn (see `cell_queue.LocalQueuedCell`)."""

    spec: TransferRequest
    cell: AnsweredCell
    reactor: Reactor
    dialer: SessionDialer
    permission: Permission
    cell_queue: CellQueue
    _is_stopped: bool = False
    _transfer: Transfer | None = None
    _login: KeeperLogin | None = None

    def __post_init__(self) -> None:
        self.request = self.cell.request
        self._display = TransferDisplay(self.cell)
        self._shown_at = time.monotonic()  # when the bar was asked for last

    def start(self) -> None:
        """Say that it runs, and work in a thread."""
        self.cell.start()
        # From now on, and not since it was queued: it may have waited for long.
        self._shown_at = time.monotonic() + FIRST_SHOWN_AFTER - SHOW_EVERY
        run_in_thread(self.reactor, "file transfer", self._run_transfer, self._finish, self._finish)

    def interrupt(self) -> None:
        """Let it end soon."""
        self._is_stopped = True
        if self._transfer:
            self._transfer.stop()
        if self._login:
            self._login.abort()

    # --- in its own thread ---

    def _run_transfer(self) -> RemoterError | None:
        remote = self.dialer.find_remote()
        spec = TransferSpec(
            is_put=self.spec.is_put,
            sources=self.spec.sources,
            to=self.spec.to,
            here=Path.cwd(),
            there=self.dialer.remote_cwd(remote),
            is_dry=self.spec.is_dry,
        )
        # Before the plan: where the answer is no, nobody looks at any file.
        self.permission.check_rule(self.spec.verb)
        self._transfer = self._permitted_transfer(spec, remote)
        if self._is_stopped:  # while a person was asked
            self._transfer.stop()
        result = self._transfer.run()
        self.reactor.call_soon_threadsafe(partial(self._report, spec, remote.name, result))
        return first_error(result.troubles)

    def _permitted_transfer(self, spec: TransferSpec, remote: Remote) -> Transfer:
        """Return what is to be done, once it may be; exactly that is done which was asked about."""
        if spec.is_put:
            try:  # with all links and patterns resolved
                plan = make_plan(spec.sources, str(spec.here))
            except FileTrouble as error:
                raise transfer_error(error, spec, remote.name) from None
            wanted = AccessRequest(
                self.spec.verb, AccessKind.READ, _describe_put(plan, remote), _places_read(plan)
            )
            self.permission.require(wanted, self.request)
            return Transfer(spec, remote, self._log_in, self._on_progress, plan=plan)
        place = _place_written(spec)
        names = format_names(list(map(escape_name, spec.sources)), "sources")
        what = f"fetches {names} from {remote.name} into {place.path}"
        places = () if spec.is_dry else (place,)
        wanted = AccessRequest(self.spec.verb, AccessKind.WRITE, what, places)
        self.permission.require(wanted, self.request)
        _raise_if_moved(place)
        # The place that was asked about, with its links resolved: one that is put there meanwhile
        # must not lead elsewhere.
        real = str(place.path)
        to = real.rstrip(os.sep) + os.sep if place.is_folder else real
        return Transfer(replace(spec, to=to), remote, self._log_in, self._on_progress)

    @contextlib.contextmanager
    def _log_in(self, in_doubt: bool) -> Iterator[Login]:  # noqa: FBT001 - as it is called
        dialer = self.dialer
        remote = dialer.find_remote()
        login: Login
        if remote is THIS_MACHINE:  # its host is this process's own, and has no keeper
            login = dialer.another_local_login()
        else:
            prompter = dialer.prompter if dialer.can_prompt() else None
            login = log_in_by_keeper(remote, prompter, on_try=self._on_login, in_doubt=in_doubt)
        # Of its own, and not the link's: so much data would hold up what cells print.
        with contextlib.closing(login):
            yield login

    def _on_login(self, login: KeeperLogin) -> None:
        """Keep a login that has only begun: an interrupt ends it."""
        self._login = login
        if self._is_stopped:
            login.abort()

    def _on_progress(self, progress: TransferProgress) -> None:
        now = time.monotonic()
        if now - self._shown_at >= SHOW_EVERY or progress.note:  # a note is not to be missed
            self._shown_at = now
            # A copy: the transfer goes on writing into its own.
            self.reactor.call_soon_threadsafe(partial(self._display.show, replace(progress)))

    # --- in the proxy's thread ---

    def _report(self, spec: TransferSpec, remote: str, result: TransferResult) -> None:
        """Show what came of it."""
        # Of a dry run these are all that there is to show.
        lines = list(result.dry_run)
        if result.has_arrived:
            if self._display.shown and not result.troubles:
                self._display.show(self._display.shown.completed())
            # As text: a console shows the first of a display's states, and no other.
            lines.append(transfer_summary(spec, remote, result))
        self._write_lines("stdout", lines)
        self._write_lines("stderr", [f"Left out: {line}" for line in result.left_out])
        # The first one is the error with which the cell ends.
        self._write_lines("stderr", [str(error) for error in result.troubles[1:]])

    def _write_lines(self, name: str, lines: list[str]) -> None:
        if lines:
            more = len(lines) - MOST_LINES
            shown = lines[:MOST_LINES] + ([f"… and {more} more"] if more > 0 else [])
            self.cell.write("".join(f"{line}\n" for line in shown), name)

    def _finish(self, error: RemoterError | None) -> None:
        if self._is_stopped:  # whatever else went wrong then is of no interest
            error = error if isinstance(error, TransferInterrupted) else TransferInterrupted()
        if error is None:
            self.cell.finish()
        else:
            shown = self._display.shown
            if shown:  # how far it has come stays to be seen, and no time left
                is_interrupted = isinstance(error, TransferInterrupted)
                note = "interrupted" if is_interrupted else "not all of it"
                self._display.show(replace(shown, note=note))
            self.cell.fail(error)
        self.cell_queue.on_local_over(is_well=error is None)


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
