"""Objects from R, as Python has them; see `to_r` for what becomes of what.

NA is what pandas has for a missing value. That of a double stays what it is in R, a NaN of a
kind of its own, and so is NA again when it comes back.
"""

from __future__ import annotations

import array
import contextlib
import datetime
import math
from typing import Any

from remoter_kernel.local.objects.codecs.dataframes import make_frame, text_dtype
from remoter_kernel.local.objects.codecs.to_r import DAY_ZERO, EPOCH, MILLION, NO_INTEGER, TYPES
from remoter_kernel.local.objects.codecs.values import (
    CodecError,
    ObjectReader,
    decode_zone,
    little_endian,
    np,
    pd,
    read_texts,
)

ROOMY = 1 << 20  # characters in an array of texts, all of equal room
MANY_TIMES = 8  # or so many for each one that there is
FARTHEST = 2.0**63  # what numpy counts moments with has 64 bits
WIDTHS = {"logical": "i4", "integer": "i4", "double": "f8", "complex": "c16"}


class RReader(ObjectReader):
    """Reads what R has written."""

    def decode(self, tree: Any) -> Any:
        """Return the value of a tree in R's kinds."""
        kind = tree["t"]
        if kind == "null":
            return None
        if kind == "list":
            values = [self.decode(each) for each in tree["v"]]
            return dict(zip(read_texts(self, tree["names"]), values)) if tree["names"] else values
        if kind == "frame":
            return self._frame(tree)
        if kind != "vector":
            raise CodecError("R sent something of an unknown kind.")
        return self._vector_or_one(tree)

    def _read(self, tree: Any) -> Any:
        """Return the numbers of a vector, as Python's array has them."""
        numbers = array.array(TYPES[tree["type"]])
        numbers.frombytes(self.read(tree["at"]))
        return little_endian(numbers)

    def _vector_or_one(self, tree: Any) -> Any:
        kind = tree["type"]
        if kind == "raw":
            return self.read(tree["at"])
        # R has no single values: a vector of one is what a person means by one.
        is_one = int(tree["n"]) == 1 and not (tree.get("names") or tree.get("dim"))
        if is_one and tree.get("of") != "factor":
            with contextlib.suppress(OverflowError):  # no `date` is so far away, or infinite
                one = self._one(tree)
                if one is not None:
                    return one
        if tree.get("names"):
            series = self._column(tree) if tree.get("of") == "Date" else self._series(tree)
            series.index = self._names(tree["names"])
            return series
        if tree.get("of") == "Date":
            # numpy has days, and pandas none.
            values = self._moments(np.array(self._read(tree)), tree)
        else:
            series = self._series(tree)
            if tree.get("of") == "factor":
                return series.array
            if tree.get("of") == "POSIXct" and not tree.get("naive"):
                return pd.DatetimeIndex(series)
            values = _as_array(series, tree)
        return values.reshape(list(map(int, tree["dim"])), order="F") if tree.get("dim") else values

    def _one(self, tree: Any) -> Any:
        """Return a vector of one as its value; None: that is NA, and one of many kinds."""
        kind, of = tree["type"], tree.get("of")
        if kind == "character":
            (text,) = read_texts(self, tree)
            return pd.NA if text is None else text
        numbers = self._read(tree)
        first = numbers[0]
        if kind == "complex":
            return complex(first, numbers[1])
        if of and math.isnan(first):
            return None  # NaT, which only pandas has: by way of a series
        if of == "Date":
            return DAY_ZERO + datetime.timedelta(days=first)
        if of == "difftime":
            return datetime.timedelta(microseconds=round(first * MILLION))
        if of == "POSIXct":
            moment = EPOCH + datetime.timedelta(microseconds=round(first * MILLION))
            if tree.get("naive"):
                return moment.replace(tzinfo=None)
            return moment.astimezone(_zone(tree))
        if kind != "double" and first == NO_INTEGER:
            return pd.NA
        return bool(first) if kind == "logical" else first

    def _frame(self, tree: Any) -> Any:
        rows = tree["rows"]
        index = self._names(rows) if rows else pd.RangeIndex(int(tree["n"]))
        columns = [self._column(each) for each in tree["v"]]
        return make_frame(columns, index, self._names(tree["names"]))

    def _names(self, tree: Any) -> Any:
        return pd.Index(read_texts(self, tree), dtype="str")

    def _column(self, tree: Any) -> Any:
        """Return a vector as a column, with what pandas has by itself where it has it."""
        if tree["type"] == "character":
            return pd.Series(read_texts(self, tree), dtype=text_dtype())
        if tree.get("of") == "Date":  # pandas has no dtype of days
            one = datetime.timedelta(days=1)
            days = [None if math.isnan(day) else DAY_ZERO + day * one for day in self._read(tree)]
            return pd.Series(days, dtype=object)
        return self._series(tree)

    def _series(self, tree: Any) -> Any:
        """Return any vector as a series."""
        kind, of = tree["type"], tree.get("of")
        if kind == "character":
            return pd.Series(read_texts(self, tree), dtype="string")
        # A bytearray, as numpy keeps the bytes: an array of bytes could not be written to.
        numbers = np.frombuffer(bytearray(self.read(tree["at"])), "<" + WIDTHS[kind])
        if of == "factor":
            codes = np.where(numbers == NO_INTEGER, 0, numbers) - 1
            ordered = bool(tree["ordered"])
            dtype = pd.CategoricalDtype(self._names(tree["levels"]), ordered=ordered)
            return pd.Series(pd.Categorical.from_codes(codes, dtype=dtype))
        if of:
            return pd.Series(self._moments(numbers, tree))
        if kind in {"logical", "integer"}:
            gone = numbers == NO_INTEGER
            plain = pd.Series((numbers != 0) if kind == "logical" else numbers.astype("i8"))
            if not gone.any():
                return plain
            # numpy has no missing integers: as doubles, large ones would lose digits.
            masked = plain.astype("boolean" if kind == "logical" else "Int64")
            masked[gone] = pd.NA
            return masked
        return pd.Series(numbers)

    def _moments(self, numbers: Any, tree: Any) -> Any:
        gone = np.isnan(numbers)
        per = 1 if tree["of"] == "Date" else MILLION
        counted = np.rint(np.where(gone, 0, numbers) * per)
        if (np.abs(counted) >= FARTHEST).any():
            raise CodecError("A moment or a span of R's is infinite, or too large.")
        whole = counted.astype("i8")
        unit = {"Date": "M8[D]", "POSIXct": "M8[us]", "difftime": "m8[us]"}[tree["of"]]
        moments = whole.astype(unit)
        moments[gone] = "NaT"  # only now: no integer is so
        if tree["of"] == "POSIXct" and not tree.get("naive"):
            return pd.DatetimeIndex(moments).tz_localize("UTC").tz_convert(_zone(tree))
        return moments


def _zone(tree: Any) -> Any:
    zone = tree.get("zone")
    return datetime.timezone.utc if zone in {None, "", "UTC"} else decode_zone(str(zone))


def _as_array(series: Any, tree: Any) -> Any:
    """Return a vector as an array: numpy's, or where a value is missing, one of pandas."""
    if tree["type"] == "character" and not series.isna().any():
        texts = series.tolist()  # numpy gives each text the room of the longest one
        if len(texts) * max(map(len, texts), default=0) <= max(ROOMY, MANY_TIMES * tree["at"][1]):
            return np.array(texts, dtype=str)
    numpy_has_it = str(series.dtype)[0].islower() and str(series.dtype) not in {"boolean", "string"}
    return series.to_numpy() if numpy_has_it else series.array
