"""What `remoter run` makes of its words before any login: which are the script's, or refused."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from remoter_kernel.cli import main as command
from remoter_kernel.cli.params import _options_of, split_script_arguments
from remoter_kernel.errors import Usage
from remoter_kernel.local.config import remotes
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.run.code_to_run import code_program


@pytest.fixture(autouse=True)
def own_files(tmp_path, monkeypatch):
    monkeypatch.setenv("REMOTER_CONFIG", str(tmp_path / "remotes.toml"))
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    box = Remote("box", "me@box.invalid")
    remotes.write_remote(box, make_default=False, replace=False)


@pytest.fixture
def files(tmp_path):
    """Files of which none can be run as it is named below."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.py").write_bytes(b"x = 1\nprint('gr\xfc\xdfe')\n")
    (tmp_path / "none.ipynb").write_text("print(1)")
    (tmp_path / "odd.ipynb").write_text('{"nbformat": 4, "cells": [1], "metadata": {}}')
    (tmp_path / "old.ipynb").write_text('{"nbformat": 3, "worksheets": []}')
    (tmp_path / "a.R").write_text("1")
    cell = '{"cell_type": "code", "source": "1"}'
    (tmp_path / "bad.ipynb").write_text(
        f'{{"nbformat": 4, "nbformat_minor": 4, "cells": [{cell}], "metadata": {{}}}}'
    )
    notebook = {"nbformat": 4, "nbformat_minor": 4, "cells": [], "metadata": {}}
    for name in ("good", "locked"):
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "locked.ipynb").chmod(0o444)


REFUSED = {
    "box": "a file or code",
    "box a.R -c 1": "either a file or code",
    "box folder": "folder is a folder",
    "box latin.py": "latin.py, line 2: this is not UTF-8",
    "box none.ipynb": "none.ipynb cannot be read as a notebook",
    "box odd.ipynb": "odd.ipynb is not what a notebook should be",
    "box old.ipynb": "old.ipynb is a notebook of another version",
    "box -o out.ipynb a.R": "a.R is none",
    "box -o out.ipynb bad.ipynb": "bad.ipynb is no valid notebook",
    "box -o bad.ipynb good.ipynb": "bad.ipynb is there already",
    "box --force good.ipynb": "--force lets -o replace a file",
    "box --timeout soon -c 1": "a duration such as",
    "box --timeout 0 -c 1": "more than 0",
    "box --detach --timeout 3 -c 1": "somebody here until the end",
    "box --json --events -c 1": "either --json or --events",
    "box -c \udcff": "The code is not UTF-8 text",
    "box --jsno -c 1": "No such option",
    "bxo -c 1": 'No remote is called "bxo" (did you mean "box"?)',
}

MISSING = {
    "box nowhere.py": "nowhere.py cannot be read: No such file",
    "box nowhere.ipynb": "nowhere.ipynb cannot be read: No such file",
    "box -o no/out.ipynb good.ipynb": "no/out.ipynb cannot be written: No such file",
    "box -o folder good.ipynb": "folder cannot be written: Is a directory",
    "box -o locked.ipynb --force good.ipynb": "locked.ipynb is read-only",
}


@pytest.mark.parametrize(("words", "sentence"), MISSING.items(), ids=MISSING.keys())
def test_what_is_wrong_with_a_file_of_this_side_has_a_code_of_its_own(files, words, sentence):
    ran = CliRunner().invoke(command.remoter, ["run", *words.split()])
    assert (ran.stdout, ran.exit_code) == ("", 1)
    assert sentence in " ".join(ran.stderr.split())


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["box", "a.py", "--force", "x"], ["box", "a.py"]),
        (["box", "a.py", "--force", "x", "-o", "y"], ["box", "a.py"]),
        (["box", "a.py", "--force", "--", "-o", "y"], ["box", "a.py"]),
        (["box", "a.py", "--force", "x", "-orange"], ["box", "a.py"]),
        (["box", "a.ipynb", "--force", "-o", "x"], ["box", "a.ipynb", "--force", "-o", "x"]),
        (["box", "a.ipynb", "-ox", "--force"], ["box", "a.ipynb", "-ox", "--force"]),
    ],
)
def test_force_is_the_scripts_unless_a_notebook_is_to_be_written(words, own):
    context = click.Context(command.remoter)
    run = command.remoter.get_command(context, "run")
    assert run.own_words(words)[0] == own


@pytest.mark.parametrize(("words", "sentence"), REFUSED.items(), ids=REFUSED.keys())
def test_what_cannot_be_run_is_refused(files, words, sentence):
    ran = CliRunner().invoke(command.remoter, ["run", *words.split()])
    assert (ran.stdout, ran.exit_code) == ("", 2)
    assert sentence in " ".join(ran.stderr.split())


def test_an_argument_that_is_no_text_is_refused_where_the_kernel_would_die_of_it():
    program = code_program("1", ["a", "\udcff"])
    assert "'\\udcff'" in program.preamble("python")
    with pytest.raises(Usage, match="is not UTF-8 text"):
        program.preamble("R")


SPLIT = {
    "box a.py": ("box a.py", ""),
    "box a.py --json": ("box a.py --json", ""),
    "box a.py x --json": ("box a.py", "x --json"),
    "box a.py --lr 0.1 -o x": ("box a.py", "--lr 0.1 -o x"),
    "box a.py -o out x -o y": ("box a.py -o out", "x -o y"),
    "box a.py -- --json": ("box a.py", "--json"),
    "box a.py -- -- x": ("box a.py", "-- x"),
    "--timeout 3 box --timeout=4 a.py -v": ("--timeout 3 box --timeout=4 a.py", "-v"),
    "box -c code x -c y": ("box -c code", "x -c y"),
    "box -ccode x": ("box -ccode", "x"),
    "-c code box --json -x": ("-c code box --json", "-x"),
    "box - -": ("box -", "-"),
    "box --wrong a.py": ("box --wrong a.py", ""),
    "": ("", ""),
}


@pytest.mark.parametrize(("words", "parts"), SPLIT.items(), ids=SPLIT.keys())
def test_the_script_gets_what_is_not_for_the_command(words, parts):
    """From the first word after FILE (or CODE) on that is no option; after `--`, all."""
    run = command.remoter.get_command(click.Context(command.remoter), "run")
    assert run
    own, arguments = split_script_arguments(words.split(), _options_of(run))
    assert (" ".join(own), " ".join(arguments)) == parts
