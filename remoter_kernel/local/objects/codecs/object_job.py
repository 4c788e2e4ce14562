"""What a kernel is asked to do: write objects of the person's to a file, or take them from one.

Leaves no name behind but those that were asked for; what happened is in a file beside.
"""

from __future__ import annotations

import difflib
import json
import os
import pickle
import unicodedata
from typing import Any

from remoter_kernel.local.objects.codecs.from_r import RReader
from remoter_kernel.local.objects.codecs.to_r import RWriter
from remoter_kernel.local.objects.codecs.values import CodecError, ObjectReader, ObjectWriter

MOST_SUGGESTIONS = 3  # names that something was perhaps meant by


def run_job(job: dict[str, Any], names: dict[str, Any]) -> None:
    """Do as `job` says with a kernel's names; write down what came of it."""
    try:
        words = pack_objects(job, names) if job["do"] == "pack" else unpack_objects(job, names)
    except CodecError as error:
        words = {"refused": str(error)}
    except ModuleNotFoundError as error:
        words = {"refused": f"The package {error.name} is needed, and missing."}
    except MemoryError:
        words = {"refused": "There is not enough memory for it."}
    # No Exception: the kernel would end this cell without a word in the file that is waited for.
    except KeyboardInterrupt:
        words = {"refused": "It was interrupted."}
    except RecursionError:
        words = {"refused": "It is nested too deeply."}
    except Exception as error:
        words = {"refused": f"That cannot be: {type(error).__name__}: {error}"[:500]}
    with open(job["answer"], "w", encoding="utf-8") as file:
        json.dump(words, file)


def pack_objects(job: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """Write the objects with these names to a new file that only its owner can read."""
    wanted = normalize_names(job["names"])
    for name in wanted:
        if name not in names:
            raise CodecError(f"There is no {name!r}{did_you_mean_names(name, names)}.")
    # 0o600: `open` alone would let the umask decide who may read a person's object.
    handle = os.open(job["path"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    pickled = []
    with open(handle, "wb") as file:
        writer = (RWriter if job["for_r"] else ObjectWriter)(file)
        trees = []
        for name in wanted:
            tree = encode_or_pickle(writer, names[name], name, is_pickled=job["is_pickled"])
            pickled += [name] if isinstance(tree, dict) and tree["t"] == "pickle" else []
            trees.append(tree)
        writer.finish(trees)
        size = file.tell()
    objects = [describe_value(names[name]) for name in wanted]
    return {"size": size, "objects": objects, "pickled": pickled}


def encode_or_pickle(writer: Any, value: Any, name: str, *, is_pickled: bool) -> Any:
    """Return an object's tree; where there is none, it is pickled, if that was asked for."""
    try:
        return writer.encode(value, name)
    except Exception:
        if not is_pickled:
            raise
    try:
        return {"t": "pickle", "at": writer.write(pickle.dumps(value, protocol=4))}  # 3.4 reads it
    except Exception as error:
        raise CodecError(f"{name} cannot be pickled either: {error}") from error


def unpack_objects(job: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """Take all objects out of a file, and then give them their names."""
    with open(job["path"], "rb") as file:
        kind = RReader if job["for_r"] else ObjectReader
        reader = kind(file, is_pickled=job["is_pickled"])
        values = [reader.decode(tree) for tree in reader.tree()]
    if len(values) != len(job["names"]):
        raise CodecError("Not as many objects came as were sent.")
    objects = [describe_value(value) for value in values]
    names.update(zip(normalize_names(job["names"]), values))  # from here on nothing may fail
    return {"objects": objects}


def normalize_names(names: list[str]) -> list[str]:
    """Return names as Python keeps them, which has one form for letters that look alike."""
    # As Python does with each name in code, before it looks for it.
    return [unicodedata.normalize("NFKC", name) for name in names]


def did_you_mean_names(name: str, names: dict[str, Any]) -> str:
    """Say which names are like this one, if any are."""
    known = [each for each in names if not each.startswith("_")]
    near = difflib.get_close_matches(name, known, MOST_SUGGESTIONS)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def describe_value(value: Any) -> str:
    """Say what something is, in a few words."""
    kind = type(value).__name__
    # Of arrays, frames and series alike, whichever package they are of.
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"{kind}, {' x '.join(map(str, shape))}"
    if isinstance(value, (list, tuple, set, frozenset, dict, str, bytes)):
        return f"{kind}, {len(value)}"
    return kind
