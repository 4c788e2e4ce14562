"""Frames, series and indexes of pandas, and what polars has: column by column.

Runs in kernels, of whatever version of pandas they have.

Looks at a file in Arrow's form before it is read: it must not become much more than it is. Its
reader believes what stands in it: how large buffers are once they are unpacked, which bytes are
whose, how many values there are. A few numbers of its tables (flatbuffers) tell enough.

Runs in kernels, which have polars and perhaps nothing else that knows this form.
"""

from __future__ import annotations

import sys
from typing import Any

from remoter_kernel.local.objects.codecs.values import (
    DECODERS,
    ENCODERS,
    CodecError,
    ObjectReader,
    ObjectWriter,
    decode_zone,
    encode_zone,
    kind_name,
    np,
    pd,
    read_array,
    read_texts,
    write_array,
    write_texts,
)

# What pandas keeps as values and a mask of those that are missing.
_INTEGERS = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
MASKED = frozenset((*_INTEGERS, "Float32", "Float64", "boolean"))

MAGIC = b"ARROW1"
CONTINUES = b"\xff\xff\xff\xff"  # stands before a message's length, but in old files
DICTIONARY, BATCH = 2, 3  # kinds of messages
BLOCK, PAIR = 24, 16  # bytes of what stands in lists: of a place in the file, of two numbers
MANY_EMPTY_ROWS = 1 << 24  # values that take no room at all


def encode_frame(writer: ObjectWriter, value: Any, where: str) -> Any:
    """Return the tree of something of pandas; None: it is not."""
    pandas = sys.modules.get("pandas")
    # Without pandas there is no such value; one that is being imported has no DataFrame yet.
    if pandas is None or not hasattr(pandas, "DataFrame"):
        return None
    if value is pandas.NA or value is pandas.NaT:
        return {"t": "missing", "v": "NA" if value is pandas.NA else "NaT"}
    if type(value) in {pandas.Timestamp, pandas.Timedelta}:
        zone = encode_zone(getattr(value, "tz", None), where)
        kind = type(value).__name__
        at = write_array(writer, value.asm8, where)  # as numpy has it, with its unit
        return {"t": "moment", "at": at, "kind": kind, "zone": zone}
    if type(value) is pandas.DataFrame:
        columns = [
            _encode_column(writer, value.iloc[:, i], f"column {label!r} of {where}")
            for i, label in enumerate(value.columns)
        ]
        return {
            "t": "frame",
            "columns": _encode_index(writer, value.columns, f"{where}.columns"),
            "index": _encode_index(writer, value.index, f"{where}.index"),
            "data": columns,
            **_encode_attributes(writer, value, where),
        }
    if type(value) is pandas.Series:
        return {
            "t": "series",
            "index": _encode_index(writer, value.index, f"{where}.index"),
            "name": writer.encode(value.name, f"{where}.name"),
            "data": _encode_column(writer, value, where),
            **_encode_attributes(writer, value, where),
        }
    if isinstance(value, pandas.Index):
        return {"t": "index", "v": _encode_index(writer, value, where)}
    if isinstance(value, pandas.api.extensions.ExtensionArray):
        return {"t": "column", "v": _encode_column(writer, pandas.Series(value), where)}
    return None


def _encode_attributes(writer: ObjectWriter, value: Any, where: str) -> dict[str, Any]:
    """Write down what a frame or a series has beside its values."""
    attributes = writer.encode(dict(value.attrs), f"{where}.attrs")
    return {"attrs": attributes, "is_unique": not value.flags.allows_duplicate_labels}


def _encode_index(writer: ObjectWriter, index: Any, where: str) -> Any:
    if isinstance(index, pd.MultiIndex):
        levels = [_encode_index(writer, level, f"a level of {where}") for level in index.levels]
        codes = [write_array(writer, code, where) for code in index.codes]
        names = [writer.encode(name, f"a name of {where}") for name in index.names]
        return {"k": "multi", "levels": levels, "codes": codes, "names": names}
    name = writer.encode(index.name, f"the name of {where}")
    if type(index) is pd.RangeIndex:
        return {"k": "range", "v": [index.start, index.stop, index.step], "name": name}
    if type(index).__module__.split(".")[0] != "pandas":
        raise CodecError(f"{where} is {kind_name(index)}, which is not carried.")
    values = pd.Series(index.array if index.dtype != object else index, dtype=index.dtype)
    tree: dict[str, Any] = {"k": "plain", "v": _encode_column(writer, values, where), "name": name}
    frequency = getattr(index, "freq", None)
    if frequency is not None:
        tree["freq"] = _encode_frequency(writer, frequency, where)
    return tree


def _encode_frequency(writer: ObjectWriter, value: Any, where: str) -> list[Any]:
    """Return what makes a frequency: each version of pandas spells its name in another way."""
    # The calendar is made of the other words.
    words = {name: word for name, word in value.kwds.items() if name != "calendar"}
    words["normalize"] = value.normalize
    if _make_frequency(type(value).__name__, value.n, words) != value:
        raise CodecError(f"{where} has a frequency that is not carried: {value}.")
    tree = writer.encode(words, f"the frequency of {where}")
    return [type(value).__name__, value.n, tree]


def _make_frequency(kind: str, number: int, words: dict[str, Any]) -> Any:
    maker = getattr(pd.offsets, kind, None)  # a name from a file: nothing else of pandas is called
    if not (isinstance(maker, type) and issubclass(maker, pd.offsets.BaseOffset)):
        raise CodecError(f"There is no frequency {kind}.")
    return maker(number, **words)


def _encode_column(writer: ObjectWriter, series: Any, where: str) -> Any:
    dtype = series.dtype
    if isinstance(dtype, np.dtype):
        if dtype.kind != "O":
            return {"k": "numpy", "at": write_array(writer, series.to_numpy(), where)}
        cells = [writer.encode(v, f"row {i} of {where}") for i, v in enumerate(series.tolist())]
        return {"k": "objects", "v": cells}
    if isinstance(dtype, pd.DatetimeTZDtype):
        # In UTC: a local time can mean two moments, where clocks are put back.
        moments = series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
        zone = encode_zone(dtype.tz, where)
        return {"k": "zoned", "at": write_array(writer, moments, where), "zone": zone}
    if isinstance(dtype, pd.CategoricalDtype):
        return {
            "k": "category",
            "codes": write_array(writer, series.cat.codes.to_numpy(), where),
            "of": _encode_index(writer, dtype.categories, f"the categories of {where}"),
            "ordered": bool(dtype.ordered),
        }
    if isinstance(dtype, pd.StringDtype):
        texts = [None if gone else text for text, gone in zip(series, series.isna())]
        return {"k": "texts", "dtype": str(dtype), **write_texts(writer, texts, where)}
    if str(dtype) in MASKED:
        plain = series.to_numpy(dtype=dtype.numpy_dtype, na_value=0)
        at, mask = (write_array(writer, each, where) for each in (plain, series.isna().to_numpy()))
        return {"k": "masked", "at": at, "mask": mask}
    raise CodecError(
        f"{where} has the dtype {dtype}, which is not carried: astype() makes another."
    )


# And back ------------------------------------------------------------------------------------
def _read_index(reader: ObjectReader, tree: Any) -> Any:
    if tree["k"] == "multi":
        levels = [_read_index(reader, level) for level in tree["levels"]]
        codes = [read_array(reader, at) for at in tree["codes"]]
        names = [reader.decode(name) for name in tree["names"]]
        return pd.MultiIndex(levels=levels, codes=codes, names=names)
    name = reader.decode(tree["name"])
    if tree["k"] == "range":
        return pd.RangeIndex(*map(int, tree["v"]), name=name)
    values = _read_column(reader, tree["v"])
    index = pd.Index(values.array if values.dtype != object else values, dtype=values.dtype)
    index.name = name
    if "freq" in tree:
        kind, number, words = tree["freq"]
        index.freq = _make_frequency(kind, number, reader.decode(words))
    return index


def _read_column(reader: ObjectReader, tree: Any) -> Any:
    kind = tree["k"]
    if kind == "numpy":
        return pd.Series(read_array(reader, tree["at"]), copy=False)
    if kind == "objects":
        return pd.Series([reader.decode(cell) for cell in tree["v"]], dtype=object)
    if kind == "zoned":
        moments = pd.Series(read_array(reader, tree["at"])).dt.tz_localize("UTC")
        return moments.dt.tz_convert(decode_zone(tree["zone"]))
    if kind == "category":
        dtype = pd.CategoricalDtype(_read_index(reader, tree["of"]), ordered=tree["ordered"])
        codes = read_array(reader, tree["codes"])
        return pd.Series(pd.Categorical.from_codes(codes, dtype=dtype))
    if kind == "texts":
        dtype = "string" if tree["dtype"] == "string" else text_dtype()
        return pd.Series(read_texts(reader, tree), dtype=dtype)
    if kind == "masked":  # made of its parts: NaN and NA are two things in them
        values = read_array(reader, tree["at"])
        made = {"b": pd.arrays.BooleanArray, "f": pd.arrays.FloatingArray}
        maker = made.get(values.dtype.kind, pd.arrays.IntegerArray)
        return pd.Series(maker(values, read_array(reader, tree["mask"])))
    raise CodecError("The other side sent a column of an unknown kind.")


def text_dtype() -> Any:
    """Return the dtype that this pandas itself gives to texts; before 3 that is object."""
    return "str" if pd.Series([""], dtype="str").dtype != object else object


def make_frame(columns: list[Any], index: Any, names: Any) -> Any:
    """Return a frame of columns."""
    for column in columns:
        column.index = index  # else pandas would align them, and make copies for that
    frame = pd.DataFrame(dict(enumerate(columns)), index=index, copy=False)
    frame.columns = names  # only now: they need not be unique, or text
    return frame


def _decode_frame(reader: ObjectReader, tree: Any) -> Any:
    index = _read_index(reader, tree["index"])
    columns = [_read_column(reader, each) for each in tree["data"]]
    frame = make_frame(columns, index, _read_index(reader, tree["columns"]))
    return _with_attributes(reader, tree, frame)


def _decode_series(reader: ObjectReader, tree: Any) -> Any:
    series = _read_column(reader, tree["data"])
    series.index = _read_index(reader, tree["index"])
    series.name = reader.decode(tree["name"])
    return _with_attributes(reader, tree, series)


def _with_attributes(reader: ObjectReader, tree: Any, value: Any) -> Any:
    value.attrs.update(reader.decode(tree["attrs"]))
    value.flags.allows_duplicate_labels = not tree["is_unique"]
    return value


def _decode_moment(reader: ObjectReader, tree: Any) -> Any:
    value = read_array(reader, tree["at"])[()]
    if tree["kind"] == "Timedelta":
        return pd.Timedelta(value)
    moment = pd.Timestamp(value)
    zone = decode_zone(tree["zone"])
    return moment if zone is None else moment.tz_localize("UTC").tz_convert(zone)


def _decode_missing(_reader: ObjectReader, tree: Any) -> Any:
    return pd.NA if tree["v"] == "NA" else pd.NaT


# polars --------------------------------------------------------------------------------------
def encode_polars(writer: ObjectWriter, value: Any, where: str) -> Any:
    """Return the tree of a frame or a series of polars, in Arrow's form; None: it is neither."""
    polars = sys.modules.get("polars")
    if polars is None or not hasattr(polars, "DataFrame"):
        return None
    if type(value) not in {polars.DataFrame, polars.Series}:
        return None
    is_series = type(value) is polars.Series
    frame = value.to_frame() if is_series else value
    objects = [name for name, dtype in frame.schema.items() if dtype == polars.Object]
    if objects:
        raise CodecError(f"{where} has Python objects in the column {objects[0]!r}.")
    begin = writer.file.tell()
    frame.write_ipc(writer.file, compression="uncompressed")  # see `check_arrow`
    return {"t": "polars", "at": [begin, writer.file.tell() - begin], "is_series": is_series}


def _decode_polars(reader: ObjectReader, tree: Any) -> Any:
    import io

    import polars

    data = reader.read(tree["at"])
    check_arrow(data)
    frame = polars.read_ipc(io.BytesIO(data))
    return frame.to_series() if tree["is_series"] else frame


ENCODERS += [encode_frame, encode_polars]
DECODERS.update(
    {
        "frame": _decode_frame,
        "series": _decode_series,
        "index": lambda reader, tree: _read_index(reader, tree["v"]),
        "column": lambda reader, tree: _read_column(reader, tree["v"]).array,
        "moment": _decode_moment,
        "missing": _decode_missing,
        "polars": _decode_polars,
    }
)


def check_arrow(data: bytes) -> None:
    """Refuse a file that would become much more than its own bytes."""
    end = len(data) - len(MAGIC) - 4
    if end < len(MAGIC) or data[:6] != MAGIC or data[-6:] != MAGIC:
        raise CodecError("The other side sent a frame that is not in Arrow's form.")
    begin = end - _read_integer(data, end, 4)
    footer = begin + _read_integer(data, begin, 4)
    left = len(data)
    for name in (2, 3):  # dictionaries, batches
        for place in _places(data, _field(data, footer, name), BLOCK):
            offset, ahead = _read_integer(data, place, 8), _read_integer(data, place + 8, 4)
            body = _read_integer(data, place + 16, 8)
            left -= ahead + body
            if min(offset, ahead, body) < 0 or offset + ahead + body > len(data) or left < 0:
                raise CodecError("The other side sent a frame with pieces that overlap.")
            _check_message(data, offset, body)


def _check_message(data: bytes, offset: int, body: int) -> None:
    begin = offset + 4 * (data[offset : offset + 4] == CONTINUES) + 4
    message = begin + _read_integer(data, begin, 4)
    kind = _field(data, message, 1)
    batch = _table(data, _field(data, message, 2))
    which = _read_integer(data, kind, 1) if kind else 0
    if which == DICTIONARY:
        batch = _table(data, _field(data, batch, 1))
    elif which != BATCH:
        raise CodecError("The other side sent a frame with a piece of an unknown kind.")
    if _field(data, batch, 3):
        raise CodecError(
            "The other side sent a frame that is compressed: how large it is, none knows."
        )
    left = body
    for place in _places(data, _field(data, batch, 2), PAIR):
        start, size = _read_integer(data, place, 8), _read_integer(data, place + 8, 8)
        left -= size
        if min(start, size, left) < 0 or start + size > body:
            raise CodecError("The other side sent a frame with pieces that overlap.")
    most = max(8 * len(data), MANY_EMPTY_ROWS)  # each value has a bit, or no room at all
    length = _field(data, batch, 0)
    nodes = _places(data, _field(data, batch, 1), PAIR)
    if any(
        not 0 <= _read_integer(data, at, 8) <= most
        for at in [*nodes, *([length] if length else [])]
    ):
        raise CodecError("The other side sent a frame that claims more rows than it has.")


def _read_integer(data: bytes, at: int, size: int) -> int:
    if not 0 <= at <= len(data) - size:
        raise CodecError("The other side sent a frame that points out of itself.")
    return int.from_bytes(data[at : at + size], "little", signed=True)


def _table(data: bytes, at: int) -> int:
    """Return where the table begins that is pointed to."""
    if not at:
        raise CodecError("The other side sent a frame without all its parts.")
    return at + _read_integer(data, at, 4)


def _field(data: bytes, table: int, index: int) -> int:
    """Return where a field of a table is; 0: it has none."""
    names = table - _read_integer(data, table, 4)
    if 4 + 2 * index + 2 > _read_integer(data, names, 2):
        return 0
    offset = _read_integer(data, names + 4 + 2 * index, 2)
    return table + offset if offset else 0


def _places(data: bytes, at: int, size: int) -> Any:
    """Return where each thing of a list is."""
    if not at:
        return range(0)
    begin = _table(data, at)
    count = _read_integer(data, begin, 4)
    if not 0 <= count <= (len(data) - begin) // size:
        raise CodecError("The other side sent a frame that points out of itself.")
    first = begin + 4
    return range(first, first + count * size, size)
