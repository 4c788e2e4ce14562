"""Asks remotes about their sessions: one command over SSH each time, without any evaluator."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from remoter_kernel.errors import (
    NoSuchSession,
    ProtocolError,
    RemoterError,
    Unreachable,
    Usage,
    naming_remote,
)
from remoter_kernel.local.config.remotes import Remote, find_remote, read_remotes
from remoter_kernel.local.launch.launcher import (
    StrangeAnswer,
    as_count,
    describes_session,
    parse_session,
    parse_sessions,
    query_remote,
)
from remoter_kernel.local.login.keeper.keeper_login import log_in_by_keeper
from remoter_kernel.local.session.dialer import THIS_MACHINE, LocalHost
from remoter_kernel.local.session.session_cache import store_sessions
from remoter_kernel.plain_text import plain_text
from remoter_kernel.protocol.frames import MOST_ITEM
from remoter_kernel.protocol.journal_entries import JournalEntry, split_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from remoter_kernel.local.login.login import Login
    from remoter_kernel.local.login.prompts import Prompter

FOLLOW_WAIT = 20.0  # seconds that the remote waits for a new record before it answers
LARGEST_ANSWER = 32 * 1024 * 1024  # bytes of one answer: `evaluator.query` sends no more
MOST_IN_MEMORY = 2 * 1024**3  # bytes of a journal that is kept in memory until all is read


class RemoteQuery:
    """A login to one remote, for queries about its sessions."""

    def __init__(self, remote: Remote, prompter: Prompter | None = None) -> None:
        self.remote = remote
        self.skipped = 0  # entries of the last answer that are no sessions
        self._prompter = prompter
        self._login: Login | None = None
        self._local_host = LocalHost()
        self._is_cancelled = False  # by `cancel`

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Log in; a `RemoterError` names the remote."""
        self._check_cancelled()
        on_try = self._on_login_started
        try:
            with naming_remote(self.remote.name):
                if self.remote is THIS_MACHINE:
                    self._login = self._local_host.log_in()
                else:
                    self._login = log_in_by_keeper(self.remote, self._prompter, on_try=on_try)
        except RemoterError:
            self.close()
            raise

    def _on_login_started(self, login: Login) -> None:
        """Keep a login that has only begun: `cancel` may have to close it."""
        self._login = login
        if self._is_cancelled:  # by another thread, since `open` checked
            login.close()

    def _check_cancelled(self) -> None:
        if self._is_cancelled:
            raise Unreachable("What was asked was called off.", remote=self.remote.name)

    def cancel(self) -> None:
        """End the query that is under way, and ask nothing any more; from another thread."""
        self._is_cancelled = True
        self.close()

    def close(self) -> None:
        """Give the login back."""
        if self._login:
            self._login.close()
        self._local_host.close()

    @property
    def login(self) -> Login | None:
        """The login, while there is one."""
        return self._login

    def ask(self, words: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Ask one thing; return the answer, and the bytes that follow it."""
        self._check_cancelled()
        assert self._login is not None  # noqa: S101 - between open and close there is one
        with naming_remote(self.remote.name):
            try:
                return query_remote(self._login, self.remote, words)
            except Unreachable:  # a query changes nothing, and the network may be back by now
                self._check_cancelled()
                self.close()
                self.open()
                return query_remote(self._login, self.remote, words)

    def sessions(self) -> list[dict[str, Any]]:
        """Return what is known of each session there; `skipped` counts what has no id of one."""
        answer = self.ask({"verb": "sessions"})[0]
        sessions = parse_sessions(answer, self.remote.name)
        self.skipped = len(answer["sessions"]) - len(sessions)
        return sessions

    def stop(self, session: str) -> tuple[str, str]:
        """Stop a session; return how it ended, and the host where it lives."""
        stopped = self.ask({"verb": "stop", "sessions": [session]})[0].get("stopped")
        told = stopped[0] if isinstance(stopped, list) and stopped else None
        if not isinstance(told, dict):
            raise StrangeAnswer("it did not tell what was stopped.", remote=self.remote.name)
        return str(told.get("how")), plain_text(told.get("host") or "")


class SessionList(NamedTuple):
    """The sessions of one remote, or why it could not be asked."""

    query: RemoteQuery
    sessions: list[dict[str, Any]]
    error: RemoterError | None


@contextlib.contextmanager
def query_remotes(
    names: Iterable[str] | None, prompter: Prompter | None
) -> Iterator[list[SessionList]]:
    """Ask remotes (None: all there are) for their sessions, all at once; stay logged in."""
    visits = [RemoteQuery(remote, prompter) for remote in _remotes_named(names)]
    with contextlib.ExitStack() as stack:
        for visit in visits:
            stack.callback(visit.close)
        with ThreadPoolExecutor(max_workers=max(1, len(visits))) as pool:  # 0 workers are an error
            try:
                listings = list(pool.map(_list_sessions, visits))
            except BaseException:  # Ctrl-C: else leaving the pool would wait for open questions
                for visit in visits:
                    visit.cancel()
                raise
        yield _deduplicate(listings)


def _remotes_named(names: Iterable[str] | None) -> list[Remote]:
    if names is not None:
        return [find_remote(name) or THIS_MACHINE for name in names]
    return list(read_remotes().all.values()) or [THIS_MACHINE]


def _list_sessions(visit: RemoteQuery) -> SessionList:
    try:
        visit.open()
        sessions = visit.sessions()
        store_sessions(visit.remote.name, sessions)
        return SessionList(visit, sessions, None)
    except RemoterError as error:
        return SessionList(visit, [], error)


def _deduplicate(listings: list[SessionList]) -> list[SessionList]:
    """List a session once where two remotes are one host: for the remote that started it."""
    owners: dict[tuple[str, float], str] = {}
    for listing in listings:
        for session in listing.sessions:
            key = (session["id"], session["created"])  # ids are short: two hosts may share one
            if key not in owners or session["remote"] == listing.query.remote.name:
                owners[key] = listing.query.remote.name
    return [
        listing._replace(
            sessions=[
                session
                for session in listing.sessions
                if owners[session["id"], session["created"]] == listing.query.remote.name
            ]
        )
        for listing in listings
    ]


# One session ------------------------------------------------------------------------------


@dataclass
class SessionRef:
    """A session, and the login to the remote where it is."""

    query: RemoteQuery
    about: dict[str, Any]

    @property
    def id(self) -> str:
        """The session's id, whole."""
        return str(self.about["id"])

    def read_journal(self, only: str = "", *, follow: bool = False, most: int = 0) -> JournalReader:
        """Read its journal from the beginning; `most`: bytes of it, where they are kept here."""
        return JournalReader(self.query.ask, self.id, only, follow=follow, most=most)


def split_session_name(word: str) -> tuple[str, str]:
    """Return the remote that a word names, if it does, and the id or its beginning.

    Every id begins with nothing: a word without one names no session, and never the only one.
    """
    name, _, prefix = word.strip().rpartition("/")
    if not prefix:
        raise Usage(f"{word!r} names no session.", "`remoter sessions` shows which there are.")
    return name, prefix


def resolve_session(word: str, listings: list[SessionList]) -> SessionRef:
    """Find the session that a word means: an id or the beginning of one, `NAME/ID`."""
    name, prefix = split_session_name(word)
    found = [
        SessionRef(listing.query, session)
        for listing in listings
        for session in listing.sessions
        if session["id"].startswith(prefix) and name in {"", listing.query.remote.name}
    ]
    # A whole id means its session, though it may be the beginning of another.
    exact = [each for each in found if each.id == prefix]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        names = ", ".join(f"{each.query.remote.name}/{each.id}" for each in found)
        raise Usage(f"{word!r} may mean several sessions: {names}.", "Write more of the id.")
    for listing in listings:
        if listing.error and name in {"", listing.query.remote.name}:
            raise listing.error  # it may well be there
    raise NoSuchSession(
        f"There is no session {word!r}.", "`remoter sessions` shows which there are."
    )


def resolve_session_id(
    word: str, ask: Callable[[dict[str, Any]], tuple[dict[str, Any], bytes]], remote: str
) -> str:
    """Return the id of the session of one remote that a word means."""
    sessions = parse_sessions(ask({"verb": "sessions"})[0], remote)
    store_sessions(remote, sessions)
    return resolve_session(word, [SessionList(RemoteQuery(Remote(remote, "")), sessions, None)]).id


@contextlib.contextmanager
def locate_session(word: str, prompter: Prompter | None) -> Iterator[SessionRef]:
    """Find one session over all remotes, or over the one of `NAME/ID`."""
    name, _ = split_session_name(word)
    with query_remotes([name] if name else None, prompter) as listings:
        yield resolve_session(word, listings)


@dataclass
class JournalReader:
    """Reads a remote journal in pieces; iterate over its records, in order."""

    ask: Callable[[dict[str, Any]], tuple[dict[str, Any], bytes]]
    session: str
    only: str = ""  # "events", "missed" (and all of the requests `cells`); "": everything
    _: KW_ONLY
    follow: bool = False  # until the session ends?
    cells: Sequence[str] = ()
    most: int = 0  # bytes that are read in all; 0: as many as there are
    answer: dict[str, Any] = field(init=False, default_factory=dict)  # the last one
    _journal_size: int = field(init=False, default=0)  # bytes, the largest that was answered
    _received: int = field(init=False, default=0)  # bytes of all answers

    def _on_answer_size(self, size: int) -> int:
        """Count an answer of so many bytes; return how large a record of that journal can be."""
        told = self.answer["session"].get("journal")
        self._journal_size = max(self._journal_size, told if isinstance(told, int) else 0)
        self._received += size
        if size > LARGEST_ANSWER:
            raise ProtocolError(
                f"An answer of {size:,} bytes came, and {LARGEST_ANSWER:,} are the most."
            )
        if self.most and self._received > self.most:
            most = f"{self.most / 2**30:.0f} GiB"
            raise ProtocolError(
                f"Session {self.session} has said more than the {most} that are kept in memory "
                "here.",
                f"`remoter outputs {self.session}` shows all of it, as it comes.",
            )
        # A record that claims to be larger than its journal is refused before it is collected.
        return min(self._journal_size, MOST_ITEM)

    def __iter__(self) -> Iterator[JournalEntry]:
        query = {"verb": "outputs", "session": self.session, "only": self.only}
        after, rest, wait, place = 0, b"", 0.0, None
        while True:
            begin = {"after": after, "skip": len(rest), "place": place, "cells": list(self.cells)}
            answer, data = self.ask({**query, **begin, "wait": wait})
            self.answer = _validated(answer)
            if len(data) == self.answer["bytes"]:  # else the host has cut it: `skip` must count
                place = self.answer["place"]
            found, rest = split_entries(rest + data, self._on_answer_size(len(data)))
            for said in found:
                after = said.number
                yield said
            if not data and (self.answer["is_over"] or not self.follow):
                return
            # With half a record in hand, the rest of it is there already.
            wait = FOLLOW_WAIT if self.follow and not rest else 0.0


def _validated(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer about a journal with each value of the kind that it must be."""
    about = answer.get("session")
    if not describes_session(about):
        raise StrangeAnswer("it answered something that tells of no session.")
    tails = answer.get("tails")
    return {
        "session": parse_session(about),
        "is_over": bool(answer.get("is_over")),
        "place": answer.get("place"),  # opaque: it is only sent back
        "bytes": as_count(answer.get("bytes")),
        "tails": {
            name: [plain_text(line) for line in lines]
            for name, lines in (tails if isinstance(tails, dict) else {}).items()
            if isinstance(lines, list)
        },
    }
