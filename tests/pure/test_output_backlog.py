"""What waits is joined, collapsed and held back; a page ends as it would have."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from remoter_kernel.protocol import output_backlog
from remoter_kernel.protocol.output_backlog import HELD_BACK, Coalesced, OutputBacklog
from tests.pure.test_terminal_text import terminal

CELLS = ("one", "two")


def said(kind: str, content: dict[str, Any], cell: str = "one") -> list[bytes]:
    """Return the parts of an iopub message."""
    header = {"msg_id": f"id-{kind}", "msg_type": kind}
    return [
        kind.encode(),
        json.dumps(header).encode(),
        json.dumps({"msg_id": cell}).encode(),
        b"{}",
        json.dumps(content).encode(),
    ]


def stream(text: str, name: str = "stdout", cell: str = "one") -> list[bytes]:
    """Return a stream message."""
    return said("stream", {"name": name, "text": text}, cell)


def display(what: str, key: str = "", cell: str = "one", *, is_update: bool = False) -> list[bytes]:
    """Return a display, or the update of one."""
    kind = "update_display_data" if is_update else "display_data"
    transient = {"display_id": key} if key else {}
    return said(kind, {"data": {"text/plain": what}, "metadata": {}, "transient": transient}, cell)


@dataclass
class Page:
    """What a notebook shows: for each cell its outputs, in order."""

    outputs: dict[str, list[list[str]]] = field(default_factory=dict)
    clears_next: set[str] = field(default_factory=set)
    shown: dict[str, str] = field(default_factory=dict)  # what each display id shows now
    others: list[str] = field(default_factory=list)

    def hear(self, parts: list[bytes]) -> None:
        """Take in one message as a page does."""
        kind = json.loads(parts[1])["msg_type"]
        cell = json.loads(parts[2])["msg_id"]
        content = json.loads(parts[4])
        here = self.outputs.setdefault(cell, [])
        if kind == "clear_output":
            self.clears_next.add(cell)
            if not content.get("wait"):
                self._begin(cell)
            return
        if kind == "update_display_data":
            key = content["transient"]["display_id"]
            if key in self.shown:
                self.shown[key] = content["data"]["text/plain"]
            return
        if kind == "status":
            self.others.append(content["execution_state"])
            return
        self._begin(cell)
        if kind == "stream":
            if here and here[-1][0] == content["name"]:
                here[-1][1] += content["text"]
            else:
                here.append([content["name"], content["text"]])
        else:
            key = content["transient"].get("display_id", "")
            here.append(["display", key or content["data"]["text/plain"]])
            if key:
                self.shown[key] = content["data"]["text/plain"]

    def _begin(self, cell: str) -> None:
        if cell in self.clears_next:
            self.clears_next.discard(cell)
            self.outputs[cell].clear()

    def seen(self) -> Any:
        """Return what a person sees."""
        cells = {
            cell: [
                (kind, self.shown.get(what, what) if kind == "display" else terminal(what))
                for kind, what in outputs
            ]
            for cell, outputs in self.outputs.items()
            if outputs
        }
        return cells, self.others, {cell for cell in self.clears_next if self.outputs.get(cell)}


messages = some.lists(
    some.one_of(
        some.builds(
            stream,
            some.text(some.sampled_from("ab\n\r\r\b"), min_size=1, max_size=8),
            some.sampled_from(["stdout", "stdout", "stderr"]),
            some.sampled_from(CELLS),
        ),
        some.builds(
            lambda wait, cell: said("clear_output", {"wait": wait}, cell),
            some.booleans(),
            some.sampled_from(CELLS),
        ),
        some.builds(
            lambda what, key, cell, is_update: (
                display(what, key or "k", is_update=True) if is_update else display(what, key, cell)
            ),
            some.sampled_from("xyz"),
            some.sampled_from(["", "k", "l"]),
            some.sampled_from(CELLS),
            some.booleans(),
        ),
        some.builds(
            lambda state, cell: said("status", {"execution_state": state}, cell),
            some.sampled_from(["busy", "idle"]),
            some.sampled_from(CELLS),
        ),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(messages, some.lists(some.booleans(), min_size=30, max_size=30))
def test_a_page_ends_as_it_would_have(all_of_it, takes):
    """Whatever waits and whenever it is taken, the page ends the same; numbers only grow."""
    line = OutputBacklog()
    whole, short = Page(), Page()
    numbers = [0]

    def take() -> bool:
        taken = line.pop()
        if taken is None:
            return False
        numbers.append(taken.number)
        short.hear(said_by(taken))
        return True

    for number, (parts, is_taken) in enumerate(zip(all_of_it, takes, strict=False), 1):
        whole.hear(parts)
        line.add(number, parts, parts)
        if is_taken:
            take()
    while take():
        pass
    assert short.seen() == whole.seen()
    assert numbers == sorted(set(numbers))
    assert not line._cells
    assert line._size == 0


def said_by(taken: Coalesced) -> list[bytes]:
    """Return what comes, as it is or as it was made."""
    return [bytes(part) for part in taken.parts or taken.payload]


def drain(line: OutputBacklog) -> tuple[str, list[int], int]:
    """Return the text that comes, the sizes of what was held back, and how many messages."""
    text, held, count, number = "", [], 0, 0
    while taken := line.pop():
        assert number < taken.number
        count, number = count + 1, taken.number
        parts = said_by(taken)
        content = json.loads(bytes(parts[4]))
        if HELD_BACK in json.loads(bytes(parts[3])):
            assert content["name"] == "stderr"
            assert "remoter outputs" in content["text"]
            held.append(json.loads(bytes(parts[3]))[HELD_BACK])
        else:
            text += content["text"]
    return text, held, count


@given(some.lists(some.integers(1, 5000), min_size=1, max_size=200), some.integers(1000, 100_000))
def test_too_much_text_leaves_its_tail_and_one_note(sizes, most):
    """What comes is the end of what was said; with what the note says, it is all of it."""
    line = OutputBacklog(most)
    whole = ""
    for number, size in enumerate(sizes, 1):
        text = "".join(f"{number}.{n}\n" for n in range(size // 5 + 1))
        whole += text
        parts = stream(text)
        line.add(number, parts, parts)
    text, held, _ = drain(line)
    if len(whole) <= most:
        assert (text, held) == (whole, [])
    else:
        note, _, tail = text.rpartition("]\n") if not held else ("", "", text)
        assert whole.endswith(tail)
        assert len(tail) <= most
        assert len(held) + (note != "") == 1
        if held:
            assert held[0] + len(tail) == len(whole)


def test_of_an_interrupted_cell_little_is_left():
    """At most 64 KiB of what waits comes, whatever was allowed before; later text counts, too."""
    line = OutputBacklog()
    for number in range(1, 101):
        parts = stream("line\n" * 4000)
        line.add(number, parts, parts)
    line.limit_text("one")
    for number in range(101, 201):
        parts = stream("more\n" * 4000)
        line.add(number, parts, parts)
    text, held, _ = drain(line)
    assert len(text) <= output_backlog.INTERRUPTED_LIMIT
    assert text.endswith("more\n")
    assert [size + len(text) for size in held] == [200 * 20_000]


def test_a_cell_that_is_not_interrupted_keeps_all():
    """Another cell, said later, is not short of anything."""
    line = OutputBacklog()
    line.limit_text("one")
    parts = stream("line\n" * 100_000, cell="two")
    line.add(1, parts, parts)
    assert drain(line)[1] == []


def test_results_and_errors_are_never_held_back():
    """Displays between floods all come, in their places."""
    line = OutputBacklog(10_000)
    for number in range(1, 1001):
        parts = display(str(number)) if number % 100 == 0 else stream("line\n" * 100)
        line.add(number, parts, parts)
    kinds = []
    while taken := line.pop():
        parts = said_by(taken)
        kinds.append(json.loads(bytes(parts[1]))["msg_type"])
    assert kinds.count("display_data") == 10
    assert kinds.index("stream") == 0


def test_a_note_of_the_other_side_is_not_lost():
    """Held back there and again here: one of the notes says how much in all."""
    there, here = OutputBacklog(200_000), OutputBacklog(200_000)
    for number in range(1, 11):
        parts = stream("line\n" * 10_000)
        there.add(number, parts, parts)
    number = 0
    while taken := there.pop():
        number = taken.number
        parts = said_by(taken)
        here.add(number, parts, parts)
    for following in range(number + 1, number + 10):
        parts = stream("more\n" * 10_000)
        here.add(following, parts, parts)
    text, held, _ = drain(here)
    assert sum(held) + len(text) == 19 * 50_000
    assert len(held) == 1


def test_a_display_that_is_cleared_still_updates_its_others():
    """What is shown under one name in two cells changes in both, though one is cleared then."""
    line = OutputBacklog()
    messages = [display("new", "k"), said("clear_output", {"wait": False})]
    for number, parts in enumerate(messages, 1):
        line.add(number, parts, parts)
    assert line.pop().payload == messages[0]


def test_a_widget_that_catches_outputs_is_not_cleared_by_mistake():
    """What was printed before a widget took over stays, though the widget is cleared."""
    line = OutputBacklog()
    for number, parts in enumerate(
        [stream("before\n"), said("comm_msg", {}), said("clear_output", {"wait": False})], 1
    ):
        line.add(number, parts, parts)
    assert line.pop().payload == stream("before\n")


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"name": 1}', b"\xff"])
def test_what_makes_no_sense_is_passed_on(content):
    """A kernel may say anything: whoever gets it may make more of it."""
    line = OutputBacklog()
    parts = [*stream("x")[:4], content]
    line.add(1, parts, parts)
    assert line.pop().payload == parts


def test_a_bar_costs_next_to_nothing():
    """Twenty thousand updates that waited are less than a twentieth of what they were."""
    line = OutputBacklog()
    size = 0
    for number in range(1, 20_001):
        parts = stream(
            f"\r{number / 200:5.1f}%|{'#' * (number // 400):50}| {number}/20000", "stderr"
        )
        size += sum(map(len, parts))
        line.add(number, parts, parts)
    text, held, _ = drain(line)
    assert text.endswith("20000/20000")
    assert held == []
    assert len(text) < size / 20
