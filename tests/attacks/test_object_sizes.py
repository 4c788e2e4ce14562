"""Objects that were small on their way stay small: nobody is asked about less than comes."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from remoter_kernel.local.objects.codecs import object_job
from remoter_kernel.local.objects.codecs.from_r import RReader
from remoter_kernel.local.objects.codecs.values import CodecError, ObjectReader
from remoter_kernel.local.proxy.here.push_pull import LONGEST_ANSWER, NotCarried, _parse_answer

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024


def unpacked(data: bytes, tree: Any, folder: Path, *, for_r: bool = False) -> tuple[str, int]:
    """Return what the kernel here says of such a file, and how much it needed for that."""
    text = json.dumps([tree]).encode()
    path = folder / "object"
    path.write_bytes(data + text + b"%020d" % len(text))
    wish = {
        "do": "unpack",
        "names": ["x"],
        "path": str(path),
        "answer": str(folder / "answer"),
        "is_pickled": False,
        "for_r": for_r,
    }
    tracemalloc.start()
    object_job.run_job(wish, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return str(json.loads((folder / "answer").read_text()).get("refused")), peak


def many(*places: list[int]) -> dict[str, Any]:
    return {"t": "list", "v": [{"t": "bytes", "at": place} for place in places]}


SHIFTED = [[at, MIB] for at in range(200)]
BROKEN_PLACES = {
    "the same bytes many times": many(*[[0, MIB]] * 200),
    "bytes that overlap": many(*SHIFTED),
    "bytes that overlap, backwards": many(*reversed(SHIFTED)),
    "bytes inside of others": many([0, MIB], [5, 10]),
    "bytes around others": many([5, 10], [0, MIB]),
    "bytes behind the end": many([0, 2**60]),
    "bytes before the beginning": many([-10, 5]),
    "less than nothing": many([0, -5], [0, MIB]),
}


@pytest.mark.parametrize("name", BROKEN_PLACES)
def test_the_same_bytes_are_not_taken_twice(name: str, tmp_path: Path) -> None:
    """One MiB on its way is named so often that it becomes hundreds."""
    refused, peak = unpacked(bytes(MIB), BROKEN_PLACES[name], tmp_path)
    assert "overlap" in refused or "larger than its file" in refused
    assert peak < 8 * MIB


def test_what_is_next_to_each_other_is_taken(tmp_path: Path) -> None:
    """In any order, and empty things between."""
    places = many([10, 10], [0, 10], [10, 0], [20, 5], [25, 0])
    assert unpacked(bytes(25), places, tmp_path)[0] == "None"


def npy(words: str, data: bytes = bytes(800), version: int = 3) -> bytes:
    """An array as numpy writes it, with any header."""
    text = words.encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


ARRAYS = {
    "more values": "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}",
    "one more": "{'descr': '<f8', 'fortran_order': False, 'shape': (101,)}",
    "less than nothing": "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -100)}",
    "a dtype of great size": "{'descr': '|V1000000000', 'fortran_order': False, 'shape': (1,)}",
    "nothing, very often": "{'descr': '|V0', 'fortran_order': False, 'shape': (1099511627776,)}",
}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_claims_more_than_it_brings(name: str, version: int, tmp_path: Path) -> None:
    """Room is made for all values that a header names, before any is read."""
    data = npy(ARRAYS[name], version=version)
    refused, peak = unpacked(data, {"t": "array", "at": [0, len(data)]}, tmp_path)
    assert "larger than its file" in refused
    assert peak < 8 * MIB


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_array_that_is_as_large_as_it_says(version: int, tmp_path: Path) -> None:
    """Of each version of numpy's form."""
    data = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (100,)}", version=version)
    reader = ObjectReader(io.BytesIO(data))
    value = reader.decode({"t": "array", "at": [0, len(data)]})
    assert isinstance(value, np.ndarray)
    assert value.shape == (100,)


# --- Arrow's form ---


def ipc(frame: pl.DataFrame, compression: Any = "uncompressed") -> bytes:
    file = io.BytesIO()
    frame.write_ipc(file, compression=compression)
    return file.getvalue()


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_compressed_frame_of_polars(compression: str, tmp_path: Path) -> None:
    """A few kB of zstd become as many GB as whoever sends them likes."""
    data = ipc(pl.DataFrame({"x": np.zeros(5_000_000)}), compression)
    assert len(data) < MIB
    tree = {"t": "polars", "at": [0, len(data)], "is_series": False}
    assert "compressed" in unpacked(data, tree, tmp_path)[0]


def test_batches_that_are_the_same_bytes(tmp_path: Path) -> None:
    """The list of batches names one of them again and again."""
    data = ipc(pl.DataFrame({"x": np.arange(100_000)}))
    (size,) = struct.unpack_from("<i", data, len(data) - 10)
    footer = data[len(data) - 10 - size : -10]
    at = footer.index(struct.pack("<q", 800_000 + 0)) if b"\0" in footer else 0
    block = footer[at - 16 : at + 8]  # its place, its head, its body
    assert struct.unpack_from("<q", block, 16)[0] == 800_000
    begin = footer.index(block)
    (count,) = struct.unpack_from("<i", footer, begin - 4)
    assert count == 1
    more = footer[: begin - 4] + struct.pack("<i", 50) + block * 50 + footer[begin + 24 :]
    evil = data[: len(data) - 10 - size] + more + struct.pack("<i", len(more)) + b"ARROW1"
    tree = {"t": "polars", "at": [0, len(evil)], "is_series": False}
    assert "overlap" in unpacked(evil, tree, tmp_path)[0]


def test_rows_of_nothing(tmp_path: Path) -> None:
    """A column of nulls has no bytes, and as many rows as it claims."""
    data = ipc(pl.DataFrame({"x": [None] * 123457}))
    evil = data.replace(struct.pack("<q", 123457), struct.pack("<q", 2**50))
    assert evil != data
    tree = {"t": "polars", "at": [0, len(evil)], "is_series": False}
    assert "more rows than it has" in unpacked(evil, tree, tmp_path)[0]
    assert unpacked(data, {**tree, "at": [0, len(data)]}, tmp_path)[0] == "None"


@pytest.mark.parametrize("data", [b"", b"ARROW1", b"ARROW1\0\0ARROW1", bytes(100)])
def test_what_is_not_arrow_at_all(data: bytes, tmp_path: Path) -> None:
    """It is refused before any reader sees it."""
    tree = {"t": "polars", "at": [0, len(data)], "is_series": False}
    assert "The other side sent a frame" in unpacked(data, tree, tmp_path)[0]


# --- R ---


def test_one_long_text_among_many(tmp_path: Path) -> None:
    """In an array of texts each has the room of the longest: one MB, ten thousand times."""
    lengths = np.array([MIB] + [1] * 10_000, dtype="<i4").tobytes()
    texts = b"x" * (MIB + 10_000)
    tree = {
        "t": "vector",
        "type": "character",
        "n": 10_001,
        "lengths": [0, len(lengths)],
        "at": [len(lengths), len(texts)],
    }
    refused, peak = unpacked(lengths + texts, tree, tmp_path, for_r=True)
    assert refused == "None"
    assert peak < 64 * MIB


def test_a_single_value_of_r_may_be_read_twice() -> None:
    """A date too far away for Python's own is read again as one of many."""
    data = struct.pack("<d", 1e15)
    reader = RReader(io.BytesIO(data + bytes(40)))
    tree = {"t": "vector", "type": "double", "of": "Date", "n": 1, "at": [0, 8]}
    assert reader.decode(tree).shape == (1,)
    for _ in range(10):
        reader.read([0, 8])
    with pytest.raises(CodecError):
        reader.read([0, 8])


# --- what a kernel says of it ---


def test_an_answer_of_great_size() -> None:
    """What came of an errand is told in some lines of JSON."""
    said = json.dumps({"objects": ["x" * LONGEST_ANSWER]}).encode()
    with pytest.raises(NotCarried, match="nonsense"):
        _parse_answer(said, "there")
