"""A variable that is not set, a file that was meant to stay: a slip costs nothing."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from remoter_kernel.cli import main as command
from remoter_kernel.errors import Usage
from remoter_kernel.local.config import remotes
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.history.executions import CellExecution, any_executed
from remoter_kernel.local.history.remote_query import (
    RemoteQuery,
    SessionList,
    resolve_session,
    resolve_session_id,
)
from remoter_kernel.local.proxy.magics.cell_transfer import parse_transfer_request


@pytest.fixture(autouse=True)
def own_files(tmp_path, monkeypatch):
    monkeypatch.setenv("REMOTER_CONFIG", str(tmp_path / "remotes.toml"))
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    box = Remote("box", "me@box.invalid")
    remotes.write_remote(box, make_default=False, replace=False)


def remoter(*words):
    return CliRunner().invoke(command.remoter, words)


def every_empty_word():
    """Each verb with one of its words empty, for each of them; also as `--option=`."""
    context = click.Context(command.remoter)
    for verb in command.VERBS:
        parameters = command.remoter.get_command(context, verb).params
        arguments = [each for each in parameters if isinstance(each, click.Argument)]
        given = ["box" for _ in arguments]
        for place in range(len(arguments)):
            yield [verb, *given[:place], "", *given[place + 1 :]]
        for option in parameters:
            if isinstance(option, click.Option) and not option.is_flag:
                for word in option.opts:
                    yield [verb, *given, word, ""] if verb != "run" else [verb, word, "", "box"]
                    if word.startswith("--"):
                        yield [verb, f"{word}=", *given]


@pytest.mark.parametrize("words", list(every_empty_word()), ids=" ".join)
def test_an_empty_word_is_refused_everywhere(words):
    ran = remoter(*words)
    assert (ran.stdout, ran.exit_code) == ("", 2)
    assert "A word is empty where" in ran.stderr
    assert "Is a variable of your shell not set?" in ran.stderr


@pytest.mark.parametrize("place", range(3))
def test_an_empty_path_is_refused_wherever_it_stands(place):
    """It would be the folder in which one is, with all that is in it."""
    paths = ["a", "b", "x/"]
    paths[place] = ""
    for verb in ("put", "get"):
        ran = remoter(verb, "box", *paths, "--dry-run")
        assert (ran.stdout, ran.exit_code) == ("", 2)
        quoted = " ".join(path or '""' for path in paths)
        with pytest.raises(Usage, match="A path is empty; nothing was carried"):
            parse_transfer_request(verb, f" {quoted}")


def test_what_a_script_is_given_may_be_empty():
    """That is between the two of them."""
    for words in (["nowhere.py", ""], ["nowhere.py", "--", ""]):
        ran = remoter("run", "box", *words)
        assert ran.exit_code == 1
        assert "nowhere.py cannot be read" in ran.stderr


@pytest.mark.parametrize("word", ["", " ", "box/", "/", "box/ "])
def test_a_word_without_an_id_names_no_session(word):
    """Also where there is but one, whose id begins with nothing as any does."""
    only = {"id": "7f3a9c", "state": "idle"}
    listings = [SessionList(RemoteQuery(Remote("box", "")), [only], None)]
    assert resolve_session("7f", listings).id == "7f3a9c"
    with pytest.raises(Usage, match="names no session"):
        resolve_session(word, listings)
    if word:
        for verb in ("stop", "log", "outputs"):
            ran = remoter(verb, word)
            assert ran.exit_code == 2
            assert "names no session" in str(ran.stderr)
    else:
        words = {"created": 1.0, "kernel": "", "notebook": "", "remote": "box"}
        answer = {"sessions": [{**only, **words}]}
        with pytest.raises(Usage, match="names no session"):
            resolve_session_id(word, lambda _words: (answer, b""), "box")


def test_outputs_leave_a_notebook_alone_that_is_there_or_read_only(tmp_path):
    """That is found out before anybody is asked anything there."""
    path = tmp_path / "mine.ipynb"
    path.write_text("my own")
    for words, code, said in (
        (["--notebook", "mine.ipynb"], 2, "mine.ipynb is there already"),
        (["--notebook", "mine.ipynb", "--force"], 1, "mine.ipynb is read-only"),
        (["--into", "mine.ipynb"], 1, "mine.ipynb is read-only; it stays as it was"),
        (["--force"], 2, "--force lets --notebook replace a file"),
    ):
        path.chmod(0o444)
        ran = remoter("outputs", "box/7f3a9c", *words)
        assert (ran.stdout, ran.exit_code) == ("", code)
        assert said in " ".join(ran.stderr.split())
    assert path.read_text() == "my own"


def test_a_notebook_is_known_by_any_cell_that_was_run():
    cells = [{"cell_type": "code", "id": "a", "source": "1"}]
    assert any_executed(cells, [CellExecution("1", "2"), CellExecution("2", "0", cell_id="a")])
    assert any_executed(cells, [CellExecution("1", "1")])
    assert not any_executed(cells, [CellExecution("1", "2", cell_id="b")])
