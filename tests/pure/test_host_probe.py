"""What a look around a remote tells, and what it makes of noise."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from remoter_kernel.errors import RemoteLacks
from remoter_kernel.local.launch.host_probe import (
    PROBE_MARK,
    FoundPython,
    HostProbeResult,
    RemoteKernelspec,
    parse_probe,
)

PYTHON3 = ["python3", "Python 3", "python", True, ""]


def seen(path="/usr/bin/python3", **facts):
    return {
        "path": path,
        "prefix": path,
        "version": [3, 11, 2],
        "zmq": True,
        "jupyter_client": True,
        "ipykernel": True,
        "kernels": [PYTHON3],
        **facts,
    }


def answer(*pythons, noise=b""):
    lines = [f"{PROBE_MARK} home /home/me", f"{PROBE_MARK} system Linux x86_64"]
    lines += [f"{PROBE_MARK} python {json.dumps(python)}" for python in pythons]
    return noise + b"\n" + "\n".join([*lines, f"{PROBE_MARK} end ."]).encode() + b"\n" + noise


def test_each_python_is_told_with_what_imports_in_it():
    found = parse_probe(answer(seen(), seen("/opt/old", version=[3, 8, 1], zmq=False)))
    assert found.home == "/home/me"
    assert found.system == "Linux x86_64"
    new, old = found.pythons
    kernels = (RemoteKernelspec("python3", "Python 3", "python", debugger=True),)
    assert new == FoundPython("/usr/bin/python3", "3.11.2", True, True, True, kernels)
    assert new.missing == ()
    assert old.missing == ("Python 3.9 or newer", "pyzmq")


@pytest.mark.parametrize(
    ("program", "other"),
    [
        ("", ""),  # Jupyter puts the Python in that asks
        ("/v/bin/python3", ""),
        ("/v/bin/python3.11", ""),
        ("/gone/bin/python", "/gone/bin/python"),
    ],
)
def test_a_kernel_that_runs_in_another_python_is_told(program, other):
    """`add` and `check` show it; a kernel of another language starts what it likes."""
    kernels = [["python3", "Python 3", "python", True, program], ["ir", "R", "R", False, "/bin/R"]]
    (python,) = parse_probe(answer(seen("/v/bin/python", kernels=kernels))).pythons
    assert python.other_interpreter("python3") == other
    assert python.other_interpreter("ir") == ""


def test_one_environment_under_two_names_is_one():
    one, two = seen("/v/bin/python3", prefix="/v"), seen("/v/bin/python", prefix="/v")
    assert [python.path for python in parse_probe(answer(one, two)).pythons] == ["/v/bin/python3"]


@given(st.binary(max_size=60))
@example(b"@ home /elsewhere\n@ end .\n python {}\nhome /elsewhere\n")
def test_a_banner_around_the_answer_changes_nothing(noise):
    if PROBE_MARK.encode() not in noise:
        assert parse_probe(answer(seen(), noise=noise)) == parse_probe(answer(seen()))


def test_the_best_python_can_run_an_evaluator_and_knows_the_kernel():
    bare = seen("/bare", zmq=False, kernels=[])
    plain = seen("/plain")
    with_r = seen("/with-r", kernels=[PYTHON3, ["ir", "R", "R", False, "R"]])
    around = parse_probe(answer(bare, plain, with_r))
    assert around.best().path == "/plain"
    assert around.best("ir").path == "/with-r"
    assert around.best("julia").path == "/plain"
    assert HostProbeResult((), "", "").best() is None
    assert parse_probe(answer(bare)).best() is None


REFUSED = {
    "nothing there": ([], "", "no Python was found", "--python"),
    "not the named one": ([], "/x/python", "no Python /x/python that runs", "--python"),
    "too old": ([seen(version=[3, 8, 1])], "", "lacks Python 3.9 or newer", "Install a newer one"),
    "bare": ([seen("/b", jupyter_client=False)], "", "/b is Python", "/b -m pip install ipykernel"),
    "several": (
        [seen("/old", version=[2, 7, 1], zmq=False), seen("/bare", zmq=False), seen("/c", zmq=0)],
        "",
        "none of the 3 Pythons there can run a kernel: /bare is Python 3.11.2 and lacks pyzmq",
        "/bare -m pip install ipykernel",
    ),
}


@pytest.mark.parametrize(("there", "named", "what", "advice"), REFUSED.values(), ids=REFUSED)
def test_what_is_in_the_way_is_said_with_what_to_do(there, named, what, advice):
    with pytest.raises(RemoteLacks) as caught:
        parse_probe(answer(*there)).choose(named, "python3")
    assert what in caught.value.what
    assert advice in caught.value.advice


def test_a_kernel_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(RemoteLacks, match=r'called "pyhton3" \(did you mean "python3"\?\)'):
        parse_probe(answer(seen())).choose("", "pyhton3")


def test_a_forced_command_is_recognised_by_its_own_words():
    with pytest.raises(RemoteLacks, match=r"Welcome to the .*file server") as caught:
        parse_probe(b"Welcome to\r\n the \x1b[2Jfile server\n")
    assert "\x1b" not in str(caught.value)
    with pytest.raises(RemoteLacks, match="nothing"):
        parse_probe(b"")


def test_names_from_there_cannot_act_on_the_terminal():
    found = parse_probe(answer(seen(kernels=[["x", "R\x1b]0;owned\x07", "R", False, ""]])))
    assert found.pythons[0].kernelspecs[0].display_name == "R]0;owned"


@pytest.mark.parametrize("broken", [{}, [], 3, {"version": "x"}, seen(version=["3"], kernels=[1])])
def test_an_answer_that_makes_no_sense_is_said_to_make_none(broken):
    with pytest.raises(RemoteLacks, match="makes no sense"):
        parse_probe(answer(broken))
