"""Restart or stop, pressed while the link was down: written down here until a login.

One small file per order, so that two fronts never write the same one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from remoter_kernel.front.configuration.remotes import state_folder
from remoter_kernel.front.private_files import write_private

if TYPE_CHECKING:
    from pathlib import Path


def write_down(remote: str, kernel_id: str, session: str, order: str) -> None:
    """Remember that a session should be restarted or stopped; it may not have an id yet."""
    words = {"order": order, "kernel_id": kernel_id, "session": session}
    write_private(_folder(remote) / f"{kernel_id}.json", json.dumps(words))


def pending(remote: str) -> tuple[dict[str, Any], ...]:
    """Return what waits for a remote's next login."""
    found = []
    for path in sorted(_folder(remote).glob("*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue  # torn or taken by another front
    return tuple(found)


def forget(remote: str, *kernel_ids: str) -> None:
    """Forget orders that were carried out."""
    for kernel_id in kernel_ids:
        (_folder(remote) / f"{kernel_id}.json").unlink(missing_ok=True)


def _folder(remote: str) -> Path:
    return state_folder() / "orders" / remote
