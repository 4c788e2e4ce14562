"""A TCP proxy that behaves like a long, narrow or broken network path.

House rules of this file:

- Delay is a pipe, not a brake: bytes that enter together leave together, one trip later. Only
  `bits_per_second` limits how many may be under way.
- A dial pays for TCP's own handshake: the far side hears of a connection after 1.5 round trips.
- Faults are verbs: `cut` resets every connection there is, `stall` swallows everything without a
  sign until `resume`, `vanish` swallows new dials, too (a stalled path still takes them: its far
  end is beyond the first hop), `strand` swallows for good what the connections that there are now
  will say, `refuse` turns new connections away until `welcome`, `narrow` changes the width. After
  a cut, and beside what is stranded, new connections are welcome.

The proxy runs in a process of its own (this file as a script, standard library only), so that the
process that measures does not pay for it, and ends when its standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import selectors
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

CHUNK = 256 * 1024  # bytes read at once where the line is wide
PACKET = 1448  # bytes read at once at the least: what fits an Ethernet frame
UNDER_WAY = 64 * 1024 * 1024  # bytes one connection may have in the pipe, each way
ROUTER_BUFFER = 256 * 1024  # bytes that may wait in front of a narrow line
QUEUE = 100  # dials that may wait to be taken
ANSWER_WITHIN = 10.0  # seconds the child has for its first line and for each command


class Proxy:
    """A path to 127.0.0.1:`target_port` with a delay, a width and faults; use it in `with`."""

    def __init__(
        self, target_port: int, *, rtt: float = 0.0, bits_per_second: float | None = None
    ) -> None:
        """Remember the path: `rtt` in seconds there and back; the width holds for each way."""
        self.target_port = target_port
        self.rtt = rtt
        self.bits_per_second = bits_per_second
        self.port = 0
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Start listening; `port` is known from here on."""
        self._child = subprocess.Popen(
            [
                sys.executable,
                "-I",
                str(Path(__file__).resolve()),
                f"--target-port={self.target_port}",
                f"--rtt={self.rtt}",
                f"--bits-per-second={self.bits_per_second or 0}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = self._ask("where")["port"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Reset what is open and end the process."""
        child, self._child = self._child, None
        if child is None or child.stdin is None or child.stdout is None:
            return
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        try:
            child.wait(ANSWER_WITHIN)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()

    def cut(self) -> int:
        """Reset every connection, both ends; says how many there were."""
        return self._ask("cut")["connections"]

    def stall(self) -> None:
        """Swallow everything, as a black hole does: nothing is closed, nothing arrives."""
        self._ask("stall")

    def vanish(self) -> None:
        """Swallow everything, and leave whoever dials without an answer, as no network does."""
        self._ask("vanish")

    def resume(self) -> None:
        """End a stall; what was sent meanwhile arrives now, as TCP would repeat it."""
        self._ask("resume")

    def strand(self) -> None:
        """Forget every connection, as a router does while a laptop sleeps: nobody is told."""
        self._ask("strand")

    def refuse(self) -> None:
        """Turn new connections away, as a port does where nobody listens."""
        self._ask("refuse")

    def welcome(self) -> None:
        """Take new connections again."""
        self._ask("welcome")

    def narrow(self, bits_per_second: float) -> None:
        """Change the width of each way from now on; 0 is as wide as the machine."""
        self._ask(f"narrow {bits_per_second}")

    @property
    def bytes_up(self) -> int:
        """Bytes that entered on the way to the target, since the start."""
        return self._ask("count")["up"]

    @property
    def bytes_down(self) -> int:
        """Bytes that entered on the way back, since the start."""
        return self._ask("count")["down"]

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return self._ask("count")["connections"]

    @property
    def pid(self) -> int:
        """The proxy's own process."""
        if self._child is None:
            msg = "this proxy is not running: use it in a with statement"
            raise RuntimeError(msg)
        return self._child.pid

    def _ask(self, verb: str) -> dict[str, int]:
        """Say one verb to the child; its answer is one line of numbers."""
        child = self._child
        if child is None or child.stdin is None or child.stdout is None:
            msg = "this proxy is not running: use it in a with statement"
            raise RuntimeError(msg)
        # A child that does not answer is killed, so that readline() ends and says so.
        watchdog = threading.Timer(ANSWER_WITHIN, child.kill)
        with self._lock:
            watchdog.start()
            try:
                child.stdin.write(verb + "\n")
                child.stdin.flush()
                line = child.stdout.readline()
            finally:
                watchdog.cancel()
                watchdog.join()
        if not line:
            msg = f"the proxy's process ended (status {child.poll()})"
            raise RuntimeError(msg)
        answer: dict[str, int] = json.loads(line)
        return answer


@dataclass
class Line:
    """One way of the path, shared by all its connections: says when what enters will arrive."""

    delay: float  # seconds, one way
    bits_per_second: float  # 0 = as wide as the machine
    entered: int = 0  # bytes
    _free_at: float = 0.0  # when the narrow part has sent all that entered

    @property
    def chunk(self) -> int:
        """Bytes to read at once: about a millisecond of a narrow line, lest the first byte wait."""
        if not self.bits_per_second:
            return CHUNK
        return int(min(CHUNK, max(PACKET, self.bits_per_second / 8 * 0.001)))

    def wait_for_room(self, now: float) -> float:
        """Seconds until the buffer in front of the narrow part has room."""
        if not self.bits_per_second:
            return 0.0
        return max(0.0, self._free_at - now - ROUTER_BUFFER * 8 / self.bits_per_second)

    def due(self, size: int, now: float) -> float:
        """When `size` bytes that enter now have arrived in full."""
        self.entered += size
        if self.bits_per_second:
            self._free_at = max(now, self._free_at) + size * 8 / self.bits_per_second
        else:
            self._free_at = now
        return self._free_at + self.delay


@dataclass
class Pipe:
    """What one connection has under way in one direction."""

    line: Line
    open: asyncio.Event  # cleared while the path is stalled
    waiting: asyncio.Queue[tuple[float, bytes]] = field(default_factory=asyncio.Queue)
    size: int = 0
    shrunk: asyncio.Event = field(default_factory=asyncio.Event)

    async def fill(self, source: socket.socket) -> None:
        """Take bytes from `source` until it ends."""
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            await self.open.wait()
            # Connections share the buffer, so another may have filled it again meanwhile.
            while (pause := self.line.wait_for_room(loop.time())) > 0:  # noqa: ASYNC110
                await asyncio.sleep(pause)
            while self.size > UNDER_WAY:
                self.shrunk.clear()
                await self.shrunk.wait()
            data = await loop.sock_recv(source, self.line.chunk)
            self.size += len(data)
            self.waiting.put_nowait((self.line.due(len(data), loop.time()), data))

    async def drain(self, target: socket.socket) -> None:
        """Hand bytes to `target` when they are due; an end is handed on as a half-close."""
        loop = asyncio.get_running_loop()
        while True:
            due, data = await self.waiting.get()
            if (pause := due - loop.time()) > 0:
                await asyncio.sleep(pause)
            await self.open.wait()
            if not data:
                target.shutdown(socket.SHUT_WR)
                return
            await loop.sock_sendall(target, data)
            self.size -= len(data)
            self.shrunk.set()


class Road:
    """All connections of one proxy, inside its own process."""

    def __init__(self, target_port: int, rtt: float, bits_per_second: float) -> None:
        """Remember the path; `run` opens it."""
        self.target_port = target_port
        self.rtt = rtt
        self.up = Line(rtt / 2, bits_per_second)
        self.down = Line(rtt / 2, bits_per_second)
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.connections: set[asyncio.Task[None]] = set()

    def new_socket(self) -> socket.socket:
        """Make a socket whose buffers do not make a narrow path wider than it is."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.up.bits_per_second:
            # Loopback's 64 KiB segments give each side megabytes of send buffer: seconds of a
            # narrow line that no real path has.
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, PACKET)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROUTER_BUFFER // 2)
        return made

    def carry(self, near: socket.socket) -> None:
        """Begin to carry one connection."""
        task = asyncio.get_running_loop().create_task(self._carry(near))
        self.connections.add(task)
        task.add_done_callback(self.connections.discard)

    async def _carry(self, near: socket.socket) -> None:
        """Carry it from its handshake to its end: a reset unless both ends ended."""
        far = self.new_socket()
        up, down = Pipe(self.up, self.is_open), Pipe(self.down, self.is_open)
        tasks: list[asyncio.Task[None]] = []
        try:
            for end in (near, far):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # SYN and SYN-ACK: the dialler may speak after one round trip, and the far side
            # hears of the connection half a round trip later.
            await asyncio.sleep(self.rtt)
            await self.is_open.wait()
            tasks.append(asyncio.create_task(up.fill(near)))
            await asyncio.sleep(self.rtt / 2)
            await self.is_open.wait()
            loop = asyncio.get_running_loop()
            await loop.sock_connect(far, ("127.0.0.1", self.target_port))
            tasks += [
                asyncio.create_task(up.drain(far)),
                asyncio.create_task(down.fill(far)),
                asyncio.create_task(down.drain(near)),
            ]
            await asyncio.gather(*tasks)
        except OSError:
            _reset_when_closed(near, far)
        except asyncio.CancelledError:
            _reset_when_closed(near, far)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            near.close()
            far.close()

    async def cut(self) -> int:
        """Reset every connection; says how many."""
        tasks = list(self.connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(tasks)

    async def run(self) -> None:
        """Listen, and obey standard input until it ends: one verb a line, one answer a line."""
        loop = asyncio.get_running_loop()
        gate = Gate(self)
        gate.open()
        verbs = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(verbs), sys.stdin)
        while line := await verbs.readline():
            connections = len(self.connections)
            verb, *number = line.decode().split()
            match verb:
                case "cut":
                    connections = await self.cut()
                case "stall":
                    self.is_open.clear()
                case "vanish":
                    self.is_open.clear()
                    gate.swallow()
                case "resume":
                    self.is_open.set()
                    gate.open()
                case "strand":
                    self.is_open.clear()
                    self.is_open = asyncio.Event()
                    self.is_open.set()
                case "narrow":
                    self.up.bits_per_second = self.down.bits_per_second = float(number[0])
                case "refuse":
                    gate.refuse()
                case "welcome":
                    gate.open()
            answer = {
                "port": gate.port,
                "connections": connections,
                "up": self.up.entered,
                "down": self.down.entered,
            }
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        gate.refuse()
        await self.cut()
        gate.close()


class Gate:
    """The port that people dial: it lets them in, turns them away, or gives no answer."""

    def __init__(self, road: Road) -> None:
        """Have a port; nobody is let in before `open`."""
        self._road = road
        self._listener = self._bind()
        self.port: int = self._listener.getsockname()[1]
        self._is_open = False
        self._plug: socket.socket | None = None  # fills the queue of those who dial

    def open(self) -> None:
        """Let in whoever dials, also those whose dial was swallowed, at their next try."""
        if not self._is_open:
            self._listener.listen(QUEUE)
            self._unplug()
            asyncio.get_running_loop().add_reader(self._listener, self._let_in)
            self._is_open = True

    def refuse(self) -> None:
        """Turn away whoever dials."""
        self._shut()
        self._unplug()
        self._listener.close()
        self._listener = self._bind(self.port)

    def swallow(self) -> None:
        """Let no dial be answered: those for which its queue has no room a system ignores."""
        self._shut()
        self._listener.listen(0)
        self._plug = socket.socket()
        self._plug.setblocking(False)
        self._plug.connect_ex(self._listener.getsockname())

    def close(self) -> None:
        """Give the port back."""
        self._listener.close()

    def _let_in(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            while True:
                near, _ = self._listener.accept()
                self._road.carry(near)

    def _shut(self) -> None:
        """Let nobody in any more; who has dialled before is in."""
        if self._is_open:
            self._let_in()
            asyncio.get_running_loop().remove_reader(self._listener)
            self._is_open = False

    def _unplug(self) -> None:
        plug, self._plug = self._plug, None
        if plug:
            _reset_when_closed(plug)
            plug.close()

    def _bind(self, port: int = 0) -> socket.socket:
        made = self._road.new_socket()
        made.bind(("127.0.0.1", port))
        made.setblocking(False)
        return made


def _reset_when_closed(*ends: socket.socket) -> None:
    """Make close() send a reset instead of a goodbye."""
    for end in ends:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def main() -> None:
    """Run one proxy; the numbers come from `Proxy`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target-port", type=int, required=True)
    parser.add_argument("--rtt", type=float, default=0.0)
    parser.add_argument("--bits-per-second", type=float, default=0.0)
    numbers = parser.parse_args()
    # epoll counts in whole milliseconds, which every trip would then be late by; select does not.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(loop):
        path = Road(numbers.target_port, numbers.rtt, numbers.bits_per_second)
        loop.run_until_complete(path.run())


if __name__ == "__main__":
    main()
