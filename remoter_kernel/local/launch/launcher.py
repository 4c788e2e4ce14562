"""Packs what runs there, puts it there, starts or finds the session.

Reads what the evaluator's program answers: whatever comes from there is checked here. What is shown
of it later holds nothing that a terminal acts on. What is none of our answers is a `StrangeAnswer`;
what is missing there is an error for a person.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import threading
import time
import zipfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

from remoter_kernel import logs
from remoter_kernel.errors import NoSuchSession, RemoteLacks, RemoterError, Unreachable
from remoter_kernel.local.login.login import CommandEnded, CompletedCommand
from remoter_kernel.plain_text import is_session_id, plain_text, plain_words
from remoter_kernel.transfer.framed_stream import GREETING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.login.login import Login, TunnelEndpoint

# Exactly what travels, in this order.
SHIPPED = (
    "__init__.py",
    "errors.py",
    "logs.py",
    "plain_text.py",
    "protocol/__init__.py",
    "transfer/__init__.py",
    "transfer/quota.py",
    "transfer/framed_stream.py",
    "protocol/frames.py",
    "protocol/kernel_client.py",
    "protocol/messages.py",
    "transfer/safe_paths.py",
    "transfer/partial_file.py",
    "protocol/link_connection.py",
    "protocol/reactor.py",
    "transfer/receiver.py",
    "protocol/requests.py",
    "protocol/journal_entries.py",
    "transfer/sender.py",
    "transfer/plan.py",
    "protocol/stream.py",
    "protocol/threads.py",
    "protocol/output_backlog.py",
    "evaluator/__init__.py",
    "evaluator/recovery.py",
    "evaluator/status_file.py",
    "evaluator/bridge.py",
    "evaluator/kernel_process.py",
    "evaluator/compaction.py",
    "evaluator/request_handler.py",
    "evaluator/kernel_queue.py",
    "evaluator/listener.py",
    "evaluator/kernel_output.py",
    "evaluator/kernel_curve.py",
    "evaluator/folders.py",
    "evaluator/index.py",
    "evaluator/query.py",
    "evaluator/interrupts.py",
    "evaluator/journal.py",
    "evaluator/kernel_log.py",
    "evaluator/launch.py",
    "evaluator/named_lock.py",
    "evaluator/stdio_reply.py",
    "evaluator/outbox.py",
    "evaluator/timeouts.py",
    "evaluator/pending_commands.py",
    "evaluator/processes.py",
    "evaluator/program_archive.py",
    "evaluator/records.py",
    "evaluator/registry.py",
    "evaluator/message_writer.py",
    "evaluator/session_match.py",
    "evaluator/supervisor.py",
    "evaluator/transfer_command.py",
    "evaluator/warden.py",
)
ENTRY = "evaluator/__main__.py"  # becomes the zip's own __main__.py
FOLDER_DIGITS = 16  # of the hash that name the folder of a version
MARKER = b"REMOTER "  # a line of ours begins so; a banner's lines do not
START_WITHIN = 60.0  # seconds
UPLOAD_WITHIN = 120.0  # seconds
QUERY_WITHIN = 120.0  # seconds
MOST_READ = 64 * 1024  # bytes of what a host said instead of an answer

# Lines without newlines or quotes that any login shell (csh and fish, too) passes on. The first
# begins with an empty line: what a shell's start files print may end without a newline.
_FOLDER_SCRIPT = (
    'd="$XDG_DATA_HOME"; case "$d" in /*) ;; *) d="$HOME/.local/share";; esac; '
    'd="$d/remoter-kernel/programs/{folder}"; '
)
_LAUNCH_COMMAND = (
    f'sh -c \'echo; p="{{python}}"; {_FOLDER_SCRIPT}z="$d/{{name}}"; '
    'if command -v "$p" >/dev/null 2>&1; then :; else echo REMOTER lacks python; exit 0; fi; '
    'if [ -f "$z" ] && [ "$(wc -c <"$z")" -eq {size} ]; then exec "$p" "$z"; '
    "else echo REMOTER lacks zip; fi'"
)
_QUERY_COMMAND = _LAUNCH_COMMAND.replace('exec "$p" "$z"', 'exec "$p" "$z" ask')
_BRIDGE_COMMAND = _LAUNCH_COMMAND.replace('exec "$p" "$z"', 'exec "$p" "$z" bridge {host} {port}')
_TRANSFER_COMMAND = _LAUNCH_COMMAND.replace('exec "$p" "$z"', 'exec "$p" "$z" transfer')
BRIDGE_LINE = MARKER + b"bridge"
_UPLOAD_COMMAND = (
    f"sh -c 'umask 077; {_FOLDER_SCRIPT}"
    'mkdir -p "$d" && cat > "$d/{name}.$$" && [ "$(wc -c <"$d/{name}.$$")" -eq {size} ] && '
    '{{ sync "$d/{name}.$$" 2>/dev/null || sync; }} && '
    'mv -f "$d/{name}.$$" "$d/{name}" && echo REMOTER took it || '
    '{{ rm -f "$d/{name}.$$"; echo REMOTER refused it; }}\''
)

OLDEST = "3.9"
OUTPUT_SHOWN = 300  # characters of what a host said instead of an answer
HIGHEST_PORT = 65535
LAST_YEAR = 32_500_000_000.0  # seconds since 1970: no clock here shows what comes later
LARGEST_COUNT = 2**63  # of anything that is counted
_HOST = re.compile(r"[0-9A-Za-z._:%-]{1,255}")
_KEY = re.compile(r"[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")  # Z85
TEXTS = ("remote", "kernel", "notebook", "script", "host", "state", "why")  # of a session
TIMES = ("created", "since", "seconds")
COUNTS = ("fronts", "journal")

NOTIFY_AFTER = 8.0  # seconds: with cold disks most hosts are quicker


@dataclass(frozen=True)
class SessionRequest:
    """What a session should be, or which one is meant."""

    client_key: str  # Z85
    kernel_id: str = ""  # joins the living session of this Jupyter kernel
    session: str = ""  # joins exactly this one
    remote: str = ""
    kernel: str = "python3"
    arguments: tuple[str, ...] = ()  # for the kernel's command line, after the kernelspec's own
    notebook: str = ""
    script: str = ""  # what is run there without Jupyter, as it was named here
    laptop: str = ""  # on which that notebook is
    cells: tuple[str, ...] = ()  # of that notebook: joins the session where one of them was run
    fronts: tuple[str, ...] = ()  # of this laptop that live, by their kernel ids
    init: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    idle_timeout: float = 0.0  # seconds
    journal_limit: int = 0  # bytes; 0: 1 GiB
    waiting_limit: int = 0  # bytes of one cell's text that may wait for a front; 0: 8 MiB
    orders: tuple[dict[str, Any], ...] = ()  # given while nobody could hear them
    log: str = field(default_factory=logs.wanted)  # how much an evaluator logs


@dataclass(frozen=True)
class SessionInfo:
    """Where a session answers, and what was said of it."""

    session: str
    address: str
    port: int
    server_key: str  # Z85
    is_joined: bool
    host: str
    user: str
    python: str
    pyzmq: str
    begun: float = 0.0  # since when, if another front of the same notebook has left it behind
    others: tuple[dict[str, Any], ...] = ()  # which a fresh one did not join
    notices: tuple[str, ...] = ()  # what a person should hear once


@cache
def pack_evaluator() -> tuple[str, bytes]:
    """Return name and bytes of the zipapp: the same bytes on every build."""
    package = Path(__file__).parents[2]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in (ENTRY, *SHIPPED):
            inside = "__main__.py" if name == ENTRY else f"remoter_kernel/{name}"
            about = zipfile.ZipInfo(inside, date_time=(1980, 1, 1, 0, 0, 0))
            about.compress_type = zipfile.ZIP_DEFLATED
            about.create_system = 3  # POSIX, wherever it is built
            about.external_attr = 0o600 << 16
            text = (package / name).read_bytes().replace(b"\r\n", b"\n")
            archive.writestr(about, text)
    content = buffer.getvalue()
    return f"{hashlib.sha256(content).hexdigest()}.pyz", content


def _fill_command(template: str, remote: Remote, **words: object) -> str:
    """Fill in where the program is there, and which Python runs it."""
    python = shell_path(remote.python or "python3")
    return template.format(python=python, **_archive_fields(*pack_evaluator()), **words)


def _archive_fields(name: str, content: bytes) -> dict[str, object]:
    return {"folder": name[:FOLDER_DIGITS], "name": name, "size": len(content)}


def start_session(
    login: Login,
    remote: Remote,
    request: SessionRequest,
    on_commands: Callable[[list[dict[str, str]]], None] = lambda _answers: None,
) -> SessionInfo:
    """Start the session that is wished for, or find it; upload what runs there if need be.

    One round trip and the launch's own time, when the zip is there already. `on_commands` hears
    what became of the wish's orders, whatever becomes of the rest.
    """
    name, content = pack_evaluator()
    command = _fill_command(_LAUNCH_COMMAND, remote)
    words = vars(request) | {
        "init": list(request.init),
        "env": dict(request.env),
        "python": remote.python,
    }
    line = _run_until_answer(login, command, json.dumps(words).encode() + b"\n", remote)
    if line == b"lacks zip":
        _upload_evaluator(login, name, content, remote)
        line = _run_until_answer(login, command, json.dumps(words).encode() + b"\n", remote)
    on_commands(parse_command_results(line))
    words = parse_answer(line, login.host, remote)
    return SessionInfo(**session_info_fields(words, login.host, remote))


def query_remote(
    login: Login, remote: Remote, words: dict[str, Any], *, seconds: float = QUERY_WITHIN
) -> tuple[dict[str, Any], bytes]:
    """Ask about sessions, in words of `evaluator.query`; return the answer and what follows it."""
    name, content = pack_evaluator()
    command = _fill_command(_QUERY_COMMAND, remote)
    question = json.dumps(words).encode() + b"\n"
    line, rest = _run_to_end(login, command, question, remote, seconds)
    if line == b"lacks zip":
        _upload_evaluator(login, name, content, remote)
        line, rest = _run_to_end(login, command, question, remote, seconds)
    return parse_answer(line, login.host, remote), rest


def bridge_command(remote: Remote, address: SessionInfo) -> tuple[str, bytes]:
    """Return the command that relays its stdin and stdout to a session, and its first line."""
    where = {"host": shell_path(address.address), "port": address.port}
    return _fill_command(_BRIDGE_COMMAND, remote, **where), BRIDGE_LINE


def open_transfer(login: Login, remote: Remote) -> TunnelEndpoint:
    """Start what sends or receives files there, and be connected to it."""
    name, content = pack_evaluator()
    command = _fill_command(_TRANSFER_COMMAND, remote)
    try:
        return login.open_pipe(command, GREETING)
    except CommandEnded as ended:
        line = _answer_line(ended)
        if line != b"lacks zip":
            _raise_from_exit(line, login, remote, ended)
    _upload_evaluator(login, name, content, remote)
    try:
        return login.open_pipe(command, GREETING)
    except CommandEnded as ended:
        _raise_from_exit(_answer_line(ended), login, remote, ended)


def _answer_line(ended: CommandEnded) -> bytes:
    """Return what our own program said instead of a greeting, if it was that which spoke."""
    return (b"\n" + ended.stdout).partition(b"\n" + MARKER)[2].partition(b"\n")[0].strip()


def _raise_from_exit(line: bytes, login: Login, remote: Remote, ended: CommandEnded) -> NoReturn:
    if line:
        parse_answer(line, login.host, remote)
    _raise_strange_answer(login, remote, "did not start a transfer", ended)


def _run_to_end(
    login: Login, command: str, stdin: bytes, remote: Remote, seconds: float
) -> tuple[bytes, bytes]:
    """Run a command to its end; return our line, and what it said after that."""
    ran = login.run(command, stdin, seconds=seconds)
    _, marker, rest = (b"\n" + ran.stdout).partition(b"\n" + MARKER)
    if not marker:
        _raise_strange_answer(login, remote, "did not answer", ran)
    line, _, rest = rest.partition(b"\n")
    return line.strip(), rest


def shell_path(path: str) -> str:
    """Write a path of the remote so that it stands between double quotes in a POSIX shell."""
    if re.search(r"[^\w./~+@:, -]", path):
        raise RemoteLacks(
            f"The Python path {path!r} has characters that no shell passes on safely.",
            "Name it by a link without them.",
        )
    return re.sub(r"^~(?=/)", "$HOME", path)


def _run_until_answer(login: Login, command: str, stdin: bytes, remote: Remote) -> bytes:
    try:
        line = login.run_until_line(command, stdin, MARKER, START_WITHIN)
    except CommandEnded as ended:
        _raise_strange_answer(login, remote, "did not start a session", ended)
    return line.removeprefix(MARKER).strip()


def _raise_strange_answer(
    login: Login, remote: Remote, what: str, ran: CompletedCommand | CommandEnded
) -> NoReturn:
    said = (ran.stderr or ran.stdout)[-MOST_READ:].decode(errors="replace")
    shown = plain_text(said, keeps_lines=True).strip()[-OUTPUT_SHOWN:] or "nothing at all"
    raise StrangeAnswer(
        f"{login.host} {what}; instead it ended with {ran.status} and said: {shown}",
        "If that is not Python's own trouble, the account may be limited to one command.",
        remote=remote.name,
    )


def _upload_evaluator(login: Login, name: str, content: bytes, remote: Remote) -> None:
    command = _UPLOAD_COMMAND.format(**_archive_fields(name, content))
    ran = login.run(command, content, seconds=UPLOAD_WITHIN)
    if MARKER + b"took it" not in ran.stdout:
        reason = ran.stderr.decode(errors="replace").strip().splitlines()
        why = reason[-1][-OUTPUT_SHOWN:] if reason else "it gave no reason"
        raise_no_space(why, login.host, remote)


class StrangeAnswer(RemoteLacks):
    """Something else than our own program answered."""


# One line of JSON -------------------------------------------------------------------------
def parse_answer(line: bytes, host: str, remote: Remote) -> dict[str, Any]:
    """Read the line that the zipapp answers with; a lack is an error for a person."""
    if line == b"lacks python":
        raise RemoteLacks(
            f"There is no {remote.python or 'python3'} on {host}.",
            f'Set python = "…" for this remote; `remoter add {remote.name} --replace` shows which '
            "there are.",
            remote=remote.name,
        )
    try:
        answer = plain_words(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise _strange_answer(line.decode(errors="replace"), host, remote) from error
    if not isinstance(answer, dict):
        raise _strange_answer(str(answer), host, remote)
    if "lacks" in answer:
        _raise_missing(
            {key: plain_text(value or "") for key, value in answer.items()}, host, remote
        )
    return answer


def _strange_answer(said: str, host: str, remote: Remote) -> StrangeAnswer:
    shown = plain_text(said, most=OUTPUT_SHOWN)
    return StrangeAnswer(f"{host} answered strangely: {shown}", remote=remote.name)


def _raise_missing(answer: dict[str, str], host: str, remote: Remote) -> NoReturn:
    lacks, what = answer["lacks"], answer.get("what", "")
    python = remote.python or "python3"
    if lacks == "session":
        why = answer.get("why") or "Its evaluator was killed."
        when = f" It ended at {_format_time(answer['ended'])}." if answer.get("ended") else ""
        raise NoSuchSession(
            f"Session {what} is gone. {why}{when}",
            "Restart the kernel to begin a fresh one.",
            remote=remote.name,
        )
    if lacks == "host":
        place = answer.get("host", "")
        raise Unreachable(
            f"Session {what} lives on {place}, and this login came to another machine.",
            f"Name {place} as the host of this remote, then run the cell again.",
            remote=remote.name,
        )
    if lacks == "reader":  # the sentence is made there
        raise RemoteLacks(what, remote=remote.name)
    if lacks == "room":
        raise_no_space(what, host, remote)
    if lacks == "new python":
        raise RemoteLacks(
            f"{python} on {host} is Python {what}; {OLDEST} is the oldest that will do.",
            f'Set python = "…" for this remote; `remoter add {remote.name} --replace` shows which '
            "there are.",
            remote=remote.name,
        )
    if lacks == "packages":
        raise RemoteLacks(
            f"{python} on {host} lacks a package: {what}.",
            f"There, run `{python} -m pip install ipykernel`, or set python to one that has it.",
            remote=remote.name,
        )
    if lacks == "luck":
        raise RemoteLacks(f"The session on {host} did not start: {what}", remote=remote.name)
    raise RemoterError(f"{host} lacks {lacks}: {what}", remote=remote.name)


def _format_time(moment: str) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(as_timestamp(float(moment))))
    except ValueError:
        return "a time that is not known"


def raise_no_space(why: str, host: str, remote: Remote) -> NoReturn:
    """Say that nothing can be written there."""
    raise RemoteLacks(
        f"Nothing can be written on {host}: {plain_text(why)}.",
        "Make room there, or set XDG_DATA_HOME in the start-up files of your shell there to a "
        "folder that has some, then run the cell again.",
        remote=remote.name,
    )


# A session that was started or found ------------------------------------------------------
def session_info_fields(answer: dict[str, Any], host: str, remote: Remote) -> dict[str, Any]:
    """Return the fields of a `SessionInfo`, each of the kind that it must be."""
    try:
        port = int(answer["port"])
        fields: dict[str, Any] = {
            "session": answer["session"],
            "address": str(answer["address"]),
            "port": port,
            "server_key": str(answer["server_key"]),
            "is_joined": bool(answer["joined"]),
            **{name: plain_text(answer[name]) for name in ("host", "user", "python", "pyzmq")},
            "begun": as_timestamp(answer.get("begun")),
            "others": tuple(_other_sessions(answer.get("others"))),
        }
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise _strange_answer(json.dumps(answer), host, remote) from error
    is_whole = (
        is_session_id(fields["session"])
        and _HOST.fullmatch(fields["address"])
        and _KEY.fullmatch(fields["server_key"])
        and 0 < port <= HIGHEST_PORT
    )
    if not is_whole:
        raise _strange_answer(json.dumps(answer), host, remote)
    return fields


def _other_sessions(value: object) -> Iterator[dict[str, str]]:
    """Yield the sessions that were not joined; what is none is left out."""
    for each in value if isinstance(value, list) else ():
        if isinstance(each, dict) and is_session_id(each.get("session")):
            yield {"session": each["session"], "notebook": plain_text(each.get("notebook") or "")}


def parse_command_results(line: bytes) -> list[dict[str, str]]:
    """Return what became of each command that the launch brought, in an answer of any kind."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return []
    value = answer.get("commands") if isinstance(answer, dict) else None
    return [
        {key: plain_text(each.get(key) or "") for key in ("name", "became", "why")}
        for each in (value if isinstance(value, list) else ())
        if isinstance(each, dict)
    ]


# How sessions are -------------------------------------------------------------------------
def parse_sessions(answer: dict[str, Any], remote: str) -> list[dict[str, Any]]:
    """Return what is known of each session there; what has no id of one is left out."""
    value = answer.get("sessions")
    if not isinstance(value, list):
        raise StrangeAnswer("it did not tell of its sessions.", remote=remote)
    return [parse_session(each) for each in value if describes_session(each)]


def describes_session(answer: object) -> TypeGuard[dict[str, Any]]:
    """Does this tell of a session?"""
    return isinstance(answer, dict) and is_session_id(answer.get("id"))


def parse_session(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of one session, each word of the kind that it must be."""
    return {
        **answer,
        **{name: plain_text(answer.get(name) or "") for name in TEXTS},
        **{name: as_timestamp(answer.get(name)) for name in TIMES},
        **{name: as_count(answer.get(name)) for name in COUNTS},
        "pid": as_count(answer.get("pid")) or None,
    }


def as_timestamp(value: object) -> float:
    """Return a time that a clock here can show; 0 where there is none."""
    is_time = isinstance(value, (int, float)) and 0 <= value <= LAST_YEAR
    return float(value) if is_time else 0.0  # type: ignore[arg-type]


def as_count(value: object) -> int:
    """Return a number of things; 0 where there is none."""
    is_number = isinstance(value, (int, float)) and 0 <= value < LARGEST_COUNT
    return int(value) if is_number else 0  # type: ignore[call-overload]


def format_version(numbers: object) -> str:
    """Write the version of a Python there: numbers alone, for it becomes part of paths here."""
    if not isinstance(numbers, list) or not 2 <= len(numbers) <= 3:  # noqa: PLR2004 - as in 3.11.2
        raise ValueError(numbers)
    parts = [int(part) for part in numbers]
    if not all(0 <= part < 1000 for part in parts):  # noqa: PLR2004 - what is more is no version
        raise ValueError(numbers)
    return ".".join(map(str, parts))


# Says that a host takes long to start a command: start-up files of a shell may, for a minute.
@contextlib.contextmanager
def notify_if_slow(host: str, notify: Callable[[str], None]) -> Iterator[None]:
    """Tell once, from another thread, if what is done meanwhile takes long."""
    sentence = f"waiting for {host} to start a command (its login shell may take long)"
    timer = threading.Timer(NOTIFY_AFTER, notify, (sentence,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
