"""Completes and explains a cell's line of ours: verbs, sessions, paths here and there."""

from __future__ import annotations

import contextlib
import json
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.errors import ProtocolError, RemoterError
from remoter_kernel.local.launch.launcher import query_remote
from remoter_kernel.local.proxy.magics.help import (
    LOCAL_PATH,
    REMOTE_PATH,
    SESSION,
    VERB,
    inspect_text,
    usage_of,
)
from remoter_kernel.local.session.session_cache import load_sessions
from remoter_kernel.protocol.messages import CONTENT, content_of
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request

COMPLETE_WITHIN = 1.0  # seconds: a person is typing
MAGICS = ("%remoter", "%%local", "%local")
TYPES_KEY = "_jupyter_types_experimental"  # JupyterLab looks there, and not at the matches
MOST_PATHS = 500  # paths


class ShellWord(NamedTuple):
    """A word of the line."""

    begin: int  # where it begins
    text: str  # without its quotes


class Completer:
    """Answers what a client asks about such a line."""

    def __init__(
        self,
        reactor: Reactor,
        dialer: SessionDialer,
        verbs: Iterable[str],
        reply: Callable[[Request, dict[str, Any]], None],
    ) -> None:
        """Remember; `reply(route, content)` answers."""
        self._reactor = reactor
        self._dialer = dialer
        self._verbs = tuple(verbs)
        self._reply = reply

    def handle(self, request: Request) -> bool:
        """Answer a question that is about a line of ours; return whether it is."""
        if request.type == "complete_request":
            return self._complete(request, request.content)
        return request.type == "inspect_request" and self._inspect(request, request.content)

    def _inspect(self, request: Request, content: dict[str, Any]) -> bool:
        text = inspect_text(str(content.get("code", "")), content.get("cursor_pos"))
        if text:
            data = {"text/plain": text}
            self._reply(request, {"status": "ok", "found": True, "data": data, "metadata": {}})
        return bool(text)

    def _complete(self, request: Request, content: dict[str, Any]) -> bool:
        line = line_before_cursor(content)
        words = split_words(line)
        if len(words) < 2 or words[0].text != MAGICS[0]:  # noqa: PLR2004 - a verb follows
            return False
        answer = _CompleteReply(request, words[-1].begin, len(line), self._reply)
        kind = word_kind([word.text for word in words[1:]])
        begin = words[-1].text
        if kind in {REMOTE_PATH, LOCAL_PATH, SESSION}:  # a disk may be slow, too
            self._reactor.call_later(COMPLETE_WITHIN, partial(answer.send, ()))
            ask = partial(self._complete_remotely, begin, answer)
            if kind != REMOTE_PATH:
                ask = partial(self._complete_locally, kind, begin, answer)
            Thread(ask, name="completion").start()
        else:
            answer.send(self._local_matches(kind, begin))
        return True

    @staticmethod
    def amend_reply(request: Request, parts: Sequence[Bytes]) -> Sequence[Bytes]:
        """Add our own first words to what the kernel says of `%rem`."""
        if request.type != "complete_request":
            return parts
        try:
            asked, said = request.content, content_of(parts)
        except ProtocolError:
            return parts
        content = add_magics(line_before_cursor(asked), said)
        if content is said:
            return parts
        return [*parts[:CONTENT], json.dumps(content).encode(), *parts[CONTENT + 1 :]]

    def _local_matches(self, kind: str, begin: str) -> list[str]:
        """Return what this side knows, and may tell."""
        if kind == VERB:
            found = list(self._verbs)
        elif kind == SESSION:
            found = [each["id"] for each in load_sessions().get(self._dialer.remote.name, ())]
        elif kind == LOCAL_PATH:
            found = local_paths(begin) if self._dialer.find_remote().local != "never" else []
        else:
            found = [word for word in kind.split("|") if word]
        return [word for word in found if word.startswith(begin)]

    def _complete_locally(self, kind: str, begin: str, answer: _CompleteReply) -> None:
        """Look at this side's files, in a thread of its own."""
        found: list[str] = []
        with contextlib.suppress(RemoterError):  # of remotes.toml: a cell that is run says it
            found = self._local_matches(kind, begin)
        self._reactor.call_soon_threadsafe(partial(answer.send, found))

    def _complete_remotely(self, begin: str, answer: _CompleteReply) -> None:
        """Ask over the login, in a thread of its own; who is too late is not heard."""
        dialer = self._dialer
        found: list[str] = []
        try:
            if dialer.login:
                words = {"verb": "paths", "begin": begin, "most": MOST_PATHS}
                words["cwd"] = dialer.remote_cwd(dialer.remote)
                told, _ = query_remote(dialer.login, dialer.remote, words, seconds=COMPLETE_WITHIN)
                found = [path for path in map(str, told["paths"]) if path.isprintable()]
        except (RemoterError, LookupError, TypeError):
            pass  # an older session's words, or a link that is down: nothing to offer
        self._reactor.call_soon_threadsafe(partial(answer.send, found))


class _CompleteReply:
    """What a client waits for, once."""

    def __init__(
        self,
        request: Request,
        begin: int,
        end: int,
        reply: Callable[[Request, dict[str, Any]], None],
    ) -> None:
        self._request = request
        self._begin = begin
        self._end = end
        self._reply = reply
        self._is_sent = False

    def send(self, words: Iterable[str]) -> None:
        if self._is_sent:
            return
        self._is_sent = True
        content = {
            "status": "ok",
            "matches": [quote_word(word) for word in words],
            "cursor_start": self._begin,
            "cursor_end": self._end,
            "metadata": {},
        }
        self._reply(self._request, content)


# The line (pure) --------------------------------------------------------------------------


def line_before_cursor(content: dict[str, Any]) -> str:
    """Return the first line up to the cursor; empty if the cursor is below it."""
    code = str(content.get("code", ""))
    position = content.get("cursor_pos")
    before = code[:position] if isinstance(position, int) else code
    return "" if "\n" in before else before


def split_words(line: str) -> list[ShellWord]:
    """Split a line as a shell would; the last word is empty where a new one begins."""
    words: list[ShellWord] = []
    begin, text, quote, is_escaped = 0, "", "", False
    for place, sign in enumerate(line):
        if is_escaped:
            text, is_escaped = text + sign, False
        elif sign == "\\" and os.sep == "/" and quote != "'":
            is_escaped = True
        elif quote or sign in "'\"":
            text += sign if quote not in {"", sign} else ""
            quote = sign if not quote else "" if sign == quote else quote
        elif sign.isspace():
            if place > begin:
                words.append(ShellWord(begin, text))
            begin, text = place + 1, ""
        else:
            text += sign
    return [*words, ShellWord(begin, text)]


def word_kind(words: Sequence[str]) -> str:
    """Say what the last of these words is; the first is the verb."""
    if len(words) == 1:
        return VERB
    kinds = usage_of(words[0]).kinds
    return kinds[min(len(words) - 2, len(kinds) - 1)] if kinds else ""


def add_magics(line: str, said: dict[str, Any]) -> dict[str, Any]:
    """Return what the kernel said with those of our first words that the line begins."""
    own = [word for word in MAGICS if line and word.startswith(line)]
    if not own or said.get("status") != "ok":
        return said
    matches = list(said.get("matches") or ())
    start = said.get("cursor_start") if matches else 0
    if not isinstance(start, int) or start > len(line):
        return said
    added = [word[start:] for word in own if word[start:] not in matches]
    content = {**said, "matches": matches + added, "cursor_start": start, "cursor_end": len(line)}
    metadata = said.get("metadata") or {}
    if isinstance(metadata.get(TYPES_KEY), list):
        place = {"start": start, "end": len(line), "type": "magic", "signature": ""}
        typed = [*metadata[TYPES_KEY], *({"text": word, **place} for word in added)]
        content["metadata"] = {**metadata, TYPES_KEY: typed}
    return content


def quote_word(word: str) -> str:
    """Write a word so that it is read as one."""
    if not re.search(r"[\s'\"\\]", word):
        return word
    return re.sub(r"([\s'\"\\])", r"\\\1", word) if os.sep == "/" else f'"{word}"'


def local_paths(begin: str) -> list[str]:
    """Return the paths of this side that begin so; folders with a / at the end."""
    folder, name = os.path.split(begin)
    head = begin[: len(begin) - len(name)]
    try:
        entries = sorted(Path(folder or ".").expanduser().iterdir())
    except (OSError, RuntimeError):  # the latter: nobody's home
        return []
    shown = [path for path in entries if path.name.startswith(name)]
    shown = [path for path in shown if name.startswith(".") or not path.name.startswith(".")]
    return [head + path.name + "/" * path.is_dir() for path in shown[:MOST_PATHS]]
