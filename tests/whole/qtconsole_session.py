"""One session in qtconsole's own widget, as a process of its own: Qt wants the main thread.

Prints one JSON object on stdout: what the widget shows at each step.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from qtconsole.manager import QtKernelManager
from qtconsole.rich_jupyter_widget import RichJupyterWidget
from qtpy.QtWidgets import QApplication

if TYPE_CHECKING:
    from collections.abc import Callable

WITHIN = 40.0  # seconds, for any one step
STAYS = 8  # milliseconds that Qt has in one pass
LINE = 0xFF1F77B4  # what matplotlib draws first with, as Qt sees it
FIGURE = """
%matplotlib inline
import matplotlib.pyplot as plot
figure = plot.figure(figsize=(3, 2))
plot.plot([1, 3, 2]); plot.title('from there')
plot.show()
"""


class Session:
    """A console, and what is done in it."""

    def __init__(self, spec: str) -> None:
        """Start the kernel of this kernelspec, and open a console on it."""
        self.app = QApplication(["qtconsole"])
        self.manager = QtKernelManager(kernel_name=spec)
        self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        self.widget = RichJupyterWidget()
        self.widget.kernel_manager = self.manager
        self.widget.kernel_client = self.client
        self.widget.resize(700, 600)
        self.widget.show()

    @property
    def text(self) -> str:
        """What the console shows."""
        return str(self.widget._control.toPlainText())

    def until(self, fact: Callable[[], Any], what: str) -> None:
        """Let Qt work until something is so."""
        limit = time.monotonic() + WITHIN
        while not fact():
            if time.monotonic() > limit:
                message = f"not within {WITHIN:.0f} s: {what}; the console shows\n{self.text}"
                raise TimeoutError(message)
            self.app.processEvents()
            time.sleep(STAYS / 1000)

    def run(self, code: str) -> None:
        """Run code and wait for the next prompt."""
        self.begin(code)
        self.until(lambda: not self.widget._executing, f"the end of {code!r}")

    def begin(self, code: str) -> None:
        """Run code, as Return does."""
        # The banner comes before the first prompt, and moves `_prompt_pos`, too.
        self.until(lambda: self.widget._prompt and not self.widget._executing, "a prompt")
        self.widget.execute(code)

    def complete(self, code: str) -> str:
        """Type code and press Tab; returns the input as it is then, and takes it away."""
        self.widget.input_buffer = code
        self.widget._control.setTextCursor(self.widget._get_end_cursor())
        self.widget._complete()
        self.until(lambda: self.widget.input_buffer != code, "a completion")
        completed, self.widget.input_buffer = str(self.widget.input_buffer), ""
        return completed

    def count(self, colour: int) -> int:
        """Count the points of a colour in the lower end of what the window shows."""
        self.widget._scroll_to_end()
        image = self.widget.grab().toImage()
        places = ((x, y) for x in range(image.width()) for y in range(image.height()))
        return sum(image.pixel(*place) == colour for place in places)

    def close(self) -> None:
        """Close the console with its kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel()


def main(spec: str, picture: str) -> dict[str, Any]:
    """Go through all steps; the console with the figure is grabbed into `picture`."""
    session = Session(spec)
    told: dict[str, Any] = {}
    try:
        session.run("6 * 7")
        session.run("import getpass; print('I am', getpass.getuser())")
        session.run("a_long_name = 1")
        told["completed"] = session.complete("a_long_n")
        session.begin("print('begun')\nimport time\ntime.sleep(600)")
        session.until(lambda: "\nbegun" in session.text, "the cell that sleeps")
        session.widget.interrupt_kernel()
        session.until(lambda: "KeyboardInterrupt" in session.text, "the interrupt")
        session.run("'still', 'here'")
        session.run(FIGURE)
        told["text"] = session.text
        session.until(lambda: session.count(LINE), "the figure's line in the window")
        session.widget.grab().save(picture)
    finally:
        session.close()
    return told


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
