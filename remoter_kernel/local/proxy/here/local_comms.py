"""Comms that the kernel on this side has opened: whose they are, and that clients may find them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remoter_kernel.protocol.frames import to_json
from remoter_kernel.protocol.messages import CONTENT, content_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remoter_kernel.protocol.frames import Bytes


class LocalComms:
    """The book of them."""

    def __init__(self) -> None:
        """Begin with none."""
        self._targets: dict[str, str] = {}  # by comm id

    def on_kernel_message(self, kind: str, parts: Sequence[Bytes]) -> None:
        """Look at a message of the kernel on this side."""
        if kind == "comm_open":
            content = content_of(parts)
            self._targets[str(content.get("comm_id"))] = str(content.get("target_name"))
        elif kind == "comm_close":
            self._targets.pop(str(content_of(parts).get("comm_id")), None)

    def is_for_local_kernel(self, kind: str, parts: Sequence[Bytes]) -> bool:
        """Is this message of a client for the kernel on this side?"""
        if not self._targets or kind not in {"comm_msg", "comm_close"}:
            return False
        comm = str(content_of(parts).get("comm_id"))
        is_ours = comm in self._targets
        if kind == "comm_close":
            self._targets.pop(comm, None)
        return is_ours

    def add_to_reply(self, parts: Sequence[Bytes], target: object) -> Sequence[Bytes]:
        """Add ours to a reply that lists comms (of one target, if one was asked for)."""
        ours = {
            comm: {"target_name": name}
            for comm, name in self._targets.items()
            if target in {None, "", name}
        }
        content: dict[str, Any] = content_of(parts)
        comms = content.get("comms")
        if not ours or content.get("status") != "ok" or not isinstance(comms, dict | list):
            return parts
        content["comms"] = {**(comms if isinstance(comms, dict) else {}), **ours}
        return [*parts[:CONTENT], to_json(content), *parts[CONTENT + 1 :]]

    def clear(self) -> None:
        """Begin again: the kernel is gone."""
        self._targets.clear()
