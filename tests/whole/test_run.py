"""`remoter run`: scripts and lines of code in a pipeline, their exit codes, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.at_terminal import at_terminal
from tests.real_jupyter import wait_for
from tests.real_parts import real_part

if TYPE_CHECKING:
    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

REMOTER = str(Path(sys.executable).with_name("remoter"))
LONG = "import time; print('on', flush=True); time.sleep(600)"
DEAF = """
import time
print('on', flush=True)
until = time.monotonic() + {seconds}
while time.monotonic() < until:
    try:
        time.sleep(0.2)
    except KeyboardInterrupt:
        print('no', flush=True)
print('done')
"""


@pytest.fixture(scope="module")
def box(here: JupyterHere, python_remote: dict[str, Any]) -> str:
    """A remote whose kernel speaks Python."""
    here.add_remote("box", **python_remote)
    return "box"


@pytest.fixture(scope="module")
def stats(here: JupyterHere, python_remote: dict[str, Any]) -> str:
    """A remote whose kernel speaks R."""
    real_part("irkernel")
    here.add_remote("stats", language="R", kernel="ir", **python_remote)
    return "stats"


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line in bash, as a CI job would."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=folder,
        stdin=subprocess.DEVNULL,
        timeout=90,
        env={**os.environ, "PATH": f"{Path(REMOTER).parent}:{os.environ['PATH']}", **environment},
    )


def sessions(here: JupyterHere, remote: str) -> list[dict[str, Any]]:
    """Return what is told of a remote's sessions, the newest first."""
    return list(json.loads(here.remoter("sessions", remote, "--json").stdout)["sessions"])


def living(here: JupyterHere, remote: str) -> list[dict[str, Any]]:
    """Return those that are not over."""
    found = sessions(here, remote)
    return [each for each in found if each["state"] not in {"ended", "dead"}]


# --------------------------------------------------------------- Python


def test_a_script_in_a_pipeline(box: str, far: FarSide, tmp_path: Path) -> None:
    """Text to stdout, errors to stderr, arguments in sys.argv, and nothing else anywhere."""
    (tmp_path / "hello.py").write_text(
        "import getpass, sys\n"
        "print('grüße', getpass.getuser(), sys.argv, __name__)\n"
        "print('aside', file=sys.stderr)\n"
    )
    line = f"remoter run {box} hello.py --lr 0.1 -o x --json 'two words' | cat"
    ran = shell(line, tmp_path, LC_ALL="C")
    argv = ["hello.py", "--lr", "0.1", "-o", "x", "--json", "two words"]
    assert ran.stdout == f"grüße {far.user} {argv} __main__\n"
    assert (ran.stderr, ran.returncode) == ("aside\n", 0)


def test_a_script_that_fails(here: JupyterHere, box: str, tmp_path: Path) -> None:
    """It stops at the first error: 1, the traceback on stderr. Its session ends with it."""
    (tmp_path / "bad.py").write_text("print('so far')\n1 / 0\nprint('never')\n")
    ran = shell(f"remoter run {box} bad.py 2> complaint && echo went well", tmp_path)
    assert (ran.stdout, ran.returncode) == ("so far\n", 1)
    assert "ZeroDivisionError" in (tmp_path / "complaint").read_text()
    assert sessions(here, box)[0]["script"] == "bad.py"
    assert not living(here, box)


@pytest.mark.parametrize(
    ("leaves", "code", "said"),
    [
        ("import sys; sys.exit()", 0, ""),
        ("exit(0)", 0, ""),
        ("import sys; sys.exit(3)", 1, ""),
        ("import sys; sys.exit('no data')", 1, "no data\n"),
    ],
)
def test_how_a_script_leaves(box: str, tmp_path: Path, leaves: str, code: int, said: str) -> None:
    """Exit codes above 1 are remoter's own; a text goes to stderr, as Python does it."""
    (tmp_path / "leaves.py").write_text(f"print('on')\n{leaves}\nprint('never')\n")
    ran = shell(f"remoter run {box} leaves.py", tmp_path)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("on\n", said, code)


def test_code_from_stdin_and_from_the_command_line(box: str, tmp_path: Path) -> None:
    """`-` reads stdin, `-c` a word; both have arguments."""
    line = f"echo 'import sys; print(sys.argv)' | remoter run {box} - a && "
    line += f"remoter run {box} -c 'import sys; print(sys.argv); 6 * 7' b -c d"
    ran = shell(line, tmp_path)
    assert ran.stdout == "['-', 'a']\n['-c', 'b', '-c', 'd']\n42\n", ran.stderr


def test_whoever_reads_no_more_ends_it_quietly(here: JupyterHere, box: str, tmp_path: Path) -> None:
    """`| head -2` of a flood: two lines, no complaint, and no session stays."""
    flood = "i = 0\nwhile True:\n    print('line', i := i + 1)\n"
    (tmp_path / "flood.py").write_text(flood)
    ran = shell(f"remoter run {box} flood.py | head -2", tmp_path)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("line 1\nline 2\n", "", 141)
    wait_for(lambda: not living(here, box), seconds=20, what="the session has ended")


def test_a_flood_comes_whole(box: str, tmp_path: Path) -> None:
    """200,000 lines: every one, once, in order."""
    (tmp_path / "much.py").write_text("for i in range(200_000): print(i)\n")
    ran = shell(f"remoter run {box} much.py | cksum; seq 0 199999 | cksum", tmp_path)
    one, other = ran.stdout.splitlines()
    assert one == other


def test_output_streams(box: str, tmp_path: Path) -> None:
    """A line is here while the script goes on; an interrupt ends it with 1."""
    with subprocess.Popen(
        [REMOTER, "run", box, "-c", LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "KeyboardInterrupt" in complaint


def test_a_terminal_of_another_encoding_is_no_error(box: str, tmp_path: Path) -> None:
    """A pipe gets UTF-8, whatever the locale; what a terminal cannot show is a question mark."""
    code = "print('a→b')"
    ran = shell(f'remoter run {box} -c "{code}"', tmp_path, LC_ALL="C", PYTHONIOENCODING="latin-1")
    assert (ran.stdout, ran.stderr) == ("a→b\n", "")
    ended = at_terminal(
        [REMOTER, "run", box, "-c", code], environment={"PYTHONIOENCODING": "ascii"}
    )
    assert (ended.text, ended.status) == ("a?b\n", 0)


def test_a_timeout(here: JupyterHere, box: str, tmp_path: Path) -> None:
    """1 and a sentence, with where it was; the session ends."""
    ran = shell(f"remoter run {box} --timeout 2 -c {json.dumps(LONG)}", tmp_path)
    assert (ran.stdout, ran.returncode) == ("on\n", 1)
    assert "KeyboardInterrupt" in ran.stderr
    sentence = "remoter: box: The code was not done within 2.0 s (--timeout), and was ended.\n"
    assert ran.stderr.endswith(sentence)
    assert not living(here, box)


def test_json_is_one_document_and_events_are_lines(box: str, tmp_path: Path) -> None:
    """Both say how it ended; nothing else is on stdout."""
    (tmp_path / "some.py").write_text("print('a')\nprint('b')\n1 / 0\n")
    ran = shell(f"remoter run {box} some.py --json", tmp_path)
    document = json.loads(ran.stdout)
    assert ran.returncode == document["exit_code"] == 1
    assert (document["remote"], document["status"]) == (box, "error")
    assert document["session"]
    text, error = document["outputs"]
    assert text == {"output_type": "stream", "name": "stdout", "text": "a\nb\n"}
    assert error["ename"] == "ZeroDivisionError"
    ran = shell(f"remoter run --events {box} -c 'print(1)'", tmp_path)
    first, last = map(json.loads, ran.stdout.splitlines())
    assert (first["event"], first["text"]) == ("output", "1\n")
    assert (last["event"], last["exit_code"]) == ("end", 0)


def test_a_script_of_another_language_is_refused(
    here: JupyterHere, box: str, tmp_path: Path
) -> None:
    """2, and no session stays."""
    (tmp_path / "a.R").write_text("1")
    ran = shell(f"remoter run {box} a.R", tmp_path)
    assert (ran.stdout, ran.returncode) == ("", 2)
    assert "a.R is written in R, and the kernel there speaks python" in ran.stderr
    assert not living(here, box)


def test_a_host_that_cannot_be_reached(here: JupyterHere, tmp_path: Path) -> None:
    """3; with --json a document says so, too, and also of a run that was to be left there."""
    here.add_remote("nowhere", host="no-such-host.invalid")
    ran = shell("remoter run nowhere --json -c 1", tmp_path)
    assert ran.returncode == json.loads(ran.stdout)["exit_code"] == 3
    assert ran.stderr.startswith("remoter: nowhere: ")
    ran = shell("remoter run nowhere --detach --json -c 1", tmp_path)
    document = json.loads(ran.stdout)
    assert (ran.returncode, document["exit_code"], document["session"]) == (3, 3, "")
    assert f"remoter: {document['error']}\n" == ran.stderr


def test_a_kernel_that_dies_and_a_python_that_is_missing(
    here: JupyterHere, box: str, python_remote: dict[str, Any], tmp_path: Path
) -> None:
    """1 with how it died, and no word of a lost link; 4 where the remote lacks something."""
    ran = shell(f"remoter run {box} -c 'import os; os._exit(7)'", tmp_path)
    assert ran.returncode == 1
    assert "The kernel died" in ran.stderr
    assert "link" not in ran.stderr
    here.add_remote("bare", **{**python_remote, "python": "/nowhere/python"})
    assert shell("remoter run bare -c 1", tmp_path).returncode == 4


def test_a_signal_to_end_ends_the_session(here: JupyterHere, box: str) -> None:
    """SIGTERM, as a CI system sends it: 143, and nothing stays there."""
    with subprocess.Popen([REMOTER, "run", box, "-c", LONG], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"on\n"
        process.terminate()
        assert process.wait(20) == 143
    assert not living(here, box)


def test_who_presses_ctrl_c_twice_leaves_it_running(here: JupyterHere, box: str) -> None:
    """130, and how to come back; what was left is followed to its end, and ends by itself."""
    with subprocess.Popen(
        [REMOTER, "run", box, "-c", DEAF.format(seconds=6)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "no\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    (session,) = living(here, box)
    assert process.returncode == 130
    assert f"box: Session {session['id']} goes on there." in said
    for verb in ("outputs -f", "attach", "stop"):
        assert f"remoter {verb} {session['id']}" in said
    followed = here.remoter("outputs", "-f", session["id"])
    assert (followed.stdout, followed.returncode) == ("on\nno\ndone\n", 0)
    assert not living(here, box)


# --------------------------------------------------------------- R


def test_an_r_script(here: JupyterHere, stats: str, tmp_path: Path) -> None:
    """Its arguments are in commandArgs, for packages, too; `quit` ends it there."""
    (tmp_path / "fit.R").write_text(
        "cat(commandArgs(trailingOnly = TRUE), sep = '\\n')\n"
        "stopifnot(identical(base::commandArgs(TRUE), commandArgs(TRUE)))\n"
        "message('aside')\n6 * 7\nquit('no', 0)\nstop('never')\n"
    )
    ran = shell(f"remoter run {stats} fit.R 'grüße \"dich\"' --n 3", tmp_path)
    assert ran.stdout.splitlines() == ['grüße "dich"', "--n", "3", "[1] 42"]
    assert (ran.stderr.strip(), ran.returncode) == ("aside", 0)


def test_an_r_script_that_fails(stats: str, tmp_path: Path) -> None:
    """1, and R's own words on stderr; `quit(status = 2)` is 1, too."""
    (tmp_path / "bad.R").write_text("cat('a\\n')\nstop('too few')\ncat('b\\n')\n")
    ran = shell(f"remoter run {stats} bad.R", tmp_path)
    assert (ran.stdout, ran.returncode) == ("a\n", 1)
    assert "too few" in ran.stderr
    ran = shell(f"remoter run {stats} -c 'quit(status = 2)'", tmp_path)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("", "", 1)
