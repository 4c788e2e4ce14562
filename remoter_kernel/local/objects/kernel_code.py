"""Makes the text of what a kernel is asked to do for `push` and `pull`, in its own language."""

from __future__ import annotations

import ast
import json
from functools import cache
from importlib import resources
from typing import Any

PACKAGE = "remoter_kernel.local.objects.codecs"
CODEC_MODULES = ("values", "dataframes", "to_r", "from_r", "object_job")  # each needs those before


def python_code(job: dict[str, Any]) -> str:
    """Return one expression that runs a job, and leaves no name in the kernel."""
    scope = '{"__name__": "remoter_carried"}'
    # A person may have given other values to the names `exec` and `globals`.
    begin = f"(lambda scope: (__import__('builtins').exec({_codec_source()!r}, scope), scope)[1])"
    return f"{begin}({scope})['run_job']({job!r}, __import__('builtins').globals())"


def r_code(job: dict[str, Any]) -> str:
    """Return the same in R."""
    # Twice: once for jsonlite, and once as a text of R's, whose escapes are those of JSON.
    words = json.dumps(json.dumps(job))
    text = (resources.files(PACKAGE) / "objects.R").read_text(encoding="utf-8")
    ask = f"carry_out(jsonlite::fromJSON({words}, simplifyVector = FALSE))"
    return f"invisible(local({{\n{text}\n{ask}\n}}, envir = new.env(parent = baseenv())))"


@cache  # the same for each job
def _codec_source() -> str:
    """Return all parts as one module, without what they import of each other.

    The lines stay as they are: what newer Pythons make of an f-string, older ones cannot read.
    """
    lines = ["from __future__ import annotations"]
    for part in CODEC_MODULES:
        text = (resources.files(PACKAGE) / f"{part}.py").read_text(encoding="utf-8")
        lines += _without_own_imports(text)
    return "\n".join(lines)


def _without_own_imports(text: str) -> list[str]:
    lines = text.splitlines()
    for statement in ast.parse(text).body:
        named = str(statement.module) if isinstance(statement, ast.ImportFrom) else ""
        if named == "__future__" or named.startswith("remoter_kernel"):
            for number in range(statement.lineno, (statement.end_lineno or 0) + 1):
                # Empty, not gone: the numbers in a traceback stay right within a part.
                lines[number - 1] = ""
    return lines
