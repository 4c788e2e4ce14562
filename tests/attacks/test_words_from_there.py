"""What a remote, its host or a kernel there may say: it does nothing to this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest

from remoter_kernel.errors import RemoterError
from remoter_kernel.local.config import remotes
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.launch import wheelhouse
from remoter_kernel.local.launch.host_probe import FoundPython, HostProbeResult
from remoter_kernel.local.launch.remote_venv import install_venv
from remoter_kernel.local.launch.remote_venv_script import ANSWER_MARK
from remoter_kernel.local.login.keeper.endpoint import end_logins
from remoter_kernel.local.login.login import CompletedCommand
from remoter_kernel.local.session import session_cache
from tests.at_terminal import Question, at_terminal
from tests.real_jupyter import wait_for
from tests.real_parts import real_part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

REMOTER = str(Path(sys.executable).with_name("remoter"))
# A window's title, the clipboard, a colour, C1's own CSI, an order of signs.
ACTS = "\x1b]0;OWNED\x07\x1b]52;c;b3duZWQ=\x07\x1b[31mRED\x1b[0m\x9b32m\u202e"
PASTED = "7f3a9c;touch${IFS}PWNED;:"

# Runs there in place of our program. Once the far side is begun as it should be, its words go
# through here, and some of them become others.
EVIL = """
import json, os, subprocess, sys
ACTS, PASTED = {acts!r}, {pasted!r}
here, zipapp = os.path.dirname(os.path.abspath(__file__)), sys.argv[1]
sys.path.insert(0, zipapp)

def tell(words, rest=b""):
    sys.stdout.buffer.write(b"REMOTER " + json.dumps(words).encode() + b"\\n" + rest)
    sys.stdout.flush()

def session(name="7f3a9c"):
    return {{
        "id": name, "remote": "evil" + ACTS, "kernel": "python3" + ACTS, "script": "",
        "notebook": "/home/me/" + ACTS + "a\\nb.ipynb", "host": "h" + ACTS, "created": 1.7e9,
        "state": "idle" + ACTS, "since": 1.7e9, "seconds": 5.0, "why": ACTS, "fronts": 0,
        "pid": 1, "journal": 5000,
    }}

def records():
    from remoter_kernel.protocol.frames import Channel, pack_parts, to_json
    from remoter_kernel.protocol.journal_entries import JournalEntry, encode_entry
    parts = [b"", to_json({{"msg_type": "execute_request", "msg_id": "1"}}), b"{{}}", b"{{}}"]
    parts.append(to_json({{"code": ACTS}}))
    note = [to_json({{"event": "died", "why": ACTS}})]
    order = [to_json({{"order": ACTS}})]
    for channel, body in ((Channel.SHELL, parts), (Channel.EVENT, note), (Channel.COMMAND, order)):
        yield encode_entry(JournalEntry(1, 1.7e9, channel, True, bytes(8), pack_parts(body)))

if sys.argv[2:] == ["ask"]:
    wish = json.loads(sys.stdin.readline())
    if wish["verb"] == "outputs":
        data = b"".join(records()) if wish["after"] == 0 else b""
        tails = {{"kernel.log": [ACTS], "evaluator.log": [ACTS]}}
        tell({{"session": session(), "is_over": True, "place": None, "bytes": len(data),
              "tails": tails}}, data)
    else:
        tell({{"sessions": [session(), session(PASTED)]}})
elif os.path.exists(os.path.join(here, "refuses")):
    tell({{"lacks": "luck", "what": "nothing " + ACTS}})
else:
    ran = subprocess.run([sys.executable, *sys.argv[1:]], stdin=sys.stdin, stdout=subprocess.PIPE)
    for line in ran.stdout.splitlines(keepends=True):
        if line.startswith(b"REMOTER {{"):
            words = json.loads(line[8:])
            words.update(user="eve" + ACTS, host="h" + ACTS, python="3.11" + ACTS, pyzmq=ACTS)
            if os.path.exists(os.path.join(here, "names")):
                words.update(session=PASTED)
            line = b"REMOTER " + json.dumps(words).encode() + b"\\n"
        sys.stdout.buffer.write(line)
"""


@pytest.fixture(scope="module")
def evil(here: JupyterHere, far: FarSide, python_remote: dict[str, Any]) -> Iterator[Path]:
    """A remote called `evil`, whose Python runs another program than ours; its folder there."""
    with far.folder() as there:
        program = there / "evil.py"
        program.write_text(EVIL.format(acts=ACTS, pasted=PASTED))
        python = there / "python"
        python.write_text(
            f'#!/bin/sh\ncase "$1" in *.pyz) exec {far.python} {program} "$@";; esac\n'
            f'exec {far.python} "$@"\n'
        )
        python.chmod(0o755)
        here.add_remote("evil", **{**python_remote, "python": str(python)})
        yield there
        end_logins()


def shown_by(*words: str, status: int = 0) -> str:
    """Run the command at a real terminal; return all that came there, which acts on none."""
    ended = at_terminal([REMOTER, *words])
    assert ended.status == status, ended
    assert "OWNED" in ended.text, ended
    assert not re.findall("\x1b][^\n]*|\x1b\\[31m|[\x80-\x9f\u202e\x07]", ended.text)
    return ended.text


def test_names_of_sessions_do_not_act_on_the_terminal(evil: Path) -> None:
    """A remote puts control sequences into its sessions' notebooks, kernels and states."""
    text = shown_by("sessions", "evil")
    assert "1 of its sessions" in text
    (row,) = [line for line in text.splitlines() if line.startswith("7f3a9c")]
    assert row.rstrip().endswith("b.ipynb")
    assert "PWNED" not in text


def test_what_happened_there_does_not_act_on_the_terminal(evil: Path) -> None:
    """It puts them into code, reasons, orders and the lines of its logs."""
    text = shown_by("log", "evil/7f3a9c")
    assert "Client 000000 asked for: ]0;OWNED" in text
    assert "The kernel died." in text
    assert "The evaluator complained:" in text


def test_an_error_does_not_act_on_the_terminal(evil: Path) -> None:
    """It puts them into the reason why no session starts; with --debug, too."""
    (evil / "refuses").touch()
    try:
        text = shown_by("run", "evil", "-c", "1", "--debug", status=4)
    finally:
        (evil / "refuses").unlink()
    assert "remoter: evil: The session on 127.0.0.1 did not start: nothing ]0;OWNED" in text
    assert "Traceback" in text


def test_a_look_at_it_step_by_step_does_not_act_on_the_terminal(evil: Path) -> None:
    """It puts them into its user, its host and its versions, which `check` shows."""
    text = shown_by("check", "evil")
    assert "on h]0;OWNED" in text
    assert "as eve]0;OWNED" in text


def test_a_prompt_does_not_act_on_the_terminal(here: JupyterHere, box: str) -> None:
    """Code there asks something, and its prompt sets the title of the window here."""
    code = f"print(input({ACTS + ' name? '!r}))"
    answer = Question("name\\?", lambda: "me", is_hidden=False)
    ended = at_terminal([REMOTER, "run", box, "-c", code], [answer])
    assert ended.status == 0, ended
    assert "]0;OWNED" in ended.text
    assert "\x1b]" not in ended.text


# --------------------------------------------------------------- ids


def test_a_session_that_has_no_id_of_one_is_not_begun(
    evil: Path, here: JupyterHere, python_remote: dict[str, Any]
) -> None:
    """A remote calls the session that it starts `7f3a9c;touch…`: people paste such words."""
    (evil / "names").touch()
    try:
        ran = subprocess.run(
            [REMOTER, "run", "evil", "-c", "1"], capture_output=True, text=True, check=False
        )
    finally:
        (evil / "names").unlink()
    assert ran.returncode == 4, ran
    assert ran.stderr.startswith("remoter: evil: 127.0.0.1 answered strangely: ")
    assert "remoter stop" not in ran.stderr
    assert PASTED not in json.dumps(session_cache.load_sessions())
    # There is a real one behind it.
    here.add_remote("honest", **python_remote)
    told = json.loads(here.remoter("sessions", "honest", "--json").stdout)
    left = [each["id"] for each in told["sessions"] if each["state"] not in {"ended", "dead"}]
    assert here.remoter("stop", *(f"honest/{each}" for each in left)).returncode == 0


BASH = """
eval "$(remoter completion bash)"
compopt() { :; }
read -ra COMP_WORDS <<< "$1"
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_remoter_completion remoter
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed_in(shell: str, line: str) -> set[str]:
    """Return what a real shell would put on its command line."""
    commands = {
        "bash": ["bash", "-c", BASH, "bash", line],
        "fish": [
            "fish",
            "--no-config",
            "-c",
            "remoter completion fish | source; complete -C $argv[1] | cut -f 1",
            line,
        ],
    }
    path = f"{Path(REMOTER).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    ran = subprocess.run(
        commands[shell], capture_output=True, text=True, check=True, env=environment
    )
    return set(ran.stdout.split())


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_no_shell_is_offered_what_it_would_run(evil: Path, shell: str) -> None:
    """A remote names a session `7f3a9c;touch…`; the person presses Tab and Enter."""
    real_part(shell)
    subprocess.run([REMOTER, "sessions", "evil"], capture_output=True, check=True)
    assert completed_in(shell, "remoter log evil/7f3a9c") == {"evil/7f3a9c"}
    assert completed_in(shell, "remoter log 7f3a9c") == {"7f3a9c"}


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the sessions that were seen last, as any version may have left it."""
    monkeypatch.setenv("REMOTER_CONFIG", str(tmp_path / "remotes.toml"))
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path / "state"))
    remotes.write_remote(Remote("box", "me@box.invalid"), make_default=False, replace=False)
    session_cache.store_sessions("box", [{"id": "7f3a9c", "notebook": "n.ipynb"}])
    (file,) = (tmp_path / "state/sessions").iterdir()
    return file


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_what_another_version_has_kept_is_not_offered(memory: Path, shell: str) -> None:
    """The word lies in a file of this machine already; and the next update reads it."""
    real_part(shell)
    kept = [{"id": PASTED, "notebook": "n.ipynb"}, {"id": "7f3a9d"}, {"id": "$(touch PWNED)"}]
    memory.write_text(json.dumps([*kept, 7]))
    assert completed_in(shell, "remoter log box/7f3a9c") == set()
    memory.write_text(json.dumps(kept))
    assert completed_in(shell, "remoter log box/7f3a9c") == set()
    assert completed_in(shell, "remoter log box/") == {"box/7f3a9d"}


def test_what_is_told_of_a_session_offers_no_other_word(memory: Path) -> None:
    """Its notebook's name has lines of its own, which zsh reads as more words to offer."""
    name = "n\nplain\n7f3a9c;touch PWNED\n_"
    memory.write_text(json.dumps([{"id": "7f3a9c", "notebook": name}]))
    ask = {
        "_REMOTER_COMPLETE": "zsh_complete",
        "COMP_WORDS": "remoter log 7f3a",
        "COMP_CWORD": "2",
    }
    ran = subprocess.run(
        [REMOTER], capture_output=True, text=True, check=False, env={**os.environ, **ask}
    )
    assert ran.stdout.splitlines() == ["plain", "7f3a9c", "box n plain 7f3a9c;touch PWNED _"]


# --------------------------------------------------------------- paths here


class EvilInstaller:
    """A login to a host whose Python says what it likes of its version."""

    def run(self, _command: str, _stdin: bytes = b"", *, seconds: float = 60) -> CompletedCommand:
        facts = {
            "environment": "/home/me/venv",
            "python": "/home/me/venv/bin/python",
            "wheels": "/home/me/wheels",
            "state": "none",
            "running": [],
            "host": "h",
            "has_venv": True,
            "pip": "",
            "platform": {"python": ["../../../../.config/x", "=y"]},
        }
        return CompletedCommand(f"{ANSWER_MARK} {json.dumps(facts)}\n".encode(), b"", 0)


def test_a_version_does_not_become_a_path_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A remote calls its Python `../../x`: wheels would be kept in a folder of its choice."""
    asked: list[str] = []

    def pip_wheel(version: str) -> Path:
        asked.append(version)
        raise AssertionError(version)

    monkeypatch.setattr(wheelhouse, "pip_wheel", pip_wheel)
    python = FoundPython("/usr/bin/python3", "3.11.2", False, False, False)
    around = HostProbeResult((python,), "/home/me", "Linux x86_64")
    evil: Any = EvilInstaller()
    progress: Any = MagicMock()
    with pytest.raises(RemoterError, match="an answer that makes no sense"):
        install_venv(evil, Remote("box", "box.invalid"), around, progress, is_offline=False)
    assert asked == []


# --------------------------------------------------------------- odd messages of a kernel

ODD = """
import json, time
from ipykernel.kernelapp import IPKernelApp
kernel = IPKernelApp.instance().kernel
def say(kind, content, **extra):
    pack, session = kernel.session.pack, kernel.session
    session.pack = lambda words: json.dumps(words, default=str).encode()
    try:
        message = session.msg(kind, content, parent=kernel.get_parent(), **extra)
        session.send(kernel.iopub_socket, message)
    finally:
        session.pack = pack
print("before", flush=True)
say("display_data", {"data": "no dict", "metadata": 3, "transient": []})
say("execute_result", {"data": [], "execution_count": "one"})
say("stream", {"text": 3})
say("stream", {"name": "stdout", "text": "half \\ud800 a pair"})
say("stream", {"name": "stderr", "text": "x"}, metadata={"x": "remoter_held_back"})
say("error", {"traceback": [1, None]})
say("error", {"traceback": 5, "ename": {}})
say(["display_data"], {"data": {}})
say({}, {})
time.sleep(0.5)
print("after", flush=True)
"""


@pytest.fixture(scope="module")
def box(here: JupyterHere, python_remote: dict[str, Any]) -> str:
    """A remote that is as it should be."""
    here.add_remote("box", **python_remote)
    return "box"


def read(*words: str) -> str:
    """Run the command; return what it printed."""
    ran = subprocess.run(
        [REMOTER, *words], capture_output=True, text=True, check=False, timeout=60.0
    )
    assert ran.returncode == 0, ran
    assert "fault in remoter" not in ran.stderr
    return ran.stdout


def test_odd_messages_of_a_kernel_do_not_end_a_run(box: str) -> None:
    """A library in a kernel publishes what no client expects: all else is shown all the same."""
    text = read("run", box, "-c", ODD)
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    outputs = json.loads(read("run", box, "--json", "-c", ODD))["outputs"]
    assert outputs[0] == {"output_type": "stream", "name": "stdout", "text": "before\n"}
    assert outputs[-1]["text"].endswith("after\n")
    lines = [json.loads(line) for line in read("run", box, "--events", "-c", ODD).splitlines()]
    assert lines[-1]["status"] == "ok"


def test_odd_messages_of_a_kernel_leave_its_session_readable(box: str, tmp_path: Path) -> None:
    """The same in a session that is read later: as text, and as a notebook."""
    name = read("run", box, "--detach", "-c", ODD).strip()
    wait_for(lambda: "after" in read("outputs", f"{box}/{name}"), seconds=30.0)
    notebook = tmp_path / "out.ipynb"
    read("outputs", f"{box}/{name}", "--notebook", str(notebook))
    (cell,) = [
        cell
        for cell in json.loads(notebook.read_text())["cells"]
        if "before" in str(cell["source"])
    ]
    texts = "".join("".join(each.get("text", "")) for each in cell["outputs"])
    assert "before\n" in texts
    assert "half \ufffd a pair" in texts
    assert texts.endswith("after\n")
    read("log", f"{box}/{name}")
