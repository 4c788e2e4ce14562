"""Restart or stop, pressed while the link was down: written down here until a login.

One small file per order, so that two fronts never write the same one. A file goes once the
remote has said what became of it; what makes no sense goes with a word to the person.
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
    """What waits for a login: its file, as it was read, and what it says."""

    path: Path
    text: str
    fields: dict[str, Any]  # empty: it makes no sense
    age: float = 0.0  # seconds

    @property
    def as_sent(self) -> dict[str, Any]:
        """What it says, and the name by which the remote tells what became of it."""
        return {**self.fields, "name": self.path.stem}


def save_command(remote: str, kernel_id: str, session: str, command: str) -> None:
    """Remember that a session should be restarted or stopped; it may not have an id yet.

    By its `nonce` the remote knows what it has carried out already: several logins may bring it.
    """
    words = {"order": command, "kernel_id": kernel_id, "session": session}
    words["nonce"] = secrets.token_hex(8)
    write_private_file(_commands_folder(remote) / f"{kernel_id}.json", json.dumps(words))


def load_commands(remote: str) -> tuple[UndeliveredCommand, ...]:
    """Return what waits for a remote's next login."""
    found = (_read_command(path) for path in sorted(_commands_folder(remote).glob("*.json")))
    return tuple(order for order in found if order is not None)


def discard_commands(remote: str, *kernel_ids: str) -> None:
    """Forget orders that were carried out."""
    for kernel_id in kernel_ids:
        (_commands_folder(remote) / f"{kernel_id}.json").unlink(missing_ok=True)


def discard_answered(
    sent: tuple[UndeliveredCommand, ...], answers: list[dict[str, str]]
) -> list[str]:
    """Forget what has become of something; return a sentence for each that cannot be done.

    What the remote has not tried, or what another machine has to do, stays for a while.
    """
    answered = {answer["name"]: answer for answer in answers}
    told = []
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
            told.append(_sentence(order.fields, why))
    return told


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
    """Read one file; None: another front has taken it, or the disk does not give it just now."""
    try:
        age = time.time() - path.stat().st_mtime
        text = _read_limited(path)
    except OSError:
        return None
    words: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        if len(text.encode()) <= LARGEST:  # fails where it is no text
            words = json.loads(text)
    return UndeliveredCommand(path, text, words if _is_valid(words) else {}, age)


def _read_limited(path: Path) -> str:
    """Return what it holds, and a little more of it than is ours at the most."""
    with path.open("rb") as file:
        return file.read(LARGEST + 1).decode(errors="surrogateescape")


def _is_valid(words: object) -> bool:
    if not isinstance(words, dict) or words.get("order") not in PAST_TENSES:
        return False
    which = [words.get(key, "") for key in ("kernel_id", "session")]
    return all(isinstance(each, str) for each in which) and any(which)


def _remove_command(order: UndeliveredCommand) -> bool:
    """Remove its file, unless another one is in its place by now."""
    with contextlib.suppress(OSError):
        if _read_limited(order.path) != order.text:
            return True
        order.path.unlink()
        return True
    return not order.path.exists()


def _commands_folder(remote: str) -> Path:
    return state_folder() / "orders" / remote
