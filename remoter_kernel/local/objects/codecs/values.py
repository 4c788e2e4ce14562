"""Plain values and arrays, to a file and back, as data that carries no code.

The file: whatever is large, one thing after the other; then a tree in JSON; then the length of
that in 20 digits. What is neither null, true, false nor text is an object with its kind ("t");
"at" says where something large begins, and how many bytes it has.

Runs in kernels, whose Python may be old and have nothing but its standard library.
"""

from __future__ import annotations

import array
import ast
import bisect
import datetime
import importlib
import json
import pickle
import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

DEEPEST_NESTING = 100  # lists in lists in lists
LENGTH = 20  # digits of the tree's length, at the end of the file
MANY = 64  # numbers in a list; more of them are written as one piece
# So many times the bytes of a file may be taken out of it: R's single values are read twice.
MOST_READ_FACTOR = 2
LONGEST_HEADER = 65536  # bytes that stand before an array
MANY_EMPTY_VALUES = 65536  # values of no size in an array


class CodecError(Exception):
    """Something cannot be carried: the sentence says what, and why."""


class LazyModule:
    """A package that is imported where it is first used: a kernel may not have it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.name), attribute)


np: Any = LazyModule("numpy")
pd: Any = LazyModule("pandas")


class ObjectWriter:
    """Writes a tree and what is large in it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        # The ids of what is being written, from the outside in: each lives as long as that.
        self._inside: list[int] = []

    def write(self, *pieces: Any) -> list[int]:
        """Write bytes; return where they are."""
        begin = self.file.tell()
        for piece in pieces:
            self.file.write(piece)
        return [begin, self.file.tell() - begin]

    def finish(self, tree: Any) -> None:
        """Write the tree, last of all."""
        text = json.dumps(tree, separators=(",", ":")).encode()  # ASCII: any Python reads it
        self.write(text, b"%020d" % len(text))

    def encode(self, value: Any, where: str) -> Any:
        """Return a value's tree; `where` is what a person calls it."""
        if value is None or value is True or value is False:
            return value
        if type(value) is str and not has_surrogates(value):  # not one of a subclass: it has more
            return value
        return self.encode_nested(value, where, self._encode)

    def encode_nested(self, value: Any, where: str, encode: Callable[[Any, str], Any]) -> Any:
        """Encode a value unless it stands in itself, or too deep."""
        if id(value) in self._inside:  # else it would be written for ever
            raise CodecError(f"{where} contains itself.")
        if len(self._inside) >= DEEPEST_NESTING:
            raise CodecError(
                f"{where[:60]}… is nested too deeply: more than {DEEPEST_NESTING} levels."
            )
        self._inside.append(id(value))
        try:
            return encode(value, where)
        finally:
            self._inside.pop()

    def _encode(self, value: Any, where: str) -> Any:
        for encoder in ENCODERS:
            tree = encoder(self, value, where)
            if tree is not None:
                return tree
        raise CodecError(
            f"{where} is {kind_name(value)}, which only --pickle carries, if anything does."
        )


class ObjectReader:
    """Reads what a `ObjectWriter` has written; nothing in it can run.

    What is taken out is hardly more than the file has: a person has agreed to that size.
    """

    def __init__(self, file: BinaryIO, *, is_pickled: bool = False) -> None:
        self.file = file
        self._is_pickled = is_pickled
        self._size = file.seek(0, 2)
        self._left = MOST_READ_FACTOR * self._size  # bytes that may yet be taken
        # Places that were read, in order, and their sizes: without them a small file could name
        # the same bytes again and again.
        self._begins: list[int] = []
        self._sizes: dict[int, int] = {}

    def tree(self) -> Any:
        """Return the tree."""
        self.file.seek(-LENGTH, 2)
        length = int(self.file.read(LENGTH))
        if not 0 <= length <= self._size - LENGTH:
            raise CodecError("The other side sent a file that is not whole.")
        self.file.seek(-LENGTH - length, 2)
        return json.loads(self.file.read(length).decode())

    def read(self, at: list[Any]) -> bytes:
        """Return the bytes of one place."""
        size = self.seek(at)
        return self.file.read(size)

    def seek(self, at: list[Any]) -> int:
        """Go to a place, and return how many bytes there are; no two places overlap."""
        begin, size = int(at[0]), int(at[1])
        self._left -= size
        if min(begin, size) < 0 or begin + size > self._size or self._left < 0:
            raise CodecError("The other side sent an object that is larger than its file.")
        if size and self._sizes.get(begin) != size:  # else it is known, or nothing
            index = bisect.bisect(self._begins, begin)
            before = self._begins[index - 1] if index else 0
            after = self._begins[index] if index < len(self._begins) else self._size
            if before + self._sizes.get(before, 0) > begin or begin + size > after:
                raise CodecError("The other side sent an object with pieces that overlap.")
            self._begins.insert(index, begin)
            self._sizes[begin] = size
        self.file.seek(begin)
        return size

    def decode(self, tree: Any) -> Any:
        """Return the value of a tree."""
        if not isinstance(tree, dict):
            return tree
        if tree["t"] == "pickle":
            if not self._is_pickled:
                raise CodecError("It was pickled, and that was not asked for.")
            return pickle.loads(self.read(tree["at"]))  # noqa: S301 - asked for by name
        decoder = DECODERS.get(tree["t"])
        if decoder is None:
            raise CodecError(f"The other side sent a {str(tree['t'])[:40]!r}, unknown here.")
        return decoder(self, tree)


def kind_name(value: Any) -> str:
    """Say what something is."""
    kind = type(value)
    name = kind.__qualname__
    if kind.__module__ not in {"builtins", "__main__"}:
        name = f"{kind.__module__}.{name}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


# Plain values --------------------------------------------------------------------------------


def encode_plain(writer: ObjectWriter, value: Any, where: str) -> Any:
    """Return the tree of a plain value; None: it is none."""
    kind = type(value)
    if kind is str:  # JSON would make one character of two halves that stand side by side
        return {"t": "halves", "at": writer.write(value.encode("utf-8", "surrogatepass"))}
    if kind is int:
        return {"t": "int", "v": hex(value)}  # Python refuses to read long decimal ones
    if kind is float:
        return {"t": "float", "v": struct.pack("<d", value).hex()}  # NaNs keep their bits
    if kind is complex:
        return {"t": "complex", "v": struct.pack("<dd", value.real, value.imag).hex()}
    if kind in {bytes, bytearray}:
        return {"t": kind.__name__, "at": writer.write(value)}
    if kind in {list, tuple, set, frozenset}:
        return _encode_many(writer, value, where)
    if kind is dict:
        pairs = [
            [writer.encode(key, f"a key of {where}"), writer.encode(each, f"{where}[{key!r:.40}]")]
            for key, each in value.items()
        ]
        return {"t": "dict", "v": pairs}
    return _encode_time(value, where)


def write_texts(writer: ObjectWriter, texts: list[str | None], where: str) -> dict[str, Any]:
    """Write texts as one, and how long each of them is in bytes; what is missing has -1."""
    try:
        pieces = [b"" if text is None else text.encode() for text in texts]
    except UnicodeEncodeError:
        raise CodecError(f"{where} has half of a surrogate pair.") from None
    lengths = [-1 if text is None else len(piece) for text, piece in zip(texts, pieces)]
    places = writer.write(little_endian(array.array("i", lengths)))
    return {"lengths": places, "at": writer.write(*pieces)}


def read_texts(reader: ObjectReader, tree: Any) -> list[str | None]:
    """Read what `write_texts` has written."""
    lengths = array.array("i")
    lengths.frombytes(reader.read(tree["lengths"]))
    whole = reader.read(tree["at"])
    texts, begin = [], 0
    for length in little_endian(lengths):
        end = begin + max(length, 0)
        texts.append(None if length < 0 else whole[begin:end].decode())
        begin = end
    return texts


def has_surrogates(text: str) -> bool:
    """Has a text halves of characters, which are none?"""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _encode_many(writer: ObjectWriter, value: Any, where: str) -> Any:
    name = type(value).__name__
    if len(value) > MANY:
        kinds = set(map(type, value))
        if kinds == {float} or (kinds == {int} and max(map(abs, value)) < 1 << 63):
            code = "d" if kinds == {float} else "q"
            at = writer.write(little_endian(array.array(code, value)))
            return {"t": name, "of": code, "at": at}
    return {"t": name, "v": [writer.encode(v, f"{where}[{i}]") for i, v in enumerate(value)]}


def _encode_time(value: Any, where: str) -> Any:
    kind = type(value)
    if kind is datetime.date:
        return {"t": "date", "v": value.toordinal()}
    if kind is datetime.timedelta:
        return {"t": "timedelta", "v": [value.days, value.seconds, value.microseconds]}
    if kind in {datetime.datetime, datetime.time}:
        zone = encode_zone(value.tzinfo, where)
        if kind is datetime.datetime and _is_of_pytz(value.tzinfo):
            # Only pytz knows what it has made of the fold, and of a zone that was only put there.
            value = value.astimezone(decode_zone(zone))
        clock = [value.hour, value.minute, value.second, value.microsecond]
        day = [value.year, value.month, value.day] if kind is datetime.datetime else []
        return {"t": kind.__name__, "v": day + clock, "zone": zone, "fold": value.fold}
    return None


def encode_zone(zone: Any, where: str) -> Any:
    """Return a time zone as a name or as seconds; None is none."""
    if zone is None:
        return None
    if type(zone) is datetime.timezone:
        offset = zone.utcoffset(None)
        if zone.tzname(None) != datetime.timezone(offset).tzname(None):
            raise CodecError(f"{where} has a time zone with a name of its own: {zone}.")
        return offset.total_seconds()
    name = getattr(zone, "key", None) or getattr(zone, "zone", None)  # zoneinfo's, pytz's
    if _is_of_pytz(zone) and not name:
        return zone.utcoffset(None).total_seconds()
    if not (_is_of_pytz(zone) or type(zone).__module__.split(".")[0] == "zoneinfo") or not name:
        raise CodecError(f"{where} has a time zone that is not carried: {zone!r}.")
    return str(name)


def _is_of_pytz(zone: Any) -> bool:
    # By its name: the kernel may not have pytz.
    return type(zone).__module__.split(".")[0] == "pytz"


def decode_zone(tree: Any) -> Any:
    """Return the time zone that `encode_zone` wrote."""
    if tree is None:
        return None
    if isinstance(tree, str):
        import zoneinfo

        return zoneinfo.ZoneInfo(tree)
    return datetime.timezone(datetime.timedelta(seconds=tree)) if tree else datetime.timezone.utc


def _decode_many(reader: ObjectReader, tree: Any) -> Any:
    makers: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
    if "of" in tree:
        numbers = array.array("d" if tree["of"] == "d" else "q")
        numbers.frombytes(reader.read(tree["at"]))
        return makers[tree["t"]](little_endian(numbers))
    return makers[tree["t"]](map(reader.decode, tree["v"]))


def _decode_dict(reader: ObjectReader, tree: Any) -> Any:
    return {reader.decode(key): reader.decode(value) for key, value in tree["v"]}


def _decode_clock(_reader: ObjectReader, tree: Any) -> Any:
    kind: Any = datetime.datetime if tree["t"] == "datetime" else datetime.time
    return kind(*tree["v"], tzinfo=decode_zone(tree["zone"]), fold=tree["fold"])


def little_endian(numbers: Any) -> Any:
    """Turn numbers to the order of bytes that the file has, or back."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


# Arrays --------------------------------------------------------------------------------------


def encode_array(writer: ObjectWriter, value: Any, where: str) -> Any:
    """Return the tree of a numpy array, or of one of its scalars; None: it is neither."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic)):
        return None
    # A masked array, say: its mask would be lost.
    if type(value) is not numpy.ndarray and not isinstance(value, numpy.generic):
        raise CodecError(
            f"{where} is {kind_name(value)}, a kind of array with more than its values."
        )
    kind = "array" if isinstance(value, numpy.ndarray) else "scalar"
    return {"t": kind, "at": write_array(writer, value, where)}


def write_array(writer: ObjectWriter, value: Any, where: str) -> list[int]:
    """Write an array in numpy's own form, which for plain values has no code in it."""
    values = np.asarray(value)
    if values.dtype.hasobject:
        raise CodecError(f"{where} is an array of objects (dtype {values.dtype}).")
    if values.dtype.kind == "T":
        raise CodecError(f"{where} has texts of any length: carry {where}.astype(str).")
    if values.dtype.metadata:
        raise CodecError(f"{where} has a dtype with metadata, which would be lost.")
    if not _is_portable_dtype(values.dtype):
        why = "which numpy's own form cannot name: astype() makes another"
        raise CodecError(f"{where} has the dtype {values.dtype}, {why}.")
    # Version 3 has field names in UTF-8; numpy 1.17 is the first that reads it.
    begin = writer.file.tell()
    np.lib.format.write_array(writer.file, values, version=(3, 0), allow_pickle=False)
    return [begin, writer.file.tell() - begin]


def _is_portable_dtype(dtype: Any) -> bool:
    """Would a dtype arrive as itself? Those that packages add would be mere bytes."""
    try:
        named = np.lib.format.descr_to_dtype(np.lib.format.dtype_to_descr(dtype))
    except ValueError:  # fields that overlap
        return False
    return bool(named == dtype) and dtype.type is not np.record


def read_array(reader: ObjectReader, at: list[Any]) -> Any:
    """Read an array; one of objects, which would have to be unpickled, is refused."""
    size = reader.seek(at)
    _check_array(reader.file, size)
    reader.file.seek(int(at[0]))
    return np.lib.format.read_array(reader.file, allow_pickle=False)


def _check_array(file: BinaryIO, size: int) -> None:
    """Refuse an array that claims more values than it brings: room for them would be made first."""
    begin = file.read(8)  # numpy's name, and two numbers of a version
    is_old = begin[6:7] == b"\1"
    width = 2 if is_old else 4
    length = int.from_bytes(file.read(width), "little")
    if length > LONGEST_HEADER:
        raise CodecError("The other side sent an array that makes no sense.")
    header = ast.literal_eval(file.read(length).decode("latin-1" if is_old else "utf-8"))
    dtype, shape = np.lib.format.descr_to_dtype(header["descr"]), header["shape"]
    count = 1  # not numpy's product, which would overflow in silence
    for each in shape:
        count *= int(each)
    is_larger = count * dtype.itemsize > size - len(begin) - width - length
    # Values of no size (empty texts) would each get an object of Python's all the same.
    has_many_empty = not dtype.itemsize and count > MANY_EMPTY_VALUES
    if min(shape, default=0) < 0 or is_larger or has_many_empty:
        raise CodecError("The other side sent an array that is larger than its file.")


# Those for pandas and polars are added where they are defined (`dataframes`).
ENCODERS: list[Callable[[ObjectWriter, Any, str], Any]] = [encode_plain, encode_array]
DECODERS: dict[str, Callable[[ObjectReader, Any], Any]] = {
    "int": lambda _reader, tree: int(tree["v"], 16),
    "float": lambda _reader, tree: struct.unpack("<d", bytes.fromhex(tree["v"]))[0],
    "complex": lambda _reader, tree: complex(*struct.unpack("<dd", bytes.fromhex(tree["v"]))),
    "halves": lambda reader, tree: reader.read(tree["at"]).decode("utf-8", "surrogatepass"),
    "bytes": lambda reader, tree: reader.read(tree["at"]),
    "bytearray": lambda reader, tree: bytearray(reader.read(tree["at"])),
    **dict.fromkeys(("list", "tuple", "set", "frozenset"), _decode_many),
    "dict": _decode_dict,
    "date": lambda _reader, tree: datetime.date.fromordinal(tree["v"]),
    "timedelta": lambda _reader, tree: datetime.timedelta(*tree["v"]),
    "datetime": _decode_clock,
    "time": _decode_clock,
    "array": lambda reader, tree: read_array(reader, tree["at"]),
    "scalar": lambda reader, tree: read_array(reader, tree["at"])[()],
}
