"""Restart or stop, pressed while the link was down: saved here until the next login.

Each command is a small file of its own, so that two proxies never write the same one. The file goes
once the remote has answered what became of it; one that makes no sense goes with a notice.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.local.config.remotes import state_folder
from remoter_kernel.local.private_files import write_private_file
from remoter_kernel.plain_text import is_session_id

if TYPE_CHECKING:
    from pathlib import Path

PAST_TENSES = {"restart": "restarted", "stop": "stopped"}
LARGEST = 64 * 1024  # bytes; ours have some hundred
DISCARD_AFTER = 30 * 24 * 3600.0  # seconds that one may wait for the machine that can carry it out


class UndeliveredCommand(NamedTuple):
    """A command that waits for a login: its file, as it was read, and its fields."""

    path: Path
    text: str
    fields: dict[str, Any]  # empty: the text makes no sense
    age: float = 0.0  # seconds

    @property
    def as_sent(self) -> dict[str, Any]:
        """Its fields, and the name by which the remote answers what became of it."""
        return {**self.fields, "name": self.path.stem}


def save_command(remote: str, kernel_id: str, session: str, command: str) -> None:
    """Save that a session should be restarted or stopped; it may not have an id yet.

    By its `nonce` the remote knows a command that it has carried out: several logins may bring it.
    """
    words = {"order": command, "kernel_id": kernel_id, "session": session}
    words["nonce"] = secrets.token_hex(8)
    write_private_file(_commands_folder(remote) / f"{kernel_id}.json", json.dumps(words))


def load_commands(remote: str) -> tuple[UndeliveredCommand, ...]:
    """Return the commands that wait for a remote's next login."""
    found = (_read_command(path) for path in sorted(_commands_folder(remote).glob("*.json")))
    return tuple(order for order in found if order is not None)


def discard_commands(remote: str, *kernel_ids: str) -> None:
    """Remove commands that were carried out."""
    for kernel_id in kernel_ids:
        (_commands_folder(remote) / f"{kernel_id}.json").unlink(missing_ok=True)


def discard_answered(
    sent: tuple[UndeliveredCommand, ...], answers: list[dict[str, str]]
) -> list[str]:
    """Remove the commands that were answered; return a sentence for each that cannot be done.

    What the remote has not tried, or what another machine has to do, stays for a while.
    """
    answered = {answer["name"]: answer for answer in answers}
    notices = []
    for order in sent:
        why = ""
        answer = answered.get(order.path.stem)
        if not order.fields:
            why = "the note of it on this side makes no sense."
        elif answer and answer["became"] == "failed":
            why = answer["why"] or "The remote did not say why."
        elif order.age > DISCARD_AFTER:
            why = "The machine that it runs on was not met for too long."
        elif not (answer and answer["became"] == "done"):
            continue
        if _remove_command(order) and why:
            notices.append(_sentence(order.fields, why))
    return notices


def _sentence(words: dict[str, Any], why: str) -> str:
    done = PAST_TENSES.get(str(words.get("order")))
    if done is None:
        return f"Something that was asked while the link was down is not carried out: {why}"
    name = words.get("session")
    which = f"Session {name}" if is_session_id(name) else "A session"
    return (
        f"{which} could not be {done}, as was asked while the link was down: {why} "
        "`remoter sessions` shows whether it still runs, `remoter stop` ends it."
    )


def _read_command(path: Path) -> UndeliveredCommand | None:
    """Read one file; None: another proxy has removed it, or the disk fails just now."""
    try:
        age = time.time() - path.stat().st_mtime
        text = _read_limited(path)
    except OSError:
        return None
    words: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        if len(text.encode()) <= LARGEST:  # ValueError where it is not UTF-8
            words = json.loads(text)
    return UndeliveredCommand(path, text, words if _is_valid(words) else {}, age)


def _read_limited(path: Path) -> str:
    """Read a byte more than is allowed at most, so that the caller sees that it is too long."""
    with path.open("rb") as file:
        return file.read(LARGEST + 1).decode(errors="surrogateescape")


def _is_valid(words: object) -> bool:
    if not isinstance(words, dict) or words.get("order") not in PAST_TENSES:
        return False
    which = [words.get(key, "") for key in ("kernel_id", "session")]
    return all(isinstance(each, str) for each in which) and any(which)


def _remove_command(order: UndeliveredCommand) -> bool:
    """Remove its file, unless a newer one is in its place; False if the disk refuses."""
    with contextlib.suppress(OSError):
        if _read_limited(order.path) != order.text:
            return True
        order.path.unlink()
        return True
    return not order.path.exists()


def _commands_folder(remote: str) -> Path:
    return state_folder() / "orders" / remote
