"""What the proxy asks of its table of requests (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoter_kernel.errors import ProtocolError
from remoter_kernel.protocol.messages import is_silent
from remoter_kernel.protocol.requests import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remoter_kernel.protocol.requests import Request, Requests


def is_remote(request: Request) -> bool:
    """Was it given to the link?"""
    return request.stage >= Stage.QUEUED and not request.is_here


def unanswered_remote(requests: Requests) -> list[Request]:
    """List what was given to the link and has no reply yet."""
    return [each for each in requests if is_remote(each) and each.is_open]


def remote_cells(requests: Requests) -> list[Request]:
    """List the cells among these; the first one runs, as far as is known here."""
    return [cell for cell in requests.cells() if is_remote(cell)]


def unfinished_remote_cells(requests: Requests) -> list[Request]:
    """List the cells that were given to the link and lack their reply or their idle."""
    # Also those with a reply: the kernel sends their last outputs before the idle.
    return [each for each in requests if each.is_cell and is_remote(each)]


def running_cells(requests: Requests) -> Iterator[Request]:
    """Go through the cells that run here or were given to the link; no request may move meanwhile.

    A cell that runs here comes first: those behind it are held back.
    """
    return (
        cell
        for cell in requests.each_cell()
        if is_remote(cell) or (cell.is_here and cell.stage is Stage.RUNNING)
    )


def first_running_cell(requests: Requests, but: str = "") -> Request | None:
    """Return the first of these; `but`: an id that is not meant."""
    return next((cell for cell in running_cells(requests) if cell.id != but), None)


def find_open_remote(requests: Requests, name: str) -> Request | None:
    """Return the request with this id to which the remote kernel may reply."""
    request = requests.get(name)
    # A kernel may name any id as a parent, also that of what was never sent there.
    is_awaited = request is not None and request.is_open and is_remote(request)
    return request if is_awaited else None


def shows_output(request: Request) -> bool:
    """Is this a cell of which a person sees something?"""
    try:
        return request.is_cell and not is_silent(request.content)
    except ProtocolError:  # a client may send any bytes as content
        return False
