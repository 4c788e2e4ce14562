"""A real JupyterLab, and a person who works in it with a real browser."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import nbformat

from tests.real_jupyter import wait_for
from tests.real_parts import real_part
from tests.real_server import TOKEN, JupyterServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, Locator, Page

WITHIN = 60.0  # seconds until something must be on the page
VIEW = {"width": 1200, "height": 800}  # pixels
PICTURES = "REMOTER_PICTURES"  # in our environment: the folder that keeps the pictures
SOME_FRAMES = """async () => {
    for (let n = 0; n < 10; n++) await new Promise(requestAnimationFrame);
}"""
QUIET_BROWSER = (
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class LabServer(JupyterServer):
    """A JupyterLab that asks nobody for news, nor a person whether it may."""

    program = "jupyterlab"

    def __init__(self, folder: Path, log: Path, *options: str) -> None:
        self.settings = log.with_name(f"{log.name}-settings")
        quiet = (
            "--LabApp.news_url=None",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            "--LabApp.extension_manager=readonly",  # or it asks the package index for extensions
            f"--LabApp.user_settings_dir={self.settings}",
        )
        super().__init__(folder, log, *quiet, *options)

    def __enter__(self) -> Self:
        file = self.settings / "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"fetchNews": "false", "checkForUpdates": false}')
        return super().__enter__()

    def write_notebook(self, name: str, *cells: str, kernel: str = "") -> None:
        """Write a notebook; without a kernel in it Lab asks for one when it is opened."""
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        if kernel:
            made.metadata["kernelspec"] = {"name": kernel, "display_name": kernel}
        nbformat.write(made, self.folder / name)

    def kernels(self) -> list[str]:
        """List the ids of the kernels that it runs."""
        return [str(kernel["id"]) for kernel in self.ask("kernels") or ()]

    def end_kernels(self) -> None:
        """Shut all its kernels down."""
        for kernel in self.kernels():
            self.ask(f"kernels/{kernel}", method="DELETE")


@contextlib.contextmanager
def real_browser() -> Iterator[Browser]:
    """Run a browser without a window."""
    real_part("chromium")
    real_part("playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(QUIET_BROWSER)
        )
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def one_person(browser: Browser) -> Iterator[BrowserContext]:
    """Lend a window of the browser that knows nothing of any other; its pages are its tabs."""
    context = browser.new_context(viewport=VIEW, locale="en-GB")  # type: ignore[arg-type]
    context.set_default_timeout(WITHIN * 1000)
    try:
        yield context
    finally:
        context.close()


class Cell:
    """A code cell on a page."""

    def __init__(self, place: Locator) -> None:
        self.place = place

    @property
    def outputs(self) -> Locator:
        """All that stands below it."""
        return self.place.locator(".jp-OutputArea-output")

    def text(self) -> str:
        """Return the text of all its outputs, as the page has it."""
        return "".join(self.outputs.all_text_contents())

    def mark(self) -> str:
        """Return what is in its brackets: a number, a star while it runs or waits, or nothing."""
        return self.place.locator(".jp-InputPrompt").first.inner_text().strip("[]: ")

    def says(self, text: str, seconds: float = WITHIN) -> None:
        """Wait until a text is among its outputs."""
        self._wait_for(lambda: text in self.text(), seconds, text)

    def is_over(self, seconds: float = WITHIN) -> str:
        """Wait until it has no star; return the text of its outputs."""
        self._wait_for(lambda: self.mark() != "*", seconds, "the star is gone")
        self.place.locator(".jp-Cell-outputWrapper").scroll_into_view_if_needed()
        text = None
        while text != (text := self.text()):  # Lab writes what is in view, little by little
            self.place.evaluate(SOME_FRAMES)
        return text

    def _wait_for(self, fact: Any, seconds: float, what: str) -> None:
        try:
            wait_for(fact, seconds=seconds, what=what)
        except AssertionError as error:
            error.add_note(f"The cell says: {self.text()[-2000:]}")
            raise


class Lab:
    """One browser tab with one JupyterLab, as a person uses it."""

    def __init__(self, page: Page, server: LabServer, pictures: Path) -> None:
        self.page = page
        self.server = server
        self.pictures = Path(os.environ.get(PICTURES) or pictures)

    # --- what is open ---

    def open(self, notebook: str = "") -> None:
        """Open a notebook, or the launcher, in a workspace of this tab's own."""
        where = f"lab/workspaces/{secrets.token_hex(4)}" + (f"/tree/{notebook}" if notebook else "")
        self.page.goto(f"http://127.0.0.1:{self.server.port}/{where}?token={TOKEN}")
        self.wait_for(".jp-NotebookPanel" if notebook else ".jp-Launcher")

    def reload(self) -> None:
        """Reload the page, as F5 does, and wait until notebook and kernel are there."""
        self.page.reload()
        self.wait_for(".jp-NotebookPanel .jp-Cell")
        known = {"Idle", "Busy"}
        wait_for(lambda: self.status() in known, seconds=WITHIN, what="the kernel is known again")

    def choose_kernel(self, name: str) -> None:
        """Choose in the dialog that asks for a kernel; `accept` closes it."""
        self.page.locator(".jp-Dialog select").select_option(label=name)

    def wait_for(self, selector: str, seconds: float = WITHIN) -> Locator:
        """Wait until something is to be seen; return it."""
        place = self.page.locator(selector).first
        place.wait_for(timeout=seconds * 1000)
        return place

    # --- cells ---

    def cell(self, number: int) -> Cell:
        """Return a cell by its place, counted from 0; -1 is the last."""
        return Cell(self.page.locator(".jp-NotebookPanel .jp-CodeCell").nth(number))

    def begin(self, code: str) -> Cell:
        """Write code into the last cell and run it; a new last cell appears below."""
        self.page.bring_to_front()
        places = self.page.locator(".jp-NotebookPanel .jp-CodeCell")
        number = places.count()
        cell = self.cell(number - 1)
        cell.place.locator(".cm-content").fill(code.strip())
        self.page.keyboard.press("Shift+Enter")
        wait_for(lambda: places.count() > number, what="a new cell below")
        wait_for(lambda: cell.mark() or cell.text(), what="the cell is on its way")
        return cell

    def run(self, code: str, seconds: float = WITHIN) -> str:
        """Run code in the last cell; return the text of its outputs once it is over."""
        return self.begin(code).is_over(seconds)

    # --- the kernel ---

    def status(self) -> str:
        """Return what the status bar says of the kernel: Idle, Busy, Restarting, ..."""
        bar = self.page.locator("#jp-main-statusbar .jp-mod-left, #jp-main-statusbar")
        found = re.search(r"\| (\w+)", bar.first.inner_text())
        return found[1] if found else ""

    def is_idle(self, seconds: float = WITHIN) -> None:
        """Wait until the status bar says that the kernel is idle."""
        wait_for(lambda: self.status() == "Idle", seconds=seconds, what="the kernel is idle")

    def press(self, button: str) -> None:
        """Press a button of the notebook's toolbar: interrupt, restart, run, save."""
        self.page.bring_to_front()
        self.page.locator(f'.jp-NotebookPanel-toolbar [data-jp-item-name="{button}"]').click()

    def save(self) -> None:
        """Save the notebook, and wait until Lab knows that it is saved."""
        self.press("save")
        self.page.locator(".lm-TabBar-tab.jp-mod-dirty").first.wait_for(state="detached")

    def restart(self) -> None:
        """Restart the kernel, and say yes to the question whether one means it."""
        self.press("restart")
        self.accept()

    def accept(self) -> None:
        """Say yes to a dialog."""
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.page.locator(".jp-Dialog").wait_for(state="detached")

    def menu(self, *words: str) -> None:
        """Choose an entry of the menu: `Kernel`, `Shut Down Kernel`."""
        first, *rest = words
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{first}$")).click()
        for word in rest:
            exact = re.compile(f"^{re.escape(word)}…?$")
            self.page.locator(".lm-Menu-itemLabel", has_text=exact).last.click()

    # --- what is seen ---

    def hide_files(self) -> None:
        """Hide the file browser, which takes room."""
        self.page.keyboard.press("Control+b")
        self.page.locator("#jp-left-stack").wait_for(state="hidden")

    def scroll_up(self) -> None:
        """Go to the top of the notebook."""
        panel = self.page.locator(".jp-NotebookPanel .jp-WindowedPanel-outer").first
        panel.evaluate("panel => panel.scrollTop = 0")

    def picture(self, name: str) -> Path:
        """Take a picture of the page."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        path = self.pictures / f"{name}.png"
        self.page.screenshot(path=path, animations="disabled", caret="hide")
        return path
