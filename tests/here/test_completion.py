"""What bash, zsh and fish complete after `remoter`, each as the real shell does it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from remoter_kernel.cli.main import VERBS
from remoter_kernel.local.config import remotes
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.session import session_cache
from tests.real_parts import real_part
from tests.whole.test_console import Terminal

BIN = Path(sys.executable).parent
BASH = """
eval "$(remoter completion bash)"
compopt() { COMPREPLY+=("$*"); }
read -ra COMP_WORDS <<< "$1"
[[ $1 == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_remoter_completion remoter
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = "remoter completion fish | source; complete -C $argv[1] | cut -f 1"
ZSH = 'autoload -Uz compinit; compinit -u -D; eval "$(remoter completion zsh)"; PS1="> "; clear'


@pytest.fixture(autouse=True)
def own_files(tmp_path, monkeypatch):
    monkeypatch.setenv("REMOTER_CONFIG", str(tmp_path / "remotes.toml"))
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("box", "bay"):
        remote = Remote(name, f"me@{name}.invalid")
        remotes.write_remote(remote, make_default=False, replace=False)
    session_cache.store_sessions("box", [{"id": "7f3a9c", "state": "idle", "kernel": "x"}])
    session_cache.add_session("bay", "81aa00", "train.py")
    (tmp_path / "train.py").write_text("")


def in_bash(line):
    return completed(["bash", "-c", BASH, "bash", line])


def in_fish(line):
    real_part("fish")
    return completed(["fish", "--no-config", "-c", FISH, line])


def completed(command):
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    return set(ran.stdout.split())


LINES = {
    "remoter ": set(VERBS),
    "remoter at": {"attach"},
    "remoter run b": {"box", "bay"},
    "remoter check bo": {"box"},
    "remoter put b": {"box", "bay"},
    "remoter get --dry-run ba": {"bay"},
    "remoter stop --all ba": {"bay"},
    "remoter outputs -f 7": {"7f3a9c"},
    "remoter stop 7f3a9c box/": {"box/7f3a9c"},
    "remoter run box --det": {"--detach"},
    "remoter completion f": {"fish"},
    "remoter nonsense x": set(),
}


@pytest.mark.parametrize(("line", "words"), LINES.items(), ids=LINES.keys())
def test_words_in_bash(line, words):
    assert in_bash(line) == words


def test_files_in_bash():
    """Bash itself completes them; it is asked to."""
    assert in_bash("remoter run box tr") == {"-o", "default"}
    assert in_bash("remoter run box train.py da") == {"-o", "default"}
    assert in_bash("remoter put box train.py da") == {"-o", "default"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("remoter outp", {"outputs"}),
        ("remoter run b", {"box", "bay"}),
        ("remoter log 81", {"81aa00"}),
        ("remoter run box tr", {"train.py"}),
    ],
)
def test_words_and_files_in_fish(line, words):
    assert in_fish(line) == words


def test_words_and_files_in_zsh(tmp_path):
    """At a real terminal, as zsh completes nowhere else."""
    real_part("zsh")
    real_part("tmux")
    (folder := tmp_path / "terminal").mkdir()
    with Terminal(folder, ["zsh", "-f", "-i"]) as terminal:
        terminal.type(ZSH)
        terminal.wait_for("> ")
        for typed, whole in {
            "remoter outp": "remoter outputs",
            "remoter check bo": "remoter check box",
            "remoter attach 7": "remoter attach 7f3a9c",
            "remoter run box tr": "remoter run box train.py",
        }.items():
            terminal.press(typed)
            terminal.press("Tab")
            terminal.wait_for(f"> {whole}")
            terminal.press("C-u")


def test_a_shell_that_is_not_known_is_named():
    ran = subprocess.run(
        [BIN / "remoter", "completion", "tcsh"], capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.returncode) == ("", 2)
    assert "'bash', 'zsh', 'fish'" in ran.stderr


def test_what_is_remembered_is_only_a_memory(tmp_path):
    """A torn file is none; what is seen next takes its place."""
    (tmp_path / "state/sessions/box.json").write_text('[{"id"')
    assert set(session_cache.load_sessions()) == {"bay"}
    session_cache.store_sessions("box", [{"id": "000001", "state": "busy", "notebook": "n.ipynb"}])
    (only,) = session_cache.load_sessions()["box"]
    assert only == {"id": "000001", "state": "busy", "notebook": "n.ipynb", "script": ""}
    subprocess.run([BIN / "remoter", "remove", "box"], check=True, capture_output=True)
    assert set(session_cache.load_sessions()) == {"bay"}
