"""What Tab completes after %remoter in a cell, as far as it is known here."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remoter_kernel.errors import Usage
from remoter_kernel.evaluator.query import complete_paths
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.proxy.magics.completer import (
    Completer,
    add_magics,
    line_before_cursor,
    local_paths,
    quote_word,
    split_words,
    word_kind,
)
from remoter_kernel.local.proxy.magics.help import (
    HELP,
    LOCAL_PATH,
    REMOTE_PATH,
    SESSION,
    VERB,
    summary_text,
    verb_text,
)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("%remoter ", VERB),
        ("%remoter sta", VERB),
        ("%remoter help st", VERB),
        ("%remoter log 7f", SESSION),
        ("%remoter put da", LOCAL_PATH),
        ("%remoter put data.csv ", REMOTE_PATH),
        ("%remoter put 'my data' ~/", REMOTE_PATH),
        ("%remoter get ru", REMOTE_PATH),
        ("%remoter get runs/a ./", LOCAL_PATH),
        ("%remoter timer o", "on|off"),
        ("%remoter status -", "--requests"),
        ("%remoter keep x", ""),
        ("%remoter nonsense x", ""),
    ],
)
def test_what_stands_at_the_cursor(line, kind):
    """By the verb, and by the place in its line."""
    assert word_kind([word.text for word in split_words(line)[1:]]) == kind


@given(st.lists(st.text(min_size=1), min_size=1))
def test_a_word_that_is_written_is_read_as_it_was(words):
    """Blanks, quotes and backslashes in a name do not make it two."""
    line = " ".join(map(quote_word, words))
    if not any(sign.isspace() and sign != " " for sign in line):
        assert [word.text for word in split_words(line)] == words


def test_where_the_last_word_begins():
    """That is what the client replaces, quotes and all."""
    assert split_words("%remoter put 'my da")[-1] == (13, "my da")
    assert split_words("%remoter put ü/d")[-1] == (13, "ü/d")


@pytest.mark.parametrize(
    ("code", "position", "line"),
    [
        ("%remoter st\nmore", 11, "%remoter st"),
        ("%remoter st\nmore", 14, ""),
        ("%remoter stop", 11, "%remoter st"),
        ("%remoter", None, "%remoter"),
    ],
)
def test_only_the_first_line_counts(code, position, line):
    assert line_before_cursor({"code": code, "cursor_pos": position}) == line


def reply(*matches, start=0, **metadata):
    return {
        "status": "ok",
        "matches": list(matches),
        "cursor_start": start,
        "cursor_end": 4,
        "metadata": metadata,
    }


def test_the_first_word_is_added_to_what_the_kernel_says():
    """Beside its own magics, after a % that it leaves alone, and where it knows nothing (R)."""
    assert add_magics("%rem", reply("%rehashx"))["matches"] == ["%rehashx", "%remoter"]
    assert add_magics("%re", reply("rehashx", start=1))["matches"] == ["rehashx", "remoter"]
    nothing = add_magics("%%lo", reply(start=4))
    assert (nothing["matches"], nothing["cursor_start"]) == (["%%local"], 0)
    assert add_magics("%rem", reply("%remoter"))["matches"] == ["%remoter"]


def test_what_is_for_the_kernel_alone_stays_as_it_is():
    for line in ("", "rem", "x = %rem", "%time"):
        said = reply("x")
        assert add_magics(line, said) is said
    failed = {"status": "error"}
    assert add_magics("%rem", failed) is failed


def test_jupyterlab_finds_it_where_it_looks():
    typed = [{"start": 0, "end": 4, "text": "%rehashx", "type": "magic"}]
    said = add_magics("%rem", reply("%rehashx", _jupyter_types_experimental=typed))
    texts = [each["text"] for each in said["metadata"]["_jupyter_types_experimental"]]
    assert texts == said["matches"]


def test_paths_of_either_side(tmp_path, monkeypatch):
    """Relative to where they begin, absolute, in the home; folders with a slash, nothing hidden."""
    (tmp_path / "data").mkdir()
    for name in ("data/a.csv", "data/b c.csv", "dart.txt", ".hidden"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def there(begin, cwd):
        return complete_paths({"verb": "paths", "begin": begin, "cwd": cwd})[0]["paths"]

    for look in (local_paths, lambda begin: there(begin, str(tmp_path)), lambda b: there(b, "")):
        assert look("da") == ["dart.txt", "data/"]
        assert look("data/") == ["data/a.csv", "data/b c.csv"]
        assert look("~/dar") == ["~/dart.txt"]
        assert look(f"{tmp_path}/dar") == [f"{tmp_path}/dart.txt"]
        assert look(".h") == [".hidden"]
        assert look("nowhere/") == []
    assert there("", str(tmp_path)) == ["dart.txt", "data/"]
    assert os.sep == "/"


@pytest.mark.parametrize(("local", "found"), [("ask", ["a.csv"]), ("never", [])])
def test_a_remote_that_never_reaches_this_side_gets_no_names_of_it(
    tmp_path, monkeypatch, local, found
):
    (tmp_path / "a.csv").write_text("")
    monkeypatch.chdir(tmp_path)
    remote = Remote("box", "box", local=local)
    nobody: Any = SimpleNamespace(find_remote=lambda: remote)
    assert Completer(nobody, nobody, nobody)._local_matches(LOCAL_PATH, "") == found


@pytest.mark.parametrize("verb", HELP)
def test_every_verb_has_a_line_and_an_example(verb):
    """`%remoter help VERB`: how it is used, what it does, an example of just that verb."""
    assert verb in HELP
    text = verb_text(verb)
    assert text.startswith(f"%remoter {verb}")
    assert HELP[verb].summary in text
    assert HELP[verb].example.startswith(f"%remoter {verb}")
    assert f"%remoter {verb} " in summary_text()


def test_help_for_what_is_not_there_names_the_nearest():
    with pytest.raises(Usage, match='did you mean "status"'):
        verb_text("sttus")
