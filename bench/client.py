"""One client for all peers: jupyter_client's, and nothing that knows whom it talks to.

The kernel's manager is the one that jupyter_server has, in an event loop that never rests: what a
provisioner does beside the messages goes on while this side reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import zmq
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from jupyter_client.blocking.client import BlockingKernelClient

    Message = dict[str, Any]
    OnMessage = Callable[[str, Message], object]

NUDGE_EVERY = 0.5  # seconds; jupyter_server asks for kernel_info this often
START_WITHIN = 90.0  # seconds from the start of the process to the first answer
OBEY_WITHIN = 90.0  # seconds the manager has for an order; sshpyk may stop a kernel for sixty


class CellFailed(Exception):
    """The cell answered with an error."""


class Kernel:
    """One kernel from its start to its end, as a front end sees it."""

    def __init__(self, kernelspec: str, log: Path) -> None:
        self.manager = AsyncIOLoopKernelManager(kernel_name=kernelspec, autorestart=False)
        self.log = log
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self.client: BlockingKernelClient
        self._poller = zmq.Poller()
        self._channels: dict[object, tuple[str, Any]] = {}

    def start(self) -> tuple[float, float]:
        """Start; gives the seconds to ready and to the first cell's result.

        Ready is what jupyter_server means by it: a `kernel_info_reply` and one message on
        iopub. The first cell goes out at that moment.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        begun = time.perf_counter()
        with self.log.open("wb") as log:
            self._do(partial(self.manager.start_kernel, stdout=log, stderr=log))
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        for name in ("shell", "iopub"):
            channel = getattr(self.client, f"{name}_channel")
            self._poller.register(channel.socket, zmq.POLLIN)
            self._channels[channel.socket] = (name, channel)
        self._nudge(begun + START_WITHIN)
        ready = time.perf_counter() - begun
        came: list[float] = []

        def note_result(_: str, message: Message) -> None:
            if message["msg_type"] == "execute_result":
                came.append(time.perf_counter() - begun)

        self.run("6 * 7", on_message=note_result, seconds=START_WITHIN)
        if len(came) != 1:
            raise CellFailed(f"6 * 7 gave {len(came)} results")
        return ready, came[0]

    def stop(self) -> None:
        """Shut down as a front end does, and close the sockets whatever happens."""
        try:
            has_kernel = self.manager.has_kernel
            # The first of them does what the second does, too.
            self._do(self.manager.shutdown_kernel if has_kernel else self.manager.cleanup_resources)
        finally:
            if hasattr(self, "client"):
                self.client.stop_channels()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(OBEY_WITHIN)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Let the manager ask every three seconds whether the kernel is alive.

        So does jupyter_server, and restarts what is not; it is also when sshpyk looks after its
        tunnels.
        """
        self.manager.autorestart = True
        self._do(self.manager.start_restarter)
        try:
            yield
        finally:
            self._do(self.manager.stop_restarter)
            self.manager.autorestart = False

    def interrupt(self) -> None:
        """Interrupt as a front end does; returns when that has been sent."""
        self._do(self.manager.interrupt_kernel)

    def send(self, code: str) -> str:
        """Send a cell; gives its message id."""
        return str(self.client.execute(code, allow_stdin=False))

    def run(self, code: str, *, on_message: OnMessage | None = None, seconds: float = 60) -> float:
        """Run a cell to its end; gives the seconds from sending it to its reply and idle."""
        begun = time.perf_counter()
        self.wait_for_end(self.send(code), on_message=on_message, seconds=seconds)
        return time.perf_counter() - begun

    def wait_for_end(
        self,
        request: str,
        *,
        on_message: OnMessage | None = None,
        seconds: float = 60,
        may_fail: bool = False,
    ) -> None:
        """Read until the request has its reply and its idle; TimeoutError after `seconds`."""
        missing = {"shell", "iopub"}
        for name, message in self.messages(time.perf_counter() + seconds):
            if message["parent_header"].get("msg_id") != request:
                continue
            if on_message:
                on_message(name, message)
            content = message["content"]
            if name == "shell":
                missing.discard("shell")
                if content["status"] != "ok" and not may_fail:
                    raise CellFailed(f"{content.get('ename')}: {content.get('evalue')}")
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                missing.discard("iopub")
            if not missing:
                return

    def messages(self, deadline: float) -> Iterator[tuple[str, Message]]:
        """Give messages as they come, shell before iopub; TimeoutError at the deadline."""
        while (rest := deadline - time.perf_counter()) > 0:
            for socket, _ in self._poller.poll(math.ceil(rest * 1000)):
                name, channel = self._channels[socket]
                yield name, channel.get_msg(timeout=0)
        raise TimeoutError("the kernel did not say in time that it was done")

    def _serve(self) -> None:
        """Run the manager's loop until it is stopped; ends what it still has to do."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()

    def _do(self, deed: Callable[[], object]) -> None:
        """Have the manager's loop do something, to its end; TimeoutError if it takes too long."""

        async def do() -> None:
            if inspect.isawaitable(done := deed()):
                await done

        asyncio.run_coroutine_threadsafe(do(), self._loop).result(OBEY_WITHIN)

    def _nudge(self, deadline: float) -> None:
        missing = {"shell", "iopub"}
        while missing:
            if time.perf_counter() > deadline:
                raise TimeoutError("the kernel was not ready in time")
            # sshpyk's provisioner has no process to look at.
            process = getattr(self.manager.provisioner, "process", None)
            if process is not None and process.poll() is not None:
                raise CellFailed(f"the kernel's process ended (status {process.poll()})")
            self.client.kernel_info()
            try:
                for name, message in self.messages(time.perf_counter() + NUDGE_EVERY):
                    if name == "iopub" or message["msg_type"] == "kernel_info_reply":
                        missing.discard(name)
                    if not missing:
                        break
            except TimeoutError:
                continue
