"""A far kernel, in two languages, at the end of a path that breaks; what its cells have shown."""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from bench.proxy import Proxy
from tests.conftest import marked
from tests.real_jupyter import StartedKernel, started_kernel
from tests.real_parts import real_part
from tests.whole.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

WAIT = 60.0  # seconds


@dataclass(frozen=True)
class Language:
    """How to say the same in Python and in R."""

    kernel: str
    line: str  # prints `line {n}` and waits for {pause} seconds
    say: str  # prints {text}
    append: str  # adds {n} to `ran` and prints how many there are
    begin: str  # makes `ran`
    all: str  # prints all of `ran`

    def count(self, lines: int, pause: float) -> str:
        """Return a cell that prints so many lines.

        R says what is printed after each whole expression, so each line is one.
        """
        return "\n".join(self.line.format(n=n, pause=pause) for n in range(lines))


PYTHON = Language(
    kernel="python3",
    line="print('line', {n}, flush=True); import time; time.sleep({pause})",
    say="print('{text}')",
    begin="ran = []",
    append="ran.append({n}); print('line', len(ran))",
    all="print(*ran)",
)
R = Language(
    kernel="ir",
    line="cat('line {n}\\n'); Sys.sleep({pause})",
    say="cat('{text}\\n')",
    begin="ran <- c()",
    append="ran <- c(ran, {n}); cat('line', length(ran), '\\n')",
    all="cat(ran); cat('\\n')",
)
LANGUAGES = {"python": PYTHON, "R": R}


class Outage:
    """A kernel, the path to it, and a conversation with it."""

    def __init__(
        self,
        language: Language,
        path: Proxy,
        kernel: StartedKernel,
        far: FarSide,
        here: JupyterHere,
    ) -> None:
        self.language = language
        self.path = path
        self.kernel = kernel
        self.far = far
        self.here = here
        self.talk = Talk(kernel.client)
        self.talk.case(lambda talk: talk.run(language.begin))

    # --- what is said ---

    def text(self, cell: str, name: str = "stdout") -> str:
        """Return what a cell has printed, as far as it has come."""
        return "".join(
            m["content"]["text"]
            for m in self.heard(cell)
            if m["msg_type"] == "stream" and m["content"]["name"] == name
        )

    def lines(self, cell: str) -> list[int]:
        """Return the numbers of the lines that came in a cell so far."""
        return [int(number) for number in re.findall(r"line (\d+) ?\n", self.text(cell))]

    def heard(self, cell: str) -> list[dict[str, Any]]:
        """Return what was published in a cell."""
        return [
            m
            for channel, m in self.talk.heard
            if channel == "iopub" and m["parent_header"].get("msg_id") == cell
        ]

    def errors(self, cell: str) -> list[dict[str, Any]]:
        """Return the errors of a cell."""
        return [m["content"] for m in self.heard(cell) if m["msg_type"] == "error"]

    def replies(self, *cells: str) -> list[list[str]]:
        """Return the status of each reply to each of these cells."""
        said = [(m["parent_header"].get("msg_id"), m["content"]) for m in self.talk._of("shell")]
        return [[content["status"] for asker, content in said if asker == cell] for cell in cells]

    def is_over(self, *cells: str) -> bool:
        """Have these cells their reply and their idle?"""
        return all(self.talk._is_done(cell) for cell in cells)

    # --- what is waited for ---

    def end(self, *cells: str, seconds: float = WAIT) -> float:
        """Wait until these cells are over; return for how many seconds."""
        begun = time.monotonic()
        self.talk.listen(lambda: self.is_over(*cells), seconds=seconds)
        return time.monotonic() - begun

    def lines_come(self, cell: str, least: int) -> None:
        """Wait until so many lines have come in a cell."""
        self.talk.listen(lambda: len(self.lines(cell)) >= least, seconds=WAIT)

    def listen_for(self, seconds: float) -> None:
        """Hear what comes in that time."""
        with contextlib.suppress(AssertionError):
            self.talk.listen(lambda: False, seconds=seconds)

    def status(self) -> str:
        """Return what `%remoter status` says, which the proxy answers by itself."""
        cell = self.talk.queue("%remoter status")
        self.talk.done(cell)
        return self.text(cell)

    def until_noticed(self, limit: float = WAIT) -> float:
        """Wait until the proxy knows that its link is down; return for how many seconds."""
        begun = time.monotonic()
        while "up for" in self.status():
            assert time.monotonic() < begun + limit, "the front takes a dead link for a good one"
            self.listen_for(0.2)
        return time.monotonic() - begun

    # --- who is there ---

    @property
    def evaluator(self) -> psutil.Process:
        """The process that answers for the session."""
        (found,) = [p for p in marked() if p.pid == self.door["pid"]]
        return found

    @property
    def session(self) -> Path:
        """The folder of the session."""
        sessions = (self.far.home / ".local/share/remoter-kernel/sessions").glob("*/session.json")
        key = self.kernel.client.session.key
        from remoter_kernel.local.proxy.sockets import key_fingerprint

        name = key_fingerprint(key.decode())
        (found,) = [p.parent for p in sessions if json.loads(p.read_text())["kernel_id"] == name]
        return found

    @property
    def door(self) -> dict[str, Any]:
        """What its evaluator has said of itself."""
        words: dict[str, Any] = json.loads((self.session / "door.json").read_text())
        return words

    def memory(self) -> dict[str, int]:
        """Return how much memory our processes have to themselves, in bytes."""
        processes = {"front": psutil.Process(self.kernel.pid), "evaluator": self.evaluator}
        return {name: one.memory_full_info().uss for name, one in processes.items()}


@contextlib.contextmanager
def far_kernel(
    language: Language,
    here: JupyterHere,
    sshd: RealSshd,
    far: FarSide,
    folder: Path,
    **width: Any,
) -> Iterator[Outage]:
    """Start a kernel at the end of a path of its own."""
    if language is R:
        real_part("irkernel")
    with Proxy(sshd.port, **width) as path:
        config = folder / "ssh_config"
        # The key is known by the sshd's own port; the path has another.
        name = f"[127.0.0.1]:{sshd.port}"
        sshd.ssh_config(config, "outage", extra=f"Port {path.port}\nHostKeyAlias {name}")
        spec = here.add_remote(
            "outage",
            "outage",
            language="R" if language is R else "python",
            ssh_config=config,
            python=str(far.python),
            kernel=language.kernel,
        )
        with started_kernel(spec) as kernel:
            yield Outage(language, path, kernel, far, here)


def in_order(numbers: Sequence[int], count: int) -> bool:
    """Are these all numbers below `count`, each once, in order?"""
    return list(numbers) == list(range(count))
