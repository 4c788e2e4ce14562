"""What kernels ask (`input()`), until it has its answer: which question a reply is for (pure).

Not every client says that: jupyter_client, consoles, nbclassic and JupyterLab 3 send replies
without a parent, JupyterLab 4 and VS Code name the question.
"""

from __future__ import annotations

import re
import unicodedata
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, NamedTuple

from remoter_kernel.errors import ProtocolError
from remoter_kernel.local.login.prompts import OWN_TAG, strip_controls
from remoter_kernel.protocol.frames import to_json
from remoter_kernel.protocol.messages import CONTENT, content_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remoter_kernel.protocol.frames import Bytes

SIMILARITY = 0.8  # of the letters of our own beginning: a question that has more of them is marked
LONGEST_PROMPT = 16 * 1024  # characters of a question
_LINES = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")


class KernelInputRequest(NamedTuple):
    """A question of a kernel that has no answer yet."""

    client: tuple[bytes, ...]  # who was asked
    message_id: str  # the id of the message that asks
    request_id: str  # the id of the request in which it is asked
    reply: Callable[[list[Bytes]], object]  # gives the kernel its reply
    is_local: bool  # is it of the kernel on this side?


class KernelInputRequests:
    """Those without an answer, the oldest first."""

    def __init__(self) -> None:
        self._open: list[KernelInputRequest] = []
        self._naming_clients: set[tuple[bytes, ...]] = (
            set()
        )  # clients that say which question they answer

    def add(self, question: KernelInputRequest) -> None:
        """A kernel has asked."""
        self._open.append(question)

    def has(self, name: str) -> bool:
        """Is there a question with this id that has no answer?"""
        return any(each.message_id == name for each in self._open)

    def mark_naming(self, client: Sequence[bytes]) -> None:
        """A client has said which question it answers: it does so each time."""
        self._naming_clients.add(tuple(client))

    def is_naming(self, client: Sequence[bytes]) -> bool:
        """Does this client say which question it answers, as far as is known?"""
        return tuple(client) in self._naming_clients

    def is_ambiguous(self, client: Sequence[bytes]) -> bool:
        """Could this client's answer to anything else be one to a kernel's question?"""
        who = tuple(client)
        return who not in self._naming_clients and any(each.client == who for each in self._open)

    def pop_for(self, client: Sequence[bytes], parent: str) -> KernelInputRequest | None:
        """Return the question that a reply is for, once; `parent`: what the reply names, or "".

        What names none, or only the cell, is for the kernel that has asked first.
        """
        own = [each for each in self._open if each.client == tuple(client)]
        is_named = parent not in {"", *(each.request_id for each in own)}
        found = next((each for each in own if is_named and each.message_id == parent), None)
        if found:
            self.mark_naming(client)
        else:
            found = next((each for each in own if parent in {"", each.request_id}), None)
        if found:
            self._open.remove(found)
        return found

    def drop(self, *, is_here: bool) -> None:
        """A kernel waits no more."""
        self._open = [each for each in self._open if each.is_local is not is_here]

    def drop_client(self, client: Sequence[bytes]) -> None:
        """A person will not answer what this client was asked."""
        self._open = [each for each in self._open if each.client != tuple(client)]


def mark_lookalike(parts: list[Bytes], whose: str) -> list[Bytes]:
    """Return a kernel's question as it came, unless it looks like one of our own: then marked."""
    try:
        content = content_of(parts)
    except ProtocolError:  # no client makes sense of it, either
        return parts
    prompt = content.get("prompt")
    if not isinstance(prompt, str) or not looks_like_ours(prompt):
        return parts
    lines = [strip_controls(line) for line in _LINES.split(prompt[:LONGEST_PROMPT])]
    marked = "\n".join(f"[{whose} asks] {line}" for line in lines if line.strip())
    words = to_json({**content, "prompt": f"{marked} "})
    return [*parts[:CONTENT], words, *parts[CONTENT + 1 :]]


def looks_like_ours(prompt: str) -> bool:
    """Would a person take this for a question of this program?

    Wherever the words stand, and also with signs that look like their letters in between.
    """
    if len(prompt) > LONGEST_PROMPT:  # nobody reads that, and what it hides would take long to find
        return True
    wanted = _bare_letters(OWN_TAG)
    if wanted in _bare_letters(prompt):
        return True
    starts = (_bare_letters(line)[: len(wanted)] for line in _LINES.split(prompt))
    return any(SequenceMatcher(None, start, wanted).ratio() > SIMILARITY for start in starts)


def _bare_letters(text: str) -> str:
    """Return the letters alone, without what is not seen, small, in their plainest form."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return "".join(sign for sign in plain if sign.isalpha())
