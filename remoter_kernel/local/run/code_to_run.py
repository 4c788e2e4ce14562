"""What is to be run there without Jupyter: a local file, or a line of code.

A notebook is sent in cells, all at once, so that it goes on there whatever becomes of this machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remoter_kernel.errors import Usage
from remoter_kernel.local.history.executions import join_lines
from remoter_kernel.local.history.notebook_file import NotebookText, naming_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LANGUAGES = {".py": "python", ".r": "R"}
# Tags of cells, with the meaning that nbclient gives them.
SKIP_TAG, MAY_FAIL_TAG = "skip-execution", "raises-exception"
# IPython warns at each `exit`; a script may call it. Its own `exit` would end the kernel.
_PYTHON = """
__import__("warnings").filterwarnings("ignore", "To exit: use")
__import__("sys").argv[:] = {words}
exit = quit = __import__("sys").exit
"""
# R packages such as optparse call base::commandArgs, so it is replaced there. R's own `quit` would
# end the kernel: ours is an error that `runner.quit_status` knows.
_R = """
local({{
  words <- c({words})
  told <- function(trailingOnly = FALSE) {{
    if (trailingOnly) words[-1] else c("R", "--args", words[-1])
  }}
  unlockBinding("commandArgs", baseenv())
  assign("commandArgs", told, envir = baseenv())
  lockBinding("commandArgs", baseenv())
  leave <- function(save = "default", status = 0, runLast = TRUE)
    stop("quit(status = ", as.integer(status), ")", call. = FALSE)
  attach(list(quit = leave, q = leave), name = "remoter", warn.conflicts = FALSE)
}})
"""
PREAMBLES = {"python": _PYTHON, "R": _R}


@dataclass(frozen=True)
class CodeCell:
    """The code of one execute_request."""

    source: str
    index: int = 0  # its place in the notebook
    cell_id: str = ""
    may_fail: bool = False


@dataclass(frozen=True)
class Program:
    """A script, a notebook or a line of code, and its arguments."""

    argv: tuple[str, ...]  # its name, then its arguments
    cells: tuple[CodeCell, ...]
    language: str = ""  # if it is known
    notebook: NotebookText | None = None

    @property
    def name(self) -> str:
        """What the script finds as its own name: the file's, `-c` or `-`."""
        return self.argv[0]

    def preamble(self, language: str) -> str:
        """Return the code that sets arguments and `exit` before, in the kernel's language."""
        if self.language and language and self.language.lower() != language.lower():
            raise Usage(
                f"{self.name} is written in {self.language}, and the kernel there speaks "
                f"{language}.",
                f"Add a remote whose kernel speaks {self.language} (remoter add --kernel).",
            )
        has_arguments = len(self.argv) > 1
        if language not in PREAMBLES:
            if has_arguments:
                raise Usage(
                    f"Arguments can be handed to Python and R, and not to {language}.",
                    "Run it without arguments.",
                )
            return ""
        if self.notebook and not has_arguments:
            return ""  # it runs as in Jupyter
        return PREAMBLES[language].format(words=_as_literals(language, self.argv))


def code_program(code: str, arguments: Sequence[str] = (), name: str = "-c") -> Program:
    """Make a program of a text."""
    _check_text(code, "The code")
    return Program((name, *arguments), (CodeCell(code),))


def read_program(path: Path, arguments: Sequence[str] = ()) -> Program:
    """Read a script or a notebook; `Usage` if it is none, `HereLacks` if it cannot be read."""
    words = (str(path), *arguments)
    if path.is_dir():
        raise Usage(f"{path} is a folder.", "Name a script or a notebook.")
    if path.suffix == ".ipynb":
        notebook = NotebookText(path)
        try:
            return Program(
                words, tuple(_code_cells(notebook)), _language_of(notebook.text), notebook
            )
        except (AttributeError, TypeError) as error:
            raise Usage(
                f"{path} is not what a notebook should be ({error}).", "Open it in Jupyter first."
            ) from error
    with naming_file(path, "read", "Name a file of this machine."):
        content = path.read_bytes()
    cell = CodeCell(decode_script(content, str(path)))
    return Program(words, (cell,), LANGUAGES.get(path.suffix.lower(), ""))


def decode_script(code: bytes, name: str) -> str:
    """Decode a script as Python would: without a byte order mark, with any line ends."""
    try:
        text = code.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = code[: error.start].count(b"\n") + 1
        raise Usage(
            f"{name}, line {line}: this is not UTF-8 text.", "Save it as UTF-8, and run it again."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _code_cells(notebook: NotebookText) -> list[CodeCell]:
    pieces = []
    for place, cell in enumerate(notebook.cells):
        source = join_lines(cell.get("source"))
        tags = (cell.get("metadata") or {}).get("tags") or ()
        if cell.get("cell_type") == "code" and source.strip() and SKIP_TAG not in tags:
            name = str(cell.get("id") or "")
            pieces.append(CodeCell(source, place, name, may_fail=MAY_FAIL_TAG in tags))
    return pieces


def _language_of(text: str) -> str:
    metadata = json.loads(text).get("metadata") or {}
    for key, name in (("language_info", "name"), ("kernelspec", "language")):
        language = (metadata.get(key) or {}).get(name)
        if language:
            return str(language)
    return ""


def _as_literals(language: str, words: Sequence[str]) -> str:
    if language == "python":
        return repr(list(words))
    for word in words:
        _check_text(word, f"{word!a} is handed to the script, and")
    # What JSON writes of a text, R reads as the same text, but for its pairs of surrogates.
    return ", ".join(json.dumps(word, ensure_ascii=False) for word in words)


def _check_text(text: str, what: str) -> None:
    """Refuse a text with lone surrogates: an R kernel dies of them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Usage(
            f"{what} is not UTF-8 text.", "Write it otherwise, and run it again."
        ) from error
