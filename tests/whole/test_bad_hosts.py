"""Whatever is wrong with a host: a sentence in the cell, a proxy that lives, and a second try."""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.real_jupyter import StartedKernel, started_kernel
from tests.real_parts import real_part
from tests.real_users import throw_away_user
from tests.whole.talk import Talk
from tests.whole.troubles import NAME, TROUBLES, Place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_sshd import RealSshd
    from tests.real_users import FarSide

LONGEST = 900  # characters of an error that a person may be asked to read


@pytest.fixture
def place(here: JupyterHere, far: FarSide, sshd: RealSshd, tmp_path: Path) -> Iterator[Place]:
    """A remote that works, and whatever a trouble brings, which ends with the test."""
    tmp_path.chmod(0o755)
    (here.folder / "remotes.toml").unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        place = Place(here, far, sshd, tmp_path, stack)
        place.reach()
        place.remote()
        yield place


def run(talk: Talk) -> tuple[str, dict[str, Any]]:
    """Run a cell that may not ask; return what it says: ("result", ...) or ("error", ...)."""
    said = talk.case(lambda talk: talk.run("6 * 7", allow_stdin=False))
    assert "GAVE UP" not in said, said
    told = said["iopub under request 0"]
    assert [m["content"]["execution_state"] for m in (told[0], told[-1])] == ["busy", "idle"]
    (reply,) = said["shell under request 0"]
    found = [m for m in told if m["type"] in ("error", "execute_result")]
    assert len(found) == 1, told
    is_error = found[0]["type"] == "error"
    assert reply["content"]["status"] == ("error" if is_error else "ok")
    return ("error" if is_error else "result"), found[0]["content"]


def front_lives(kernel: StartedKernel) -> bool:
    """Is the proxy there, and does it answer at once?"""
    said = Talk(kernel.client).case(lambda talk: talk.tell("kernel_info_request", {}))
    return kernel.manager.is_alive() and "shell under request 0" in said


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_is_told_and_ends(place: Place, name: str) -> None:
    """The cell gets an error that names the remote and an action; mended, the next cell works."""
    trouble = TROUBLES[name]
    happening = trouble.happens(place)
    next(happening)
    with started_kernel(f"remoter-{NAME}") as kernel:
        talk = Talk(kernel.client)
        kind, content = run(talk)
        assert kind == "error"
        sentence = content["evalue"]
        assert NAME in sentence
        assert re.search(trouble.says, sentence, re.DOTALL), sentence
        assert len(sentence) < LONGEST
        assert "Traceback" not in sentence
        assert "Error(" not in sentence
        assert re.search(r"[.:] .*\S", sentence, re.DOTALL), "it names no action"
        assert front_lives(kernel)
        assert run(talk)[0] == "error"  # again, for the same reason
        next(happening, None)
        kind, content = run(talk)
        assert (kind, content.get("data", content)) == ("result", {"text/plain": "42"})


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_has_an_exit_code(place: Place, name: str) -> None:
    """`remoter run` and `remoter check` say it on stderr and end with the code of its kind."""
    trouble = TROUBLES[name]
    happening = trouble.happens(place)
    next(happening)
    ran = place.here.remoter("run", NAME, "-c", "print(6 * 7)")
    assert (ran.returncode, ran.stdout) == (trouble.exit_code, ""), ran
    assert re.search(trouble.says, ran.stderr, re.DOTALL), ran.stderr
    assert NAME in ran.stderr or "remotes.toml" in ran.stderr
    assert "Traceback" not in ran.stderr
    checked = place.here.remoter("check", NAME, "--json")
    assert checked.returncode == trouble.exit_code, checked
    if checked.stdout:
        assert isinstance(json.loads(checked.stdout), dict)
    next(happening, None)
    ran = place.here.remoter("run", NAME, "-c", "print(6 * 7)")
    assert (ran.returncode, ran.stdout) == (0, "42\n"), ran


def test_code_that_fails_has_its_own_exit_code(place: Place) -> None:
    """Exit code 1 means that the code failed, and nothing else does."""
    ran = place.here.remoter("run", NAME, "-c", "print('so far'); 1/0")
    assert (ran.returncode, ran.stdout) == (1, "so far\n")
    assert "ZeroDivisionError" in ran.stderr


NOISE = r"""
echo "Welcome to the noisy host"; echo "on stderr, too" >&2; printf '\033]0;title\007no newline'
"""


def test_a_noisy_login_shell_is_no_trouble(place: Place) -> None:
    """A shell that prints into every command, on both streams, harms nothing."""
    real_part("root")
    user = place.stack.enter_context(throw_away_user("remoter-noisy"))
    for file in (".bashrc", ".profile", ".bash_profile"):
        path = user.home / file
        path.write_text(NOISE)
        user.give(path)
    place.reach(place.serve(user=user.user, extra_config="PrintMotd yes\nBanner /etc/issue"))
    with started_kernel(f"remoter-{NAME}") as kernel:
        talk = Talk(kernel.client)
        kind, content = run(talk)
        assert kind == "result", content
    checked = place.here.remoter("check", NAME, "--json")
    assert checked.returncode == 0, checked


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_login_shell_that_takes_long_is_waited_for(place: Place) -> None:
    """By a transfer, and by a session that is reached through a command, as by any other."""
    real_part("root")
    user = place.stack.enter_context(throw_away_user("remoter-slow"))
    for file in (".bashrc", ".profile", ".bash_profile"):
        (user.home / file).write_text("/bin/sleep 24\n")
        user.give(user.home / file)
    place.reach(place.serve(user=user.user, extra_config="AllowTcpForwarding no"))
    (place.folder / "file").write_text("text")
    ran = place.here.remoter("put", NAME, str(place.folder / "file"), "there", timeout=180)
    assert ran.returncode == 0, ran
    assert "waiting for" in ran.stderr
    assert (user.home / "there").read_text() == "text"
    ran = place.here.remoter("run", NAME, "-c", "print(6 * 7)", timeout=180)
    assert (ran.returncode, ran.stdout) == (0, "42\n"), ran
    assert "waiting for" in ran.stderr


def test_trouble_is_over_for_a_cell_that_waits_in_the_queue(place: Place) -> None:
    """All cells that were queued get the error, and none of them runs later."""
    happening = TROUBLES["a host that refuses"].happens(place)
    next(happening)
    with started_kernel(f"remoter-{NAME}") as kernel:
        talk = Talk(kernel.client)
        said = talk.case(
            lambda talk: talk.done(*[talk.queue(f"ran = {n}", allow_stdin=False) for n in range(3)])
        )
        for n in range(3):
            (reply,) = said[f"shell under request {n}"]
            assert reply["content"]["status"] in ("error", "aborted")
        next(happening, None)
        said = talk.case(lambda talk: talk.run("'ran' in globals()", allow_stdin=False))
        shown = [m for m in said["iopub under request 0"] if m["type"] == "execute_result"]
        assert shown[0]["content"]["data"]["text/plain"] == "False"
