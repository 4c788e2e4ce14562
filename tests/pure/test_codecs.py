"""What kernels write and read to carry objects: all comes back as it was, and nothing runs."""

from __future__ import annotations

import ast
import datetime as dt
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy._core._rational_tests as rationals  # a dtype that numpy's own form does not know
import pandas as pd
import pytest
import pytz
from hypothesis import HealthCheck, given, settings

from remoter_kernel.local.objects.codecs import object_job
from remoter_kernel.local.objects.codecs.values import CodecError, ObjectReader, ObjectWriter
from remoter_kernel.local.objects.kernel_code import python_code
from tests.objects_to_carry import arrays, frames, plain, polars_frames
from tests.real_parts import old_python
from tests.same_values import same


def carried(value, *, is_pickled=False):
    file = io.BytesIO()
    writer = ObjectWriter(file)
    writer.finish(writer.encode(value, "x"))
    reader = ObjectReader(file, is_pickled=is_pickled)
    return reader.decode(reader.tree())


def carried_by_file(value, folder):
    """The same in a real file, which numpy reads in another way."""
    with Path(folder, "object").open("w+b") as file:
        writer = ObjectWriter(file)
        writer.finish(writer.encode(value, "x"))
        reader = ObjectReader(file)
        return reader.decode(reader.tree())


BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # as machines may be


@BUSY
@given(plain())
def test_plain_values_come_back(value):
    """Of any size, nested, with keys of any plain kind."""
    assert same(carried(value), value)


@BUSY
@given(arrays())
def test_arrays_come_back(value):
    """To the last bit."""
    assert same(carried(value), value)


@settings(BUSY, max_examples=80)
@given(frames())
def test_frames_come_back(value):
    """With dtypes, categories, zones, names and frequencies."""
    assert same(carried(value), value)


@settings(BUSY, max_examples=10)
@given(polars_frames())
def test_frames_of_polars_come_back(value):
    """In Arrow's own form."""
    assert same(carried(value), value)


def test_a_real_file_does_as_well(tmp_path):
    """Arrays and what stands before and behind them."""
    value = ["a", np.arange(100_000.0), {"b": pd.DataFrame({"x": np.arange(9)})}, b"c" * 99]
    assert same(carried_by_file(value, tmp_path), value)


# ------------------------------------------------------------------- what is refused


class Thing:
    """A class of somebody's own."""


class Number(int):
    """Not quite an int."""


def cyclic():
    a: list = [1]
    a.append({"b": (a,)})
    return a


def deep():
    a: list = []
    for _ in range(100_000):
        a = [a]
    return a


NAMED = dt.timezone(dt.timedelta(0), "Zulu")
OVERLAPPING = np.dtype({"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 0]})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (cyclic, "x[1]['b'][0] contains itself"),
        (deep, "nested too deeply"),
        (Thing, "Thing"),
        (lambda: Number(3), "Number"),
        (lambda: (i for i in ()), "a generator"),
        (lambda: sys.__stderr__, "TextIOWrapper"),
        (lambda: sys, "a module"),
        (lambda: {"a": [1, len]}, "x['a'][1] is a builtin_function"),
        (lambda: np.array([1, "a"], dtype=object), "an array of objects"),
        (lambda: np.ma.masked_array([1], [True]), "MaskedArray"),
        (lambda: np.array([("a", 1)], dtype=[("o", object), ("i", int)]), "an array of objects"),
        (lambda: np.array([rationals.rational(1, 2)]), "dtype rational"),
        (lambda: np.zeros(2, OVERLAPPING), "numpy's own form cannot name"),
        (lambda: np.rec.array([(1,)], dtype=[("a", "i4")])[0], "numpy.record"),
        (lambda: dt.datetime(2024, 1, 1, tzinfo=NAMED), "a name of its own: Zulu"),
        (lambda: pd.DataFrame({"ok": [1], "bad": [Thing()]}), "row 0 of column 'bad' of x"),
        (lambda: pd.DataFrame({"p": pd.period_range("2024", periods=2)}), "period"),
        (lambda: pd.DataFrame({"s": pd.arrays.SparseArray([0, 1])}), "Sparse"),
    ],
)
def test_what_cannot_be_carried_is_named(make, says):
    """The very part, and what it is."""
    with pytest.raises(CodecError) as refused:
        carried(make())
    assert says in str(refused.value)


def test_columns_of_mixed_plain_values_are_carried():
    """Objects are no trouble where each of them is none."""
    frame = pd.DataFrame({"mixed": [1, "a", None, [2.5], {"k": (1,)}]}, dtype=object)
    assert same(carried(frame), frame)


def test_halves_of_characters_stay_apart():
    """In JSON they would become one character."""
    halves = "a\ud83d\ude00"
    assert carried([halves, {halves: 1}]) == [halves, {halves: 1}]


@pytest.mark.parametrize("is_dst", [True, False])
def test_a_moment_of_pytz_stays_the_same_moment(is_dst):
    """In the hour that comes twice, and in a zone that was only put there."""
    berlin = pytz.timezone("Europe/Berlin")
    moments = [
        berlin.localize(dt.datetime.fromisoformat("2024-10-27T02:30"), is_dst=is_dst),
        dt.datetime(2024, 1, 1, tzinfo=berlin),  # local mean time
        dt.datetime(2024, 1, 1, tzinfo=pytz.FixedOffset(90)),
    ]
    back = carried(moments)
    assert [each.astimezone(dt.UTC) for each in back] == [m.astimezone(dt.UTC) for m in moments]
    assert (back[0].hour, back[0].fold) == (2, 0 if is_dst else 1)


OFFSETS = [
    pd.offsets.MonthEnd(2),
    pd.offsets.Week(weekday=2),
    pd.offsets.BusinessHour(start="10:00"),
    pd.offsets.CustomBusinessDay(holidays=["2024-02-01"]),
    pd.offsets.Easter(),
    pd.DateOffset(months=1, days=1),
    pd.offsets.MonthEnd(normalize=True),
]


@pytest.mark.parametrize("offset", OFFSETS, ids=str)
def test_a_frequency_is_the_same_one(offset):
    """With all its words, such as holidays; by no alias, which versions of pandas do not share."""
    index = pd.date_range("2024-01-01", periods=3, freq=offset)
    assert carried(index).freq == offset
    writer = ObjectWriter(io.BytesIO())
    tree = writer.encode(index, "x")
    assert tree["v"]["freq"][0] == type(offset).__name__


class Fortnight(pd.offsets.Week):  # type: ignore[misc] # pandas has no types
    """A frequency of somebody's own."""


def test_a_frequency_of_one_s_own_is_refused():
    """Its code would not be there."""
    index = pd.date_range("2024-01-01", periods=3, freq=pd.offsets.Week(weekday=0))
    index.freq = Fortnight(weekday=0)
    with pytest.raises(CodecError, match="Fortnight"):
        carried(index)


def test_not_a_number_is_not_what_is_missing():
    """In a column that can have both."""
    both = pd.Series(
        pd.arrays.FloatingArray(np.array([np.nan, 1, 2]), np.array([False, True, False]))
    )
    back = carried(both)
    assert back.isna().tolist() == [False, True, False]
    assert np.isnan(back.array[0])


def test_a_frame_that_forbids_names_twice_still_does():
    """And so does a series."""
    frame = pd.DataFrame({"a": [1]}).set_flags(allows_duplicate_labels=False)
    assert not carried(frame).flags.allows_duplicate_labels
    assert not carried(frame["a"]).flags.allows_duplicate_labels
    assert carried(pd.DataFrame({"a": [1]})).flags.allows_duplicate_labels


# ------------------------------------------------------------------ what must not run


def run_marker(path):
    Path(path).write_text("ran")


class Planted:
    """Runs something of its maker's choice when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return run_marker, (self.path,)


def test_nothing_is_unpickled_unless_asked_for(tmp_path):
    """A reader refuses what was pickled, wherever it stands; the marker proves that it could."""
    ran = tmp_path / "ran"
    planted = pickle.dumps(Planted(ran))
    file = io.BytesIO()
    writer = ObjectWriter(file)
    writer.finish({"t": "list", "v": [{"t": "pickle", "at": writer.write(planted)}]})
    reader = ObjectReader(file)
    with pytest.raises(CodecError, match="pickled"):
        reader.decode(reader.tree())
    assert not ran.exists()
    reader = ObjectReader(file, is_pickled=True)
    reader.decode(reader.tree())
    assert ran.exists()


def test_an_array_of_objects_is_not_read(tmp_path):
    """Numpy's own form may hold a pickle: it is refused, in a frame, too."""
    ran = tmp_path / "ran"
    array = io.BytesIO()
    np.save(array, np.array([Planted(ran)], dtype=object), allow_pickle=True)
    file = io.BytesIO()
    writer = ObjectWriter(file)
    at = writer.write(array.getvalue())
    for tree in ({"t": "array", "at": at}, {"t": "column", "v": {"k": "numpy", "at": at}}):
        writer.finish(tree)
        reader = ObjectReader(file)
        with pytest.raises(ValueError, match="allow_pickle=False"):
            reader.decode(reader.tree())
    assert not ran.exists()


@pytest.mark.parametrize(
    "tree",
    [
        {"t": "eval", "v": "1"},
        {"t": "__class__"},
        {"t": 3},
        {"no": "kind"},
        [1],
        {"t": "dict", "v": 1},
    ],
)
def test_a_tree_of_nonsense_is_an_answer_in_words(tree, tmp_path):
    """Whatever the other side has written, the kernel says what is wrong, and gives no names."""
    path, answer = tmp_path / "object", tmp_path / "answer"
    with path.open("wb") as file:
        ObjectWriter(file).finish([tree])
    names: dict = {}
    wish = {"do": "unpack", "names": ["x"], "path": str(path), "answer": str(answer)}
    object_job.run_job({**wish, "is_pickled": False, "for_r": False}, names)
    told = json.loads(answer.read_text())
    assert "refused" in told or names == {"x": [1]}


def test_several_objects_arrive_together_or_not_at_all(tmp_path):
    """The second cannot be read: the first gets no name."""
    path, answer = tmp_path / "object", tmp_path / "answer"
    with path.open("wb") as file:
        ObjectWriter(file).finish([1, {"t": "eval"}])
    names = {"a": "before"}
    wish = {"do": "unpack", "names": ["a", "b"], "path": str(path), "answer": str(answer)}
    object_job.run_job({**wish, "is_pickled": False, "for_r": False}, names)
    assert names == {"a": "before"}


def test_the_nearest_name_is_suggested(tmp_path):
    """Of what there is."""
    answer = tmp_path / "answer"
    wish = {"do": "pack", "names": ["dta"], "path": "nowhere", "answer": str(answer)}
    object_job.run_job({**wish, "is_pickled": False, "for_r": False}, {"data": 1, "other": 2})
    assert json.loads(answer.read_text())["refused"] == ("There is no 'dta' (did you mean data?).")


def test_a_number_of_any_length_is_carried():
    """Python itself reads no more than 4,300 digits from text."""
    assert carried(-(10**5000)) == -(10**5000)


# ---------------------------------------------------------------------- as it is sent


def test_its_text_runs_in_an_old_python_without_any_package(tmp_path):
    """As one expression, which leaves no name in the kernel."""
    python = old_python("3.9")
    path, answer = str(tmp_path / "object"), str(tmp_path / "answer")
    wish = {"path": path, "answer": answer, "is_pickled": False, "for_r": False}
    code = "import datetime\n" + f"x = {OLD}\nbefore = set(globals())\n"
    code += python_code({**wish, "do": "pack", "names": ["x"]}) + "\n"
    code += python_code({**wish, "do": "unpack", "names": ["y"]}) + "\n"
    code += "assert x == y, y\nassert set(globals()) - before == {'before', 'y'}\n"
    ran = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


OLD = "[1, 2.5, {'a': (1, {2}), b'k': None}, list(range(99)), datetime.datetime(2024, 1, 1)]"


def test_no_name_stands_for_two_things_where_all_files_become_one():
    """In a kernel the files are one text: a later name would take the place of an earlier one."""
    found: dict[str, str] = {}
    for path in sorted(Path(object_job.__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            names = [each.id for each in targets if isinstance(each, ast.Name)]
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names = [node.name]
            for name in names:
                assert found.setdefault(name, path.name) == path.name, name
