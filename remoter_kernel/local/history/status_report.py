"""How the link and its session are, in lines for a person (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remoter_kernel.local.history.transcript import format_duration
from remoter_kernel.plain_text import count_of, plain_text

KIB = 1024


@dataclass(frozen=True, kw_only=True)
class _LoginStatus:
    """How a login was made; "": not known."""

    transport: str = ""
    why_transport: str = ""
    cipher: str = ""
    host_key: str = ""


@dataclass(frozen=True, kw_only=True)
class _LinkTraffic:
    """What went over a link so far."""

    losses: int = 0  # connections that were lost
    round_trip: float | None = None
    queue: int = 0  # messages that were sent, and not acknowledged
    sent: int = 0  # bytes
    received: int = 0


@dataclass(frozen=True)
class LinkStatus(_LoginStatus, _LinkTraffic):
    """What is known of a link; None and "" mean: nothing. All times are in seconds."""

    state: str  # as `link.LinkState` calls it
    state_age: float  # how long it has been so
    remote: str
    host: str = ""
    user: str = ""
    session: str = ""
    next_try: float | None = None
    last_error: str = ""
    keeps_session: bool = False  # does the session stay at shutdown?
    is_encrypted: bool | None = None  # between the kernel and its evaluator; None: not known


def format_status(status: LinkStatus) -> str:
    """Return the lines."""
    where = f" on {status.host} as {status.user}" if status.host else ""
    session = f"{status.session}{where}" if status.session else "none yet"
    waiting = f"; {status.queue} not confirmed there yet" if status.queue else ""
    rows = [
        ("remote", status.remote),
        ("link", _format_link(status)),
        ("last error", status.last_error),
        ("session", session),
        ("at shutdown", "the session stays" if status.keeps_session else "the session ends"),
        ("login", _format_login(status)),
        ("wire", "CURVE, with keys made for this session" if status.session else ""),
        ("kernel", _format_kernel(status)),
        ("round trip", "" if status.round_trip is None else f"{status.round_trip * 1000:.0f} ms"),
        (
            "traffic",
            f"{format_size(status.sent)} sent, {format_size(status.received)} received{waiting}",
        ),
    ]
    return "".join(f"{name:<13}{plain_text(what)}\n" for name, what in rows if what)


def _format_login(status: LinkStatus) -> str:
    why = f" ({status.why_transport})" if status.why_transport else ""
    by = f"by {status.transport}{why}" if status.transport else ""
    return ", ".join(filter(None, (by, status.cipher, status.host_key)))


def _format_kernel(status: LinkStatus) -> str:
    """Say whether other users of the host can listen to the kernel."""
    if status.is_encrypted is None:
        return ""
    warning = plain_sockets_warning(status.host)
    return "its sockets have CURVE, too" if status.is_encrypted else warning


def format_requests(rows: Any, where: str) -> str:
    """Return a line for each open request (see `Requests.rows`), below one that says where.

    `rows` come from the remote and may be anything; an evaluator of an older version sends none.
    """
    if not isinstance(rows, list):
        return f"{where}: it does not say which requests are open (it is of an older version)\n"
    lines = [_format_request(row) for row in rows if isinstance(row, dict)]
    return f"{where}: no requests are open\n" if not lines else f"{where}:\n{''.join(lines)}"


def _format_request(row: dict[str, Any]) -> str:
    name, kind, stage = (plain_text(row.get(key, ""), most=64) for key in ("id", "type", "stage"))
    seconds = row.get("seconds")
    since = f"for {format_duration(seconds)}" if isinstance(seconds, (int, float)) else ""
    why = plain_text(row.get("why", ""), most=200)
    told = ", ".join(filter(None, (since, why)))
    return f"  {name:<38} {kind:<20} {stage:<9} {told}".rstrip() + "\n"


def plain_sockets_warning(host: str) -> str:
    """Say that a kernel's sockets are plain, and what follows."""
    return f"other users of {host} can read what it prints: its sockets are not encrypted"


def _format_link(status: LinkStatus) -> str:
    ago = format_duration(status.state_age)
    if status.state == "waiting":
        next_try = "" if status.next_try is None else format_duration(status.next_try)
        return f"down for {ago}{next_try and f'; next try in {next_try}'}"
    cuts = f", after {count_of(status.losses, 'cut')}" if status.losses else ""
    return f"{status.state} for {ago}{cuts}"


def format_size(size: float) -> str:
    """Write an amount of bytes in the unit that reads best: "1.2 GiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < KIB or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= KIB
    raise AssertionError
