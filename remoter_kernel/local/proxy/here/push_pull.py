"""Carries objects between the kernel on this side and the far one: `%remoter push`, `pull`.

Each kernel writes or reads a file in a private folder on its side; this process moves bytes, and
never looks into them.
"""

from __future__ import annotations

import json
import keyword
import queue
import re
import tempfile
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from remoter_kernel.errors import RemoterError, Unreachable, Usage
from remoter_kernel.local.history.link_status import format_size
from remoter_kernel.local.login.prompts import OWN_TAG, strip_controls
from remoter_kernel.local.objects.kernel_code import python_code, r_code
from remoter_kernel.local.objects.remote_temp_dir import RemoteTempDir
from remoter_kernel.local.proxy.canned_replies import error_content
from remoter_kernel.local.proxy.here.permission import AccessKind, AccessRequest, format_names
from remoter_kernel.local.session.link import LinkState
from remoter_kernel.protocol.messages import content_of
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.local.login.login import Login
    from remoter_kernel.local.proxy.here.local_cell import InternalExec, OnDone
    from remoter_kernel.local.proxy.here.local_magics import ObjectTransferSpec
    from remoter_kernel.local.proxy.here.permission import Permission
    from remoter_kernel.local.proxy.prompter import StdinPrompter
    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.local.session.link import Link
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request

LINK_BACK_WITHIN = 300.0  # seconds that a lost link is waited for
POLL_EVERY = 0.2  # seconds
LARGEST_FILE = 2**63  # bytes; no file is so large
# Bytes; what is larger is asked about. This is the size of the file, and what is taken out of it
# is hardly more: whoever reads it sees to that (`carried.values.ObjectReader`).
ASK_ABOVE = 64 * 1024 * 1024
LONGEST_ANSWER = 1024 * 1024  # bytes of what a kernel says of an errand
R_NAME = re.compile(r"(?!\.\.(?:\.|\d+)$)(?:[^\W\d_]|\.(?!\d))[\w.]*")
R_RESERVED = frozenset(
    (
        *("if", "else", "repeat", "while", "function", "for", "next", "break", "in"),
        *("TRUE", "FALSE", "NULL", "Inf", "NaN", "NA"),
        *("NA_integer_", "NA_real_", "NA_complex_", "NA_character_"),
    )
)
PICKLE_WARNING = (
    "[remoter] {names} came as a pickle: to unpickle is to run code which whoever made it chose.\n"
)


class NotCarried(RemoterError):
    """An object stayed where it was."""


@dataclass(frozen=True)
class ObjectTransferContext:
    """What of the front carrying needs."""

    reactor: Reactor
    replies: ReplySender
    prompter: StdinPrompter
    permission: Permission
    internal_exec: InternalExec
    link: Link
    dialer: SessionDialer
    language: Callable[[], str]  # of the far kernel
    count: Callable[[], int]  # the number of the last cell there
    leftover_folders: list[str] = field(
        default_factory=list
    )  # folders that are to be removed there


class ObjectTransferCell:
    """A cell that carries objects."""

    def __init__(
        self,
        request: Request,
        spec: ObjectTransferSpec,
        context: ObjectTransferContext,
        on_over: Callable[[bool], None],
    ) -> None:
        """Remember."""
        self.request = request
        self._spec = spec
        self._context = context
        self._on_over = on_over
        self._code = str(content_of(request.parts).get("code", ""))
        self._is_cancelled = False

    def start(self) -> None:
        """Say that it is at work, and work in a thread."""
        self._publish("status", {"execution_state": "busy"})
        typed = {"code": self._code, "execution_count": self._context.count()}
        self._publish("execute_input", typed)
        Thread(self._run, name="carrying").start()

    def interrupt(self) -> None:
        """Interrupt it: what is under way in a kernel, and what would come after."""
        self._is_cancelled = True
        self._context.internal_exec.interrupt()

    # --- in the proxy's thread ---

    def _publish(self, kind: str, content: dict[str, Any]) -> None:
        self._context.replies.publish(kind, content, self.request.header)

    def _finish(self, texts: list[tuple[str, str]], error: RemoterError | None = None) -> None:
        for name, text in texts:
            self._publish("stream", {"name": name, "text": text})
        reply: dict[str, Any] = {"execution_count": self._context.count(), "payload": []}
        if error:
            trouble = error_content(type(error).__name__, str(error))
            self._publish("error", trouble)
            reply |= {"status": "error", **trouble}
        else:
            reply |= {"status": "ok", "user_expressions": {}}
        self._context.replies.reply(self.request, reply, is_quiet=True)
        self._publish("status", {"execution_state": "idle"})
        self._on_over(error is None)

    # --- in a thread ---

    def _run(self) -> None:
        call = self._context.reactor.call_soon_threadsafe
        try:
            texts = self._transfer()
        except RemoterError as error:
            call(partial(self._finish, [], error))
        except OSError as error:
            why = f"This side has no place for what is on its way: {error.strerror or error}."
            advice = f"Look at {tempfile.gettempdir()}, then try again."
            call(partial(self._finish, [], NotCarried(why, advice)))
        except Exception as error:  # noqa: BLE001 - a bug must reach the cell, too
            trouble = RemoterError(f"That failed unexpectedly: {type(error).__name__}: {error}")
            call(partial(self._finish, [], trouble))
        else:
            call(partial(self._finish, texts))

    def _transfer(self) -> list[tuple[str, str]]:
        wish, front = self._spec, self._context
        is_push, is_r = wish.verb == "push", front.language() == "R"
        _check_spec(wish, is_push=is_push, is_r=is_r, language=front.language())
        remote = front.dialer.remote.name
        what = format_names(wish.names, "objects")
        sentence = (  # what packs and unpacks runs in the kernel of this side
            f"sends {what} of a Python kernel here to {remote}"
            if is_push
            else f"puts {what} of {remote} into a Python kernel here"
        )
        wanted = AccessRequest(f"%remoter {wish.verb}", AccessKind.RUN, sentence)
        front.permission.require(wanted, self.request)
        address = front.dialer.session_info
        if address is None or front.link.state is LinkState.FAILED:
            self._fail_link_down()
        if front.link.state is not LinkState.UP:
            self._wait_for_link()
        with (
            tempfile.TemporaryDirectory(prefix="remoter-", ignore_cleanup_errors=True) as here,
            RemoteTempDir(
                self._current_login,
                address.session,
                self._check_cancelled,
                self._wait_for_link,
                front.leftover_folders,
            ) as there,
        ):
            path = Path(here, "object")
            if is_push:
                packed = self._run_locally("pack", path, is_r=is_r)
                self._check_size(_packed_size(packed))
                there.upload(path)
                unpacked = self._run_remotely("unpack", there, is_r=is_r)
            else:
                packed = self._run_remotely("pack", there, is_r=is_r)
                self._check_size(_packed_size(packed))
                there.download(path, _packed_size(packed))
                unpacked = self._run_locally("unpack", path, is_r=is_r)
        return self._summary(packed, unpacked, "there" if is_push else "here")

    def _current_login(self) -> Login:
        """Return the login of the moment."""
        login = self._context.dialer.login
        if login is None:
            self._fail_link_down()
        return login

    def _wait_for_link(self) -> None:
        """Wait until the link is there; it comes back by itself, or not at all."""
        limit = time.monotonic() + LINK_BACK_WITHIN
        pause = threading.Event()
        pause.wait(POLL_EVERY)  # a cut is noticed here first, perhaps
        while self._context.link.state is not LinkState.UP:
            self._check_cancelled()
            if self._context.link.state is LinkState.FAILED or time.monotonic() > limit:
                self._fail_link_down()
            pause.wait(POLL_EVERY)

    def _fail_link_down(self) -> NoReturn:
        advice = "%remoter status shows how it is; run a cell to try again."
        remote = self._context.dialer.remote.name
        raise Unreachable("The link is down; nothing was carried.", advice, remote=remote)

    def _summary(
        self, packed: dict[str, Any], unpacked: dict[str, Any], where: str
    ) -> list[tuple[str, str]]:
        texts = []
        if packed.get("pickled"):
            texts.append(("stderr", PICKLE_WARNING.format(names=", ".join(self._spec.names))))
        objects = zip(self._spec.targets, unpacked["objects"], strict=False)
        lines = [
            f"{name} is {where} now ({strip_controls(str(what))}).\n" for name, what in objects
        ]
        return [*texts, ("stdout", "".join(lines))]

    def _check_cancelled(self) -> None:
        if self._is_cancelled:
            raise NotCarried("It was interrupted; nothing was carried.")

    def _check_size(self, size: int) -> None:
        """Ask about what is large; without somebody to ask, refuse it."""
        if size <= ASK_ABOVE or self._spec.is_large:
            return
        verb = f"%remoter {self._spec.verb}"
        told = f"{OWN_TAG}{verb} is about to carry {format_size(size)}. Go on? yes or no:"
        try:
            said = self._context.prompter.prompt_in(self.request, told).strip().lower()
        except RemoterError:
            said = ""
        if said not in {"yes", "y"}:
            limit = f"more than {format_size(ASK_ABOVE)} are asked about"
            raise NotCarried(f"{format_size(size)} were not carried: {limit}.", f"{verb} … --yes")

    def _run_locally(self, do: str, path: Path, *, is_r: bool) -> dict[str, Any]:
        answer = path.with_name("answer")
        words = self._job(do, str(path), str(answer), is_r=is_r)
        self._run_code(partial(self._context.internal_exec.run_locally, python_code(words)))
        return _parse_answer(answer.read_bytes(), "here")

    def _run_remotely(self, do: str, there: RemoteTempDir, *, is_r: bool) -> dict[str, Any]:
        words = self._job(do, f"{there.path}/object", f"{there.path}/answer", is_r=is_r)
        code = r_code(words) if is_r else python_code(words)
        self._run_code(partial(self._context.internal_exec.run_remotely, code))
        return _parse_answer(there.read_answer_file(), f"on {self._context.dialer.remote.name}")

    def _job(self, do: str, path: str, answer: str, *, is_r: bool) -> dict[str, Any]:
        names = self._spec.names if do == "pack" else self._spec.targets
        return {
            "do": do,
            "names": list(names),
            "path": path,
            "answer": answer,
            "is_pickled": self._spec.is_pickled,
            "for_r": is_r,
        }

    def _run_code(self, begin: Callable[[OnDone], None]) -> None:
        """Have something done in a kernel, and wait for its end."""
        self._check_cancelled()
        over: queue.SimpleQueue[RemoterError | None] = queue.SimpleQueue()
        self._context.reactor.call_soon_threadsafe(partial(begin, over.put))
        if error := over.get():
            raise error


def _parse_answer(said: bytes, where: str) -> dict[str, Any]:
    """Return what a kernel did; what it refused is an error, and so is what makes no sense."""
    try:
        words = json.loads(said) if len(said) <= LONGEST_ANSWER else None
    except (ValueError, RecursionError):
        words = None
    if not isinstance(words, dict) or not words.keys() & {"objects", "refused"}:
        raise NotCarried(f"The kernel {where} answered with nonsense; nothing was carried.")
    refused = words.get("refused")
    if refused:
        sentence = strip_controls(str(refused)).rstrip(
            "."
        )  # also a kernel far away may say anything
        raise NotCarried(f"{sentence} ({where}); nothing was carried.")
    return words


def _packed_size(packed: dict[str, Any]) -> int:
    """Return the bytes of what was packed; R may write their number as 1e+05."""
    size = packed.get("size")
    if not isinstance(size, int | float) or not 0 <= size < LARGEST_FILE:
        raise NotCarried("What was packed has no size that can be; nothing was carried.")
    return int(size)


def _check_spec(spec: ObjectTransferSpec, *, is_push: bool, is_r: bool, language: str) -> None:
    """Refuse names that cannot be, and kernels that are not known."""
    if language not in {"python", "R"}:
        raise Usage(f"Objects are carried to and from Python and R, and not {language}.")
    if is_r and spec.is_pickled:
        raise Usage("R reads no pickles; nothing was carried.")
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
