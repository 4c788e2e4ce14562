"""Objects that are carried from one side to the other: `%remoter push` and `pull`."""

from __future__ import annotations

import base64
import os
import pickle
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests import same_values
from tests.objects_to_carry import arrays, frames, plain, polars_frames
from tests.real_jupyter import started_kernel
from tests.whole.talk import Talk
from tests.whole.test_this_side import iopub, reply, run, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere, StartedKernel
    from tests.real_users import FarSide


@pytest.fixture(scope="module")
def kernel(here: JupyterHere, python_remote: dict[str, Any]) -> Iterator[StartedKernel]:
    """A Python far away."""
    with started_kernel(here.add_remote("carries", local="allow", **python_remote)) as kernel:
        yield kernel


@pytest.fixture(scope="module")
def talk(kernel: StartedKernel) -> Talk:
    """Somebody who talks to it."""
    talk = Talk(kernel.client)
    begin = f"import base64, pickle\n{Path(same_values.__file__).read_text()}"
    for side in ("", "%%local\n"):
        run(talk, f"{side}{begin.replace('from __future__ import annotations', '')}")
    return talk


def test_an_object_goes_there_and_comes_back(talk: Talk) -> None:
    """Under the same name, or another."""
    run(talk, "%local x = {'a': [1, 2.5, None], (1, 2): b'3'}")
    said = run(talk, "%remoter push x")
    assert reply(said)["status"] == "ok", reply(said)
    assert text_of(said) == "x is there now (dict, 2).\n"
    assert text_of(run(talk, "x")) == "{'a': [1, 2.5, None], (1, 2): b'3'}"
    said = run(talk, "%remoter pull x as y")
    assert reply(said)["status"] == "ok", reply(said)
    assert text_of(run(talk, "%local x == y")) == "True"


FEW = settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.generate],  # to shrink takes too long with real kernels
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FEW
@given(st.lists(plain() | arrays() | frames() | polars_frames(), max_size=25))
def test_what_goes_there_comes_back(talk: Talk, value: Any) -> None:
    """All kinds, between two real kernels; there, too, it is what it was here."""
    given_text = base64.b64encode(pickle.dumps(value)).decode()
    given_here = f"x = pickle.loads(base64.b64decode({given_text!r}))"
    run(talk, f"%local {given_here}")
    assert reply(run(talk, "%remoter push x as there"))["status"] == "ok"
    differs = "[(a, b) for a, b in zip(x, {}, strict=True) if not same(a, b)]"
    assert text_of(run(talk, f"{given_here}\n{differs.format('there')}")) == "[]"
    assert reply(run(talk, "%remoter pull there as y"))["status"] == "ok"
    said = run(talk, f"%local {differs.format('y')}")
    assert text_of(said) == "[]", text_of(said)


def test_several_go_together(talk: Talk) -> None:
    """One of them is not there: none goes, and the nearest name is suggested."""
    run(talk, "%%local\nfirst = 1\nsecond = [2]")
    assert text_of(run(talk, "%remoter push first second")).count("is there now") == 2
    assert text_of(run(talk, "first, second")) == "(1, [2])"
    run(talk, "%local first = 'new'")
    said = reply(run(talk, "%remoter push first secnd"))
    assert "There is no 'secnd' (did you mean second?)" in said["evalue"]
    assert text_of(run(talk, "first")) == "1"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("push", "needs the name"),
        ("push x-y", "no name of Python's"),
        ("push class", "no name of Python's"),
        ("push x as", "one object one name"),
        ("push x y as z", "one object one name"),
        ("pull x --loud", "has no --loud"),
        ("push generator", "a generator"),
        ("push file", "TextIOWrapper"),
        ("push sys", "a module"),
        ("push thing", "thing is a Thing"),
        ("push cyclic", "cyclic[1] contains itself"),
        ("pull lock", "_thread.lock"),
        ("push generator --pickle", "cannot be pickled"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_carried(talk: Talk, words: str, says: str) -> None:
    """Names that are none, objects that cannot be carried."""
    run(
        talk,
        "%%local\nimport sys\ngenerator = (i for i in ())\nfile = open('/dev/null')\n"
        "class Thing: pass\nthing = Thing()\ncyclic = [1]; cyclic.append(cyclic)",
    )
    run(talk, "import threading; lock = threading.Lock()")
    said = reply(run(talk, f"%remoter {words}"))
    assert said["status"] == "error"
    assert says in said["evalue"], said["evalue"]
    assert text_of(run(talk, "'thing' in globals(), 'generator' in globals()")) == "(False, False)"


PLANTED = """
import os
class Planted:
    def __reduce__(self):
        return os.mkdir, ({!r},)
planted = [Planted()]
"""


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_nothing_is_unpickled_unless_that_is_asked_for(talk: Talk, far: FarSide, verb: str) -> None:
    """An object that makes a folder when it is unpickled: on neither side, unless by name."""
    with far.folder() as folder:
        folder.chmod(0o777)
        code = PLANTED.format(str(folder / "ran"))
        run(talk, f"%%local\n{code}" if verb == "push" else code)
        said = reply(run(talk, f"%remoter {verb} planted"))
        assert "planted[0] is a Planted" in said["evalue"]
        assert not (folder / "ran").exists()
        said = run(talk, f"%remoter {verb} planted --pickle")
        assert reply(said)["status"] == "ok", reply(said)
        assert "came as a pickle" in text_of(said)
        assert (folder / "ran").exists()


def test_names_are_those_that_python_keeps(talk: Talk) -> None:
    """Letters that look alike are one; what the person calls `globals` is no trouble."""
    run(talk, "\u00b5 = 5; before = globals; globals = 3")  # Python keeps another letter
    assert reply(run(talk, "%remoter pull \u00b5"))["status"] == "ok"
    assert text_of(run(talk, "%local \u00b5 + 1")) == "6"
    assert reply(run(talk, "%remoter push \u00b5 as \ufb01"))["status"] == "ok"
    assert text_of(run(talk, "globals = before; fi")) == "5"


HOSTILE = "import json; plain = json.dump; json.dump = lambda words, file: file.write({!r})"


@pytest.mark.parametrize(
    "answer",
    [
        "nonsense",
        "[]",
        "{}",
        '{"size": -1, "objects": []}',
        '{"size": 1e30, "objects": []}',
        '{"size": 5000000, "objects": []}',
    ],
)
def test_a_kernel_that_answers_nonsense_is_told(talk: Talk, answer: str) -> None:
    """In a sentence; nothing arrives."""
    run(talk, f"number = 1; {HOSTILE.format(answer)}")
    run(talk, "%local number = 'before'")
    said = reply(run(talk, "%remoter pull number", allow_stdin=False))
    run(talk, "json.dump = plain")
    assert said["ename"] in {"NotCarried", "RemoteLacks"}, said
    assert text_of(run(talk, "%local number")) == "'before'"


def test_a_package_that_is_missing_is_named(talk: Talk) -> None:
    """With the side on which it is."""
    run(talk, "%%local\nimport polars\npolar = polars.DataFrame({'a': [1]})")
    run(talk, "import sys; before = sys.modules.pop('polars', None); sys.modules['polars'] = None")
    said = reply(run(talk, "%remoter push polar"))
    run(talk, "del sys.modules['polars']; before and sys.modules.update(polars=before)")
    assert "The package polars is needed, and missing (on carries)" in said["evalue"]


def test_nothing_is_left_behind_and_nobody_else_hears_of_it(talk: Talk, far: FarSide) -> None:
    """No name, no history, no number, no file; not in the journal, nor on iopub."""
    names = "sorted(n for n in globals() if n[0] != '_')"
    run(talk, "%local secret = 'only-for-you ' * 1000")
    before = text_of(run(talk, f"print({names})"))
    said = run(talk, "%remoter push secret as told")
    kinds = {message["type"] for message in iopub(said)}
    assert kinds == {"status", "execute_input", "stream"}
    assert set(said) == {"iopub under request 0", "shell under request 0"}
    after = text_of(run(talk, f"del told; print({names})"))
    assert after == before
    counts = [reply(run(talk, "1"))["execution_count"] for _ in range(2)]
    assert counts[1] == counts[0] + 1
    sessions = far.home / ".local/share/remoter-kernel/sessions"
    assert not list(sessions.glob("*/carried-*"))
    journals = [path for path in sessions.glob("*/journal*/*") if path.is_file()]
    journals += [path for path in sessions.glob("*/journal*") if path.is_file()]
    assert journals
    for path in journals:
        if os.access(path, os.R_OK):
            assert b"only-for-you only" not in path.read_bytes()


def test_it_waits_for_its_turn(talk: Talk) -> None:
    """What a cell before it makes is there when it is carried, on either side."""

    def says(talk: Talk) -> None:
        talk.done(
            talk.queue("import time; time.sleep(0.5); made = 'there'"),
            talk.queue("%remoter pull made"),
            talk.queue("%local made += ' and here'"),
            talk.queue("%remoter push made"),
            talk.queue("made"),
        )

    said = talk.case(says)
    assert text_of(said, 4) == "'there and here'"


def test_what_is_large_is_asked_about(talk: Talk) -> None:
    """No: it stays. Nobody there: it stays. Yes, or --yes: it is carried."""
    run(talk, "%%local\nimport numpy\nlarge = numpy.zeros(9_000_000)")
    said = talk.case(lambda talk: talk.run("%remoter push large", answers=["no"]))
    assert "68.7 MiB" in said["stdin under request 0"][0]["content"]["prompt"]
    assert "were not carried" in reply(said)["evalue"]
    said = run(talk, "%remoter push large", allow_stdin=False)
    assert "--yes" in reply(said)["evalue"]
    said = talk.case(lambda talk: talk.run("%remoter push large", answers=["yes"]))
    assert reply(said)["status"] == "ok"
    assert text_of(run(talk, "large.nbytes")) == "72000000"
    said = run(talk, "%remoter pull large as again --yes", allow_stdin=False)
    assert reply(said)["status"] == "ok"


def test_an_interrupt_ends_it(talk: Talk) -> None:
    """While a kernel is at work for it: it stops, and the kernels are as they were."""
    run(talk, "many = [{'a': i} for i in range(700_000)]")

    def says(talk: Talk) -> None:
        cell = talk.queue("%remoter pull many --yes")
        talk.listen(lambda: talk.has_begun(cell))
        talk.send("interrupt_request", {}, channel="control")
        talk.done(cell)

    said = talk.case(says)
    assert "interrupted" in reply(said)["evalue"].lower()
    assert text_of(run(talk, "len(many)")) == "700000"
    assert text_of(run(talk, "%local 'many' in globals()")) == "False"


def test_it_is_explained(talk: Talk) -> None:
    """What a pickle means stands in the help."""
    assert "run code" in text_of(run(talk, "%remoter help push"))


PEAK = "import resource; resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024"


@pytest.mark.parametrize("rows", [500_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_a_long_frame_needs_little_more_than_its_own_memory(
    kernel: StartedKernel, talk: Talk, rows: int
) -> None:
    """240 MB: at most three times that in each kernel, and a few pieces in the proxy."""
    make = f"long = pd.DataFrame({{k: np.arange({rows}.) for k in 'abc'}})"
    make = f"import numpy as np, pandas as pd\n{make}"
    size = rows * 24 // 2**20
    before = int(text_of(run(talk, PEAK)))
    run(talk, make)
    seconds = []
    for words in ("pull long --yes", "push long as back --yes"):
        begin = time.monotonic()
        said = run(talk, f"%remoter {words}")
        seconds.append(time.monotonic() - begin)
        assert reply(said)["status"] == "ok", reply(said)
    assert text_of(run(talk, "long.equals(back)")) == "True"
    there = int(text_of(run(talk, PEAK))) - before
    here = int(text_of(run(talk, f"%local {PEAK}")))
    front = peak_of(kernel.pid)
    rates = [f"{size / each:.0f} MiB/s" for each in seconds]
    print(f"{rows} rows, {size} MiB: {rates}; there +{there}, here {here}, front {front} MiB")
    assert there < 3 * size + 150
    assert here < 3 * size + 250
    assert front < 160
    run(talk, "del long, back")
    run(talk, "%local del long")


def peak_of(pid: int) -> int:
    """Return the most memory that a process has had, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024
