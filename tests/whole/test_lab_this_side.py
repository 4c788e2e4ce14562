"""Cells that use this side, and files on their way, in JupyterLab in a browser.

The pictures of the docs are made here: REMOTER_PICTURES names the folder that keeps them.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import re
from typing import TYPE_CHECKING, Any

import pytest

from bench.proxy import Proxy
from tests.real_jupyter import wait_for
from tests.real_lab import Lab, one_person
from tests.whole.test_lab import TABLE, is_drawn
from tests.whole.test_life import there

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext, Locator

    from tests.real_jupyter import JupyterHere
    from tests.real_lab import Cell, LabServer
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

WHO = "import getpass, os\nprint(getpass.getuser(), os.getpid(), os.getcwd())"
QUESTION = "Allow that? yes or no:"
NARROW = 16e6  # bits per second
SIZE = 8_000_000  # bytes: four seconds of a narrow path
ON_ITS_WAY = (
    r" to gpu-box: [\d.]+ [KM]iB of 7\.6 MiB, \d+ %, [\d.]+ [KM]iB/s, \d:\d\d left"  # one line
)
FIGURE = """\
%%local
axes = runs.plot(x="epoch", figsize=(8, 2))
axes.set_title("drawn on this side");
"""
SLIDER = """\
from ipywidgets import IntSlider
{0} = IntSlider(value=4, min=1, max=12, description="{0}")
{0}
"""
ERROR = """\
%%local
def mean(numbers):
    return sum(numbers) / len(numbers)

mean([])
"""
ENDLESS = """\
%%local
import itertools, os, time
for n in itertools.count():
    print("line", n, flush=True)
    if os.path.exists("enough"):
        break
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def path(sshd: RealSshd) -> Iterator[Proxy]:
    """The network on the way to the remote, as wide as the test wants it."""
    with Proxy(sshd.port) as path:
        yield path


@pytest.fixture
def folder(far: FarSide) -> Iterator[Path]:
    """The folder there in which the kernel runs."""
    with far.folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def remote(here: JupyterHere, sshd: RealSshd, far: FarSide, path: Proxy) -> dict[str, Any]:
    """What a remote needs to be at the end of that path."""
    # The key is known by the sshd's own port; the path has another.
    extra = f"Port {path.port}\nHostKeyAlias [127.0.0.1]:{sshd.port}"
    config = sshd.ssh_config(here.folder / "ssh_config", "gpu-box", extra=extra)
    return {"host": "gpu-box", "ssh_config": config, "python": str(far.python)}


@pytest.fixture(scope="module")
def person(browser: Browser) -> Iterator[BrowserContext]:
    """A person's window."""
    with one_person(browser) as person:
        yield person


@pytest.fixture(scope="module")
def tab(
    person: BrowserContext, lab_server: LabServer, tmp_path_factory: pytest.TempPathFactory
) -> Lab:
    """The one tab in which all of this happens."""
    return Lab(person.new_page(), lab_server, tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def spec(request: Any, here: JupyterHere, remote: dict[str, Any], folder: Path) -> str:
    """A kernelspec; its cells may use this side unless the parameter says otherwise."""
    rule = getattr(request, "param", "allow")
    return here.add_remote("gpu-box", **remote, cwd=str(folder), local=rule)


@pytest.fixture
def lab(tab: Lab, spec: str, far: FarSide, path: Proxy) -> Iterator[Lab]:
    """An empty notebook of that kernel; nothing is left of it."""
    tab.server.write_notebook("training.ipynb", "", kernel=spec)
    tab.open("training.ipynb")
    tab.is_idle()
    if tab.page.locator("#jp-left-stack").is_visible():
        tab.hide_files()
    yield tab
    path.narrow(0)
    tab.server.end_kernels()
    wait_for(lambda: not there(far), what="the far side is empty")


def answer(cell: Cell, word: str) -> str:
    """Type into the box below a cell once it is there; return what was asked."""
    entry = cell.place.locator(".jp-Stdin-input")
    entry.wait_for()
    text = cell.place.locator(".jp-Stdin-prompt").inner_text()
    entry.fill(word)
    entry.press("Enter")
    entry.wait_for(state="detached")
    return text


# --------------------------------------------------------------- cells of this side


@pytest.mark.parametrize("spec", ["ask"], indirect=True)
def test_a_person_is_asked_once_and_then_it_runs_here(lab: Lab, far: FarSide) -> None:
    """No: nothing is done. Yes: here, until the kernel is restarted, which forgets this side."""
    cell = lab.begin(f"%%local\n{WHO}")
    asked = answer(cell, "no")
    begin = (
        "remoter, on this machine: %%local wants to run code here: it runs code of this notebook"
    )
    assert asked.startswith(begin)
    assert asked.rstrip().endswith(QUESTION)
    cell.says("NotAllowed: %%local was not allowed to use this machine; nothing was done.")
    cell = lab.begin(f"%%local\n{WHO}")
    answer(cell, "yes")
    said = cell.is_over()
    user, process, place = said.splitlines()[-1].split()
    assert (user, place) == (getpass.getuser(), str(lab.server.folder))
    assert lab.run(f"%%local\nkept = 'kept'\n{WHO}") == f"{user} {process} {place}\n"
    there_user, there_process, _ = lab.run(WHO).split()
    assert (there_user, there_process != process) == (far.user, True)

    lab.run("kept = 'there'")
    loop = lab.begin(ENDLESS)
    loop.says("line 3\n")
    assert lab.status() == "Busy"
    lab.press("interrupt")
    assert "KeyboardInterrupt" in loop.is_over()
    assert lab.run("kept") == "'there'"
    assert lab.run("%local kept, n > 2") == "('kept', True)"

    lab.restart()
    lab.is_idle()
    cell = lab.begin("%local kept")
    answer(cell, "yes")
    assert "NameError" in cell.is_over()


def test_outputs_of_this_side_and_objects_from_one_side_to_the_other(lab: Lab) -> None:
    """A frame is fetched and drawn here, another is sent; an error here has its own lines."""
    table = lab.begin(TABLE)
    table.is_over()
    assert lab.run("%remoter pull runs") == "runs is here now (DataFrame, 30 x 3).\n"
    figure = lab.begin(FIGURE)
    figure.is_over()
    wait_for(lambda: is_drawn(figure.outputs.locator("img")), what="the figure")
    lab.scroll_up()
    lab.picture("this-side-figure")
    head = lab.begin("%local runs.tail(3).round(3)")
    head.is_over()
    cells = "table.dataframe tbody td"
    assert head.outputs.locator(cells).all_inner_texts() == (
        table.outputs.locator(cells).all_inner_texts()
    )
    lab.run("%local best = runs.loss.min()")
    assert lab.run("%remoter push best as least") == "least is there now (float64).\n"
    assert lab.run("bool(least == runs.loss.min())") == "True"
    said = lab.run(ERROR)
    assert re.search(r"----> 2 +return sum", said)
    assert said.endswith("ZeroDivisionError: division by zero")


def offered(lab: Lab, code: str, key: str, selector: str) -> Locator:
    """Write code, press a key behind it until something is offered; return that."""
    from playwright.sync_api import TimeoutError as NotYet

    content = lab.cell(-1).place.locator(".cm-content")
    content.fill(code)
    lab.page.keyboard.press("Control+End")
    place = lab.page.locator(f"{selector}:visible")

    def is_there() -> bool:
        if not place.count():
            lab.page.keyboard.press(key)  # Lab waits a second; a kernel's first answer takes longer
            with contextlib.suppress(NotYet):
                place.first.wait_for(timeout=2000)
        return bool(place.count())

    wait_for(is_there, seconds=60, what=f"{selector} for {code}")
    return place.first


def reads(place: Locator, text: str) -> None:
    """Wait until a text is there."""
    wait_for(lambda: text in place.inner_text(), seconds=30, what=text)


def test_widgets_and_names_of_both_sides(lab: Lab) -> None:
    """A slider of each side is moved in the page; Tab and Shift-Tab know whose cell it is."""
    here, there = lab.begin(f"%%local\n{SLIDER.format('here')}"), lab.begin(SLIDER.format("there"))
    for slider, presses in ((here, 2), (there, 3)):
        slider.is_over()
        for _ in range(presses):
            slider.outputs.locator(".noUi-handle").press("ArrowRight")
    wait_for(lambda: lab.run("%%local\nhere.value") == "6", seconds=30, what="its value here")
    wait_for(lambda: lab.run("there.value") == "7", seconds=30, what="its value there")
    lab.run("%local here.value = 11")
    lab.run("there.value = 12")
    reads(here.outputs.locator(".widget-readout"), "11")
    reads(there.outputs.locator(".widget-readout"), "12")

    lab.run("%%local\ndef harvest(rows):\n    'Gather the rows of this side.'")
    lab.run("def harness(power):\n    'Hold the horses of that side.'")
    item, tip = ".jp-Completer-item .jp-Completer-match", ".jp-Tooltip"
    for code, name, sentence in (
        ("%%local\nhar", "harvest", "Gather the rows of this side."),
        ("har", "harness", "Hold the horses of that side."),
    ):
        assert offered(lab, code, "Tab", item).inner_text() == name
        lab.page.keyboard.press("Escape")
        told = offered(lab, code.replace("har", f"{name}("), "Shift+Tab", tip)
        reads(told, sentence)
        lab.page.keyboard.press("Escape")
    reads(offered(lab, "%remoter put", "Shift+Tab", tip), "Send files of this side there")
    lab.page.keyboard.press("Escape")


# --------------------------------------------------------------- files


def bar_of(cell: Cell) -> Locator:
    """The bar below a cell: asking it anything fails where there are two."""
    return cell.outputs.locator("progress")


def value_of(cell: Cell) -> float:
    """How far that is, from 0 to 1."""
    return float(bar_of(cell).get_attribute("value") or 0)


def test_files_under_one_bar(lab: Lab, path: Proxy, folder: Path) -> None:
    """It moves, says how fast and how long yet, stops where it is stopped, and goes on."""
    contents = hashlib.shake_256(b"weights").digest(SIZE)
    (lab.server.folder / "weights.bin").write_bytes(contents)
    lab.run("import os\nos.makedirs('models')")
    path.narrow(NARROW)
    begun = path.bytes_up
    cell = lab.begin("%remoter put weights.bin models/")
    waiting = lab.begin("os.listdir('models')")
    wait_for(lambda: value_of(cell) > 0.4, what="it is at 40 %")
    assert re.fullmatch(ON_ITS_WAY, cell.text()), cell.text()
    assert waiting.mark() == "*"
    lab.picture("files-bar")
    lab.press("interrupt")
    said = cell.is_over()
    assert re.match(r" to gpu-box: [\d.]+ MiB of 7\.6 MiB, \d+ %, interrupted", said), said
    assert said.endswith("The next try goes on from there.")
    assert 0.4 < value_of(cell) < 1
    assert waiting.is_over() == ""

    path.narrow(NARROW / 4)  # little may be left of it
    cell = lab.begin("%remoter put weights.bin models/")
    values = [value_of(cell)]
    while cell.mark() == "*":
        values.append(value_of(cell))
    said = cell.is_over()
    assert path.bytes_up - begun < SIZE * 1.3
    assert values == sorted(values)
    assert len(set(values)) > 2
    assert value_of(cell) == 1
    assert re.search(r"7\.6 MiB, 100 %, [\d.]+ [KM]iB/s1 file, 7\.6 MiB in [\d.]+ s to", said), said
    assert (folder / "models/weights.bin").read_bytes() == contents


def test_a_place_beyond_the_notebook_is_asked_about_and_cells_are_timed(
    lab: Lab, folder: Path
) -> None:
    """Although cells may use this side; the timer's line is below all that a cell says."""
    (folder / "seven.txt").write_text("7")
    outside = lab.server.folder.parent / folder.name
    for word in ("no", "yes"):
        cell = lab.begin(f"%remoter get seven.txt ../{outside.name}/")
        asked = answer(cell, word)
        assert f"outside of this notebook's folder (1 of 1):\n  {outside}\n" in asked
        cell.is_over()
        assert outside.exists() is (word == "yes"), cell.text()
    assert (outside / "seven.txt").read_text() == "7"

    assert lab.run("%remoter timer on") == "The timer is on.\n"
    cell = lab.begin("print('said')\n6 * 7")
    cell.is_over()
    said, result, line = cell.outputs.all_text_contents()
    assert (said, result) == ("said\n", "42")
    assert re.fullmatch(
        r"\[remoter\] \d\.\d{3} s there, \d\.\d{3} s on the link, [\d.]+ .+ received\n", line
    )


# --------------------------------------------------------------- a page is loaded again


def reload(lab: Lab, cell: Cell, number: int) -> Cell:
    """Save the notebook and load the page again while a cell is at work; return that cell."""
    shown = cell.text()
    file = lab.server.folder / "training.ipynb"
    lab.press("save")
    first = shown.strip().partition(":")[0].partition("\n")[0]
    wait_for(lambda: first in file.read_text(), what="the notebook is saved")
    lab.reload()
    after = lab.cell(number)
    assert after.mark() == ""
    assert first in after.text()
    return after


def wait_behind(lab: Lab, code: str) -> Cell:
    """Begin a cell behind one that is at work, which the status bar says."""
    cell = lab.begin(code)
    wait_for(lambda: lab.status() == "Busy", seconds=30, what="a cell is at work")
    assert cell.mark() == "*"
    return cell


def test_a_reload_while_this_side_is_at_work(lab: Lab, path: Proxy) -> None:
    """What comes meanwhile is lost, as it is of any kernel; the work goes on, nothing is stuck."""
    enough = lab.server.folder / "enough"
    enough.unlink(missing_ok=True)
    cell = lab.begin(ENDLESS)
    cell.says("line 3\n")
    reload(lab, cell, 0)
    behind = wait_behind(lab, "'ran ' + 'behind it'")
    enough.touch()
    assert behind.is_over() == "'ran behind it'"
    assert int(lab.run("%local n")) > 3
    lab.is_idle()

    (lab.server.folder / "large.bin").write_bytes(bytes(SIZE))
    path.narrow(NARROW / 4)
    cell = lab.begin("%remoter put large.bin ./")
    bar_of(cell).wait_for()
    number = lab.page.locator(".jp-NotebookPanel .jp-CodeCell").count() - 2
    after = reload(lab, cell, number)
    assert value_of(after) < 1
    behind = wait_behind(lab, "import os\nos.path.getsize('large.bin')")
    path.narrow(0)
    assert behind.is_over() == str(SIZE)
    lab.is_idle()
