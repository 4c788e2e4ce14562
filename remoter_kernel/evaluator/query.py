"""Answers questions about sessions: `python ZIP ask`, one JSON object on stdin.

Connects to no evaluator, and needs only what Python brings: it answers where nothing else does.
The answer is one line, `REMOTER {json}`; for `log` and `outputs` the bytes of records follow it.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import socket
import time
import traceback
from typing import TYPE_CHECKING, Any, Callable

from remoter_kernel import logs
from remoter_kernel.errors import ProtocolError
from remoter_kernel.evaluator import registry, stdio_reply
from remoter_kernel.evaluator.folders import sessions_folder
from remoter_kernel.evaluator.named_lock import remove_stale_locks
from remoter_kernel.evaluator.processes import started_at
from remoter_kernel.evaluator.records import JournalFollower, Record, read_journal
from remoter_kernel.evaluator.registry import Session
from remoter_kernel.plain_text import plain_text
from remoter_kernel.protocol.frames import Channel, unpack_parts
from remoter_kernel.protocol.journal_entries import JournalEntry, encode_entry
from remoter_kernel.transfer.plan import full_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from remoter_kernel.evaluator.stdio_reply import Answer

STOP_WITHIN = 8.0  # seconds that an evaluator has to end its session properly
KILL_WITHIN = 3.0  # seconds after SIGKILL
LOOK_EVERY = 0.05  # seconds
MOST = 16 * 1024 * 1024  # bytes of records in one answer
TAIL = 20  # lines of each log
HEADER, PARENT = 1, 2  # of a message's parts
PACKAGES = ("pyzmq", "jupyter_client", "ipykernel", "tornado", "traitlets")


def main() -> None:
    """Read one query, answer it."""
    os.umask(0o077)
    stdio_reply.reply_to_stdin(lambda query: QUERIES[query["verb"]](query))


# How sessions are ------------------------------------------------------------------------


def list_sessions(_wish: dict[str, Any]) -> Answer:
    """Tell of every session that has a folder here."""
    return {"sessions": [_describe_or_error(session) for session in registry.all_sessions()]}, ()


def _describe_or_error(session: Session) -> dict[str, Any]:
    """Describe a session; one whose files make no sense hides no other."""
    try:
        return describe(session)
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        traceback.print_exc()
        why = f"Its files there make no sense ({error})."
        return {"id": session.id, "host": socket.gethostname(), "state": "unknown", "why": why}


def describe(session: Session) -> dict[str, Any]:
    """Say what is known of a session."""
    about, listener, now = (session.read(f"{name}.json") for name in ("session", "door", "state"))
    state, since, why = _state_of(session, about, listener, now)
    is_alive = state not in {"ended", "dead"}
    clients = now.get("fronts") or {}
    return {
        "id": session.id,
        "remote": about.get("remote") or "",
        "kernel": about.get("kernel") or "",
        "notebook": about.get("notebook") or "",
        "script": about.get("script") or "",
        "host": (not session.is_of_this_boot() and listener.get("host")) or socket.gethostname(),
        "created": about.get("created") or 0.0,
        "state": state,
        "since": since,
        "seconds": max(0.0, time.time() - since),  # by this clock: others may go wrong
        "why": why,
        "fronts": sum(bool(client.get("here")) for client in clients.values()) if is_alive else 0,
        "pid": listener.get("pid") if is_alive else None,
        "journal": _journal_size(session),
    }


def _state_of(
    session: Session, about: dict[str, Any], listener: dict[str, Any], now: dict[str, Any]
) -> tuple[str, float, str]:
    since = float(now.get("since") or about.get("created") or 0.0)
    if about.get("ended"):
        return "ended", float(about["ended"]), str(about.get("why", ""))
    if not listener:
        return "starting", since, ""
    if not session.is_of_this_host():
        return str(now.get("state") or "unknown"), since, f"It lives on {listener.get('host')}."
    if session.is_alive():
        is_between = now.get("state") in (None, "", "dead")  # two kernels, or before the first
        return "starting" if is_between else str(now["state"]), since, ""
    why = "Its evaluator was killed." if session.is_of_this_boot() else "The machine was restarted."
    return "dead", since, f"{why} Its kernel still runs." if _kernel_of(session) else why


def _kernel_of(session: Session) -> int:
    """Return the process number of a session's kernel, 0 if it does not run."""
    has_ended = session.read("exit.json").get("pid") == session.read("child.json").get("pid")
    return 0 if has_ended else _pid_in(session, "child.json")


def _evaluator_of(session: Session) -> int:
    """Return the process number of a session's evaluator, 0 if it does not run."""
    return _pid_in(session, "door.json")


def _pid_in(session: Session, name: str) -> int:
    """Return the number of the process that a file names, 0 if another one has it by now."""
    about = session.read(name)
    pid = registry.whole_number(about.get("pid"))
    started = started_at(pid) if pid and session.is_of_this_boot() else ""
    return pid if started and about.get("started", started) == started else 0


def list_requests(query: dict[str, Any]) -> Answer:
    """Tell which requests are open in a session; None: its evaluator does not say."""
    state, now = Session(_folder_of(query["session"])).read("state.json"), time.time()
    requests = state.get("requests")
    for row in requests if isinstance(requests, list) else ():
        if isinstance(row, dict) and isinstance(row.get("seconds"), float):  # as of then
            row["seconds"] += max(0.0, now - state.get("written", now))
    return {"requests": requests}, ()


# Stop ------------------------------------------------------------------------------------


def stop_sessions(query: dict[str, Any]) -> Answer:
    """End sessions (`sessions`: ids), and wait until they are gone."""
    return {"stopped": [stop_session(Session(_folder_of(name))) for name in query["sessions"]]}, ()


def stop_session(session: Session) -> dict[str, Any]:
    """End one session: properly if its evaluator can, else by SIGKILL."""
    listener = session.read("door.json")
    if listener and not session.is_of_this_host():
        return {"id": session.id, "how": "elsewhere", "host": listener.get("host")}
    evaluator, kernel = _evaluator_of(session), _kernel_of(session)
    if not (evaluator or kernel):
        return {"id": session.id, "how": "gone"}
    how = "stopped"
    if evaluator:
        _signal_quietly(os.kill, evaluator, signal.SIGTERM)
    if not (evaluator and _wait_until_gone(session, STOP_WITHIN)):
        how = "killed"
        _signal_quietly(os.killpg, _kernel_of(session), signal.SIGKILL)
        _signal_quietly(os.kill, _evaluator_of(session), signal.SIGKILL)
        if not _wait_until_gone(session, KILL_WITHIN):
            return {"id": session.id, "how": "stays"}
    if not session.read("session.json").get("ended"):
        session.mark_ended("It was stopped.")
        session.remove_keys()
        remove_stale_locks()
    return {"id": session.id, "how": how}


def _wait_until_gone(session: Session, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while _evaluator_of(session) or _kernel_of(session):
        if time.monotonic() > limit:
            return False
        time.sleep(LOOK_EVERY)
    return True


def _signal_quietly(kill: Callable[[int, int], None], pid: int, number: int) -> None:
    if pid:
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            kill(pid, number)


# Journals --------------------------------------------------------------------------------


def read_outputs(query: dict[str, Any]) -> Answer:
    """Return records of a journal.

    `after`: the number after which they begin; `skip`: bytes of the first one that are
    known already; `place`: that of the last answer, so that the journal is not read from its
    beginning; `wait`: seconds to wait for something; `only`: "missed" or "events"; `cells`:
    requests of which nothing counts as received.
    """
    session = Session(_folder_of(query["session"]))
    if not session.folder.is_dir():
        return {"lacks": "session", "what": session.id, "why": "It is not there."}, ()
    limit = time.monotonic() + min(float(query.get("wait") or 0.0), 60.0)
    begin = int(query.get("after") or 0)
    skip = int(query.get("skip") or 0)
    size = _journal_size(session)  # before the read: what comes meanwhile is not missed
    reading = JournalFollower(session.folder / "journal", query.get("place"))
    while True:
        chunks = _pack_entries(_select_records(session, query, begin, reading), skip)
        # An evaluator that ends still writes: only once it is gone, nothing more comes.
        is_over = describe(session)["state"] in {"ended", "dead"} and not _evaluator_of(session)
        if chunks or is_over or time.monotonic() > limit:
            break
        # Without a look into the records: to follow a cell must not cost the login node more.
        while _journal_size(session) == size and time.monotonic() < limit:
            if session.read("session.json").get("ended") and not _evaluator_of(session):
                break
            time.sleep(LOOK_EVERY)
        size = _journal_size(session)
    answer = {"session": describe(session), "is_over": is_over}
    answer.update(place=reading.place, bytes=sum(map(len, chunks)))
    if query.get("only") == "events":
        answer["tails"] = {name: _tail(session, name) for name in ("evaluator.log", "kernel.log")}
    return answer, chunks


def _pack_entries(records: Iterator[Record], skip: int) -> list[bytes]:
    """Return the bytes of records without the first ones, up to about `MOST`."""
    total = 0
    chunks: list[bytes] = []
    for record in records:
        origin = record.channel, record.is_from_client, record.client
        entry = JournalEntry(record.number, record.time, *origin, record.body, record.is_marker)
        chunk = encode_entry(entry)[skip : skip + MOST]  # one record may be larger than an answer
        skip = 0
        chunks.append(chunk)
        total += len(chunk)
        if total >= MOST:
            break
    return chunks


def _select_records(
    session: Session, query: dict[str, Any], begin: int, reading: JournalFollower
) -> Iterator[Record]:
    only = query.get("only")
    if only == "missed":  # what it is depends on all that was before
        clients = session.read("state.json").get("fronts") or {}
        records = read_journal(session.folder / "journal")
        records = _undelivered(records, clients, set(query.get("cells") or ()))
    elif only == "events":
        records = (record for record in reading.records() if _is_event(record))
    else:
        records = reading.records()
    return (record for record in records if record.number > begin)


def _undelivered(
    records: Iterator[Record], clients: dict[str, Any], cells: set[str]
) -> Iterator[Record]:
    """Yield what clients that are gone did not acknowledge of their own requests' outputs.

    `cells`: requests whose outputs are wanted whatever was acknowledged of them.
    """
    absent = [(name, client) for name, client in clients.items() if not client.get("here")]
    gone = {name: client.get("taken", 0) for name, client in absent}
    taken: dict[str, int] = {}  # by the message id of a request: up to where
    asked: dict[str, Record] = {}
    place = 0  # in what is missed: a request comes with the first output that is
    for record in records:
        if record.is_from_client:
            if record.channel is not Channel.SHELL:
                continue
            header, client = _read_header(record, HEADER), record.client.hex()
            name = str(header.get("msg_id", ""))
            is_cell = header.get("msg_type") == "execute_request"
            if is_cell and (client in gone or name in cells):
                asked[name] = record
                taken[name] = 0 if name in cells else gone[client]
        elif record.channel is Channel.IOPUB:
            parent = str(_read_header(record, PARENT).get("msg_id", ""))
            if parent in taken and record.number > taken[parent]:
                for missed in (asked.pop(parent, None), record):
                    if missed:
                        place += 1
                        yield missed._replace(number=place)


# For a report of a fault -----------------------------------------------------------------


def read_debug_log(query: dict[str, Any]) -> Answer:
    """Return the end of the log of a session's evaluator; `most`: so many bytes."""
    folder, found = _folder_of(query["session"]), b""
    for name in (f"{logs.FILE}.1", logs.FILE):
        with contextlib.suppress(OSError):
            if (folder / name).is_file():  # what is none may let us wait for ever
                found += (folder / name).read_bytes()
    found = found[-int(query.get("most") or MOST) :]
    return {"bytes": len(found)}, [found]


def list_versions(_wish: dict[str, Any]) -> Answer:
    """Tell what there is here; `names`: what a report leaves out."""
    import platform  # noqa: PLC0415 - nothing else needs these, and others are in a hurry
    from importlib import metadata  # noqa: PLC0415

    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    names = {"user": getpass.getuser(), "home": os.path.expanduser("~")}  # noqa: PTH111 - as a word
    names["host"] = socket.gethostname()
    python = platform.python_version()
    return {"python": python, "system": system, "packages": packages, "names": names}, ()


# Paths -----------------------------------------------------------------------------------


def complete_paths(query: dict[str, Any]) -> Answer:
    """Tell which paths begin with `begin`, in `cwd` or the home: at most so many (`most`).

    Folders have a / at the end. Names that no terminal can show are left out: nobody types them.
    """
    begin = str(query["begin"])
    folder, name = os.path.split(begin)
    head = begin[: len(begin) - len(name)]
    cwd = os.path.expandvars(str(query.get("cwd") or "~"))
    place = full_path(folder, full_path(cwd, "/"))  # as `get` will read it
    found = []
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            is_hidden = entry.name.startswith(".") and not name.startswith(".")
            can_be_typed = plain_text(entry.name, escapes=True) == entry.name
            if entry.name.startswith(name) and can_be_typed and not is_hidden:
                found.append(head + entry.name + "/" * entry.is_dir())
    return {"paths": sorted(found)[: int(query.get("most") or 100)]}, ()


def _is_event(record: Record) -> bool:
    """Is this worth a line in a log: a request, its reply, a command, an event?"""
    if record.channel is Channel.SHELL:
        return str(_read_header(record, HEADER).get("msg_type", "")).startswith("execute_")
    return record.channel in {Channel.EVENT, Channel.COMMAND}


def _read_header(record: Record, part: int) -> dict[str, Any]:
    try:
        header = json.loads(bytes(unpack_parts(record.body)[part]))
    except (ProtocolError, ValueError, LookupError):
        return {}
    return header if isinstance(header, dict) else {}


def _folder_of(name: str) -> Path:
    if not name.isalnum():  # it becomes part of a path: no "..", no "/"
        raise ValueError(f"{name!r} is no session's id")
    return sessions_folder() / name


def _journal_size(session: Session) -> int:
    try:
        return (session.folder / "journal").stat().st_size
    except OSError:
        return 0


def _tail(session: Session, name: str) -> list[str]:
    try:
        with (session.folder / name).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))  # a log may be large
            return file.read().decode("utf-8", "replace").splitlines()[-TAIL:]
    except OSError:
        return []


QUERIES: dict[str, Callable[[dict[str, Any]], Answer]] = {
    "sessions": list_sessions,
    "requests": list_requests,
    "stop": stop_sessions,
    "outputs": read_outputs,
    "paths": complete_paths,
    "debug": read_debug_log,
    "versions": list_versions,
    "log": lambda query: read_outputs({**query, "only": "events"}),
}
