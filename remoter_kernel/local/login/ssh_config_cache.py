"""Keeps answers of `ssh -G` from start to start, where nothing can have changed them.

An answer is kept only where we know the
dates of each file that ssh has read, and where no file makes it depend on anything else: a
command, the network, a name server, the environment. In doubt ssh is asked again.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shlex
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remoter_kernel.errors import RemoterError
from remoter_kernel.local.login.ssh_keywords import (
    FORMER_KEYWORDS,
    KEYWORDS,
    account_home,
    local_user,
)
from remoter_kernel.local.private_files import file_lock, state_folder, write_private_file

if TYPE_CHECKING:
    from collections.abc import Sequence

CACHE_FILE = "ssh_answers.json"  # in the state folder
MOST_ANSWERS = 64  # the oldest are forgotten
MOST_FILES, LARGEST_FILE = 200, 256 * 1024  # bytes: who has more of it waits for ssh
SETTLED_AFTER = 2.0  # seconds: a file written later may change again and keep its date
SYSTEM_FOLDER = Path("/etc/ssh")
# Conditions of Match that nothing but files and words decide.
STEADY_CONDITIONS = frozenset({"all", "final"})
STEADY_CONDITIONS_WITH_WORD = frozenset({"host", "localuser", "originalhost", "tagged", "user"})
KEYWORD_LINE = re.compile(r'\s*([A-Za-z0-9]+)(?:\s*=\s*|\s+|(?="))(.*)')
HASH_IN_WORD = re.compile(r"\S#")  # what ssh takes for a part of a word, and Python for a comment
READING_LINE = re.compile(r"^debug1: Reading configuration data (.+?)\r?$", re.MULTILINE)


class NotCacheable(Exception):
    """Something other than dated files may change an answer."""


class ConfigFiles:
    """The files that an ssh reads, and their dates, before it is asked."""

    def __init__(self, ssh: str, choice: Sequence[str]) -> None:
        """Look at them; `choice` is the option -F, if there is one.

        Without it ssh reads the system's own file, too, wherever that is.
        """
        own = Path(account_home()) / ".ssh"
        self._has_system = not choice
        self._stats: dict[str, list[int] | None] = {}  # None: it is not there, and may come
        self._included: dict[str, list[str]] = {}  # by what Include asks for
        self.is_uncacheable = False
        try:
            self._add_program(Path(ssh))
            for name in choice[1:] or [str(own / "config")]:
                if name != "none":
                    self._read(Path(name), own)
            if self._has_system:
                self._read(SYSTEM_FOLDER / "ssh_config", SYSTEM_FOLDER)
        except (NotCacheable, OSError, ValueError, RuntimeError):
            self.is_uncacheable = True

    @property
    def stamp(self) -> list[Any]:
        """What has to be the same for an answer to be the same, in plain values."""
        return [self._stats, self._included]

    def covers(self, stderr: str) -> bool:
        """Say whether ssh, by what it told with -v, has read no other file."""
        read = set(READING_LINE.findall(stderr))
        if self._has_system and str(SYSTEM_FOLDER / "ssh_config") not in read:
            return False  # this ssh has its own elsewhere
        return read <= set(self._stats)

    @property
    def is_settled(self) -> bool:
        """Was none of them written so lately that its date says little?"""
        latest = time.time() - SETTLED_AFTER
        return all(max(dates[:2]) < latest * 1e9 for dates in self._stats.values() if dates)

    def _add_program(self, ssh: Path) -> None:
        with ssh.open("rb") as file:
            if file.read(2) == b"#!":  # a script: whatever that does
                raise NotCacheable
        self._add_stat(ssh)

    def _add_stat(self, path: Path) -> bool:
        """Note the dates of a file; say whether it is there."""
        if len(self._stats) >= MOST_FILES:
            raise NotCacheable
        self._stats[str(path)] = None
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            dates = [found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino]
            self._stats[str(path)] = dates
        return self._stats[str(path)] is not None

    def _read(self, path: Path, folder: Path) -> None:
        """Look through a file, and those that it includes; `folder` is where their names begin."""
        if str(path) in self._stats or not self._add_stat(path):
            return
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise NotCacheable
        for line in text.decode(errors="surrogateescape").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                self._check_line(line, folder)

    def _check_line(self, line: str, folder: Path) -> None:
        match = KEYWORD_LINE.match(line)
        word = match[1].lower() if match else ""
        # "$": the environment. An unknown word: what it depends on is not known here.
        if not match or "$" in line or not (word in KEYWORDS or word in FORMER_KEYWORDS):
            raise NotCacheable
        if word == "include":
            for pattern in _split_words(match[2]):
                self._include(pattern, folder)
        is_bad_match = word == "match" and not _is_cacheable_match(_split_words(match[2]))
        if is_bad_match or (word == "canonicalizehostname" and _split_words(match[2]) != ["no"]):
            raise NotCacheable

    def _include(self, pattern: str, folder: Path) -> None:
        # Tokens; classes of signs ("[[:alpha:]]"), which mean something else here; other homes.
        if re.search(r"[%\[]|^~(?!/)", pattern):
            raise NotCacheable
        if pattern.startswith("~/"):
            pattern = f"{account_home()}{pattern[1:]}"
        pattern = str(folder / pattern)
        self._included[pattern] = sorted(glob.glob(pattern))  # noqa: PTH207 - as ssh: a text
        for path in self._included[pattern]:
            self._read(Path(path), folder)


def _split_words(text: str) -> list[str]:
    if "\\" in text or HASH_IN_WORD.search(text):
        raise NotCacheable
    return shlex.split(text, comments=True)


def _is_cacheable_match(words: Sequence[str]) -> bool:
    """Say whether a Match is decided by files and by the words of the command alone."""
    rest = [*words]
    while rest:
        condition = rest.pop(0).lstrip("!").lower()
        if condition in STEADY_CONDITIONS_WITH_WORD and rest:
            rest.pop(0)
        elif condition not in STEADY_CONDITIONS:
            return False
    return True


def cached_answer(command: Sequence[str], files: ConfigFiles) -> str | None:
    """Return what ssh has answered to this command when its files were as they are now."""
    if files.is_uncacheable:
        return None
    known = _load_answers().get(_cache_key(command))
    if isinstance(known, dict) and known.get("files") == files.stamp:
        answer = known.get("answer")
        return answer if isinstance(answer, str) and answer else None
    return None


def cache_answer(command: Sequence[str], files: ConfigFiles, answer: str) -> None:
    """Keep an answer for the next start; where that fails, ssh is asked again."""
    with contextlib.suppress(RemoterError, OSError):
        path = state_folder() / CACHE_FILE
        with file_lock(path):
            known = _load_answers()
            known.pop(_cache_key(command), None)  # so that it comes last: the oldest are dropped
            known[_cache_key(command)] = {"files": files.stamp, "answer": answer}
            write_private_file(path, json.dumps(dict([*known.items()][-MOST_ANSWERS:])))


def _load_answers() -> dict[str, Any]:
    with contextlib.suppress(RemoterError, OSError, ValueError):
        known = json.loads((state_folder() / CACHE_FILE).read_text(encoding="utf-8"))
        if isinstance(known, dict):
            return known
    return {}


def _cache_key(command: Sequence[str]) -> str:
    """Name what was asked, by whom and where."""
    user = str(os.getuid()) if os.name == "posix" else ""
    # A home may be shared by machines, whose system files differ.
    who = [user, local_user(), account_home(), socket.gethostname()]
    return hashlib.sha256(json.dumps([*command, *who]).encode()).hexdigest()
