"""Logs in to a remote in the way that its configuration says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoter_kernel.errors import Usage
from remoter_kernel.front.ssh.aliases import resolve
from remoter_kernel.front.ssh.login import log_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from remoter_kernel.front.questions import Questions
    from remoter_kernel.front.remotes import Remote
    from remoter_kernel.front.ssh.admission import Memory
    from remoter_kernel.front.ssh.aliases import Destination
    from remoter_kernel.front.ssh.login import Login


def destination_of(remote: Remote) -> Destination:
    """Say where a remote is; refuse a way of logging in that this version does not have."""
    if remote.transport == "openssh":
        raise Usage(
            "the transport openssh is not part of this version.",
            'Set transport = "auto", or leave it out.',
            remote=remote.name,
        )
    return resolve(remote.host, remote.ssh_config)


def log_in_to(
    remote: Remote,
    questions: Questions | None = None,
    on_step: Callable[[str], None] = lambda _step: None,
    on_try: Callable[[Login], None] = lambda _login: None,
    *,
    memories: dict[str, Memory] | None = None,
) -> Login:
    """Log in to a remote; `on_step` hears of each step as it begins, `on_try` of each login."""
    where = destination_of(remote)
    return log_in(where, questions=questions, on_step=on_step, on_try=on_try, memories=memories)
