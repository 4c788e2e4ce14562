"""Takes names, addresses, paths and unknown words out of a text that strangers may read (pure).

Two ways, so that what the first one does not know the second one stops:

- Names that are known are replaced by stable words (`HOST1`), also within other words; so are
  addresses.
- Of a text that others have a part in, only words stay that are in this program's own source,
  short numbers that stand alone, and numbers with a unit. Each other word becomes `WORD1`, the
  same one each time. Words with signs between them (`gpu-server.example`) stay only if the source
  has them together.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
from functools import cache, partial
from pathlib import Path

SHORT = 4  # letters; a shorter name is one only where it stands by itself
LONGEST_NUMBER = 3  # digits; a longer one may be a code
NOT_NAMES = {"", ".", "~", "-"}
_BEGIN, _END = "\ue000", "\ue001"  # around what is masked already; private in Unicode
_MASKED = re.compile(f"({_BEGIN}[^{_END}]*{_END})")
_CLOCK = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z ")  # with which a line of a log begins
_AMOUNT = re.compile(  # "12 ms", "0.0123"
    r"(?<![\w.])(?:\d+(?:\.\d+)? (?:bytes|KiB|MiB|GiB|ms|s|min|h|d)\b|\d\.\d+(?![\w.]))"
)
_GROUPS = re.compile(r"(?<!\d)\d{1,3}(?:[ -]+\d{1,3})+(?!\d)")  # "771 902": a code, perhaps
_V4 = re.compile(r"(?<!\d)\d{1,3}([.\-_])\d{1,3}\1\d{1,3}\1\d{1,3}(?!\d)")
_V6 = re.compile(r"(?<![\w:])[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%\w+)?")
_PATH = re.compile(r"(?<![\w/\\])(?:~\w*|[A-Za-z]:)?[/\\][^\s\"'<>|;,()]+")
_CHUNK = re.compile(r"[^\s,;()\[\]{}<>\"'`=|«»“”]+")
_TOKEN = re.compile(r"[^\W_]+")
_COMPOUND = re.compile(r"[^\W_]+(?:[-._@/:\\]+[^\W_]+)+")
_PLACE = re.compile(r"(?:remoter_kernel|paramiko|zmq|jupyter_client|threading)(?:\.\w+)*:\d+")


@cache
def vocabulary() -> frozenset[str]:
    """Return the words of this program's own source, and those of the system's errors."""
    package = Path(__file__).parents[2]
    paths = list(package.rglob("*.py"))
    modules = [".".join(path.relative_to(package).with_suffix("").parts) for path in paths]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    texts += [*modules, *map(os.strerror, errno.errorcode)]
    kinds = (_TOKEN, _COMPOUND)
    return frozenset(
        word.lower() for text in texts for kind in kinds for word in kind.findall(text)
    )


class Mask:
    """The names that are known so far, and what stands for each."""

    def __init__(self, vocabulary: frozenset[str]) -> None:
        """`vocabulary`: words that name nobody."""
        self._vocabulary = vocabulary
        self._allowed: set[str] = set()
        self._known: dict[str, str] = {}  # names that were added, and what stands for each
        self._found: dict[str, str] = {}  # the same for words that were met in a text
        self._counts: dict[str, int] = {}
        self._pattern: re.Pattern[str] | None = None  # of all that are known

    def add_names(self, kind: str, *names: str) -> None:
        """Let names be replaced from now on, by this kind's word and a number."""
        for name in (each.strip().lower() for each in names):
            is_number = name.isdecimal() and len(name) <= LONGEST_NUMBER  # as in each version
            if name not in NOT_NAMES and not is_number and name not in self._known:
                self._known[name] = self._next(kind)
                self._pattern = None

    def allow(self, *words: str) -> None:
        """Let words stay in a text of others: ids that were made at random here."""
        self._allowed.update(word.lower() for word in words)

    def mask_names(self, text: str) -> str:
        """Replace known names and addresses."""
        return _cleaned(self._mask_known(_cleaned(text)))

    def mask_foreign(self, line: str) -> str:
        """Replace also all that is not known to be harmless: others have a part in this line."""
        line = _cleaned(line)
        clock = _CLOCK.match(line)
        begin = clock[0] if clock else ""
        masked = self._mask_known(line[len(begin) :])
        masked = _outside(masked, partial(_PATH.sub, partial(self._replace, "PATH")))
        masked = _outside(masked, partial(_AMOUNT.sub, lambda found: f"{_BEGIN}{found[0]}{_END}"))
        masked = _outside(masked, partial(_GROUPS.sub, partial(self._replace, "WORD")))
        return begin + _cleaned(_outside(masked, partial(_CHUNK.sub, self._judge)))

    def _mask_known(self, text: str) -> str:
        if self._known and self._pattern is None:
            names = sorted(self._known, key=len, reverse=True)  # `ada.example` before `ada`
            self._pattern = re.compile("|".join(map(self._pattern_of, names)), re.IGNORECASE)
        if self._pattern:
            text = self._pattern.sub(self._mask_name, text)
        text = _outside(text, partial(_V4.sub, partial(self._replace, "ADDRESS")))
        return _outside(text, partial(_V6.sub, self._judge_address))

    def _pattern_of(self, name: str) -> str:
        """Write how a name is found; `root`, which is a word, too, is one only by itself."""
        if len(name) >= SHORT and name not in self._vocabulary:
            return re.escape(name)
        return rf"(?<![^\W_]){re.escape(name)}(?![^\W_])"

    def _mask_name(self, found: re.Match[str]) -> str:
        # IGNORECASE matches more than `lower` maps: the long s is an s, too.
        word = self._known.get(found[0].lower(), "NAME")
        return f"{_BEGIN}{word}{_END}"

    def _replace(self, kind: str, found: re.Match[str]) -> str:
        return f"{_BEGIN}{self._word_for(kind, found[0])}{_END}"

    def _judge_address(self, found: re.Match[str]) -> str:
        rest = found[0][len(found[0].rstrip(":.")) :]
        for said in (found[0], found[0].rstrip(":.")):
            if _is_address(said):
                return f"{_BEGIN}{self._word_for('ADDRESS', said)}{_END}{rest * (said != found[0])}"
        return found[0]

    def _judge(self, found: re.Match[str]) -> str:
        whole = found[0].rstrip(".:!?…")
        tokens = _TOKEN.findall(whole)
        is_known = all(map(self._is_harmless, tokens))
        if is_known and (
            len(tokens) <= 1 or whole.lower() in self._vocabulary or _PLACE.fullmatch(whole)
        ):
            return found[0]
        return f"{_BEGIN}{self._word_for('WORD', whole)}{_END}{found[0][len(whole) :]}"

    def _is_harmless(self, token: str) -> bool:
        if token.isdigit():
            return len(token) <= LONGEST_NUMBER
        return token.lower() in self._vocabulary or token.lower() in self._allowed

    def _word_for(self, kind: str, name: str) -> str:
        if name not in self._found:
            self._found[name] = self._next(kind)
        return self._found[name]

    def _next(self, kind: str) -> str:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind}{self._counts[kind]}"


def _is_address(text: str) -> bool:
    if re.fullmatch(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", text):  # that of a network card
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _outside(text: str, change: partial[str]) -> str:
    """Change the parts of a text that are not masked yet."""
    parts = _MASKED.split(text)
    return "".join(part if part.startswith(_BEGIN) else change(part) for part in parts)


def _cleaned(text: str) -> str:
    """Take the signs away that are put around what is masked: a text may also bring its own."""
    return text.replace(_BEGIN, "").replace(_END, "")
