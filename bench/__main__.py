"""`make bench`: one run, one table, all peers side by side."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bench import faults, measures
from bench.client import CellFailed, Kernel
from bench.ground import Ground
from bench.measures import Effort
from bench.peers import PEERS
from bench.proxy import Proxy
from bench.table import Results

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.measures import Figures
    from bench.peers import Peer

    Step = Callable[[Kernel], Figures]

FULL = Effort(cells=100, interrupts=5, idle_seconds=12.0, printing=30.0, hole=40.0)
QUICK = Effort(cells=25, interrupts=2, idle_seconds=6.0, printing=10.0, hole=15.0)


@dataclass
class Bench:
    """One run: the ground, the peers, and what was measured so far."""

    ground: Ground
    peers: list[Peer]
    effort: Effort
    rounds: int
    results: Results = field(default_factory=Results)
    troubles: list[str] = field(default_factory=list)

    def warm_up(self) -> None:
        """Start each peer once and forget the figures: files are read, the zip is uploaded."""
        kept, self.results = self.results, Results()
        with self._path(0.0):
            for peer in self.peers:
                self.visit(peer, 0.0)
        self.results = kept

    def healthy(self, rtt: float, *, with_load: bool) -> None:
        """Measure everything over a path that works."""
        with self._path(rtt) as proxy:
            steps: list[Step] = [
                partial(measures.empty_cells, proxy=proxy, effort=self.effort),
                measures.text,
                measures.displays,
                partial(measures.interrupts, effort=self.effort),
            ]
            load: Step = partial(measures.load, ground=self.ground, effort=self.effort)
            for number in range(self.rounds):
                is_last = number == self.rounds - 1
                for peer in self.peers:
                    self.visit(peer, rtt, *steps, *([load] if with_load and is_last else []))

    def faulty(self) -> None:
        """Measure, once, what a narrow and a breaking path do; each visit has its own path."""
        for peer in self.peers:
            with self._path(faults.RTT, faults.FLOOD_BITS_PER_SECOND):
                flood = partial(faults.flood, ground=self.ground)
                self.visit(peer, faults.RTT, flood, timed=False)
        # A local kernel has no path that could break.
        far = [peer for peer in self.peers if peer.name != "plain"]
        for fault in (faults.resets, faults.black_hole, faults.outage):
            for peer in far:
                with self._path(faults.RTT) as proxy:
                    step: Step = partial(fault, proxy=proxy, effort=self.effort)
                    self.visit(peer, faults.RTT, step, timed=False)

    def visit(self, peer: Peer, rtt: float, *steps: Step, timed: bool = True) -> None:
        """Start one peer cold, take its figures, stop it, and see that nothing stays."""
        kernelspec = peer.prepare(self.ground)
        peer.make_cold(self.ground)
        kernel = Kernel(kernelspec, self.ground.folder / "kernel.log")
        step: Step | None = None
        try:
            ready, first_result = kernel.start()
            if timed:
                figures = {"ready": [ready], "first result": [first_result]}
                self.results.add(rtt, peer.name, figures)
                self._start_another(peer, rtt, kernelspec)
            for step in steps:
                self.results.add(rtt, peer.name, step(kernel))
        except (CellFailed, TimeoutError, ValueError, OSError, RuntimeError) as error:
            self._trouble(peer, rtt, f"{_name(step)}: {type(error).__name__}: {error}")
            print(kernel.log.read_text()[-2000:], file=sys.stderr)
        finally:
            try:
                kernel.stop()
            except (TimeoutError, OSError, RuntimeError) as error:
                self._trouble(peer, rtt, f"stop: {type(error).__name__}: {error}")
            peer.make_cold(self.ground)
            for line in self.ground.end_what_stays():
                self._trouble(peer, rtt, f"left behind {line}")

    def _start_another(self, peer: Peer, rtt: float, kernelspec: str) -> None:
        """Start a second kernel while the first one is there, as a second notebook does."""
        kernel = Kernel(kernelspec, self.ground.folder / "second.log")
        try:
            ready, first_result = kernel.start()
            figures = {"second ready": [ready], "second result": [first_result]}
            self.results.add(rtt, peer.name, figures)
        finally:
            kernel.stop()

    def _path(self, rtt: float, bits_per_second: float | None = None) -> _Path:
        return _Path(
            self.ground, Proxy(self.ground.sshd.port, rtt=rtt, bits_per_second=bits_per_second)
        )

    def _trouble(self, peer: Peer, rtt: float, what: str) -> None:
        line = f"{peer.name}, RTT {rtt * 1000:.0f} ms: {what}"
        self.troubles.append(line)
        print(line, file=sys.stderr, flush=True)


class _Path:
    """A proxy that the ground's SSH configuration leads through while it is open."""

    def __init__(self, ground: Ground, proxy: Proxy) -> None:
        self.ground = ground
        self.proxy = proxy

    def __enter__(self) -> Proxy:
        self.proxy.__enter__()
        self.ground.aim(self.proxy)
        return self.proxy

    def __exit__(self, *_: object) -> None:
        self.ground.forget_proxy()
        self.proxy.__exit__(None, None, None)


def path_itself(rtt: float) -> float:
    """Time an echo through the proxy alone, in ms: no peer can be faster."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo() -> None:
            end, _ = server.accept()
            with end:
                while data := end.recv(1000):
                    end.sendall(data)

        echoing = threading.Thread(target=echo)
        echoing.start()
        with Proxy(server.getsockname()[1], rtt=rtt) as proxy:
            with socket.create_connection(("127.0.0.1", proxy.port)) as end:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                times = []
                for _ in range(12):
                    begun = time.perf_counter()
                    end.sendall(b"?" * 100)
                    end.recv(1000)
                    times.append((time.perf_counter() - begun) * 1000)
            echoing.join()
    return measures.percentile(times[2:], 0.5)


def main() -> int:
    """Measure what the command line asks for; 1 if a peer failed or left something behind."""
    wish = _arguments().parse_args()
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)
    # Whoever ends this process early gets its processes and folders cleared away, too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    rtts = [rtt / 1000 for rtt in wish.rtt]
    effort = QUICK if wish.quick else FULL
    rounds = wish.rounds or (1 if wish.quick else 3)
    begun, busy = time.monotonic(), os.getloadavg()[0]
    with Ground() as ground:
        bench = Bench(ground, [PEERS[name]() for name in wish.peers], effort, rounds)
        bench.warm_up()
        for number, rtt in enumerate(rtts):
            bench.healthy(rtt, with_load=number == 0)
        if wish.faults:
            bench.faulty()
    shown = sorted({*rtts, faults.RTT}) if wish.faults else rtts
    seconds = time.monotonic() - begun
    print(f"{_machine()}; {rounds} round(s), {seconds:.0f} s, load average before: {busy:.1f}")
    if wish.faults:
        print(f"Lines print for {effort.printing:.0f} s; nothing comes for {effort.hole:.0f} s")
    print()
    print(bench.results.table(shown, wish.peers))
    for line in bench.results.round_trips(rtts, wish.peers):
        print(line)
    paths = {rtt: path_itself(rtt) for rtt in rtts}
    print("An echo through the path alone: " + ", ".join(f"{ms:.1f} ms" for ms in paths.values()))
    if wish.json:
        document = {
            "machine": _machine(),
            "rounds": rounds,
            "effort": asdict(effort),
            "load_before": busy,
            "path_ms": {f"{rtt * 1000:.0f}": ms for rtt, ms in paths.items()},
            "rows": bench.results.as_json(shown, wish.peers),
            "troubles": bench.troubles,
        }
        wish.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if bench.troubles else 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, fewer cells")
    parser.add_argument("--rounds", type=int, metavar="N", help="visits to each peer")
    parser.add_argument(
        "--rtt", type=float, nargs="+", default=[0, 50, 200], metavar="MS", help="round trips, ms"
    )
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument(
        "--faults",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a flood, three resets and a black hole",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    return parser


def _machine() -> str:
    names = ("ipykernel", "jupyter_client", "pyzmq", "sshpyk")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{platform.system()}, Python {platform.python_version()}, {versions}"


def _name(step: Step | None) -> str:
    """Name a step for a person."""
    if step is None:
        return "start"
    function = step.func if isinstance(step, partial) else step
    return str(getattr(function, "__name__", function))


if __name__ == "__main__":
    sys.exit(main())
