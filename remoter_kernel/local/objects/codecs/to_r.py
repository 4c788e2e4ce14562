"""Objects for R: as vectors, lists and data frames, which are all that R has.

A vector of one value is that value here, since R knows no other. All else has one counterpart,
so that what goes there and comes back is what it was; what has none is refused.
"""

from __future__ import annotations

import array
import datetime
import sys
from typing import Any

from remoter_kernel.local.objects.codecs.dataframes import MASKED
from remoter_kernel.local.objects.codecs.values import (
    CodecError,
    ObjectWriter,
    encode_zone,
    kind_name,
    little_endian,
    np,
    pd,
    write_texts,
)

NO_INTEGER = -(1 << 31)  # R's integers are of 32 bits, and this one means NA
EXACT = 1 << 53  # from here on a double leaves integers out
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
DAY_ZERO = datetime.date(1970, 1, 1)
MICROSECOND = datetime.timedelta(microseconds=1)
# R keeps logical values as integers of 32 bits, and complex ones as two doubles.
TYPES = {"logical": "i", "integer": "i", "double": "d", "complex": "d"}
MILLION = 1_000_000


class RWriter(ObjectWriter):
    """Writes what R can read."""

    def encode(self, value: Any, where: str) -> Any:
        """Return a value's tree, in R's kinds."""
        if value is None:
            return {"t": "null"}
        return self.encode_nested(value, where, self._encode)

    def _encode(self, value: Any, where: str) -> Any:
        if type(value) is list:
            values = [self.encode(each, f"{where}[{i}]") for i, each in enumerate(value)]
            return {"t": "list", "v": values, "names": None}
        if type(value) is dict:
            names = list(value)
            if not all(type(name) is str and name for name in names):
                raise CodecError(f"{where} has keys that are no text, or empty: no names for R.")
            trees = [self.encode(value[name], f"{where}[{name!r:.40}]") for name in names]
            return {"t": "list", "v": trees, "names": self._texts(names, f"a key of {where}")}
        tree = self._one(value, where) or self._many(value, where)
        if tree is not None:
            return tree
        raise CodecError(f"{where} is {kind_name(value)}, for which R has no counterpart.")

    def _texts(self, texts: list[Any], where: str) -> dict[str, Any]:
        """Write the texts of a vector; what is missing is None."""
        if any(text is not None and "\0" in text for text in texts):
            raise CodecError(f"{where} has a text with a NUL in it, which R cannot have.")
        return {"n": len(texts), **write_texts(self, texts, where)}

    def _numbers(self, kind: str, numbers: Any, **words: Any) -> Any:
        plain = array.array(TYPES[kind], numbers)
        count = len(plain) // (2 if kind == "complex" else 1)
        at = self.write(little_endian(plain))
        return {"t": "vector", "type": kind, "n": count, "at": at, **words}

    # The types are compared, not asked by isinstance: a subclass would lose what it has beside.
    def _one(self, value: Any, where: str) -> Any:
        """Return the tree of one value as a vector of one; None: it is not one value."""
        kind = type(value)
        if kind is bool:
            return self._numbers("logical", [value])
        if kind is int:
            if NO_INTEGER < value < -NO_INTEGER:
                return self._numbers("integer", [value])
            if abs(value) <= EXACT:
                return self._numbers("double", [float(value)])
            raise CodecError(f"{where} is too large a number for R to keep all its digits.")
        if kind is float:
            return self._numbers("double", [value])
        if kind is complex:
            return self._numbers("complex", [value.real, value.imag])
        if kind is str:
            return {"t": "vector", "type": "character", **self._texts([value], where)}
        if kind is bytes:
            return {"t": "vector", "type": "raw", "n": len(value), "at": self.write(value)}
        if kind is datetime.date:
            return self._numbers("double", [float((value - DAY_ZERO).days)], of="Date")
        if kind is datetime.timedelta:
            return self._seconds([value // MICROSECOND], where, of="difftime")
        return self._moment(value, where) if kind is datetime.datetime else None

    def _moment(self, value: datetime.datetime, where: str) -> Any:
        """Return the tree of a moment; one without a zone is told from one in UTC by a mark."""
        words: dict[str, Any] = {"zone": encode_zone(value.tzinfo, where)}
        if value.tzinfo is None:
            if value.fold:  # of two moments with the same local time, the second
                raise CodecError(f"{where} has a fold and no time zone, which R has not.")
            value, words = value.replace(tzinfo=datetime.timezone.utc), {"naive": True}
        return self._seconds([(value - EPOCH) // MICROSECOND], where, of="POSIXct", **words)

    def _seconds(self, microseconds: Any, where: str, **words: Any) -> Any:
        """Write moments as R has them, in seconds; None is NA."""
        seconds = [float("nan") if us is None else us / MILLION for us in microseconds]
        for us, value in zip(microseconds, seconds):  # a double has 53 bits
            if us is not None and round(value * MILLION) != us:
                raise CodecError(f"{where} is too far from 1970 for R to keep its microseconds.")
        if isinstance(words.get("zone"), float):
            if words["zone"]:
                raise CodecError(f"{where} has an offset for a time zone, and R's have names.")
            words["zone"] = "UTC"
        return self._numbers("double", seconds, **words)

    # What comes in many --------------------------------------------------------------------

    def _many(self, value: Any, where: str) -> Any:
        # What was never imported cannot have made this value.
        numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
        if numpy is not None:
            if isinstance(value, numpy.generic):
                return self._vector(numpy.asarray(value).reshape(1), where)
            if type(value) is numpy.ndarray:
                # R has matrices column by column.
                dim = {"dim": list(value.shape)} if value.ndim > 1 else {}
                return {**self._vector(value.reshape(-1, order="F"), where), **dim}
        if pandas is None or not hasattr(pandas, "DataFrame"):
            return None
        if value is pandas.NA:
            return self._numbers("logical", [NO_INTEGER])
        if type(value) is pandas.Timestamp:
            return self._column(pandas.Series([value]), where)
        if type(value) is pandas.Series:
            return self._series(value, where)
        if type(value) is pandas.DataFrame:
            return self._frame(value, where)
        if type(value) is pandas.DatetimeIndex and value.name is None:
            return self._column(pandas.Series(value), where)
        if isinstance(value, pandas.api.extensions.ExtensionArray):
            return self._column(pandas.Series(value), where)
        return None

    def _series(self, value: Any, where: str) -> Any:
        if value.name is not None:
            raise CodecError(
                f"{where} has a name, and R's vectors have none: {where}.rename(None)."
            )
        self._check_beside(value, where)
        tree = self._column(value, where)
        names = self._row_names(value.index, where, may_repeat=True)
        return tree if names is None else {**tree, "names": names}

    def _frame(self, value: Any, where: str) -> Any:
        names = value.columns.tolist()
        if not all(type(name) is str for name in names) or len(set(names)) != len(names):
            raise CodecError(f"{where} has columns whose names are no text, or are not unique.")
        if value.columns.name is not None:
            raise CodecError(f"{where} has a name for its columns; R's frames have not.")
        self._check_beside(value, where)
        columns = [
            self._column(value.iloc[:, i], f"column {name!r} of {where}")
            for i, name in enumerate(names)
        ]
        rows = self._row_names(value.index, where)
        names = self._texts(names, f"a name in {where}")
        return {"t": "frame", "names": names, "v": columns, "rows": rows, "n": len(value)}

    def _check_beside(self, value: Any, where: str) -> None:
        if value.attrs or not value.flags.allows_duplicate_labels:
            raise CodecError(
                f"{where} has attributes or flags, which R's vectors and frames have not."
            )

    def _row_names(self, index: Any, where: str, *, may_repeat: bool = False) -> Any:
        """Return the names of rows; None: they have numbers from 0, which are from 1 in R."""
        plain = type(index) is pd.RangeIndex and (index.start, index.step) == (0, 1)
        if plain and index.name is None:
            return None
        labels = index.tolist()
        is_named = index.name is None and all(type(each) is str for each in labels)
        if is_named and (may_repeat or index.is_unique):
            return self._texts(labels, f"{where}.index")
        raise CodecError(f"{where} has an index that R has no place for: {where}.reset_index().")

    def _column(self, series: Any, where: str) -> Any:
        dtype = series.dtype
        if isinstance(dtype, pd.CategoricalDtype):
            return self._factor(series, where)
        if isinstance(dtype, pd.DatetimeTZDtype):
            zone = encode_zone(dtype.tz, where)
            plain = series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
            return self._seconds(_microseconds(plain, where), where, of="POSIXct", zone=zone)
        if isinstance(dtype, np.dtype) and dtype.kind != "O":
            return self._vector(series.to_numpy(), where)
        missing = series.isna().to_numpy()
        if isinstance(dtype, (np.dtype, pd.StringDtype)):
            return self._objects(series, missing, where)
        if str(dtype) in MASKED and dtype.numpy_dtype.kind != "f":
            plain = series.to_numpy(dtype=dtype.numpy_dtype, na_value=0)
            return self._vector(plain, where, missing)
        raise CodecError(f"{where} has the dtype {dtype}, for which R has no counterpart.")

    def _factor(self, series: Any, where: str) -> Any:
        levels = series.cat.categories.tolist()
        if not all(type(level) is str for level in levels):
            raise CodecError(f"{where} has categories that are no text, and R's levels are text.")
        # R counts from one, and its NA is an integer.
        codes = [NO_INTEGER if code < 0 else code + 1 for code in series.cat.codes.tolist()]
        words = {"levels": self._texts(levels, where), "ordered": bool(series.cat.ordered)}
        return self._numbers("integer", codes, of="factor", **words)

    def _objects(self, series: Any, missing: Any, where: str) -> Any:
        cells = [None if gone else cell for cell, gone in zip(series.tolist(), missing)]
        kinds = {type(cell) for cell in cells if cell is not None}
        if kinds <= {str}:
            return {"t": "vector", "type": "character", **self._texts(cells, where)}
        if kinds == {datetime.date}:
            days = [float("nan") if day is None else float((day - DAY_ZERO).days) for day in cells]
            return self._numbers("double", days, of="Date")
        if kinds == {bool}:
            return self._numbers("logical", [NO_INTEGER if c is None else c for c in cells])
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise CodecError(f"{where} mixes or has what no column of R can: {names}.")

    def _vector(self, values: Any, where: str, missing: Any = None) -> Any:
        """Return the tree of a one-dimensional numpy array."""
        kind = values.dtype.kind
        if kind in "biu":
            numbers = values.astype("i8") if values.dtype != "u8" else values
            largest = int(np.abs(numbers).max()) if numbers.size else 0
            if largest > EXACT or largest < 0:  # the absolute of the least integer is negative
                raise CodecError(f"{where} has numbers too large for R to keep all their digits.")
            if largest < -NO_INTEGER:
                numbers = numbers.astype("<i4")
                numbers[missing if missing is not None else []] = NO_INTEGER
                return self._array("logical" if kind == "b" else "integer", numbers)
            if missing is not None and missing.any():
                raise CodecError(f"{where} has numbers beyond 32 bits, some of them missing.")
            return self._array("double", numbers.astype("<f8"))
        if kind == "f" and values.dtype.itemsize <= 8:  # noqa: PLR2004 - bytes of a double
            return self._array("double", values.astype("<f8", copy=False))
        if kind == "c" and values.dtype.itemsize <= 16:  # noqa: PLR2004 - bytes of two doubles
            return self._array("complex", values.astype("<c16", copy=False))
        if kind == "U":
            return {"t": "vector", "type": "character", **self._texts(values.tolist(), where)}
        if kind == "M" and np.datetime_data(values.dtype)[0] == "D":
            days = [float("nan") if np.isnat(day) else float(day.astype("i8")) for day in values]
            return self._numbers("double", days, of="Date")
        if kind == "M":
            return self._seconds(_microseconds(values, where), where, of="POSIXct", naive=True)
        if kind == "m":
            return self._seconds(_microseconds(values, where), where, of="difftime")
        raise CodecError(f"{where} has the dtype {values.dtype}, for which R has no counterpart.")

    def _array(self, kind: str, values: Any) -> Any:
        at = self.write(np.ascontiguousarray(values).data.cast("B") if values.size else b"")
        return {"t": "vector", "type": kind, "n": len(values), "at": at}


def _microseconds(values: Any, where: str) -> list[Any]:
    """Return moments or spans as numbers of microseconds; what is missing is None."""
    # A double has 53 bits: of nanoseconds since 1970 it would lose the last ones.
    unit = values.dtype.kind + "8[us]"
    if not ((values.astype(unit) == values) | np.isnat(values)).all():
        raise CodecError(f"{where} has nanoseconds, which R cannot keep: round it first.")
    gone = np.isnat(values).tolist()
    numbers = values.astype(unit).astype("i8").tolist()
    return [None if is_gone else number for number, is_gone in zip(numbers, gone)]
