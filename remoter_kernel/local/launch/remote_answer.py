"""Reads what the evaluator's program answers: whatever comes from there is checked here.

What is shown of it later holds nothing that a terminal acts on. What is none of our answers
is a `StrangeAnswer`; what is missing there is an error for a person.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

from remoter_kernel.errors import NoSuchSession, RemoteLacks, RemoterError, Unreachable
from remoter_kernel.plain_text import is_session_id, plain_text, plain_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.local.config.remotes import Remote

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
