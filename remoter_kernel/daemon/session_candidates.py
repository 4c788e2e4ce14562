"""Looks for the living sessions that a notebook may have here, and what is known of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remoter_kernel.daemon import registry
from remoter_kernel.daemon.session_match import Candidate
from remoter_kernel.daemon.status_file import STATUS_FILE, known_cells

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.daemon.registry import Session

SAME = ("laptop", "remote", "kernel")  # of a session and of the wish for one


def is_of_a_notebook(wish: dict[str, Any]) -> bool:
    """Does this wish come from a notebook's front that knows where it is?"""
    return bool(wish.get("laptop")) and str(wish.get("notebook")).endswith(".ipynb")


def candidates_for(wish: dict[str, Any]) -> Iterator[Candidate]:
    """Yield what may be meant by a wish, the newest first; reads no journal."""
    cells = set(wish.get("cells") or ())
    for session in registry.all_sessions():
        about = session.read("session.json")
        if about.get("ended") or any(about.get(key) != wish.get(key) for key in SAME):
            continue
        is_same = about.get("notebook") == wish.get("notebook")
        shares_cells = not cells.isdisjoint(known_cells(session))
        if not (is_same or shares_cells):
            continue
        is_here = session.is_of_this_host()
        is_answering = session.is_alive()
        has_evaluator = session.has_evaluator()
        if is_here and not (is_answering or has_evaluator or session.has_kernel()):
            continue  # dead, and nobody has noted that yet
        yield Candidate(
            session.id,
            is_same_notebook=is_same,
            shares_cells=shares_cells,
            is_free=not _has_front(session, about, wish),
            can_be_joined=is_here and (is_answering or not has_evaluator),
        )


def _has_front(session: Session, about: dict[str, Any], wish: dict[str, Any]) -> bool:
    """Does a front of this session live on the same laptop, or is one connected from another?

    The laptop itself says who lives there: a front whose link is down is not gone, and one
    that was killed may look connected for a while.
    """
    living = set(wish.get("fronts") or ())
    if living & {str(about.get("kernel_id")), *session.admitted()}:
        return True
    fronts = session.read(STATUS_FILE).get("fronts") or {}
    if not isinstance(fronts, dict):
        return True  # another version's words: nobody can say
    return any(not _is_gone(front, wish) for front in fronts.values())


def _is_gone(front: Any, wish: dict[str, Any]) -> bool:
    if not isinstance(front, dict):
        return False
    is_of_the_laptop = bool(front.get("kernel_id")) and front.get("laptop") == wish["laptop"]
    is_dead = is_of_the_laptop and front["kernel_id"] not in (wish.get("fronts") or ())
    return is_dead or not front.get("here")
