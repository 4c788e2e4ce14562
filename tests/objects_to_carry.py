"""Objects of every kind that is carried, thrown by hypothesis."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from functools import partial

import numpy as np
import pandas as pd
import polars as pl
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

ZONES = ("Europe/Berlin", "America/New_York", "Asia/Kolkata", "UTC")


def zones() -> st.SearchStrategy:
    """No zone, one with a name, UTC, a fixed offset."""
    offsets = st.integers(-86399, 86399).map(
        lambda seconds: dt.timezone(dt.timedelta(seconds=seconds))
    )
    named = st.sampled_from(ZONES).map(zoneinfo.ZoneInfo)
    return st.none() | named | st.just(dt.UTC) | offsets


def scalars() -> st.SearchStrategy:
    """Whatever may be a key, too."""
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(2**2000), 2**2000),
        st.floats(),
        st.complex_numbers(),
        st.text(st.characters()),
        st.binary(),
        st.dates(),
        st.timedeltas(),
        st.datetimes(timezones=zones(), allow_imaginary=False),
        st.times(),
    )


def plain() -> st.SearchStrategy:
    """Scalars, and lists, tuples, sets and dicts of them."""
    keys = scalars() | st.tuples(scalars(), scalars()) | st.frozensets(scalars(), max_size=3)
    few = partial(st.lists, max_size=4)
    return st.recursive(
        scalars()
        | st.sets(scalars(), max_size=4)
        | st.frozensets(scalars(), max_size=4)
        | st.lists(st.integers(), min_size=60, max_size=70)
        | st.lists(st.floats(), min_size=60, max_size=70),
        lambda inner: few(inner) | few(inner).map(tuple) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=8,
    )


def dtypes() -> st.SearchStrategy:
    """Plain ones, moments and spans, texts, records."""
    one = st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(),
        hnp.unsigned_integer_dtypes(),
        hnp.floating_dtypes(),
        hnp.complex_number_dtypes(),
        hnp.datetime64_dtypes(),
        hnp.timedelta64_dtypes(),
        hnp.byte_string_dtypes(min_len=1),
        hnp.unicode_string_dtypes(min_len=1),
    )
    return one | hnp.array_dtypes(one, max_size=3, allow_subarrays=True)


def arrays() -> st.SearchStrategy:
    """Of any number of dimensions, none and empty ones, in either order; and numpy's scalars."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    whole = dtypes().flatmap(lambda dtype: hnp.arrays(dtype, shapes))
    numbers = hnp.scalar_dtypes().flatmap(lambda dtype: hnp.arrays(dtype, ()))
    return whole | whole.map(np.asfortranarray) | numbers.map(lambda array: array[()])


# Frames --------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def columns(size: int) -> st.SearchStrategy:
    """Columns of so many rows, with every dtype that is carried."""
    cells = partial(st.lists, min_size=size, max_size=size)
    gaps = lambda inner: cells(st.none() | inner)  # noqa: E731 - a word for what follows
    moments = st.datetimes(*map(dt.datetime.fromisoformat, ("1700-01-01", "2200-01-01")))
    plain_dtypes = st.sampled_from(["?", "i1", "i8", "u8", "f4", "f8", "c16", "M8[ns]", "m8[s]"])
    masked = st.sampled_from(["Int8", "Int64", "UInt32"])
    return st.one_of(
        plain_dtypes.flatmap(lambda dtype: hnp.arrays(dtype, size)).map(pd.Series),
        gaps(TEXTS).map(partial(pd.Series, dtype="str")),
        gaps(TEXTS).map(partial(pd.Series, dtype="string")),
        gaps(TEXTS | st.integers() | st.dates()).map(partial(pd.Series, dtype=object)),
        st.tuples(gaps(st.integers(0, 100)), masked).map(lambda p: pd.Series(p[0], dtype=p[1])),
        gaps(st.booleans()).map(partial(pd.Series, dtype="boolean")),
        gaps(st.floats(allow_nan=False)).map(partial(pd.Series, dtype="Float64")),
        st.tuples(gaps(moments), st.sampled_from(ZONES)).map(
            lambda p: (
                pd.Series(p[0], dtype="datetime64[us]").dt.tz_localize("UTC").dt.tz_convert(p[1])
            )
        ),
        st.tuples(gaps(st.sampled_from(["a", "b", "é"])), st.booleans()).map(
            lambda p: pd.Series(pd.Categorical(p[0], ["é", "b", "a", "z"], ordered=p[1]))
        ),
        gaps(st.sampled_from([1, 5])).map(lambda c: pd.Series(pd.Categorical(c, [5, 1]))),
    )


def indexes(size: int) -> st.SearchStrategy:
    """Indexes of so many rows: plain and named, of two levels, of moments with a frequency."""
    names = st.none() | TEXTS | st.integers(0, 9)
    labels = partial(st.lists, min_size=size, max_size=size)
    pairs = st.tuples(labels(TEXTS), labels(st.integers(0, 3)), names, names)
    return st.one_of(
        st.tuples(st.integers(-9, 9), st.sampled_from([1, 2, -1]), names).map(
            lambda p: pd.RangeIndex(p[0], p[0] + p[1] * size, p[1], name=p[2])
        ),
        st.tuples(labels(TEXTS), names).map(lambda p: pd.Index(p[0], dtype="str", name=p[1])),
        st.tuples(labels(st.floats()), names).map(lambda p: pd.Index(p[0], dtype="f8", name=p[1])),
        st.just(pd.date_range("2024-03-30", periods=size, freq="D", tz="Europe/Berlin")),
        st.just(pd.timedelta_range("1h", periods=size, freq="h")),
        pairs.map(lambda p: pd.MultiIndex.from_arrays(p[:2], names=p[2:])),
    )


def frames() -> st.SearchStrategy:
    """Frames of pandas, and series and indexes."""
    return st.integers(0, 5).flatmap(_frames_of)


def _frames_of(size: int) -> st.SearchStrategy:
    whole = st.tuples(st.lists(columns(size), max_size=4), indexes(size)).map(_frame)
    series = st.tuples(columns(size), indexes(size), st.none() | TEXTS).map(
        lambda p: p[0].set_axis(p[1]).rename(p[2])
    )
    return whole | series | indexes(size)


def _frame(parts: tuple) -> pd.DataFrame:
    found, index = parts
    frame = pd.DataFrame({n: c.set_axis(index) for n, c in enumerate(found)}, index=index)
    if len(found) == 2:
        frame.columns = pd.MultiIndex.from_tuples([("a", 1), ("a", 2)], names=["x", None])
    elif len(found) == 3:
        frame.columns = ["same", "same", "é"]
    return frame


def polars_frames() -> st.SearchStrategy:
    """A few frames and series of polars."""
    frame = pl.DataFrame(
        {
            "n": [1, None, 3],
            "f": [1.5, float("nan"), None],
            "s": ["a", None, "é"],
            "l": [[1], [], None],
            "d": [dt.date(2024, 1, 1), None, None],
            "t": pl.Series([dt.datetime(2024, 1, 1, tzinfo=dt.UTC)] * 3),
            "c": pl.Series(["x", "y", None], dtype=pl.Categorical),
            "e": pl.Series(["x", "y", None], dtype=pl.Enum(["y", "x"])),
            "struct": [{"a": 1, "b": "x"}] * 3,
        }
    )
    return st.sampled_from([frame, frame.clear(), frame["s"], frame.select("n", "l")])


# For R ---------------------------------------------------------------------------------------

R_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
R_INTEGERS = st.integers(-(2**31) + 1, 2**31 - 1)
R_MOMENTS = st.datetimes(*map(dt.datetime.fromisoformat, ("1700-01-01", "2200-01-01")))
R_ZONES = st.none() | st.just(dt.UTC) | st.sampled_from(ZONES[:3]).map(zoneinfo.ZoneInfo)


def r_values() -> st.SearchStrategy:
    """What R has a counterpart for."""
    ones = st.one_of(
        st.none(),
        st.booleans(),
        R_INTEGERS,
        st.floats(),
        st.complex_numbers(),
        R_TEXTS,
        st.binary(),
        st.dates(),
        st.timedeltas(dt.timedelta(-9999), dt.timedelta(9999)),
        st.tuples(R_MOMENTS, R_ZONES).map(_r_moment),
        st.just(pd.NA),
    )
    few = partial(st.lists, max_size=3)
    names = R_TEXTS.filter(bool)
    return st.recursive(
        ones | r_vectors() | r_frames(),
        lambda inner: few(inner) | st.dictionaries(names, inner, max_size=3),
        max_leaves=5,
    )


def r_vectors() -> st.SearchStrategy:
    """Vectors of two values or more, or of none; matrices; with names; factors."""
    sizes = st.sampled_from([0, 2, 3])
    dtypes = ["?", "f8", "c16", "M8[us]", "m8[us]", "M8[D]"]
    moments = hnp.arrays("i8", sizes, elements=st.integers(-(10**15), 10**15))
    days = hnp.arrays("i8", sizes, elements=st.integers(-(10**5), 10**5))
    numbers = st.sampled_from(dtypes[:3]).flatmap(lambda d: hnp.arrays(d, sizes))
    integers = hnp.arrays("i8", sizes, elements=R_INTEGERS)
    texts = st.lists(R_TEXTS, min_size=2, max_size=4)
    return st.one_of(
        numbers,
        integers,
        moments.map(lambda a: a.astype("M8[us]")),
        moments.map(lambda a: a.astype("m8[us]")),
        moments.map(lambda a: pd.DatetimeIndex(a.astype("M8[us]"), tz="Asia/Kolkata")),
        days.map(lambda a: a.astype("M8[D]")),
        hnp.arrays("f8", st.tuples(st.integers(0, 3), st.integers(1, 3))),
        hnp.arrays("i8", (2, 1, 3), elements=R_INTEGERS),
        st.sampled_from(["M8[D]", "M8[us]", "m8[us]"]).map(lambda d: np.ones((2, 3), "i8").view(d)),
        texts.map(lambda t: np.array(t, dtype=str)),
        texts.map(lambda t: pd.array([*t, None], dtype="string")),
        st.just(pd.array([1, None, -5], dtype="Int64")),
        st.just(pd.array([True, None], dtype="boolean")),
        st.lists(st.sampled_from(["a", "é", None])).map(
            lambda c: pd.Categorical(c, ["é", "a"], ordered=len(c) % 2 == 0)
        ),
        st.lists(R_TEXTS, unique=True, max_size=3).map(
            lambda names: pd.Series(np.arange(len(names)) + 0.5, pd.Index(names, dtype="str"))
        ),
    )


def r_frames() -> st.SearchStrategy:
    """Data frames, with what columns may be in R."""
    return st.integers(0, 4).flatmap(
        lambda size: st.tuples(st.lists(r_columns(size), max_size=5), st.booleans()).map(
            partial(_r_frame, size)
        )
    )


def _r_frame(size: int, parts: tuple) -> pd.DataFrame:
    found, has_names = parts
    index = pd.Index([f"row é{n}" for n in range(size)], dtype="str")
    frame = pd.DataFrame(dict(enumerate(found)), index=pd.RangeIndex(size))
    frame.columns = pd.Index([f"c {n}" for n in range(len(found))], dtype="str")
    return frame.set_axis(index) if has_names and size else frame


def r_columns(size: int) -> st.SearchStrategy:
    """Columns of so many rows that R has a counterpart for."""
    cells = partial(st.lists, min_size=size, max_size=size)
    gaps = lambda inner: cells(st.none() | inner)  # noqa: E731 - a word for what follows
    return st.one_of(
        hnp.arrays("f8", size).map(pd.Series),
        hnp.arrays("c16", size).map(pd.Series),
        gaps(R_INTEGERS).map(partial(_r_kind, "Int64")),
        gaps(st.booleans()).map(partial(_r_kind, "boolean")),
        gaps(R_TEXTS).map(partial(pd.Series, dtype="str")),
        gaps(st.dates()).filter(any).map(partial(pd.Series, dtype=object)),
        gaps(st.timedeltas(dt.timedelta(-9999), dt.timedelta(9999))).map(
            partial(pd.Series, dtype="m8[us]")
        ),
        gaps(R_MOMENTS).map(partial(pd.Series, dtype="M8[us]")),
        gaps(R_MOMENTS).map(
            lambda c: pd.Series(c, dtype="M8[us]").dt.tz_localize("UTC").dt.tz_convert(ZONES[0])
        ),
        gaps(st.sampled_from(["a", "é"])).map(
            lambda c: pd.Series(pd.Categorical(c, ["é", "a"], ordered=len(c) % 2 == 0))
        ),
    )


def _r_kind(kind: str, values: list) -> pd.Series:
    """Return a column as R's own comes here: with a mask only where something is missing."""
    plain = {"Int64": "int64", "boolean": "bool"}
    return pd.Series(values, dtype=kind if None in values else plain[kind])


def _r_moment(parts: tuple) -> dt.datetime:
    """Return a moment whose fold, if it has one, has a meaning."""
    moment, zone = parts
    moment = moment.replace(fold=0)
    return moment.replace(tzinfo=dt.UTC).astimezone(zone) if zone else moment
