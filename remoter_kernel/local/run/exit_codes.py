"""How code ended that was run there without Jupyter, and its exit code (pure)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from remoter_kernel.protocol.frames import Channel, unpack_parts
from remoter_kernel.protocol.messages import HEADER, ODD, PARENT, content_of, header_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remoter_kernel.protocol.journal_entries import JournalEntry

FAILED = 1
_R_ERROR = "ERROR"
# As an R script's `quit` is made to say it: "Error", in whatever language R speaks, and a colon.
_QUIT = re.compile(r"\S+\s?.\s*quit\(status = (-?\d+)\)")


def quit_status(content: dict[str, Any]) -> str | None:
    """Return with which word code ended itself (`sys.exit(…)`); None: it did not."""
    evalue = str(content.get("evalue", "")).strip()
    if content.get("ename") == "SystemExit":
        return "0" if evalue in {"", "None", "False"} else evalue
    found = _QUIT.fullmatch(evalue) if content.get("ename") == _R_ERROR else None
    return found[1] if found else None


def exit_code(reply: dict[str, Any]) -> int:
    """Return 0 for code that went well, or that ended itself so."""
    if reply.get("status") == "ok" or quit_status(reply) == "0":
        return 0
    return FAILED


def exit_code_of_all(replies: Iterable[dict[str, Any]]) -> int:
    """Return the exit code of pieces that were asked for together: that of the first to fail.

    What was called off before anything had failed was not run, and so has not gone well.
    """
    for reply in replies:
        if reply.get("status") == "aborted":
            return FAILED
        if reply.get("status") != "ok":
            return exit_code(reply)
    return 0


class ExitCodeTracker:
    """How the code of a session ended, by what its journal says."""

    def __init__(self) -> None:
        """Begin with nothing asked."""
        self._may_fail: dict[str, bool] = {}  # by request: may it fail?
        self._replies: list[dict[str, Any]] = []  # of those that may not

    @property
    def is_open(self) -> bool:
        """Has something been asked that was never answered?"""
        return bool(self._may_fail)

    @property
    def exit_code(self) -> int:
        """Return that of the code, as far as it has got."""
        return FAILED if self.is_open else exit_code_of_all(self._replies)

    def add_record(self, said: JournalEntry) -> None:
        """Take in one record; one that makes no sense says nothing."""
        if said.channel is not Channel.SHELL or said.is_marker:
            return
        try:
            parts = unpack_parts(said.body)
            header, content = header_of(parts[HEADER]), content_of(parts)
            if said.is_from_client and header.get("msg_type") == "execute_request":
                self._may_fail[str(header["msg_id"])] = not content.get("stop_on_error", True)
            elif header.get("msg_type") == "execute_reply":
                may_fail = self._may_fail.pop(str(header_of(parts[PARENT]).get("msg_id")), True)
                if not may_fail:
                    self._replies.append(content)
        except ODD:
            return
