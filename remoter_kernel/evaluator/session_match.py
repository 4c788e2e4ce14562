"""Which living session of a notebook a new proxy may join: the rules (`match_session` is pure).

A proxy takes over only what is surely its notebook's and has no other client; where
that is open, it begins afresh and the person is told which sessions there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from remoter_kernel.evaluator import registry
from remoter_kernel.evaluator.status_file import STATUS_FILE, read_cells

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from remoter_kernel.evaluator.registry import Session

SAME = ("laptop", "remote", "kernel")  # must be the same in a session and in a request for one


class Candidate(NamedTuple):
    """A session that lives, of the same laptop, remote and kernel."""

    session: str
    is_same_notebook: bool  # has the notebook the same path?
    shares_cells: bool  # was any cell that is in the notebook run there?
    is_free: bool  # is its client gone, and no other connected?
    can_be_joined: bool = True  # is it on this host, and does its evaluator answer or is gone?


def match_session(candidates: Sequence[Candidate]) -> tuple[str, list[str]]:
    """Return the session to join, or none ("") and those that a person should hear of."""
    surely = [each for each in candidates if each.is_same_notebook and each.shares_cells]
    matches = [each.session for each in surely if each.is_free and each.can_be_joined]
    if len(matches) == 1:
        return matches[0], []
    # One of another path is worth a word if it was left behind: the file was renamed, perhaps.
    perhaps = (
        each for each in candidates if each.is_same_notebook or (each.shares_cells and each.is_free)
    )
    return "", [each.session for each in perhaps]


def names_notebook(request: dict[str, Any]) -> bool:
    """Does this request come from the proxy of a notebook whose path it knows?"""
    return bool(request.get("laptop")) and str(request.get("notebook")).endswith(".ipynb")


def candidates(request: dict[str, Any]) -> Iterator[Candidate]:
    """Yield the sessions that a request may mean, the newest first; reads no journal."""
    cells = set(request.get("cells") or ())
    for session in registry.all_sessions():
        about = session.read("session.json")
        if about.get("ended") or any(about.get(key) != request.get(key) for key in SAME):
            continue
        is_same = about.get("notebook") == request.get("notebook")
        shares_cells = not cells.isdisjoint(read_cells(session))
        if not (is_same or shares_cells):
            continue
        is_here = session.is_of_this_host()
        is_answering = session.is_alive()
        has_evaluator = session.is_evaluator_running()
        # Of another host's session nobody here can say whether it is dead.
        if is_here and not (is_answering or has_evaluator or session.is_kernel_running()):
            continue  # dead, and nobody has noted that yet
        yield Candidate(
            session.id,
            is_same_notebook=is_same,
            shares_cells=shares_cells,
            is_free=not _has_client(session, about, request),
            can_be_joined=is_here and (is_answering or not has_evaluator),
        )


def _has_client(session: Session, about: dict[str, Any], request: dict[str, Any]) -> bool:
    """Does a proxy of this session run on the same laptop, or is one connected from another?

    The laptop itself says which proxies run there: one whose link is down is not gone, and one
    that was killed may look connected for a while.
    """
    living = set(request.get("fronts") or ())
    if living & {str(about.get("kernel_id")), *session.authorized_kernels()}:
        return True
    clients = session.read(STATUS_FILE).get("fronts") or {}
    if not isinstance(clients, dict):
        return True  # another version's words: nobody can say
    return any(not _has_exited(client, request) for client in clients.values())


def _has_exited(client: Any, request: dict[str, Any]) -> bool:
    if not isinstance(client, dict):
        return False
    is_of_the_laptop = bool(client.get("kernel_id")) and client.get("laptop") == request["laptop"]
    is_dead = is_of_the_laptop and client["kernel_id"] not in (request.get("fronts") or ())
    return is_dead or not client.get("here")
