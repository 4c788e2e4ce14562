"""What a sender may send: what it has announced at the start, and no more (pure).

A file that has grown since is announced anew, so the bytes may become more: by as much again, and
by `GROWS` in any case. An honest sender keeps to that, too, and leaves out what has outgrown it.
"""

from __future__ import annotations

from typing import Any

from remoter_kernel.errors import ProtocolError
from remoter_kernel.transfer.framed_stream import (
    MOST_BYTES,
    MOST_ENTRIES,
    FileEntry,
    FileTrouble,
    TroubleCode,
    number_of,
)

GROWS = 64 * 1024 * 1024  # bytes
TELLINGS = 4  # entries of one file: it may be another by now, change, arrive damaged, each once
MOST_HELD = 256 * 1024 * 1024  # bytes of memory for all that is kept until the end
HELD_EACH = 200  # bytes that Python takes for an entry, about, beside the characters


def most_bytes(size: int) -> int:
    """Return how many bytes may come where so many were announced."""
    return size + max(size, GROWS)


class GrowthAllowance:
    """How much files may grow while they are sent, all of them together."""

    def __init__(self, size: int) -> None:
        """`size` is what is announced at the start, in bytes."""
        self._size, self._most = size, most_bytes(size)

    def allows(self, more: int) -> bool:
        """May there be so many bytes more? Then they are counted."""
        if self._size + more > self._most:
            return False
        self._size += more
        return True


class TransferQuota:
    """The numbers of a transfer's START, and what of them is used up."""

    def __init__(self, words: dict[str, Any]) -> None:
        """Read the numbers; ProtocolError if they cannot be."""
        self.files = number_of(words, "files")
        self.size = number_of(words, "size")
        self._entries = number_of(words, "entries")
        if not self.files <= self._entries <= MOST_ENTRIES or self.size > MOST_BYTES:
            raise ProtocolError("No start has such numbers.")
        self._files_told = self._others_told = self._size_told = self._tellings = 0
        self._held = 0

    def count(self, entry: FileEntry) -> None:
        """Count an entry; ProtocolError if there are more than were announced."""
        self._tellings += 1
        if entry.kind == "file":
            self._files_told += 1
            self._size_told += entry.size
        else:
            self._others_told += 1
        others = self._entries - self.files
        if self._files_told > self.files or self._others_told > others:
            message = f"More came than the {self._entries:,} entries that were told of."
            raise ProtocolError(message)
        if self._size_told > most_bytes(self.size):
            raise ProtocolError(f"More came than the {self.size:,} bytes that were told of.")
        if self._tellings > TELLINGS * self._entries:
            raise ProtocolError("The same files were told of again and again.")

    def uncount(self, entry: FileEntry) -> None:
        """Do not count a file that has not arrived, and may be announced anew."""
        self._files_told -= 1
        self._size_told -= entry.size

    def hold(self, *texts: str) -> None:
        """Count texts that are kept until the end; FileTrouble if that becomes too much."""
        self._held += HELD_EACH + sum(map(len, texts))
        if self._held > MOST_HELD:
            reason = "this is too much for one transfer; name what is in it, in several of them"
            raise FileTrouble(texts[0], reason, TroubleCode.WORDS)
