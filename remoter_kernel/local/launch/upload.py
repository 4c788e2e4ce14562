"""Uploads files over a login, each of them whole or not at all.

Needs no more of a login than that it runs commands, so that it works with each transport.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import TYPE_CHECKING

from remoter_kernel.errors import RemoteLacks, Unreachable
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from remoter_kernel.local.login.login import CompletedCommand, Login

CHUNK_SIZE = 512 * 1024  # bytes: small enough for a progress bar to move over a slow link
CHUNK_WITHIN = 300.0  # seconds
WRONG_DIGEST = 9  # exit code where the checksum of the file there is another one

# Any login shell (csh and fish, too) passes these on: no quotes inside, no newline, no `!`. Python
# checks and renames, as no tool for SHA256 is on each system.
_APPEND_COMMAND = "sh -c 'umask 077; cat {sign} \"{folder}/{part}\"'"
_VERIFY_COMMAND = (
    'sh -c \'exec "{python}" -I -B -c '
    '"import hashlib,os,pathlib,sys; part,whole,wanted=sys.argv[1:]; '
    "data=pathlib.Path(part).read_bytes(); "
    "hashlib.sha256(data).hexdigest()==wanted or sys.exit({wrong}); "
    'os.replace(part,whole)" "{folder}/{part}" "{folder}/{name}" {digest}\''
)


def sha256_of(path: Path) -> str:
    """Return the SHA256 of a file here."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def upload_files(
    login: Login,
    files: Sequence[Path],
    folder: str,
    python: str,
    on_sent: Callable[[int], None] = lambda _bytes: None,
) -> None:
    """Put files into a folder there; `on_sent` gets the bytes of each chunk.

    `folder` and `python` are paths there as they stand between double quotes in a shell.
    A cut leaves whole files, and parts under names that no next upload takes for them.
    """
    for path in files:
        if not re.fullmatch(r"[\w.+-]+", path.name):  # it stands in a command
            raise RemoteLacks(f"{path.name!r} is no name for a file that is sent.")
        try:
            _upload_file(login, path, folder, python, on_sent)
        except Unreachable as error:
            raise Unreachable(
                f"the connection was lost while {path.name} was sent.",
                "Run the same command again: what has arrived whole is not sent twice.",
            ) from error


def _upload_file(
    login: Login, path: Path, folder: str, python: str, on_sent: Callable[[int], None]
) -> None:
    content = path.read_bytes()
    part = f"{path.name}.{secrets.token_hex(4)}.part"
    for begin in range(0, len(content), CHUNK_SIZE):
        piece = content[begin : begin + CHUNK_SIZE]
        command = _APPEND_COMMAND.format(sign=">>" if begin else ">", folder=folder, part=part)
        completed = login.run(command, piece, seconds=CHUNK_WITHIN)
        if completed.status:
            raise RemoteLacks(
                f"{path.name} could not be written there: {_last_error_line(completed)}.",
                "Make room in the home there, then try again.",
            )
        on_sent(len(piece))
    digest = hashlib.sha256(content).hexdigest()
    names = {"folder": folder, "part": part, "name": path.name}
    admit = _VERIFY_COMMAND.format(python=python, wrong=WRONG_DIGEST, digest=digest, **names)
    completed = login.run(admit, seconds=CHUNK_WITHIN)
    if completed.status == WRONG_DIGEST:
        raise RemoteLacks(
            f"{path.name} did not arrive as it was sent.",
            "Look at the disk there, then run the same command again.",
        )
    if completed.status:
        raise RemoteLacks(
            f"{path.name} could not be put in its place there: {_last_error_line(completed)}.",
            "Look at the home there, then run the same command again.",
        )


def _last_error_line(completed: CompletedCommand) -> str:
    lines = completed.stderr.decode("utf-8", "replace").strip().splitlines() or [
        f"status {completed.status}"
    ]
    return plain_text(lines[-1]).rstrip(".")
