"""Completes and explains a cell's `%remoter` line: verbs, sessions, local and remote paths."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.errors import ProtocolError
from remoter_kernel.local.launch.launcher import query_remote
from remoter_kernel.local.proxy.magics.help import (
    HELP,
    LOCAL_PATH,
    REMOTE_PATH,
    SESSION,
    VERB,
    inspect_text,
)
from remoter_kernel.local.proxy.replies import run_in_thread
from remoter_kernel.local.session.session_cache import load_sessions
from remoter_kernel.protocol.messages import CONTENT, content_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from remoter_kernel.local.proxy.replies import ReplySender
    from remoter_kernel.local.session.dialer import SessionDialer
    from remoter_kernel.protocol.frames import Bytes
    from remoter_kernel.protocol.reactor import Reactor
    from remoter_kernel.protocol.requests import Request

COMPLETE_WITHIN = 1.0  # seconds: a person is typing
MAGICS = ("%remoter", "%%local", "%local")
TYPES_KEY = "_jupyter_types_experimental"  # JupyterLab looks there, and not at the matches
MOST_PATHS = 500  # paths that are offered


class ShellWord(NamedTuple):
    """A word of the line."""

    begin: int  # where it begins
    text: str  # without its quotes


@dataclass
class Completer:
    """Answers what a client asks about such a line."""

    reactor: Reactor
    dialer: SessionDialer
    replies: ReplySender

    def handle(self, request: Request) -> bool:
        """Answer if this is about a `%remoter` line; return whether it is."""
        if request.type == "complete_request":
            return self._complete(request)
        text = inspect_text(str(request.content.get("code", "")), request.content.get("cursor_pos"))
        if text:
            data = {"text/plain": text}
            reply = {"status": "ok", "found": True, "data": data, "metadata": {}}
            self.replies.reply(request, reply)
        return bool(text)

    def _complete(self, request: Request) -> bool:
        # What stands behind the cursor is not replaced.
        line = line_before_cursor(request.content)
        words = split_words(line)
        # `%local` is for Python: its kernel completes what follows (`local_cells`).
        if len(words) < 2 or words[0].text != MAGICS[0]:  # noqa: PLR2004 - a verb follows
            return False
        kind = word_kind([word.text for word in words[1:]])
        begin = words[-1].text
        send = partial(self._send_once, request, words[-1].begin, len(line))
        if kind not in {REMOTE_PATH, LOCAL_PATH, SESSION}:
            send(self._local_matches(kind, begin))
            return True
        # In a thread: a link is slow, and a disk may be. Who is too late has nothing to offer.
        self.reactor.call_later(COMPLETE_WITHIN, partial(send, ()))
        find = self._remote_paths if kind == REMOTE_PATH else partial(self._local_matches, kind)
        run_in_thread(
            self.reactor, "completion", partial(find, begin), send, lambda _error: send(())
        )
        return True

    def _send_once(self, request: Request, begin: int, end: int, matches: Iterable[str]) -> None:
        if not request.is_over:
            content = {
                "status": "ok",
                "matches": [quote_word(word) for word in matches],
                "cursor_start": begin,
                "cursor_end": end,
                "metadata": {},
            }
            self.replies.reply(request, content)

    @staticmethod
    def amend_reply(request: Request, parts: Sequence[Bytes]) -> Sequence[Bytes]:
        """Add our magics to what the kernel offers for `%rem`."""
        if request.type != "complete_request":
            return parts
        try:
            line, reply = line_before_cursor(request.content), content_of(parts)
        except ProtocolError:
            return parts
        content = add_magics(line, reply)
        if content is reply:
            return parts
        return [*parts[:CONTENT], json.dumps(content).encode(), *parts[CONTENT + 1 :]]

    def _local_matches(self, kind: str, begin: str) -> list[str]:
        """Return what this machine knows, and a notebook may be told."""
        if kind == VERB:
            found = list(HELP)
        elif kind == SESSION:
            found = [each["id"] for each in load_sessions().get(self.dialer.remote.name, ())]
        elif kind == LOCAL_PATH:
            # What is completed stands in the notebook: names of files are for no other one's eyes.
            found = local_paths(begin) if self.dialer.find_remote().local != "never" else []
        else:
            found = [word for word in kind.split("|") if word]
        return [word for word in found if word.startswith(begin)]

    def _remote_paths(self, begin: str) -> list[str]:
        dialer = self.dialer
        if not dialer.login:
            return []
        # Relative paths are those of the session's folder, as in `%remoter put`.
        fields = {"verb": "paths", "begin": begin, "most": MOST_PATHS}
        fields["cwd"] = dialer.remote_cwd(dialer.remote)
        answer, _ = query_remote(dialer.login, dialer.remote, fields, seconds=COMPLETE_WITHIN)
        try:
            return [path for path in map(str, answer["paths"]) if path.isprintable()]
        except (LookupError, TypeError):  # of an evaluator older than this query
            return []


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
        # On Windows it separates folders; between single quotes it means itself.
        elif sign == "\\" and os.sep == "/" and quote != "'":
            is_escaped = True
        # A quote may stand inside of a word, as in a shell.
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
    # The last kind stands for all that follow: `put SRC SRC SRC DST`.
    kinds = HELP[words[0]].kinds if words[0] in HELP else ()
    return kinds[min(len(words) - 2, len(kinds) - 1)] if kinds else ""


def add_magics(line: str, reply: dict[str, Any]) -> dict[str, Any]:
    """Return a kernel's reply with those of our magics that the line begins."""
    own = [word for word in MAGICS if line and word.startswith(line)]
    if not own or reply.get("status") != "ok":
        return reply
    matches = list(reply.get("matches") or ())
    start = reply.get("cursor_start") if matches else 0
    if not isinstance(start, int) or start > len(line):
        return reply
    # IPython's matches replace what follows the `%`: ours must begin where its own do.
    added = [word[start:] for word in own if word[start:] not in matches]
    content = {**reply, "matches": matches + added, "cursor_start": start, "cursor_end": len(line)}
    metadata = reply.get("metadata") or {}
    if isinstance(metadata.get(TYPES_KEY), list):
        place = {"start": start, "end": len(line), "type": "magic", "signature": ""}
        typed = [*metadata[TYPES_KEY], *({"text": word, **place} for word in added)]
        content["metadata"] = {**metadata, TYPES_KEY: typed}
    return content


def quote_word(word: str) -> str:
    """Write a word so that it is read as one."""
    # Only where it must: most paths stay as they are.
    if not re.search(r"[\s'\"\\]", word):
        return word
    return re.sub(r"([\s'\"\\])", r"\\\1", word) if os.sep == "/" else f'"{word}"'


def local_paths(begin: str) -> list[str]:
    """Return the paths of this machine that begin so; folders with a / at the end."""
    folder, name = os.path.split(begin)
    head = begin[: len(begin) - len(name)]
    try:
        entries = sorted(Path(folder or ".").expanduser().iterdir())
    except (OSError, RuntimeError):  # the latter: "~name" of nobody
        return []
    shown = [path for path in entries if path.name.startswith(name)]
    # As shells do: hidden files are offered to who asks for them.
    shown = [path for path in shown if name.startswith(".") or not path.name.startswith(".")]
    return [head + path.name + "/" * path.is_dir() for path in shown[:MOST_PATHS]]
