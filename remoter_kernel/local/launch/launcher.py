"""Packs what runs there, puts it there, starts or finds the session."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from remoter_kernel import logs
from remoter_kernel.errors import RemoteLacks
from remoter_kernel.local.launch.remote_answer import (
    OUTPUT_SHOWN,
    StrangeAnswer,
    parse_answer,
    parse_command_results,
    raise_no_space,
    session_info_fields,
)
from remoter_kernel.local.login.login_results import CommandEnded, CompletedCommand
from remoter_kernel.plain_text import plain_text
from remoter_kernel.transfer.wire_format import GREETING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
    "transfer/wire_format.py",
    "protocol/frames.py",
    "protocol/kernel_client.py",
    "protocol/kernel_messages.py",
    "protocol/messages.py",
    "transfer/safe_paths.py",
    "protocol/tcp_backlog.py",
    "protocol/terminal_text.py",
    "transfer/partial_file.py",
    "transfer/destinations.py",
    "protocol/pump.py",
    "protocol/reactor.py",
    "transfer/receiver.py",
    "protocol/requests.py",
    "protocol/journal_entries.py",
    "transfer/sender.py",
    "transfer/plan.py",
    "protocol/stream.py",
    "protocol/threads.py",
    "protocol/output_backlog.py",
    "protocol/window.py",
    "evaluator/__init__.py",
    "evaluator/recovery.py",
    "evaluator/status_file.py",
    "evaluator/bridge.py",
    "evaluator/session_candidates.py",
    "evaluator/kernel_process.py",
    "evaluator/compaction.py",
    "evaluator/exit_status.py",
    "evaluator/request_handler.py",
    "evaluator/dispatch.py",
    "evaluator/listener.py",
    "evaluator/kernel_output.py",
    "evaluator/encryption.py",
    "evaluator/folders.py",
    "evaluator/index.py",
    "evaluator/query.py",
    "evaluator/interrupts.py",
    "evaluator/journal.py",
    "evaluator/kernel_log.py",
    "evaluator/launch.py",
    "evaluator/lock.py",
    "evaluator/port_conflicts.py",
    "evaluator/stdio_reply.py",
    "evaluator/outbox.py",
    "evaluator/cancellations.py",
    "evaluator/own_kernelspec.py",
    "evaluator/replay.py",
    "evaluator/idle_timeout.py",
    "evaluator/pending_commands.py",
    "evaluator/stream_splitter.py",
    "evaluator/processes.py",
    "evaluator/program_archive.py",
    "evaluator/records.py",
    "evaluator/registry.py",
    "evaluator/startup_watchdog.py",
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
