"""What a server says to everybody before it lets them in.

Mostly it is about rules, and the server goes on at once. But where it waits, a person may have
to act on its words: to open an address, say, and to log in there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from remoter_kernel.local.login.prompts import quote_server

if TYPE_CHECKING:
    from collections.abc import Callable

SHOWN_AFTER = 1.0  # seconds in which the server has not gone on
MOST_SHOWN = 60  # lines: a server may say something now and then for as long as it likes
ACTED_ON_WITHIN = 300.0  # seconds for a person to go to an address, and for the server to know
ADDRESS = re.compile(r"https?://\S|\b(?:[a-z0-9-]+\.)+[a-z]{2,}/\S", re.IGNORECASE)


class Banner:
    """The words of one server, as far as a person has seen them."""

    def __init__(self, label: str, show: Callable[[str], object] | None) -> None:
        """`label` is how the server is called; `show` reaches a person, if there is one."""
        self._label = label
        self._show = show
        self._seen = ""
        self._lines_shown = 0

    def take_unseen(self, text: str) -> str:
        """Return what nobody has seen yet of all that the server has said, marked as its words.

        From now on it counts as seen.
        """
        new = text.removeprefix(self._seen)
        self._seen = text
        return quote_server(self._label, new)

    def show(self, text: str) -> None:
        """Show a person what they have not seen yet."""
        if self._show is None or self._lines_shown >= MOST_SHOWN:
            return
        if words := self.take_unseen(text):
            self._lines_shown += words.count("\n") + 1
            self._show(words)

    def allowed_silence(self, text: str, usual: float) -> float:
        """Return for how many seconds the server may be silent after these words."""
        is_for_person = self._show is not None and ADDRESS.search(text)
        return max(usual, ACTED_ON_WITHIN) if is_for_person else usual
