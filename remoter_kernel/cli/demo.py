"""The verb `demo`: the real path, SSH and all, on this machine, in 20 seconds."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from remoter_kernel.local.run.runner import Runner
from remoter_kernel.local.session.dialer import SessionDialer

if TYPE_CHECKING:
    from collections.abc import Callable

WHERE = """
import getpass, os, platform, socket
print(f"{getpass.getuser()}@{socket.gethostname()}, process {os.getpid()}, "
      f"Python {platform.python_version()}, {platform.system()}")
"""
FIGURE = """
import math
from IPython.display import SVG, display
points = " ".join(f"{x},{60 - 50 * math.sin(x / 25) * math.exp(-x / 300):.1f}" for x in range(600))
display(SVG(f'<svg xmlns="http://www.w3.org/2000/svg" width="600" height="120">'
            f'<polyline fill="none" stroke="teal" stroke-width="2" points="{points}"/></svg>'))
"""
STREAM = """
import time
for second in range(1, 6):
    print("tick", second, flush=True)
    time.sleep(0.3)
"""
LONG = """
import time
print("sleeping for a minute", flush=True)
time.sleep(60)
"""
LINES = 60
LOOP = f"""
import time
for line in range(1, {LINES} + 1):
    print("line", line, flush=True)
    time.sleep(0.05)
"""
INTERRUPT_AFTER = 0.5  # seconds
CUTS_AFTER = (0.7, 1.8)  # seconds


class DemoCheckFailed(Exception):
    """A step of the demo did not hold."""


def _check(fact: object, otherwise: str) -> None:
    if not fact:
        raise DemoCheckFailed(otherwise)


class Demo:
    """One run of the demo; each step prints what it saw and how long it took."""

    def __init__(self, console: Console, runner: Runner) -> None:
        self.console = console
        self.runner = runner
        self.failures = 0

    def step(self, title: str, do: Callable[[], str]) -> None:
        """Do one step and print it; a step that does not hold is red and counts."""
        self.console.print(f"\n[bold]{title}[/bold]")
        began = time.monotonic()
        try:
            found = do()
        except DemoCheckFailed as error:
            self.failures += 1
            self.console.print(f"  [red]✗ {error}[/red]")
            return
        self.console.print(
            f"  [green]✓[/green] {found} [dim]({time.monotonic() - began:.2f} s)[/dim]"
        )

    def connect(self) -> str:
        """Log in over SSH, start the session, wait for its kernel."""
        self.runner.start()
        login = self.runner.dialer.login
        address = self.runner.dialer.session_info
        if login is None or address is None:
            raise DemoCheckFailed("there is no session")
        self.console.print(f"  [dim]SSH   {login.cipher}, host key {login.host_key}[/dim]")
        self.console.print("  [dim]wire  CURVE, keys made for this session[/dim]")
        return f"session {address.session} is ready: {self.runner.kernel_info['implementation']}"

    def print_location(self) -> str:
        """Ask the kernel where it runs."""
        return f"the code ran as {self._run_and_collect(WHERE).strip()}"

    def draw(self) -> str:
        """Have a figure drawn there and shown here."""
        shown: dict[str, Any] = {}
        self.runner.run(FIGURE, lambda _kind, content: shown.update(content.get("data", {})))
        figure = shown.get("image/svg+xml", "")
        _check(figure, "no figure came")
        return f"a figure came: image/svg+xml, {len(figure):,} bytes; a notebook shows it"

    def stream(self) -> str:
        """Print there, line by line, and measure when each arrives here."""
        began = time.monotonic()
        at: list[str] = []

        def show(kind: str, _content: dict[str, Any]) -> None:
            if kind == "stream":
                at.append(f"{time.monotonic() - began:.1f}")

        self.runner.run(STREAM, show)
        _check(len(at) > 1, "the lines came all at once")
        return f"lines came as they were printed, at {', '.join(at)} s"

    def interrupt(self) -> str:
        """Interrupt a long computation."""
        pressed: list[float] = []

        def press() -> None:
            pressed.append(time.monotonic())
            self.runner.interrupt()

        self.runner.reactor.call_later(INTERRUPT_AFTER, press)
        reply = self.runner.run(LONG, lambda _kind, _content: None)
        _check(reply.get("ename") == "KeyboardInterrupt", f"it ended with {reply.get('status')}")
        return f"KeyboardInterrupt there, {(time.monotonic() - pressed[0]) * 1000:.0f} ms after it"

    def drop_connection(self) -> str:
        """Cut the connection in the middle of a loop, twice."""
        gaps: list[float] = []
        text: list[str] = []
        last = time.monotonic()

        def show(_kind: str, content: dict[str, Any]) -> None:
            nonlocal last
            now = time.monotonic()
            gaps.append(now - last)
            last = now
            text.append(str(content.get("text", "")))

        for seconds in CUTS_AFTER:
            self.runner.reactor.call_later(seconds, self.runner.dialer.abort)
        self.runner.run(LOOP, show)
        expected = [f"line {number}" for number in range(1, LINES + 1)]
        came = "".join(text).splitlines()
        missing = len(set(expected) - set(came))
        losses = self.runner.link.losses
        _check(losses == len(CUTS_AFTER), f"the connection was cut {losses} times")
        _check(came == expected, f"{missing} of {LINES} lines are missing, {len(came)} came")
        return (
            f"{LINES} of {LINES} lines, once and in order, over {losses} cuts and as many "
            f"new logins; the longest gap was {max(gaps) * 1000:.0f} ms"
        )

    def _run_and_collect(self, code: str) -> str:
        text: list[str] = []
        self.runner.run(code, lambda _kind, content: text.append(content.get("text", "")))
        return "".join(text)


@click.command()
def demo() -> None:
    """Show the real path, SSH and all, on this machine, in less than 20 seconds.

    An SSH server of its own on loopback, with throw-away keys, plays the far host.
    """
    began = time.monotonic()
    console = Console(highlight=False, soft_wrap=True)
    runner = Runner(SessionDialer(lambda: None))
    show = Demo(console, runner)
    steps = {
        "Log in over SSH and start a kernel": show.connect,
        "Where does the code run?": show.print_location,
        "Rich output": show.draw,
        "Streaming": show.stream,
        "Interrupt": show.interrupt,
        "The connection is cut in the middle of a loop": show.drop_connection,
    }
    try:
        for number, (title, do) in zip(itertools.count(1), steps.items(), strict=False):
            show.step(f"{number}. {title}", do)
    finally:
        runner.stop()
    console.print(f"\nAll in {time.monotonic() - began:.1f} s. To use a host of yours:")
    console.print("  remoter add NAME USER@HOST", style="bold")
    console.print('then pick "Remote (NAME)" in Jupyter.')
    if show.failures:
        raise click.exceptions.Exit(1)
