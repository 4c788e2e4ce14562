"""What a kernel has beside its cells, in JupyterLab in a browser: a debugger, and R."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.lab_visits import visit
from tests.real_jupyter import wait_for
from tests.real_parts import real_part

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, Locator

    from tests.real_jupyter import JupyterHere
    from tests.real_lab import Lab, LabServer

AREA = """def area(side):
    square = side ** 2
    return square

print("area", area(7))"""


def of_debugger(lab: Lab, part: str) -> Locator:
    """Find a part of the debugger's panel."""
    return lab.page.locator(f".jp-DebuggerSidebar {part}")


def on_one_line(place: Locator) -> str:
    """Return a text without its line ends."""
    return " ".join(" ".join(place.all_inner_texts()).split())


def test_a_breakpoint_is_hit_and_left(
    here: JupyterHere,
    python_remote: dict[str, Any],
    browser: Browser,
    lab_server: LabServer,
    tmp_path: Path,
) -> None:
    """The panel shows where the kernel there stands, and its variables; then the cell ends."""
    spec = here.add_remote("gpu-box", **python_remote, debugger=True)
    with visit(browser, lab_server, spec, tmp_path) as lab:
        lab.hide_files()
        lab.run("'ready'")
        lab.press("debugger-icon")
        lab.wait_for(".jp-NotebookPanel[data-jp-debugger=true]")
        cell = lab.cell(1)
        cell.place.locator(".cm-content").fill(AREA)
        lines = cell.place.locator(".cm-gutter.cm-breakpoint-gutter .cm-gutterElement:visible")
        lines.nth(1).click()
        wait_for(lambda: of_debugger(lab, ".jp-DebuggerBreakpoint").count() == 1, seconds=30)
        cell.place.locator(".cm-content").press("Shift+Enter")
        frames = of_debugger(lab, ".jp-DebuggerCallstackFrame")
        wait_for(lambda: frames.count() == 2, seconds=60, what="it is at the breakpoint")
        assert [text.split()[0] for text in frames.all_inner_texts()] == ["area", "<module>"]
        variables = of_debugger(lab, ".jp-DebuggerVariables-body")
        wait_for(lambda: "side 7" in on_one_line(variables), seconds=30, what="side is 7")
        lab.picture("jupyterlab-debugger")
        of_debugger(lab, '[data-jp-item-name="step-over"]').click()
        wait_for(lambda: "square 49" in on_one_line(variables), seconds=30, what="one line on")
        of_debugger(lab, '[data-jp-item-name="continue"]').click()
        cell.says("area 49\n")
        assert cell.is_over() == "area 49\n"
        assert not frames.count()


@pytest.mark.slow
def test_a_notebook_of_r(
    here: JupyterHere,
    python_remote: dict[str, Any],
    browser: Browser,
    lab_server: LabServer,
    tmp_path: Path,
) -> None:
    """A table, a plot, an error, and an interrupt after which the variables are there."""
    real_part("irkernel")
    spec = here.add_remote("stats", **python_remote, language="R", kernel="ir")
    with visit(browser, lab_server, spec, tmp_path) as lab:
        lab.hide_files()
        table = lab.begin("head(cars, 3)").outputs.locator("table")
        table.wait_for()
        assert table.locator("td").all_inner_texts() == ["4", "2", "4", "10", "7", "4"]
        image = lab.begin("options(repr.plot.height = 4)\nplot(cars)").outputs.locator("img")
        image.wait_for()
        assert image.evaluate("image => image.naturalWidth") > 100
        assert "no such column" in lab.run('stop("no such column")')
        lab.scroll_up()
        lab.picture("r-notebook")
        cell = lab.begin("kept <- 41\ncat('begun\\n'); flush.console()\nSys.sleep(600)")
        cell.says("begun")
        lab.press("interrupt")
        cell.is_over()
        assert lab.run("kept + 1") == "42"
