"""Packs the evaluator, uploads it, starts or finds the session.

Reads what the evaluator's program answers: whatever comes from there is checked here, so that what
is shown of it later holds nothing that a terminal acts on. What is none of our answers is a
`StrangeAnswer`; what is missing there is an error for a person.
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
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from remoter_kernel import logs
from remoter_kernel.errors import NoSuchSession, RemoteLacks, RemoterError, Unreachable
from remoter_kernel.local.login.login import CommandEnded, CompletedCommand
from remoter_kernel.plain_text import is_session_id, plain_text, plain_words
from remoter_kernel.transfer.framed_stream import GREETING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from remoter_kernel.local.config.remotes import Remote
    from remoter_kernel.local.login.login import Login, OpenTunnel

PACKAGE = Path(__file__).parents[2]
ENTRY = "evaluator/__main__.py"  # becomes the zip's own __main__.py
# Exactly what is shipped, in this order: what both ends read, and the folders that run there.
SHIPPED = (
    *("__init__.py", "errors.py", "logs.py", "plain_text.py"),
    *(
        f"{folder}/{path.name}"
        for folder in ("protocol", "transfer", "evaluator")
        for path in sorted((PACKAGE / folder).glob("*.py"))
        if f"{folder}/{path.name}" != ENTRY
    ),
)
FOLDER_DIGITS = 16  # of the hash, in the name of a version's folder
MARKER = b"REMOTER "  # a line of our program begins so; a banner's lines do not
START_WITHIN = 60.0  # seconds: Python, its packages on a cold network disk, and a kernel's start
UPLOAD_WITHIN = 120.0  # seconds: the archive has less than 200 kB
QUERY_WITHIN = 120.0  # seconds: `evaluator.query` may wait 20 for news, and reads from slow disks
MOST_READ = 64 * 1024  # bytes of what a host said instead of an answer

# Any login shell (csh and fish, too) passes these lines on to sh: they have no newline, no `!`, and
# no quotes within the quotes. The launch begins with `echo`, as the output of a shell's start files
# may end without a newline. `wc -c` finds an archive that a power cut has left empty.
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
# One exec, so that no shell stays between sshd and the program.
_QUERY_COMMAND = _LAUNCH_COMMAND.replace('exec "$p" "$z"', 'exec "$p" "$z" ask')
_BRIDGE_COMMAND = _LAUNCH_COMMAND.replace('exec "$p" "$z"', 'exec "$p" "$z" bridge {host} {port}')
_TRANSFER_COMMAND = _LAUNCH_COMMAND.replace('exec "$p" "$z"', 'exec "$p" "$z" transfer')
BRIDGE_LINE = MARKER + b"bridge"
# Written beside, synced and renamed: a name without its bytes would be taken for an archive.
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
LAST_YEAR = 32_500_000_000.0  # seconds since 1970: localtime fails for later years on some systems
LARGEST_COUNT = 2**63  # of anything that is counted
# It becomes a part of a ZeroMQ or SSH address: IPv6 has colons, and a zone after %.
_HOST = re.compile(r"[0-9A-Za-z._:%-]{1,255}")
_KEY = re.compile(r"[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")  # Z85
TEXTS = ("remote", "kernel", "notebook", "script", "host", "state", "why")  # of a session
TIMES = ("created", "since", "seconds")
COUNTS = ("fronts", "journal")

NOTIFY_AFTER = 8.0  # seconds: with cold disks most hosts are quicker
_Result = TypeVar("_Result")


# 19 attributes: the fields of the JSON object that `evaluator.launch` reads.
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
    fronts: tuple[str, ...] = ()  # kernel ids of the proxies on this laptop that live
    init: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    idle_timeout: float = 0.0  # seconds
    journal_limit: int = 0  # bytes; 0: 1 GiB
    waiting_limit: int = 0  # bytes of one cell's text that may wait for a client; 0: 8 MiB
    orders: tuple[dict[str, Any], ...] = ()  # commands that were given while the link was down
    log: str = field(default_factory=logs.wanted)  # how much an evaluator logs


@dataclass(frozen=True)
class SessionInfo:
    """Where a session answers, and what the launch said of it."""

    session: str
    address: str
    port: int
    server_key: str  # Z85
    is_joined: bool
    host: str
    user: str
    python: str
    pyzmq: str
    begun: float = 0.0  # since when, if another proxy of the same notebook has left it behind
    others: tuple[dict[str, Any], ...] = ()  # sessions that a fresh one did not join
    notices: tuple[str, ...] = ()  # sentences to show a person once


@cache
def pack_evaluator() -> tuple[str, bytes]:
    """Return name and bytes of the zipapp: the same bytes on every build, whatever the system."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in (ENTRY, *SHIPPED):
            inside = "__main__.py" if name == ENTRY else f"remoter_kernel/{name}"
            about = zipfile.ZipInfo(inside, date_time=(1980, 1, 1, 0, 0, 0))  # zip knows no earlier
            about.compress_type = zipfile.ZIP_DEFLATED
            about.create_system = 3  # POSIX, wherever it is built
            about.external_attr = 0o600 << 16
            text = (PACKAGE / name).read_bytes().replace(b"\r\n", b"\n")  # git on Windows
            archive.writestr(about, text)
    content = buffer.getvalue()
    return f"{hashlib.sha256(content).hexdigest()}.pyz", content


def _fill_command(template: str, remote: Remote, **fields: object) -> str:
    """Fill in where the program is there, and which Python runs it."""
    name, content = pack_evaluator()
    place = {"folder": name[:FOLDER_DIGITS], "name": name, "size": len(content)}
    python = shell_path(remote.python or "python3")
    return template.format(python=python, **place, **fields)


def start_session(
    login: Login,
    remote: Remote,
    request: SessionRequest,
    on_commands: Callable[[list[dict[str, str]]], None] = lambda _answers: None,
) -> SessionInfo:
    """Start the session that is requested, or find it; upload the evaluator if need be.

    One round trip and the launch's own time, when the archive is there already. `on_commands` gets
    what became of the request's commands, also where there is no session in the end.
    """
    fields = vars(request) | {
        "init": list(request.init),
        "env": dict(request.env),
        "python": remote.python,
    }
    command, stdin = _fill_command(_LAUNCH_COMMAND, remote), json.dumps(fields).encode() + b"\n"

    def attempt() -> tuple[bytes, None]:
        # The evaluator goes on with this stdout closed, so only its first line is waited for.
        try:
            line = login.run_until_line(command, stdin, MARKER, START_WITHIN)
        except CommandEnded as ended:
            raise _strange_exit(login, remote, "did not start a session", ended) from ended
        return line.removeprefix(MARKER).strip(), None

    line, _ = _run_program(login, remote, attempt)
    on_commands(parse_command_results(line))
    answer = parse_answer(line, login.host, remote)
    return SessionInfo(**session_info_fields(answer, login.host, remote))


def query_remote(
    login: Login, remote: Remote, words: dict[str, Any], *, seconds: float = QUERY_WITHIN
) -> tuple[dict[str, Any], bytes]:
    """Ask about sessions, in words of `evaluator.query`; return the answer and what follows it."""
    command, stdin = _fill_command(_QUERY_COMMAND, remote), json.dumps(words).encode() + b"\n"

    def attempt() -> tuple[bytes, bytes]:
        ran = login.run(command, stdin, seconds=seconds)
        line, rest = _split_answer(ran.stdout)
        if not line:
            raise _strange_exit(login, remote, "did not answer", ran)
        return line, rest

    line, rest = _run_program(login, remote, attempt)
    return parse_answer(line, login.host, remote), rest


def open_transfer(login: Login, remote: Remote) -> OpenTunnel:
    """Start what sends or receives files there, and return the way to its stdin and stdout."""
    command = _fill_command(_TRANSFER_COMMAND, remote)

    def attempt() -> tuple[bytes, OpenTunnel | CommandEnded]:
        try:
            return b"", login.open_pipe(command, GREETING)
        except CommandEnded as ended:  # it may have answered what is missing, before it ended
            return _split_answer(ended.stdout)[0], ended

    line, opened = _run_program(login, remote, attempt)
    if not isinstance(opened, CommandEnded):
        return opened
    if line:
        parse_answer(line, login.host, remote)
    raise _strange_exit(login, remote, "did not start a transfer", opened)


def bridge_command(remote: Remote, address: SessionInfo) -> tuple[str, bytes]:
    """Return the command that relays its stdin and stdout to a session, and its first line."""
    where = {"host": shell_path(address.address), "port": address.port}
    return _fill_command(_BRIDGE_COMMAND, remote, **where), BRIDGE_LINE


def _run_program(
    login: Login, remote: Remote, attempt: Callable[[], tuple[bytes, _Result]]
) -> tuple[bytes, _Result]:
    """Run our program there, which returns its line; where it is not there yet, after an upload.

    To ask first would cost a round trip each time, and it is there nearly always.
    """
    line, result = attempt()
    if line == b"lacks zip":
        _upload_evaluator(login, remote)
        line, result = attempt()
    return line, result


def _split_answer(stdout: bytes) -> tuple[bytes, bytes]:
    """Return the line of our program (b"": it has none) and what follows it."""
    _, _, rest = (b"\n" + stdout).partition(b"\n" + MARKER)
    line, _, rest = rest.partition(b"\n")
    return line.strip(), rest


def shell_path(path: str) -> str:
    """Write a path of the remote so that it stands between double quotes in a POSIX shell."""
    if re.search(r"[^\w./~+@:, -]", path):
        raise RemoteLacks(
            f"The Python path {path!r} has characters that no shell passes on safely.",
            "Name it by a link without them.",
        )
    return re.sub(r"^~(?=/)", "$HOME", path)  # a shell expands no ~ between quotes


def _strange_exit(
    login: Login, remote: Remote, what: str, ran: CompletedCommand | CommandEnded
) -> StrangeAnswer:
    said = (ran.stderr or ran.stdout)[-MOST_READ:].decode(errors="replace")
    shown = plain_text(said, keeps_lines=True).strip()[-OUTPUT_SHOWN:] or "nothing at all"
    return StrangeAnswer(
        f"{login.host} {what}; instead it ended with {ran.status} and said: {shown}",
        "If that is not Python's own trouble, the account may be limited to one command.",
        remote=remote.name,
    )


def _upload_evaluator(login: Login, remote: Remote) -> None:
    _, content = pack_evaluator()
    ran = login.run(_fill_command(_UPLOAD_COMMAND, remote), content, seconds=UPLOAD_WITHIN)
    if MARKER + b"took it" not in ran.stdout:
        reason = ran.stderr.decode(errors="replace").strip().splitlines()
        why = reason[-1][-OUTPUT_SHOWN:] if reason else "it gave no reason"
        raise _no_space_error(why, login.host, remote)


class StrangeAnswer(RemoteLacks):
    """Something else than our own program answered."""


# One line of JSON -------------------------------------------------------------------------
def parse_answer(line: bytes, host: str, remote: Remote) -> dict[str, Any]:
    """Read the line that the zipapp answers with; what it lacks becomes an error for a person."""
    if line == b"lacks python":  # the shell's own line: no Python runs that could write JSON
        what = f"There is no {remote.python or 'python3'} on {host}."
        raise RemoteLacks(what, _set_python(remote), remote=remote.name)
    try:
        answer = plain_words(json.loads(line))
    except (ValueError, RecursionError) as error:  # the latter: brackets without end
        raise _strange_answer(line.decode(errors="replace"), host, remote) from error
    if not isinstance(answer, dict):
        raise _strange_answer(str(answer), host, remote)
    if "lacks" in answer:
        raise _missing_error(
            {key: plain_text(value or "") for key, value in answer.items()}, host, remote
        )
    return answer


def _strange_answer(said: str, host: str, remote: Remote) -> StrangeAnswer:
    shown = plain_text(said, most=OUTPUT_SHOWN)
    return StrangeAnswer(f"{host} answered strangely: {shown}", remote=remote.name)


def _missing_error(answer: dict[str, str], host: str, remote: Remote) -> RemoterError:
    """Make an error of what an answer says that it lacks (see `evaluator.stdio_reply`)."""
    lacks, what, place = answer["lacks"], answer.get("what", ""), answer.get("host", "")
    python = remote.python or "python3"
    why = answer.get("why") or "Its evaluator was killed."
    when = f" It ended at {_format_time(answer['ended'])}." if answer.get("ended") else ""
    errors: dict[str, tuple[type[RemoterError], str, str]] = {
        "session": (
            NoSuchSession,
            f"Session {what} is gone. {why}{when}",
            "Restart the kernel to begin a fresh one.",
        ),
        "host": (
            Unreachable,
            f"Session {what} lives on {place}, and this login came to another machine.",
            f"Name {place} as the host of this remote, then run the cell again.",
        ),
        "reader": (RemoteLacks, what, ""),  # the evaluator makes that sentence
        "new python": (
            RemoteLacks,
            f"{python} on {host} is Python {what}; {OLDEST} is the oldest that will do.",
            _set_python(remote),
        ),
        "packages": (
            RemoteLacks,
            f"{python} on {host} lacks a package: {what}.",
            f"There, run `{python} -m pip install ipykernel`, or set python to one that has it.",
        ),
        "luck": (RemoteLacks, f"The session on {host} did not start: {what}", ""),
    }
    if lacks == "room":
        return _no_space_error(what, host, remote)
    kind, sentence, advice = errors.get(lacks, (RemoterError, f"{host} lacks {lacks}: {what}", ""))
    return kind(sentence, advice, remote=remote.name)


def _set_python(remote: Remote) -> str:
    return (
        f'Set python = "…" for this remote; `remoter add {remote.name} --replace` shows which '
        "there are."
    )


def _format_time(moment: str) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(as_timestamp(float(moment))))
    except ValueError:
        return "a time that is not known"


def _no_space_error(why: str, host: str, remote: Remote) -> RemoteLacks:
    return RemoteLacks(
        f"Nothing can be written on {host}: {plain_text(why)}.",
        "Make room there, or set XDG_DATA_HOME in the start-up files of your shell there to a "
        "folder that has some, then run the cell again.",
        remote=remote.name,
    )


# A session that was started or found ------------------------------------------------------
def session_info_fields(answer: dict[str, Any], host: str, remote: Remote) -> dict[str, Any]:
    """Return the fields of a `SessionInfo`, each checked: they go into socket options and paths."""
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
    """Yield the sessions that were not joined; leave out what has no id of one."""
    for each in value if isinstance(value, list) else ():
        if isinstance(each, dict) and is_session_id(each.get("session")):
            yield {"session": each["session"], "notebook": plain_text(each.get("notebook") or "")}


def parse_command_results(line: bytes) -> list[dict[str, str]]:
    """Return what became of each command that the request brought; [] for any other answer."""
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
    """Return what is known of each session there; leave out what has no id of one."""
    value = answer.get("sessions")
    if not isinstance(value, list):
        raise StrangeAnswer("it did not tell of its sessions.", remote=remote)
    return [parse_session(each) for each in value if describes_session(each)]


def describes_session(answer: object) -> TypeGuard[dict[str, Any]]:
    """Has this the id of a session?"""
    return isinstance(answer, dict) and is_session_id(answer.get("id"))


def parse_session(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of one session, each value of the kind that it must be."""
    return {
        **answer,  # an evaluator of a newer version may say more
        **{name: plain_text(answer.get(name) or "") for name in TEXTS},
        **{name: as_timestamp(answer.get(name)) for name in TIMES},
        **{name: as_count(answer.get(name)) for name in COUNTS},
        "pid": as_count(answer.get("pid")) or None,  # 0 is no process
    }


def is_over(session: dict[str, Any]) -> bool:
    """Has a session (as `parse_session` returns it) ended, or lost its evaluator?"""
    return session["state"] in {"ended", "dead"}


def as_timestamp(value: object) -> float:
    """Return seconds since 1970 that a clock here can show; 0 for anything else."""
    is_time = isinstance(value, (int, float)) and 0 <= value <= LAST_YEAR  # NaN is not
    return float(value) if is_time else 0.0  # type: ignore[arg-type]


def as_count(value: object) -> int:
    """Return a number of things; 0 for anything else."""
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


@contextlib.contextmanager
def notify_if_slow(host: str, notify: Callable[[str], None]) -> Iterator[None]:
    """Call `notify` once, from another thread, if the block takes long.

    The start-up files of a login shell may take a minute (conda, modules on a cold NFS).
    """
    sentence = f"waiting for {host} to start a command (its login shell may take long)"
    timer = threading.Timer(NOTIFY_AFTER, notify, (sentence,))
    timer.daemon = True  # it must not hold up an exit
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # else it might call `notify` after the block
