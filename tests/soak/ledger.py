"""What each request was to bring, what came of it, and what to call the difference (pure).

House rules of this file:

- Whatever a cell shows carries a mark, `<token:number>`; numbers count up from 0. So each
  line, display, result and error is known, and so is the order in which they should come.
- What is missing is *told* if the cell itself said so, and only as much as it said; else
  it is *lost*. Nothing excuses what comes twice or in another order.
- What is *wrong* should never be seen at all: a mark under another cell, an error that
  nobody caused, a cell that ran although it was said that it would not.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

MARK = re.compile(r"<([a-z0-9]+):(\d+)>")
MOST_COMPLAINTS = 60


class Word(Enum):
    """What a cell has said about what is missing, or what happened to its proxy."""

    CUT = "it ended early: all from some mark on is missing"
    GAPS = "the evaluator was killed: anything may be missing"
    ASKED = "it may have asked what nobody heard"
    NOT_RUN = "it was not run"
    ABORTED = "one before it failed: R has not run it, and gives no more than a reply"
    HELD_BACK = "`remoter outputs` has the rest"
    FRONT_DIED = "its front was killed: `remoter outputs` has the rest"
    INTERRUPTED = "it was interrupted"


NAMED = {
    "KernelDied": Word.CUT,
    "KernelRestarted": Word.CUT,
    "OutputsMissing": Word.GAPS,
    "KeyboardInterrupt": Word.INTERRUPTED,
    "Unreachable": Word.NOT_RUN,
}


NOT_RUN = {Word.NOT_RUN, Word.ABORTED}


class Heard:
    """The marks that came for one request by one way, in their order."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.marks: list[int] = []
        self.words: set[Word] = set()
        self.strange: list[str] = []
        self._texts: dict[str, str] = {}  # what came since the last mark, by stream

    def take(self, kind: str, content: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Take in one output: of iopub, or of a notebook (they have the same fields)."""
        if kind == "stream":
            self._take_text(str(content["name"]), str(content["text"]))
            if metadata.get("remoter_held_back") or "remoter outputs" in content["text"]:
                self.words.add(Word.HELD_BACK)
        elif kind == "error":
            if not self._find(str(content["evalue"])):
                self._take_error(str(content["ename"]), str(content["evalue"]))
        elif kind in {"display_data", "execute_result", "update_display_data"}:
            self._find(str(content["data"].get("text/plain", "")))

    def take_mark(self, token: str, number: int) -> None:
        """Take in one mark."""
        if token == self.token:
            self.marks.append(number)
        else:
            self.strange.append(f"<{token}:{number}> came under {self.token}")

    def _take_text(self, name: str, text: str) -> None:
        text = self._texts.get(name, "") + text
        if "may be missing" in text:  # of a kernel that was killed the end alone
            self.words.add(Word.CUT if "The last outputs of" in text else Word.GAPS)
        if "nobody has heard it" in text:
            self.words.add(Word.ASKED)
        self._find(text)
        # A mark may come in two messages: the rest of a line is looked at again.
        rest = text[max((found.end() for found in MARK.finditer(text)), default=0) :]
        self._texts[name] = rest.rpartition("\n")[2]

    def _find(self, text: str) -> bool:
        found = MARK.findall(text)
        for token, number in found:
            self.take_mark(token, int(number))
        return bool(found)

    def _take_error(self, name: str, sentence: str) -> None:
        if "Interrupted before it began" in sentence:
            self.words.add(Word.NOT_RUN)
        elif name in NAMED:
            self.words.add(NAMED[name])
        else:
            self.strange.append(f"{self.token}: {name}: {sentence[:200]}")


@dataclass
class Entry:
    """One request."""

    token: str
    what: str  # for a person
    marks: int = 0  # how many it makes
    optional: Collection[int] = frozenset()  # those that a later one may take the place of
    is_replied: bool = True  # does this kind of request get a reply?
    is_cell: bool = True  # does it leave its token in the list of runs?
    may_be_interrupted: bool = False
    may_be_aborted: bool = False
    replies: int = 0
    idles: int = 0
    prompts: int = 0
    words: set[Word] = field(default_factory=set)
    kept: Heard | None = None  # what `remoter outputs` has of it, where that was asked
    runs: int | None = None  # how often it ran there, once that is known

    def __post_init__(self) -> None:
        self.heard = Heard(self.token)

    @property
    def is_over(self) -> bool:
        """Has it got all that ends it?"""
        is_idle = self.idles > 0 or Word.ABORTED in self.words
        return is_idle and (self.replies > 0 or not self.is_replied)

    @property
    def all_words(self) -> set[Word]:
        """All that was said of it, by any way."""
        return self.words | self.heard.words | (self.kept.words if self.kept else set())

    @property
    def needs_outputs(self) -> bool:
        """Is the rest of it to be looked up with `remoter outputs`?"""
        return self.is_cell and bool(self.all_words & {Word.HELD_BACK, Word.FRONT_DIED})


@dataclass
class Count:
    """How many messages, of one request or of many."""

    sent: int = 0
    delivered: int = 0
    told: int = 0  # missing, and the program said so
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    wrong: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(*(one + two for one, two in zip(self.row, other.row, strict=True)))

    @property
    def row(self) -> tuple[int, ...]:
        """All numbers, in the order of the columns."""
        return (
            self.sent,
            self.delivered,
            self.told,
            self.lost,
            self.doubled,
            self.disordered,
            self.wrong,
        )

    @property
    def is_clean(self) -> bool:
        """Is there nothing that should not be?"""
        return not (self.lost or self.doubled or self.disordered or self.wrong)


def judge(entry: Entry) -> Count:
    """Say what became of all that a request was to bring: marks, a reply, an idle."""
    words = entry.all_words
    heard, kept = entry.heard.marks, entry.kept.marks if entry.kept else []
    due = set(range(entry.marks)) - set(entry.optional)
    count = Count(sent=len(due), delivered=len(due & set(heard)))
    for marks in (heard, kept):
        count.doubled += len(marks) - len(set(marks))
        count.disordered += sum(one > two for one, two in pairwise(dict.fromkeys(marks)))
        count.wrong += sum(number >= entry.marks for number in marks)
    missing = due - set(heard) - set(kept)
    lost = _not_told(missing, {*heard, *kept}, words, runs=entry.runs)
    count.lost = len(lost)
    count.told = count.sent - count.delivered - count.lost
    _judge_ends(entry, count, words)
    count.wrong += len(entry.heard.strange) + len(entry.kept.strange if entry.kept else ())
    count.wrong += Word.INTERRUPTED in words and not entry.may_be_interrupted
    count.wrong += Word.ABORTED in words and not entry.may_be_aborted
    count.wrong += bool(words & NOT_RUN) and bool(entry.runs)
    count.doubled += max(0, (entry.runs or 0) - 1) + max(0, entry.prompts - 1)
    return count


def _not_told(
    missing: set[int], there: set[int], words: set[Word], *, runs: int | None
) -> set[int]:
    """Leave out of what is missing what the words cover."""
    was_not_run = words & NOT_RUN or (Word.FRONT_DIED in words and not runs)
    if Word.GAPS in words or (was_not_run and not there):
        return set()
    if words & {Word.CUT, Word.INTERRUPTED}:
        return {number for number in missing if number < max(there, default=-1)}
    return missing


def _judge_ends(entry: Entry, count: Count, words: set[Word]) -> None:
    """Count the reply and the idle: one of each, but for a proxy that died before them."""
    excuses = ({Word.FRONT_DIED}, {Word.FRONT_DIED, Word.ABORTED})
    ends = zip((entry.replies, entry.idles), excuses, strict=True)
    for came, excuse in list(ends)[not entry.is_replied :]:
        count.sent += 1
        count.delivered += bool(came)
        count.told += not came and bool(words & excuse)
        count.lost += not came and not words & excuse
        count.doubled += max(0, came - 1)


class Ledger:
    """All requests of one session."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}  # by the request's message id
        self.strange: list[str] = []

    @property
    def by_token(self) -> dict[str, Entry]:
        """The requests by what their marks begin with, in the order in which they were made."""
        return {entry.token: entry for entry in self.entries.values()}

    def note_runs(self, tokens: list[str]) -> None:
        """Take in which cells ran there, in which order."""
        runs = Counter(tokens)
        for token, entry in self.by_token.items():
            entry.runs = runs[token] if entry.is_cell else None
        order = {token: place for place, token in enumerate(self.by_token)}
        for one, two in pairwise(tokens):
            if order[one] > order[two]:
                self.strange.append(f"{one} ran before {two}")

    def note_outputs(self, cells: list[dict[str, Any]]) -> None:
        """Take in what `remoter outputs` has: the cells of a notebook."""
        there = {cell["id"]: cell["outputs"] for cell in cells}
        for token, entry in self.by_token.items():
            if entry.needs_outputs:
                entry.kept = Heard(token)
                for output in there.get(token, ()):
                    entry.kept.take(output["output_type"], output, output.get("metadata") or {})

    def total(self) -> Count:
        """Add up all requests."""
        return sum(map(judge, self.entries.values()), Count(wrong=len(self.strange)))

    def complaints(self) -> list[str]:
        """Tell of each request that is not as it should be."""
        said = list(self.strange)
        for entry in self.entries.values():
            count = judge(entry)
            if not count.is_clean:
                said.append(_complaint(entry, count))
        return said[:MOST_COMPLAINTS]


def _complaint(entry: Entry, count: Count) -> str:
    kept = spans(entry.kept.marks) if entry.kept else "not asked"
    words = ", ".join(sorted(word.name for word in entry.all_words)) or "nothing"
    return (
        f"{entry.token} ({entry.what}, {entry.marks} marks): lost {count.lost}, doubled "
        f"{count.doubled}, disordered {count.disordered}, wrong {count.wrong}; "
        f"heard {spans(entry.heard.marks)}, kept {kept}, replies {entry.replies}, "
        f"prompts {entry.prompts}, idles {entry.idles}, runs {entry.runs}, said {words}"
        + "".join(f"; {line}" for line in entry.heard.strange)
    )


def spans(marks: list[int]) -> str:
    """Write numbers shortly: `0-4 7 7`."""
    parts: list[list[int]] = []
    for number in marks:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return " ".join(f"{one}-{two}" if one != two else str(one) for one, two in parts) or "none"
