"""A stand-in for VS Code: its own packages speak with our proxies over ZeroMQ, driven from here.

The program in `tests/raw_client` is what its extension host is: the parent of all proxies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.real_parts import real_part, run_quietly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = Path(__file__).with_name("raw_client")
NEEDS = ("node", "npm", "ps")
# Two of what VS Code's extension host has in its environment, and hands on to kernels.
LIKE_EXTENSION_HOST = {"VSCODE_ESM_ENTRYPOINT": "an entry", "VSCODE_PID": "1"}
LIMIT = 90.0  # seconds that any one command may take
ENDS_WITHIN = 20.0  # seconds until all proxies were told to end
KEPT = "REMOTER_NODE_MODULES"  # names the folder where what npm installs is kept

Event = dict[str, Any]


class RefusedError(AssertionError):
    """The client could not do what it was told."""


@dataclass
class Cell:
    """A cell that was run, and what has come of it so far."""

    key: str
    answer: int
    events: list[Event] = field(default_factory=list)
    reply: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the contents of its messages of this kind."""
        return [event["content"] for event in self.events if event["event"] == kind]

    @property
    def text(self) -> str:
        """All text that it shows: streams, values, errors."""
        texts = []
        for event in self.events:
            content = event["content"]
            texts.append(content.get("text") or content.get("data", {}).get("text/plain", ""))
            texts += content.get("traceback", [])
        return "".join(texts)


class Notebook:
    """A notebook that is open in the client."""

    def __init__(self, client: RawClient, spec: Path, file: Path) -> None:
        self.client = client
        self.spec = spec
        self.file = file
        self.started: dict[str, Any] = {}  # what was told of the last start
        self._cells = 0

    @property
    def pid(self) -> int:
        """The process id of its proxy."""
        return int(self.started["pid"])

    @property
    def states(self) -> list[str]:
        """The states in which the client thought its kernel, but for those of cells."""
        return [event["state"] for event in self._events("state")]

    @property
    def ends(self) -> list[Any]:
        """The exit codes of proxies that ended unbidden: their kernels count as dead."""
        return [event["code"] for event in self._events("died")]

    def _events(self, kind: str) -> list[Event]:
        own = (event for event in self.client.events if event["notebook"] == str(self.file))
        return [event for event in own if event["event"] == kind]

    def start(self) -> None:
        """Start a kernel for it, and run what the client runs first."""
        self.started = self._do("start", spec=str(self.spec))

    def restart(self) -> None:
        """Start another process in the place of the last, as the button does."""
        self.started = self._do("restart")

    def close(self) -> None:
        """Close it: its proxy is told to end; the end is waited for."""
        self._do("close")

    def run(self, code: str, *, seconds: float = LIMIT) -> Cell:
        """Run a cell to its end."""
        return self.done(self.send(code), seconds=seconds)

    def send(self, code: str) -> Cell:
        """Run a cell; do not wait for it."""
        key = f"{self.file.name}-{self._cells}"
        number = self.client.say("run", self.file, key=key, code=code, cell=self._cells)
        self._cells += 1
        cell = self.client.cells[key] = Cell(key, number)
        return cell

    def done(self, cell: Cell, *, seconds: float = LIMIT) -> Cell:
        """Wait for the end of a cell."""
        cell.reply = self.client.hear(cell.answer, seconds)
        return cell

    def until(self, fact: Callable[[], Any], *, seconds: float = LIMIT) -> None:
        """Listen until this is so."""
        self.client.listen(fact, seconds)

    def answer(self, value: str) -> None:
        """Type an answer to the last question."""
        self._do("answer", value=value)

    def interrupt(self) -> dict[str, Any]:
        """Press the button."""
        return self._do("interrupt")

    def complete(self, code: str) -> dict[str, Any]:
        """Ask for what may follow."""
        return self._do("complete", code=code)

    def change(self, comm: str, **state: Any) -> None:
        """Do something to a widget."""
        self._do("change", comm=comm, state=state)

    def _do(self, verb: str, **words: Any) -> dict[str, Any]:
        return self.client.hear(self.client.say(verb, self.file, **words))


class RawClient:
    """The client, between enter and exit; its end ends all proxies as closing a window does."""

    def __init__(self, log: Path) -> None:
        self.log = log  # of what went wrong in the client
        self.cells: dict[str, Cell] = {}
        self.events: list[Event] = []  # those that belong to no cell
        self._answers: dict[int, Event] = {}
        self._said = 0
        self._rest = b""

    def __enter__(self) -> Self:
        for part in NEEDS:
            real_part(part)
        environment = {**os.environ, "NODE_PATH": str(node_modules()), **LIKE_EXTENSION_HOST}
        environment.pop("JPY_PARENT_PID", None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["node", "client.js"],
                cwd=PROGRAM,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.process.stdout.close()

    def open(self, spec: Path, file: Path) -> Notebook:
        """Open a notebook with the kernel of this kernel.json."""
        notebook = Notebook(self, spec, file)
        notebook.start()
        return notebook

    def say(self, verb: str, file: Path, **words: Any) -> int:
        """Give a command; returns the number of its answer."""
        assert self.process.stdin
        self._said += 1
        command = {"id": self._said, "verb": verb, "notebook": str(file), **words}
        self.process.stdin.write(f"{json.dumps(command)}\n".encode())
        self.process.stdin.flush()
        return self._said

    def hear(self, number: int, seconds: float = LIMIT) -> dict[str, Any]:
        """Wait for an answer."""
        self.listen(lambda: number in self._answers, seconds)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RefusedError(answer["error"])
        return dict(answer["ok"])

    def listen(self, enough: Callable[[], Any], seconds: float = LIMIT) -> None:
        """Take in what the client tells until there is enough."""
        limit = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            assert self.process.stdout
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not enough():
                left = limit - time.monotonic()
                assert left > 0, f"not within {seconds} s; {self._state()}"
                if selector.select(left):
                    self._take(os.read(self.process.stdout.fileno(), 1 << 20))

    def _take(self, data: bytes) -> None:
        assert data, f"the client has ended; {self._state()}"
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            event = json.loads(line)
            if "answer" in event:
                self._answers[event["answer"]] = event
            elif "key" in event:
                self.cells[event["key"]].events.append(event)
            else:
                self.events.append(event)

    def _state(self) -> str:
        last = [cell.events[-3:] for cell in list(self.cells.values())[-2:]]
        return f"{last} {self.events[-3:]} {self.log.read_text()[-2000:]}"


def node_modules() -> Path:
    """Install what the lock file names, once, and return its folder."""
    locked = (PROGRAM / "package-lock.json").read_bytes()
    shelf = Path(os.environ.get(KEPT) or Path(tempfile.gettempdir(), "remoter-node-modules"))
    folder = shelf / hashlib.sha256(locked).hexdigest()[:16]
    with _one_at_a_time(shelf):
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copyfile(PROGRAM / name, folder / name)
            npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            run_quietly(npm, cwd=folder)
            (folder / "whole").touch()
    return folder / "node_modules"


@contextlib.contextmanager
def _one_at_a_time(shelf: Path) -> Iterator[None]:
    shelf.mkdir(mode=0o700, exist_ok=True)
    with (shelf / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
