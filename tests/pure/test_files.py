"""Names of received files, and the words of a transfer: nothing leads out, nonsense is told."""

from __future__ import annotations

import contextlib
import os
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as some

from remoter_kernel.errors import ProtocolError
from remoter_kernel.wire.files import (
    HEAD,
    MOST_BODY,
    Entry,
    FileTrouble,
    Trouble,
    Word,
    from_body,
    read_entry,
    read_head,
    to_body,
    told_trouble,
)
from remoter_kernel.wire.names import (
    LONGEST,
    check_digest,
    names_asked_for,
    part_name,
    safe_names,
    safe_target,
)

EVIL = ["../../.bashrc", "/etc/passwd", "a/../../b", "a//b", "", ".", "..", "a/.", "a\0b", "a/"]
EVIL_ON_WINDOWS = ["C:/x", "C:x", "a\\..\\..\\b", "con", "a/NUL.txt", "COM1", "a.", "a ", "x:y"]


@pytest.mark.parametrize("path", EVIL)
def test_a_name_that_leads_elsewhere_is_refused(path):
    for is_windows in (False, True):
        with pytest.raises(FileTrouble) as refused:
            safe_names(path, is_windows=is_windows)
        assert refused.value.trouble is Trouble.UNSAFE


@pytest.mark.parametrize("path", EVIL_ON_WINDOWS)
def test_windows_has_more_such_names(path):
    with pytest.raises(FileTrouble):
        safe_names(path, is_windows=True)
    assert safe_names(path, is_windows=False)


@pytest.mark.parametrize("path", ["log 12:30", "a?", "con.txt", "a/b.", "a|b", "\t"])
def test_what_leads_nowhere_is_one_files_trouble(path):
    with pytest.raises(FileTrouble) as refused:
        safe_names(path, is_windows=True)
    assert refused.value.trouble is Trouble.OTHER


@pytest.mark.parametrize(
    "path", ["a", "a b/c", "-rf", "ä/ö", "a\nb", "...", ".hidden", "\udcff\udcfe", "~", "$HOME"]
)
def test_odd_names_are_names(path):
    assert "/".join(safe_names(path, is_windows=False)) == path


@given(some.text(alphabet=some.sampled_from("ab./\\\0:~\n "), max_size=12))
def test_whatever_is_accepted_stays_inside(path):
    try:
        names = safe_names(path)
    except FileTrouble:
        return
    inside = os.path.normpath(PurePosixPath("/top", *names))
    assert inside.startswith("/top/")


@pytest.mark.parametrize(
    ("target", "depth"), [("a", 0), ("../a", 1), ("../../a/b", 2), ("..", 1), ("a/b", 0)]
)
def test_a_link_may_lead_up_as_far_as_it_is_deep(target, depth):
    assert safe_target(target, depth) == target
    if target.startswith(".."):
        with pytest.raises(FileTrouble):
            safe_target(target, depth - 1)


@pytest.mark.parametrize("target", ["/etc", "", "a/../..", "a/..", "a//b", "./a", "a\0"])
def test_a_link_with_a_detour_leads_nowhere(target):
    """A name before a `..` might be a link itself."""
    with pytest.raises(FileTrouble):
        safe_target(target, 5)


@pytest.mark.parametrize("target", ["a\\..\\..\\b", "C:\\x", "C:", "../a\\..\\..\\.."])
def test_a_link_leads_nowhere_by_other_slashes_either(target):
    with pytest.raises(FileTrouble):
        safe_target(target, 5, is_windows=True)
    assert safe_target(target, 5, is_windows=False)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("a.csv", "runs/*.csv"),
        ("a", "x/a/"),
        ("a", "x/a/."),
        ("x", "x/a/.."),
        ("a[1]", "x/a[1]"),
        (".bashrc", ".bashrc"),
        (".bashrc", "~/.bash*"),
        ("~odd", "x/~odd"),
    ],
)
def test_a_source_is_called_as_it_was_asked_for(name, word):
    assert names_asked_for([name], ["other", word]) == []
    for stranger in ("neither", ".profile"):
        with pytest.raises(FileTrouble) as refused:
            names_asked_for([stranger], ["other", word])
        assert refused.value.trouble is Trouble.UNSAFE


@pytest.mark.parametrize("word", [".", "./", "..", "../..", "a/..", "~", "~ada", "~/..", "", "/"])
def test_what_is_called_as_only_the_other_side_knows_is_one_source_that_is_not_hidden(word):
    assert names_asked_for(["other", "ada"], ["other", word]) == [(word, "ada")]
    for names in (["ada", "bin"], [".bashrc"], ["\u200d.bashrc"]):
        with pytest.raises(FileTrouble):
            names_asked_for(names, ["other", word])


@pytest.mark.parametrize("word", ["*", "**", "x/*", "[.]bashrc", "?bashrc"])
def test_a_pattern_without_a_dot_means_nothing_hidden(word):
    with pytest.raises(FileTrouble, match="has to be asked for"):
        names_asked_for([".bashrc"], [word])


def test_words_are_told_of_in_their_order():
    news = names_asked_for(["ada", "a", "tmp"], ["~", "a", "/tmp/x/../."])
    assert news == [("~", "ada")]
    assert names_asked_for(["ada", "home"], [".", ".."]) == [(".", "ada"), ("..", "home")]


@given(some.text(max_size=400), some.integers(0, 2**63), some.integers(0, 2**63))
def test_a_part_has_a_name_that_any_disk_takes(name, size, mtime):
    name = name.replace("/", "").replace("\0", "").encode("utf-8", "ignore").decode() or "x"
    part = part_name(name, size, mtime)
    assert len(os.fsencode(part)) <= LONGEST
    assert part.startswith(".")
    assert part.endswith(".part")
    assert part_name(name, size + 1, mtime) != part != part_name(name, size, mtime + 1)


@given(
    some.builds(
        Entry,
        path=some.text(min_size=1),
        kind=some.sampled_from(["file", "folder", "link"]),
        size=some.integers(0, 2**60),
        mtime=some.integers(-(2**62), 2**62),
        mode=some.none() | some.integers(0, 0o777),
        target=some.text(),
    )
)
def test_an_entry_comes_as_it_was_said(entry):
    """Also one whose name is no text."""
    assert read_entry(from_body(to_body(entry.words(7, asks=True)))) == entry


@given(some.dictionaries(some.text(), some.none() | some.booleans() | some.text() | some.floats()))
def test_nonsense_is_told_as_such(words):
    with pytest.raises(ProtocolError):
        read_entry(words)
    assert told_trouble(words).is_told


@given(some.binary(min_size=HEAD.size, max_size=HEAD.size))
def test_any_head_is_a_word_or_refused(head):
    try:
        word, size = read_head(head)
    except ProtocolError:
        return
    assert isinstance(word, Word)
    assert size <= MOST_BODY


@given(some.binary())
def test_any_body_is_an_object_or_refused(body):
    with contextlib.suppress(ProtocolError):
        assert isinstance(from_body(body), dict)


def test_set_user_id_does_not_travel():
    """Nor does anything but the nine permission bits."""
    assert read_entry({**Entry("a").words(1, asks=False), "mode": 0o6755}).mode == 0o755


@pytest.mark.parametrize("value", [None, 5, "", "g" * 64, "A" * 64, "0" * 63])
def test_a_checksum_has_a_form(value):
    with pytest.raises(ProtocolError):
        check_digest(value)
