"""Carries objects between the local kernel and the remote one: `%remoter push`, `pull`.

Each kernel writes or reads a file in a private folder of its machine; this process moves bytes, and
never looks into them.
"""

from __future__ import annotations

import json
import keyword
import queue
import re
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from remoter_kernel.errors import RemoterError, Unreachable, Usage
from remoter_kernel.local.history.status_report import format_size
from remoter_kernel.local.login.prompts import OWN_TAG, strip_controls
from remoter_kernel.local.objects.kernel_code import python_code, r_code
from remoter_kernel.local.objects.remote_temp_dir import RemoteTempDir
from remoter_kernel.local.proxy.here.permission import AccessKind, AccessRequest, format_names
from remoter_kernel.local.proxy.replies import AnsweredCell, IopubMessage, run_in_thread
from remoter_kernel.local.proxy.sockets import notice_text
from remoter_kernel.local.session.link import LinkState

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.login.login import Login
    from remoter_kernel.local.proxy.here.local_cell import LocalCellContext, OnDone
    from remoter_kernel.local.proxy.here.local_magics import ObjectTransferSpec
    from remoter_kernel.protocol.requests import Request

# What is carried is in a file at one end: after a cut it goes on where it was.
LINK_BACK_WITHIN = 300.0  # seconds that a lost link is waited for
POLL_EVERY = 0.2  # seconds
LARGEST_FILE = 2**63  # bytes; no file is so large
# Bytes of the file; what is larger is asked about. Its reader takes hardly more out of it
# (`codecs.values.ObjectReader`), so that the answer is about what will be in memory.
ASK_ABOVE = 64 * 1024 * 1024
LONGEST_ANSWER = 1024 * 1024  # bytes of what a kernel writes of a job: it may be a stranger's
# As R itself reads a name: no digit after a first dot, and neither `...` nor `..1`.
R_NAME = re.compile(r"(?!\.\.(?:\.|\d+)$)(?:[^\W\d_]|\.(?!\d))[\w.]*")
R_RESERVED = frozenset(
    (
        *("if", "else", "repeat", "while", "function", "for", "next", "break", "in"),
        *("TRUE", "FALSE", "NULL", "Inf", "NaN", "NA"),
        *("NA_integer_", "NA_real_", "NA_complex_", "NA_character_"),
    )
)
PICKLE_WARNING = "{names} came as a pickle: to unpickle is to run code which whoever made it chose."


class NotCarried(RemoterError):
    """An object stayed where it was."""


@dataclass
class ObjectTransferCell:
    """A cell that carries objects."""

    request: Request
    spec: ObjectTransferSpec
    context: LocalCellContext
    on_over: Callable[[bool], None]  # with whether all was well
    _is_cancelled: bool = False

    def start(self) -> None:
        """Say that it runs, and work in a thread."""
        context = self.context
        cell = AnsweredCell(context.replies, self.request, context.count())
        cell.start()

        def succeed(messages: list[IopubMessage]) -> None:
            cell.finish(messages)
            self.on_over(True)

        def fail(error: RemoterError) -> None:
            cell.fail(error)
            self.on_over(False)

        run_in_thread(context.reactor, "carrying", self._transfer, succeed, fail)

    def interrupt(self) -> None:
        """Interrupt what runs in a kernel, and what would come after."""
        self._is_cancelled = True
        self.context.internal_exec.interrupt()

    # --- in a thread ---

    def _transfer(self) -> list[IopubMessage]:
        spec, context = self.spec, self.context
        _check_spec(spec, context.language())
        remote, names = context.dialer.remote.name, format_names(spec.names, "objects")
        # Both are RUN: what packs and unpacks runs in a kernel of this machine.
        pushes = f"sends {names} of a Python kernel here to {remote}"
        pulls = f"puts {names} of {remote} into a Python kernel here"
        sentence = pushes if spec.verb == "push" else pulls
        access = AccessRequest(f"%remoter {spec.verb}", AccessKind.RUN, sentence)
        # Before anything else: without a yes not even the link matters.
        context.permission.require(access, self.request)
        address = context.dialer.session_info
        # A link that has failed comes back only when a cell is sent: waiting would be in vain.
        if address is None or context.link.state is LinkState.FAILED:
            self._fail_link_down()
        if context.link.state is not LinkState.UP:
            self._wait_for_link()
        try:
            with (
                tempfile.TemporaryDirectory(prefix="remoter-", ignore_cleanup_errors=True) as here,
                RemoteTempDir(
                    self._current_login,
                    address.session,
                    self._check_cancelled,
                    self._wait_for_link,
                    context.leftover_folders,
                ) as there,
            ):
                return self._carry(Path(here, "object"), there)
        except OSError as error:
            why = f"This side has no place for what is on its way: {error.strerror or error}."
            advice = f"Look at {tempfile.gettempdir()}, then try again."
            raise NotCarried(why, advice) from error

    def _carry(self, path: Path, there: RemoteTempDir) -> list[IopubMessage]:
        """Pack in one kernel, move the file (`path` here), unpack in the other one."""
        locally, remotely = partial(self._run_locally, path), partial(self._run_remotely, there)
        is_push = self.spec.verb == "push"
        packed = (locally if is_push else remotely)("pack")
        # What a kernel says of its file; how much is read is bounded by that.
        size = _packed_size(packed)
        self._check_size(size)
        if is_push:
            there.upload(path)
        else:
            there.download(path, size)
        unpacked = (remotely if is_push else locally)("unpack")
        where = "there" if is_push else "here"
        lines = [
            f"{name} is {where} now ({strip_controls(str(what))}).\n"
            for name, what in zip(self.spec.targets, unpacked["objects"], strict=False)
        ]
        messages: list[IopubMessage] = [("stream", {"name": "stdout", "text": "".join(lines)})]
        if packed.get("pickled"):
            warning = PICKLE_WARNING.format(names=", ".join(self.spec.names))
            messages.insert(0, ("stream", {"name": "stderr", "text": notice_text(warning)}))
        return messages

    def _current_login(self) -> Login:
        """Return the login of the moment: a cut ends one, and the link makes another."""
        login = self.context.dialer.login
        if login is None:
            self._fail_link_down()
        return login

    def _wait_for_link(self) -> None:
        """Wait until the link is there; it comes back by itself, or not at all."""
        limit = time.monotonic() + LINK_BACK_WITHIN
        time.sleep(POLL_EVERY)  # the login may notice a cut before the link does
        while self.context.link.state is not LinkState.UP:
            self._check_cancelled()
            if self.context.link.state is LinkState.FAILED or time.monotonic() > limit:
                self._fail_link_down()
            time.sleep(POLL_EVERY)

    def _fail_link_down(self) -> NoReturn:
        advice = "%remoter status shows how it is; run a cell to try again."
        remote = self.context.dialer.remote.name
        raise Unreachable("The link is down; nothing was carried.", advice, remote=remote)

    def _check_cancelled(self) -> None:
        if self._is_cancelled:
            raise NotCarried("It was interrupted; nothing was carried.")

    def _check_size(self, size: int) -> None:
        """Ask about what is large; without somebody to ask, refuse it."""
        if size <= ASK_ABOVE or self.spec.is_large:
            return
        verb = f"%remoter {self.spec.verb}"
        question = f"{OWN_TAG}{verb} is about to carry {format_size(size)}. Go on? yes or no:"
        try:
            answer = self.context.prompter.prompt_in(self.request, question).strip().lower()
        except RemoterError:
            answer = ""
        if answer not in {"yes", "y"}:
            limit = f"more than {format_size(ASK_ABOVE)} are asked about"
            raise NotCarried(f"{format_size(size)} were not carried: {limit}.", f"{verb} … --yes")

    def _run_locally(self, path: Path, do: str) -> dict[str, Any]:
        # By a file, and not as output: that would go into the session's journal.
        answer = path.with_name("answer")
        code = python_code(self._job(do, str(path), str(answer)))
        self._run_code(partial(self.context.internal_exec.run_locally, code))
        return _parse_answer(answer.read_bytes(), "here")

    def _run_remotely(self, there: RemoteTempDir, do: str) -> dict[str, Any]:
        job = self._job(do, f"{there.path}/object", f"{there.path}/answer")
        code = r_code(job) if job["for_r"] else python_code(job)
        self._run_code(partial(self.context.internal_exec.run_remotely, code))
        return _parse_answer(there.read_answer_file(), f"on {self.context.dialer.remote.name}")

    def _job(self, do: str, path: str, answer: str) -> dict[str, Any]:
        names = self.spec.names if do == "pack" else self.spec.targets
        return {
            "do": do,
            "names": list(names),
            "path": path,
            "answer": answer,
            "is_pickled": self.spec.is_pickled,
            "for_r": self.context.language() == "R",
        }

    def _run_code(self, start: Callable[[OnDone], None]) -> None:
        """Have code run in a kernel, and wait for its end."""
        self._check_cancelled()
        # The kernel's messages come in the proxy's thread, and this waits in another one.
        over: queue.SimpleQueue[RemoterError | None] = queue.SimpleQueue()
        self.context.reactor.call_soon_threadsafe(partial(start, over.put))
        if error := over.get():
            raise error


def _parse_answer(answer: bytes, where: str) -> dict[str, Any]:
    """Return what a kernel did; what it refused is an error, and so is what makes no sense."""
    try:
        words = json.loads(answer) if len(answer) <= LONGEST_ANSWER else None
    except (ValueError, RecursionError):
        words = None
    if not isinstance(words, dict) or not words.keys() & {"objects", "refused"}:
        raise NotCarried(f"The kernel {where} answered with nonsense; nothing was carried.")
    refused = words.get("refused")
    if refused:
        sentence = strip_controls(str(refused)).rstrip(".")  # a kernel may write anything
        raise NotCarried(f"{sentence} ({where}); nothing was carried.")
    return words


def _packed_size(packed: dict[str, Any]) -> int:
    """Return the bytes of what was packed; R may write their number as 1e+05."""
    size = packed.get("size")
    if not isinstance(size, int | float) or not 0 <= size < LARGEST_FILE:
        raise NotCarried("What was packed has no size that can be; nothing was carried.")
    return int(size)


def _check_spec(spec: ObjectTransferSpec, language: str) -> None:
    """Refuse names that cannot be, and kernels that are not known."""
    is_r = language == "R"
    if language not in {"python", "R"}:
        raise Usage(f"Objects are carried to and from Python and R, and not {language}.")
    # Said before anything is packed.
    if is_r and spec.is_pickled:
        raise Usage("R reads no pickles; nothing was carried.")
    is_push = spec.verb == "push"
    here, there = (spec.names, spec.targets) if is_push else (spec.targets, spec.names)
    for name in here:
        _check_python_name(name)
    for name in there:
        if not is_r:
            _check_python_name(name)
        elif not R_NAME.fullmatch(name) or name in R_RESERVED:
            raise Usage(f"{name!r} is no name of R's; nothing was carried.", _NAME_ADVICE)


def _check_python_name(name: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise Usage(f"{name!r} is no name of Python's; nothing was carried.", _NAME_ADVICE)


_NAME_ADVICE = 'What has no name yet gets one first; "as NAME" gives it another.'
