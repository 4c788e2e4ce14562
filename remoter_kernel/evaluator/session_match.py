"""Which living session of a notebook a new front may join: the rules (pure).

A front takes over only what is surely its notebook's and what nobody else is at; where
that is open, it begins afresh and its person hears which sessions there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Candidate(NamedTuple):
    """A session that lives, of the same laptop, remote and kernel."""

    session: str
    is_same_notebook: bool  # has the notebook the same path?
    shares_cells: bool  # was any cell that is in the notebook run there?
    is_free: bool  # is the front gone, and no other there?
    can_be_joined: bool = True  # is it on this host, and does its evaluator answer or is gone?


def match_session(candidates: Sequence[Candidate]) -> tuple[str, list[str]]:
    """Return the session to join, or none ("") and those that a person should hear of."""
    heirs = [
        each.session
        for each in candidates
        if each.is_same_notebook and each.shares_cells and each.is_free and each.can_be_joined
    ]
    if len(heirs) == 1:
        return heirs[0], []
    # One of another path is worth a word if it was left behind: the file was renamed, perhaps.
    told = [
        each.session
        for each in candidates
        if each.is_same_notebook or (each.shares_cells and each.is_free)
    ]
    return "", told
