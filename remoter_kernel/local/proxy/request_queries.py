"""What the proxy asks of its table of requests (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoter_kernel.errors import ProtocolError
from remoter_kernel.protocol.messages import is_silent
from remoter_kernel.protocol.requests import Stage

if TYPE_CHECKING:
    from remoter_kernel.protocol.requests import Request, Requests


def unanswered_remote(requests: Requests) -> list[Request]:
    """List what was given to the link and has no reply yet."""
    return [each for each in requests if is_remote(each) and each.is_open]


def remote_cells(requests: Requests) -> list[Request]:
    """List the cells among these; the first one runs, as far as is known here."""
    return [cell for cell in requests.cells() if is_remote(cell)]


def unfinished_remote_cells(requests: Requests) -> list[Request]:
    """List the cells that were given to the link and lack their reply or their idle."""
    return [each for each in requests if each.is_cell and is_remote(each)]


def running_cells(requests: Requests) -> list[Request]:
    """List the cells that run or were given to the link: that on this side comes first."""
    cells = requests.cells()
    here = [cell for cell in cells if cell.is_here and cell.stage is Stage.RUNNING]
    return [*here, *(cell for cell in cells if is_remote(cell))]


def first_running_cell(requests: Requests, but: str = "") -> Request | None:
    """Return the first of these, without looking at all; `but`: an id that is not meant.

    A cell that runs on this side comes before those that wait behind it.
    """
    return next(
        (
            cell
            for cell in requests.each_cell()
            if cell.id != but
            and (is_remote(cell) or (cell.is_here and cell.stage is Stage.RUNNING))
        ),
        None,
    )


def find_open_remote(requests: Requests, name: str) -> Request | None:
    """Return the request with this id to which the kernel there may reply."""
    request = requests.get(name)
    is_right = request is not None and request.is_open and is_remote(request)
    return request if is_right else None


def is_remote(request: Request) -> bool:
    """Was it given to the link?"""
    return request.stage >= Stage.QUEUED and not request.is_here


def shows_output(request: Request) -> bool:
    """Is this a cell that may show something?"""
    try:
        return request.is_cell and not is_silent(request.content)
    except ProtocolError:
        return False
