"""One ssh on its way in: started, listened to step by step, and waited for.

What it says at LogLevel DEBUG1 names keys, ciphers and methods, and no secrets; it is kept in
memory until the login is over.

From the step "login" on, a server's own words may stand among those of ssh (a banner, what it
says before it asks): nothing is learned from them but whether ssh says that it is inside.
"""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from remoter_kernel.local.login.login import ResponseTimeout
from remoter_kernel.local.login.prompts import to_one_line
from remoter_kernel.protocol.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NO_WINDOW: int = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # Windows would open a console
ENDS_WITHIN = 2.0  # seconds
MOST_STDERR = 256 * 1024  # characters: the last ones are kept
LONGEST_LINE = 64 * 1024  # bytes: ssh's own lines are a little over 1,000 at the most
# How each step is known to have begun: by the start of a line.
STEPS = (("debug1: Server host key: ", "host key"), ("debug1: SSH2_MSG_NEWKEYS received", "login"))
CIPHER = "debug1: kex: server->client cipher: "
KEX_SENT = "debug1: expecting SSH2_MSG_KEX"
KEX_REPLY = re.compile(r"debug1: SSH2_MSG_KEX.*REPLY received$")
AUTHENTICATED = "Authenticated to "
LOCAL_VERSION = re.compile(
    r"debug1: Local version string SSH-2\.0-OpenSSH_(?:for_Windows_)?(\d{1,3})\.(\d{1,3})"
)
MOST_SERVER_LINES = 60  # lines
# How its own lines begin, apart from what it passes on of others.
OPENSSH_LINE = re.compile(
    r"debug\d|ssh: |OpenSSH_|Connection |Connecting |Authenticated |Received disconnect |"
    r"Disconnected |Warning: |\*\* |kex_exchange_identification|ssh_exchange|ssh_dispatch|"
    r"client_loop|banner exchange|Unable to negotiate|Timeout, |Host key verification|Load key |"
    r"sign_and_send_pubkey|no such identity|Bad |Control|mux_|\S+@\S+: Permission denied|"
    r"Permission denied|Pseudo-terminal"
)
# Since this OpenSSH, "(user@host) " stands before each question of a server
LABELS_PROMPTS_SINCE = (8, 5)


class SSHDebugLog:
    """What ssh tells of itself, line by line, until it has logged in (pure)."""

    def __init__(self, on_step: Callable[[str], None]) -> None:
        self.step = "connect"
        self.seconds: dict[str, float] = {}  # how long each step took
        self.cipher = ""
        self.host_key = ""  # its kind and its fingerprint
        self.round_trip = math.inf  # seconds; the server's sums are in it
        self.version: tuple[int, int] | None = None  # of this OpenSSH, once it has said so
        self.is_authenticated = False
        self._on_step = on_step
        self._step_began = time.perf_counter()
        self._kex_sent_at = -math.inf  # when it has sent its half of the key exchange

    @property
    def labels_prompts(self) -> bool:
        """Say whether a server's question can be told from one of ssh itself."""
        return self.version is not None and self.version >= LABELS_PROMPTS_SINCE

    def parse_line(self, line: str, now: float) -> None:
        """Learn from one line; from the step "login" on only whether ssh is inside."""
        if line.startswith(AUTHENTICATED):
            self._begin_step("", now)
            self.is_authenticated = True
        if self.step == "login":
            return
        if line.startswith(KEX_SENT):
            self._kex_sent_at = now
        elif KEX_REPLY.match(line):
            self.round_trip = min(self.round_trip, now - self._kex_sent_at)
        elif line.startswith(CIPHER):
            self.cipher = to_one_line(line.removeprefix(CIPHER).partition(" ")[0])
        elif match := LOCAL_VERSION.match(line):
            version = int(match[1]), int(match[2])
            # A ProxyCommand complains in the same place: it cannot make ssh seem newer.
            self.version = min(version, self.version or version)
        for start, step in STEPS:
            # Each step begins once: a ProxyCommand that is an ssh says the same of its own.
            if line.startswith(start) and step != self.step and step not in self.seconds:
                if step == "host key":
                    self.host_key = to_one_line(line.removeprefix(start))
                self._begin_step(step, now)

    def _begin_step(self, step: str, now: float) -> None:
        self.seconds[self.step] = now - self._step_began
        self._step_began = now
        if step:
            self.step = step
            self._on_step(step)


class _LastLines:
    """The last lines of a text that may go on for ever."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._size = 0  # characters of them

    def append(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line)
        while self._size > MOST_STDERR:
            self._size -= len(self._lines.popleft())

    def __str__(self) -> str:
        return "".join(self._lines)


class LoginProcess(SSHDebugLog):
    """An ssh process until it has logged in."""

    def __init__(
        self, argv: Sequence[str], environment: Mapping[str, str], on_step: Callable[[str], None]
    ) -> None:
        super().__init__(on_step)
        self._argv = argv
        self._environment = environment
        self._changed = threading.Condition()
        self._stderr = _LastLines()
        self._server_lines: deque[str] = deque(maxlen=MOST_SERVER_LINES)
        self._last_line_at = 0.0
        self._is_over = False
        self._process: subprocess.Popen[bytes] | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start it; raise OSError where there is no ssh."""
        self._step_began = time.perf_counter()
        self._on_step(self.step)
        self._process = process = subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,  # else ssh would read what is meant for us
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self._environment,
            # Without a terminal nothing is asked there; and its Ctrl-C is not for ssh.
            start_new_session=True,
            creationflags=NO_WINDOW,
        )
        for job in (self._read_stderr, self._wait_for_exit):
            thread = Thread(job, args=(process,), name="ssh-entry")
            self._threads.append(thread)
            thread.start()

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        with self._changed:
            return str(self._stderr)

    @property
    def server_text(self) -> str:
        """What it passes on of the server's own words, as far as they can be told from its own."""
        with self._changed:
            return "".join(self._server_lines)

    @property
    def idle_seconds(self) -> float:
        """Seconds since it has said anything."""
        return time.perf_counter() - self._last_line_at

    def wait_until(self, is_known: Callable[[], bool], seconds: float) -> bool:
        """Wait a little until it has said something: what it asks may come before that."""
        with self._changed:
            return self._changed.wait_for(is_known, seconds)

    def wait(self, seconds: float, is_prompting: Callable[[], bool], *, until_over: bool) -> bool:
        """Wait until it has ended, or is inside; say whether it got in. Raise ResponseTimeout.

        The time that a person takes to answer does not count.
        """
        assert self._process is not None  # noqa: S101 (started)

        def is_done() -> bool:
            return self._is_over or (self.is_authenticated and not until_over)

        deadline = time.monotonic() + seconds
        while not is_done():
            if is_prompting():  # it may take a while, and ssh may go on meanwhile
                deadline = time.monotonic() + seconds
            if time.monotonic() >= deadline:
                raise ResponseTimeout
            self.wait_until(is_done, min(1.0, max(0.0, deadline - time.monotonic())))
        if self.is_authenticated and not until_over:
            return True
        if self._process.returncode != 0:
            self._threads[0].join(ENDS_WITHIN)  # its last words
        return self._process.returncode == 0

    def kill(self) -> None:
        """End it, from any thread; what it has put into the background lives on."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(OSError):
                self._process.kill()

    def close(self) -> None:
        """Wait for its threads, once it has ended."""
        self.kill()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(ENDS_WITHIN)

    def _wait_for_exit(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()  # not the end of stderr: a ProxyCommand may hold that
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _read_stderr(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None  # noqa: S101 (piped)
        with process.stderr as stderr:
            # A ProxyCommand may hold it open, and complain there, for as long as the login lasts.
            is_rest = False  # of a line that is too long: it begins nothing
            while line := stderr.readline(LONGEST_LINE):
                if not is_rest:
                    self._on_line(line.decode(errors="replace").rstrip("\r\n"))
                is_rest = not line.endswith(b"\n")

    def _on_line(self, line: str) -> None:
        now = time.perf_counter()
        with self._changed:
            self._last_line_at = now
            if self.step == "login" and not OPENSSH_LINE.match(line):
                self._server_lines.append(line + "\n")
            self._stderr.append(line + "\n")
        self.parse_line(line, now)  # not under the lock: `on_step` may take a while
        with self._changed:
            self._changed.notify_all()
