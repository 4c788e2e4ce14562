"""Somebody at a notebook: one proxy, a client of it, and cells without end.

The talker knows what it has asked for and hears what comes; the ledger judges. When the
proxy dies under it, it does what Jupyter does: starts another one with the same connection
file. A cell that had not ended by then is left to `remoter outputs`.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import zmq
from jupyter_client.connect import write_connection_file
from jupyter_client.session import Session

from tests.soak.ledger import Entry, Ledger, Word
from tests.soak.recipes import Recipe, any_cell, begin, echo_cell, first_cell, plain_cell

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

CHANNELS = ("shell", "control", "stdin", "iopub")
READY_WITHIN = 60.0  # seconds that a proxy has to answer
TRIES = 3  # with other ports, as Jupyter would
LEAVES_WITHIN = 15.0  # seconds that a proxy has for a shutdown, before it is killed
STUCK = 150.0  # seconds without its end after which a cell is given up
FREE_WITHIN = 10.0  # seconds from an interrupt to the next cell's end
AGAIN_AFTER = 2.0  # seconds until who was told to try again does
LAST_TRIES = 5
AT_ONCE = 100  # messages of one channel, before another one is looked at
NUDGE_EVERY = 0.5  # seconds
LONGEST_PAUSE = 0.12  # seconds between two cells that are submitted while a kernel starts


class StuckError(Exception):
    """What was waited for did not come."""


class Talker:
    """One session, from here."""

    def __init__(
        self, name: str, language: str, folder: Path, runs: Path, dice: random.Random
    ) -> None:
        self.name = name
        self.language = language
        self.folder = folder
        self.runs = runs  # the list of what ran there
        self.dice = dice
        self.ledger = Ledger()
        self.front_lock = threading.Lock()  # held by whoever starts, stops or kills the proxy
        self.lives = 0  # how many kernels there may have been
        self.mended_at: float | None = None  # when the last fault was over, until all is well
        self.longest_recovery = 0.0  # seconds
        self.troubles: list[str] = []
        self.has_begun = threading.Event()
        self.front: subprocess.Popen[bytes]
        self._file = folder / f"{name}.json"
        self._session: Session
        self._context = zmq.Context()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._poller = zmq.Poller()
        self._tokens = 0
        self._open: dict[str, tuple[Entry, Recipe]] = {}  # by message id: what is not over
        self._heeded: set[str] = set()  # cells that said that one should interrupt
        self._deaths = 0
        self._is_answered = self._is_heard = False  # by this proxy: on shell, and on iopub
        self._may_be_stuck = False  # is the kernel at something that nobody answers any more?

    # --- from a fault's side ---

    def note_death(self) -> None:
        """Hear that somebody is being killed: what has no reply to tell it may be lost."""
        self._deaths += 1

    # --- the proxy ---

    def start(self) -> None:
        """Start the proxy, and wait until it answers."""
        for left in reversed(range(TRIES)):
            write_connection_file(str(self._file), key=secrets.token_hex(16).encode())
            self._session = Session(key=json.loads(self._file.read_text())["key"].encode())
            self._session.digest_history_size = 0  # what comes twice is to be heard twice
            try:
                self._start_front()
            except StuckError:
                # Its ports were free a moment ago; whoever else begins now may have them.
                if not left or self.front.poll() is None:
                    raise
            else:
                return

    def _start_front(self) -> None:
        command = [sys.executable, "-P", "-m", "remoter_kernel"]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.front = subprocess.Popen(
                [*command, "-f", str(self._file), "--remote", self.name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._connect()

    def _connect(self) -> None:
        self._hang_up()
        about = json.loads(self._file.read_text())
        for channel in CHANNELS:
            made = self._context.socket(zmq.SUB if channel == "iopub" else zmq.DEALER)
            made.linger = 0
            made.sndhwm = made.rcvhwm = 0
            if channel == "iopub":
                made.subscribe(b"")
            else:
                made.routing_id = self._session.bsession
            made.connect(f"tcp://127.0.0.1:{about[f'{channel}_port']}")
            self._sockets[channel] = made
            self._poller.register(made, zmq.POLLIN)
        # As Jupyter's clients do: what is published before one is subscribed is lost.
        self._is_answered = self._is_heard = False
        until = time.monotonic() + READY_WITHIN
        while not (self._is_answered and self._is_heard):
            if time.monotonic() > until or self.front.poll() is not None:
                last = (self.folder / f"{self.name}.log").read_text(errors="replace")[-500:]
                message = f"the front did not answer (status {self.front.poll()}): {last}"
                raise StuckError(message)
            self._send("kernel_info_request", {})
            self._hear(NUDGE_EVERY)

    def _hang_up(self) -> None:
        for made in self._sockets.values():
            self._poller.unregister(made)
            made.close()
        self._sockets.clear()

    def _replace_front(self) -> None:
        """Start another proxy in place of one that was killed."""
        with self.front_lock:
            self.front.wait()
            # What waits for an answer or an interrupt would wait for ever.
            waits = any(recipe.answer or recipe.is_interrupted for _, recipe in self._open.values())
            self._may_be_stuck |= waits
            for entry, _ in self._open.values():
                entry.words.add(Word.FRONT_DIED)
                if self._may_be_stuck:
                    self._allow_interrupt(entry)
            self._open.clear()
            self._start_front()

    def _free_kernel(self) -> None:
        """Interrupt what a dead proxy has left, until another cell gets its turn."""
        self._send("interrupt_request", {}, channel="control")
        entry = self._ask_for(plain_cell(self._new_token(), self.language))
        self._allow_interrupt(entry)
        until = time.monotonic() + FREE_WITHIN
        while not entry.is_over and self.front.poll() is None and time.monotonic() < until:
            self._hear(0.2)
        self._may_be_stuck = not entry.heard.marks

    def _heed(self) -> None:
        """Interrupt, where a cell says so and one may wait for what nobody has heard it say."""
        told = {entry.token for entry, _ in self._open.values() if Word.ASKED in entry.heard.words}
        waits = any(
            (recipe.answer and not entry.prompts)
            or (recipe.is_interrupted and not entry.heard.marks)
            for entry, recipe in self._open.values()
        )
        if waits and told - self._heeded:
            self._heeded |= told
            self._may_be_stuck = True
            for entry, _ in self._open.values():
                self._allow_interrupt(entry)

    @staticmethod
    def _allow_interrupt(entry: Entry) -> None:
        """Expect it to end early; R says no word about that."""
        entry.may_be_interrupted = True
        entry.words.add(Word.INTERRUPTED)

    def restart(self, then: int = 0) -> None:
        """Restart the kernel, as Jupyter does; the new one knows nothing of the old.

        `then`: so many cells are submitted while it starts, and after that.
        """
        with self.front_lock:
            if self.front.poll() is not None:
                return
            self.lives += 1
            self._leave(is_restart=True)
            self._start_front()
        self._ask_for(first_cell(self._new_token(), self.language))
        for _ in range(then):
            self._ask_for(plain_cell(self._new_token(), self.language))
            self._hear(self.dice.uniform(0.0, LONGEST_PAUSE))
        self._until_over()

    def stop(self) -> None:
        """Shut the kernel down, and the session with it."""
        self._leave(is_restart=False)
        self.close()

    def close(self) -> None:
        """End the proxy, if it is still there, and let everything go."""
        if self.front.poll() is None:
            self.front.kill()
            self.front.wait()
        self._hang_up()
        self._context.term()

    def _leave(self, *, is_restart: bool) -> None:
        self._send("shutdown_request", {"restart": is_restart}, channel="control")
        until = time.monotonic() + LEAVES_WITHIN
        while self.front.poll() is None and time.monotonic() < until:
            self._hear(0.1)
        if self.front.poll() is None:
            self.troubles.append(f"{self.name}: the front did not leave when it was asked to")
            self.front.kill()
        self.front.wait()

    # --- asking ---

    def work(self, is_over: Callable[[], bool]) -> None:
        """Run cells until it is time to end; trouble of the talker's own is told."""
        try:
            self.start()
            self.run(first_cell(self._new_token(), self.language))
            self.has_begun.set()
            while not is_over():
                self._do_something()
            self._end_well()
        except Exception as error:  # noqa: BLE001 - a thread's end must not be silent
            self.troubles.append(f"{self.name}: {type(error).__name__}: {error}")

    def _end_well(self) -> None:
        """In good weather everyone gets an answer."""
        for _ in range(LAST_TRIES):
            if self.run(plain_cell(self._new_token(), self.language)):
                return
        self.troubles.append(f"{self.name}: no cell is run any more")

    def _do_something(self) -> None:
        (what,) = self.dice.choices(
            [
                self._run_some,
                self._ask_around,
                self._talk_to_a_comm,
                self.restart,
                self._run_while_it_starts,
            ],
            [40, 8, 4, 1, 1],
        )
        what()

    def _run_while_it_starts(self) -> None:
        """Submit cells, one after the other, while a restarted kernel becomes ready."""
        self.restart(then=self.dice.randint(10, 30))

    def _run_some(self) -> None:
        """Run a cell, or several that are submitted at once."""
        recipes = []
        for _ in range(self.dice.choice((1, 1, 2, 4))):
            recipes.append(any_cell(self._new_token(), self.language, self.dice))
            if recipes[-1].is_interrupted:
                break  # an interrupt means what was submitted after it, too
        self.run(*recipes)

    def _ask_around(self) -> None:
        """Ask what a notebook asks between its cells."""
        for kind, content in (
            ("complete_request", {"code": "pri", "cursor_pos": 3}),
            ("inspect_request", {"code": "print", "cursor_pos": 5, "detail_level": 0}),
            ("is_complete_request", {"code": "1 + 1"}),
            ("kernel_info_request", {}),
        ):
            entry = Entry(self._new_token(), kind, is_cell=False)
            self._send(kind, content, entry=entry)
        self._until_over()

    def _talk_to_a_comm(self) -> None:
        """Say a few things to an echo; its answers come under what was said."""
        if self.language == "R":
            return
        deaths = self._deaths
        target = echo_cell(self._new_token())
        if not self.run(target) or not self.ledger.by_token[target.token].heard.marks:
            return  # its kernel has died, perhaps before that: the next one knows no target
        comm = secrets.token_hex(16)
        entries = []
        for number in range(-1, 3):
            kind = "comm_open" if number < 0 else "comm_msg"
            entry = Entry(self._new_token(), kind, is_replied=False, is_cell=False)
            entry.marks = int(number >= 0)
            content = {"comm_id": comm, "target_name": "echo", "data": {"token": entry.token}}
            self._send(kind, content, entry=entry)
            entries.append(entry)
        # Nothing is owed to what has no reply by a kernel that has died.
        self._until_over(lambda: self._deaths != deaths)
        if self._deaths != deaths:
            for entry in entries:
                entry.words |= {Word.GAPS, Word.FRONT_DIED}

    def run(self, *recipes: Recipe) -> bool:
        """Submit cells at once and wait for their ends; return whether all were run."""
        entries = [self._ask_for(recipe) for recipe in recipes]
        self._until_over()
        if any(Word.NOT_RUN in entry.heard.words for entry in entries):
            self._listen(AGAIN_AFTER)
            return False
        return all(entry.is_over for entry in entries)

    def _ask_for(self, recipe: Recipe) -> Entry:
        token = recipe.token
        entry = Entry(token, recipe.name, marks=recipe.marks, optional=recipe.optional)
        entry.may_be_interrupted = recipe.is_interrupted
        entry.may_be_aborted = self.language == "R"
        content = {
            "code": begin(token, str(self.runs), self.language) + recipe.code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": True,
            "stop_on_error": False,
        }
        self._send("execute_request", content, entry=entry, recipe=recipe)
        return entry

    def _new_token(self) -> str:
        self._tokens += 1
        return f"{self.name.replace('-', '')}c{self._tokens}"

    def _send(
        self,
        kind: str,
        content: dict[str, Any],
        *,
        channel: str = "shell",
        entry: Entry | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        metadata = {"cellId": entry.token} if entry else {}
        message = self._session.msg(kind, content, metadata=metadata)
        if entry:
            name = message["header"]["msg_id"]
            self.ledger.entries[name] = entry
            self._open[name] = (entry, recipe or Recipe(entry.token, kind, "", 0))
        self._session.send(self._sockets[channel], message)

    # --- hearing ---

    def _until_over(self, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Listen until everything that was asked for has ended, or is given up."""
        until = time.monotonic() + STUCK
        while (self._open or self._may_be_stuck) and not is_enough():
            if self.front.poll() is not None:
                self._replace_front()
            self._heed()
            if self._may_be_stuck:
                self._free_kernel()
            self._hear(0.2)
            if time.monotonic() > until:
                for entry, _ in self._open.values():
                    self.troubles.append(f"{entry.token} ({entry.what}) never ended")
                break
        self._open.clear()

    def _listen(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._hear(left)

    def _hear(self, seconds: float) -> None:
        """Take in what is there, or what comes first within some seconds."""
        ready = dict(self._poller.poll(int(seconds * 1000)))
        for channel, made in self._sockets.items():
            for _ in range(AT_ONCE if made in ready else 0):
                _, message = self._session.recv(made)
                if message is None:
                    break
                self._take(channel, message)

    def _take(self, channel: str, message: dict[str, Any]) -> None:
        kind, content = message["msg_type"], message["content"]
        name = (message["parent_header"] or {}).get("msg_id", "")
        self._is_answered |= kind == "kernel_info_reply"
        self._is_heard |= channel == "iopub"
        entry = self.ledger.entries.get(name)
        if entry is None:
            return
        before = len(entry.heard.marks)
        if channel == "iopub":
            self._take_output(entry, kind, content, message["metadata"])
        elif channel == "stdin":
            entry.prompts += 1
            answer = self._session.msg("input_reply", {"value": "1"}, parent=message)
            self._session.send(self._sockets["stdin"], answer)
        else:
            entry.replies += 1
            if content.get("status") == "aborted":
                entry.words.add(Word.ABORTED)
        if len(entry.heard.marks) > before:
            self._note_recovery()
        _, recipe = self._open.get(name, (entry, None))
        if recipe and recipe.is_interrupted and entry.heard.marks:
            self._open[name] = (entry, replace(recipe, is_interrupted=False))
            self._send("interrupt_request", {}, channel="control")
        if entry.is_over:
            self._open.pop(name, None)

    @staticmethod
    def _take_output(
        entry: Entry, kind: str, content: dict[str, Any], metadata: dict[str, Any]
    ) -> None:
        if kind == "status":
            entry.idles += content["execution_state"] == "idle"
        elif kind == "comm_msg":
            entry.heard.take_mark(content["data"]["token"], 0)
        else:
            entry.heard.take(kind, content, metadata)

    def _note_recovery(self) -> None:
        """Something is heard from there: how long after the last fault is that?"""
        mended, self.mended_at = self.mended_at, None
        if mended:
            self.longest_recovery = max(self.longest_recovery, time.monotonic() - mended)
