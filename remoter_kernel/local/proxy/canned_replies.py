"""What the front can say without the far side: replies from memory, empty ones, errors."""

from __future__ import annotations

from typing import Any

from remoter_kernel import __version__

EMPTY_REPLIES: dict[str, dict[str, Any]] = {
    "complete_request": {"matches": [], "metadata": {}},
    "inspect_request": {"found": False, "data": {}, "metadata": {}},
    "history_request": {"history": []},
    "comm_info_request": {"comms": {}},
}


# What a person waits for while typing; a late answer is worse than an empty one.
INTERACTIVE_REQUESTS = {
    "is_complete_request",
    "complete_request",
    "inspect_request",
    "history_request",
}


# What a front end colours text by, and names a script after, before the kernel says so itself.
MIME_TYPE_AND_EXTENSION = {"python": ("text/x-python", ".py"), "R": ("text/x-r-source", ".r")}


def cached_kernel_info(last_seen: dict[str, Any] | None, language: str) -> dict[str, Any]:
    """Return what is known of the far kernel: its last answer, else its language alone."""
    if last_seen:
        return last_seen
    mimetype, extension = MIME_TYPE_AND_EXTENSION.get(language, ("text/plain", ".txt"))
    return {
        "status": "ok",
        "protocol_version": "5.4",
        "implementation": "remoter",
        "implementation_version": __version__,
        "language_info": {
            "name": language,
            "version": "",
            "mimetype": mimetype,
            "file_extension": extension,
        },
        "banner": "A remote kernel; it says more of itself once it is reached.",
        "help_links": [],
        "supported_features": [],
        "debugger": False,
    }


def kernel_language(last_seen: dict[str, Any] | None, language: str) -> str:
    """Return the far kernel's language: as it says itself, else as it is configured."""
    info = (last_seen or {}).get("language_info")
    return str((info if isinstance(info, dict) else {}).get("name") or language)


def empty_reply(request_type: str, content: dict[str, Any]) -> dict[str, Any] | None:
    """Return the reply that harms nobody, or None where there is none."""
    if request_type == "is_complete_request":
        return {"status": "unknown"}
    if request_type not in EMPTY_REPLIES:
        return None
    reply = {"status": "ok", **EMPTY_REPLIES[request_type]}
    if request_type == "complete_request":
        reply |= {
            "cursor_start": content.get("cursor_pos", 0),
            "cursor_end": content.get("cursor_pos", 0),
        }
    return reply


def error_content(name: str, sentence: str) -> dict[str, Any]:
    """Return the content of an `error` message: a sentence, no traceback."""
    return {
        "ename": name,
        "evalue": sentence,
        "traceback": [f"\x1b[0;31m{name}\x1b[0m: {sentence}"],
    }
