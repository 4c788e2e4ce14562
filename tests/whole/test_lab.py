"""The working day of a person whose kernel is far away, in a real JupyterLab in a real browser.

The pictures of the docs are made here: REMOTER_PICTURES names the folder that keeps them.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import nbformat
import pytest

from bench.proxy import Proxy
from tests.real_jupyter import wait_for
from tests.real_lab import Lab, LabServer, one_person
from tests.real_parts import real_part
from tests.whole.test_console import Terminal
from tests.whole.test_life import there

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psutil
    from playwright.sync_api import Browser, BrowserContext, Locator

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

REMOTE = "Remote (gpu-box)"
CUT = 20  # seconds
LINES = 300  # one each tenth of a second: the cut is in the middle of them
COUNT = """\
import time
for n in range({lines}):
    print("line", n, flush=True)
    open("progress", "w").write(str(n))
    time.sleep(0.1)
"""
TABLE = """\
import pandas as pd
runs = pd.DataFrame({"epoch": range(1, 31)})
runs["loss"] = 2.3 * 0.85**runs.epoch
runs["validation"] = 2.4 * 0.88**runs.epoch + 0.1
runs.tail(3).round(3)
"""
FIGURE = """\
runs.plot(x="epoch", figsize=(8, 1.9));
"""
SLIDER = """\
from ipywidgets import IntSlider
layers = IntSlider(value=4, min=1, max=12, description="layers")
layers
"""
ERROR = """\
def mean(numbers):
    return sum(numbers) / len(numbers)

mean([])
"""
CANVAS = """\
%matplotlib widget
import matplotlib.pyplot as plt
figure, axes = plt.subplots(figsize=(5, 3))
axes.plot([1, 2, 3])
plt.show()
"""


@pytest.fixture(scope="module")
def path(sshd: RealSshd) -> Iterator[Proxy]:
    """The network on the way to the remote."""
    with Proxy(sshd.port) as path:
        yield path


@pytest.fixture(scope="module")
def gpu_box(here: JupyterHere, sshd: RealSshd, far: FarSide, path: Proxy) -> str:
    """The name of the kernelspec of the remote at the end of that path."""
    # The key is known by the sshd's own port; the path has another.
    extra = f"Port {path.port}\nHostKeyAlias [127.0.0.1]:{sshd.port}"
    config = sshd.ssh_config(here.folder / "ssh_config", "gpu-box", extra=extra)
    return here.add_remote("gpu-box", "gpu-box", ssh_config=config, python=str(far.python))


@pytest.fixture(scope="module")
def person(browser: Browser) -> Iterator[BrowserContext]:
    """A person's window."""
    with one_person(browser) as person:
        yield person


@pytest.fixture
def lab(
    person: BrowserContext, lab_server: LabServer, gpu_box: str, far: FarSide, tmp_path: Path
) -> Iterator[Lab]:
    """A tab with nothing open; after it no kernel is left on either side."""
    yield Lab(person.new_page(), lab_server, tmp_path)
    for page in person.pages:
        page.close()
    lab_server.end_kernels()
    wait_for(lambda: not there(far), what="the far side is empty")


@pytest.fixture
def notebook(lab: Lab, gpu_box: str) -> str:
    """An empty notebook that is open, with a kernel there; its name."""
    lab.server.write_notebook("training.ipynb", "", kernel=gpu_box)
    lab.open("training.ipynb")
    lab.is_idle()
    return "training.ipynb"


@pytest.fixture
def progress(far: FarSide) -> Iterator[Path]:
    """The file there that knows how far a loop is."""
    file = far.home / "progress"
    yield file
    file.unlink()


def lines(text: str) -> list[int]:
    """Return the numbers of the lines in a text."""
    return [int(number) for number in re.findall(r"line (\d+)\n", text)]


def kernels_there(far: FarSide) -> list[psutil.Process]:
    """List the kernels that run there."""
    return [process for process in there(far) if "ipykernel_launcher" in process.cmdline()]


def session(lab: Lab) -> str:
    """Return the id of the session, as the person asks for it."""
    return re.findall(r"session +(\w+) on", lab.run("%remoter status"))[0]


def is_drawn(image: Locator) -> bool:
    """Is this a picture that the browser can show?"""
    return bool(image.evaluate("image => image.complete && image.naturalWidth > 10"))


# --------------------------------------------------------------- outputs


def test_a_remote_is_picked_and_shows_what_a_local_kernel_shows(lab: Lab, far: FarSide) -> None:
    """Launcher and picker know it; a table, a figure, a slider that is moved and read there."""
    lab.open()
    card = lab.wait_for(f'.jp-LauncherCard[data-category="Notebook"]:has-text("{REMOTE}")')
    wait_for(lambda: is_drawn(card.locator("img")), what="its logo")
    lab.picture("jupyterlab-launcher")
    lab.server.write_notebook("training.ipynb", "")
    lab.open("training.ipynb")
    lab.hide_files()
    lab.choose_kernel(REMOTE)
    lab.picture("jupyterlab-picker")
    lab.accept()
    lab.is_idle()
    table = lab.begin(TABLE)
    table.is_over()
    cells = table.outputs.locator("table.dataframe tbody td")
    assert cells.all_inner_texts()[:2] == ["28", "0.024"]
    slider = lab.begin(SLIDER)
    slider.is_over()
    handle = slider.outputs.locator(".noUi-handle")
    drag(lab, handle, (0.5, 0.5), (20.0, 0.5))
    handle.press("ArrowLeft")
    wait_for(lambda: lab.run("layers.value") == "11", what="the slider's value there")
    figure = lab.begin(FIGURE)
    figure.is_over()
    wait_for(lambda: is_drawn(figure.outputs.locator("img")), what="the figure")
    lab.picture("jupyterlab-outputs")
    lab.run("layers.value = 7")
    wait_for(lambda: slider.outputs.locator(".widget-readout").inner_text() == "7")
    assert lab.run("import getpass\ngetpass.getuser()") == repr(far.user)


def drag(lab: Lab, thing: Locator, begin: tuple[float, float], end: tuple[float, float]) -> None:
    """Press the mouse at one place of a thing and let go at another, both in its own sizes."""
    thing.scroll_into_view_if_needed()
    box = thing.bounding_box()
    assert box
    places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in (begin, end)]
    lab.page.mouse.move(*places[0])
    lab.page.mouse.down()
    lab.page.mouse.move(*places[1], steps=10)
    lab.page.mouse.up()


def test_a_question_an_error_and_a_figure_that_hears_the_mouse(lab: Lab, notebook: str) -> None:
    """`input()` is answered in the cell, a traceback has its lines, ipympl zooms."""
    lab.hide_files()
    cell = lab.begin("name = input('Your name? ')\nprint('Hello,', name)")
    answer = cell.place.locator(".jp-Stdin-input")
    answer.fill("Ada")
    answer.press("Enter")
    cell.says("Hello, Ada")
    error = lab.begin(ERROR)
    error.is_over()
    assert re.search(r"----> 2 +return sum", error.text())
    assert error.text().endswith("ZeroDivisionError: division by zero")
    lab.picture("jupyterlab-error")
    zoom(lab)


def zoom(lab: Lab) -> None:
    """Zoom into a figure with the mouse: the limits of its axes change there."""
    cell = lab.begin(CANVAS)
    cell.is_over()
    # The upper canvas takes the mouse; the lower one shows the figure.
    canvas = cell.outputs.locator("canvas").last
    canvas.hover()
    cell.outputs.locator('button[title^="Zoom"]').click()

    def has_zoomed() -> bool:
        # The button takes effect once the far side has answered, and widgets speak in a subshell:
        # the next cell may be ahead of what the mouse has said.
        drag(lab, canvas, (0.4, 0.4), (0.6, 0.6))
        return lab.run("bool(0 < axes.get_xlim()[0] < axes.get_xlim()[1] < 2)") == "True"

    wait_for(has_zoomed, seconds=60)


# --------------------------------------------------------------- the kernel


def test_interrupt_and_restart(lab: Lab, notebook: str, far: FarSide) -> None:
    """One ends the cell, one forgets the variables; it is the same session with one kernel."""
    asked = lab.begin("%remoter status")  # the first cell of all
    assert asked.is_over()
    assert asked.mark() == "1"
    before = session(lab)
    endless = lab.begin("kept = 1\nprint('endless', flush=True)\nwhile True:\n    pass")
    endless.says("endless")
    lab.press("interrupt")
    assert "KeyboardInterrupt" in endless.is_over()
    assert lab.run("kept") == "1"
    (first,) = kernels_there(far)
    lab.restart()
    lab.is_idle()
    assert lab.run("'kept' in globals()") == "False"
    assert session(lab) == before
    (second,) = kernels_there(far)
    assert first != second
    lab.menu("Kernel", "Shut Down Kernel")
    wait_for(lambda: not there(far), what="the far side is empty")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_no_network_for_twenty_seconds(
    lab: Lab, notebook: str, path: Proxy, progress: Path
) -> None:
    """A black hole in the middle of a loop: every line is there, once, in order."""
    lab.hide_files()
    loop = lab.begin(COUNT.format(lines=LINES))
    loop.says("line 20\n")
    path.vanish()
    begun = int(progress.read_text())
    waiting = lab.begin("print('afterwards')")
    waiting.says("Waiting for the link to gpu-box")
    wait_for(
        lambda: int(progress.read_text() or 0) > begun + CUT * 10,
        seconds=3 * CUT,
        what="the loop goes on there",
    )
    lab.picture("jupyterlab-waiting")
    shown = lines(loop.text())
    path.resume()
    assert lines(loop.is_over(90)) == list(range(LINES))
    assert len(shown) < begun + CUT * 5
    assert waiting.is_over() == "afterwards\n"


def test_a_reload_while_a_cell_runs(
    lab: Lab, gpu_box: str, here: JupyterHere, progress: Path
) -> None:
    """As with a local kernel, the page loses what came meanwhile; here it can be had."""
    local = reloaded(lab, "python3")
    assert reloaded(lab, gpu_box) == local
    name, number = f"{gpu_box}.ipynb", session(lab)
    ran = here.remoter("outputs", number, "--into", str(lab.server.folder / name))
    assert ran.returncode == 0, ran
    filled = nbformat.read(lab.server.folder / name, 4).cells[0]
    assert lines("".join(each["text"] for each in filled.outputs)) == list(range(60))


def reloaded(lab: Lab, kernel: str) -> tuple[str, ...]:
    """Reload a page with a running cell; return what the page shows when that is over."""
    name = f"{kernel}.ipynb"
    lab.server.write_notebook(name, "", kernel=kernel)
    lab.open(name)
    lab.is_idle()
    cell = lab.begin(COUNT.format(lines=60))
    cell.says("line 20\n")
    shown, file = lines(cell.text()), lab.server.folder / name
    lab.press("save")
    wait_for(lambda: f"line {shown[-1]}\\n" in file.read_text(), what="the notebook is saved")
    lab.reload()
    after = lab.cell(0)
    next_one = lab.run("n")
    assert lines(after.text())[: len(shown)] == shown
    assert lines(after.text()) == sorted(set(lines(after.text())))
    return (next_one, lab.run("'again'"), lab.cell(1).mark(), str(len(lines(after.text())) == 60))


@pytest.mark.slow
def test_two_tabs_and_a_console(
    lab: Lab, notebook: str, person: BrowserContext, here: JupyterHere, tmp_path: Path
) -> None:
    """Each sees the outputs of its own cells; an interrupt from one reaches another's cell."""
    real_part("tmux")
    real_part("jupyter-console")
    other = Lab(person.new_page(), lab.server, tmp_path)
    other.open(notebook)
    other.is_idle()
    assert lab.run("x = 'first'\nprint('in', x)") == "in first\n"
    assert other.run("print('from', x)") == "from first\n"
    file = f"kernel-{lab.server.kernels()[0]}.json"
    command = [sys.executable, "-m", "jupyter_console", "--existing", file]
    with Terminal(tmp_path, command) as console:
        console.wait_for("In [")
        console.type("x + ' and console'")
        console.wait_for("'first and console'")
        endless = lab.begin("print('endless', flush=True)\nwhile True:\n    pass")
        endless.says("endless")
        other.press("interrupt")
        assert "KeyboardInterrupt" in endless.is_over()
        console.type("import time; print('con' + 'sole goes on'); time.sleep(600)")
        console.wait_for("console goes on")
        lab.press("interrupt")
        console.wait_for("KeyboardInterrupt")
        console.press("C-d")  # `exit` would end the kernel, as it would a local one
        console.wait_for("exit ([y]/n)")
        console.type("y")
        wait_for(console.is_over, seconds=30, what="the console has ended")
    assert other.run("x") == "'first'"
    assert "console" not in lab.cell(0).text() + lab.cell(1).text()
    assert len(lab.server.kernels()) == 1


# --------------------------------------------------------------- the evening


def test_a_kernel_outlives_its_tab_until_it_is_shut_down(
    lab: Lab, notebook: str, far: FarSide
) -> None:
    """Closing the tab leaves it running, as in Lab; the list of what runs ends it."""
    lab.run("1")
    lab.save()  # else Lab asks about what is not
    lab.menu("File", "Close Tab")
    lab.wait_for(".jp-Launcher")
    assert kernels_there(far)
    lab.page.locator('[data-id="jp-running-sessions"]').click()
    item = lab.wait_for(f'.jp-RunningSessions-item:has-text("{notebook}")')
    item.hover()
    item.locator(".jp-RunningSessions-itemShutdown").click()
    wait_for(lambda: not there(far), what="the far side is empty")
    wait_for(lambda: not lab.server.kernels(), what="Lab has forgotten it")


def test_jupyterlab_is_shut_down(
    person: BrowserContext, gpu_box: str, here: JupyterHere, far: FarSide, tmp_path: Path
) -> None:
    """File, Shut Down: the server ends, and nothing is left there, though a cell was running."""
    with LabServer(here.folder / "evening", tmp_path / "log") as server:
        server.write_notebook("evening.ipynb", "", kernel=gpu_box)
        lab = Lab(person.new_page(), server, tmp_path)
        lab.open("evening.ipynb")
        lab.is_idle()
        lab.begin("print('endless', flush=True)\nwhile True:\n    pass").says("endless")
        lab.save()
        lab.menu("File", "Shut Down")
        lab.accept()
        wait_for(server.has_ended, seconds=30, what="the server has ended")
        wait_for(lambda: not there(far), what="the far side is empty")
        lab.page.close()
