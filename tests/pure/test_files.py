"""Names of received files, and the words of a transfer: nothing leads out, nonsense is told."""

from __future__ import annotations

import contextlib
import os
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as some

from remoter_kernel.errors import ProtocolError
from remoter_kernel.transfer import quota as quotas
from remoter_kernel.transfer.framed_stream import (
    HEAD,
    MOST_BODY,
    MOST_PATH,
    MOST_TROUBLES,
    FileEntry,
    FileTrouble,
    FrameType,
    TroubleCode,
    append_trouble,
    entry_from_dict,
    from_body,
    to_body,
    trouble_from_dict,
    unpack_head,
)
from remoter_kernel.transfer.partial_file import wanted_mode
from remoter_kernel.transfer.quota import GROWS, GrowthAllowance, TransferQuota
from remoter_kernel.transfer.safe_paths import (
    LONGEST,
    check_requested_names,
    partial_name,
    read_digest,
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
        assert refused.value.code is TroubleCode.UNSAFE


@pytest.mark.parametrize("path", EVIL_ON_WINDOWS)
def test_windows_has_more_such_names(path):
    with pytest.raises(FileTrouble):
        safe_names(path, is_windows=True)
    assert safe_names(path, is_windows=False)


@pytest.mark.parametrize("path", ["log 12:30", "a?", "con.txt", "a/b.", "a|b", "\t"])
def test_what_leads_nowhere_is_one_files_trouble(path):
    with pytest.raises(FileTrouble) as refused:
        safe_names(path, is_windows=True)
    assert refused.value.code is TroubleCode.OTHER


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
    assert check_requested_names([name], ["other", word]) == []
    for stranger in ("neither", ".profile"):
        with pytest.raises(FileTrouble) as refused:
            check_requested_names([stranger], ["other", word])
        assert refused.value.code is TroubleCode.UNSAFE


@pytest.mark.parametrize("word", [".", "./", "..", "../..", "a/..", "~", "~ada", "~/..", "", "/"])
def test_what_is_called_as_only_the_other_side_knows_is_one_source_that_is_not_hidden(word):
    assert check_requested_names(["other", "ada"], ["other", word]) == [(word, "ada")]
    for names in (["ada", "bin"], [".bashrc"], ["\u200d.bashrc"]):
        with pytest.raises(FileTrouble):
            check_requested_names(names, ["other", word])


@pytest.mark.parametrize("word", ["*", "**", "x/*", "[.]bashrc", "?bashrc"])
def test_a_pattern_without_a_dot_means_nothing_hidden(word):
    with pytest.raises(FileTrouble, match="has to be asked for"):
        check_requested_names([".bashrc"], [word])


def test_words_are_told_of_in_their_order():
    news = check_requested_names(["ada", "a", "tmp"], ["~", "a", "/tmp/x/../."])
    assert news == [("~", "ada")]
    assert check_requested_names(["ada", "home"], [".", ".."]) == [(".", "ada"), ("..", "home")]


@given(some.text(max_size=400), some.integers(0, 2**63), some.integers(0, 2**63))
def test_a_part_has_a_name_that_any_disk_takes(name, size, mtime):
    name = name.replace("/", "").replace("\0", "").encode("utf-8", "ignore").decode() or "x"
    part = partial_name(name, size, mtime)
    assert len(os.fsencode(part)) <= LONGEST
    assert part.startswith(".")
    assert part.endswith(".part")
    assert partial_name(name, size + 1, mtime) != part != partial_name(name, size, mtime + 1)


@given(
    some.builds(
        FileEntry,
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
    assert entry_from_dict(from_body(to_body(entry.to_dict(7, asks=True)))) == entry


@given(some.dictionaries(some.text(), some.none() | some.booleans() | some.text() | some.floats()))
def test_nonsense_is_told_as_such(words):
    with pytest.raises(ProtocolError):
        entry_from_dict(words)
    assert trouble_from_dict(words).is_from_peer


@given(some.binary(min_size=HEAD.size, max_size=HEAD.size))
def test_any_head_is_a_word_or_refused(head):
    try:
        word, size = unpack_head(head)
    except ProtocolError:
        return
    assert isinstance(word, FrameType)
    assert size <= MOST_BODY


@given(some.binary())
def test_any_body_is_an_object_or_refused(body):
    with contextlib.suppress(ProtocolError):
        assert isinstance(from_body(body), dict)


def test_set_user_id_does_not_travel():
    """Nor does anything but the nine permission bits."""
    assert entry_from_dict({**FileEntry("a").to_dict(1, asks=False), "mode": 0o6755}).mode == 0o755


@pytest.mark.parametrize("value", [None, 5, "", "g" * 64, "A" * 64, "0" * 63])
def test_a_checksum_has_a_form(value):
    with pytest.raises(ProtocolError):
        read_digest(value)


# --------------------------------------------------------------- bounds


@given(some.integers(0, 2**40), some.lists(some.integers(-(2**30), 2**32), max_size=6))
def test_what_a_sender_allows_its_files_a_receiver_takes(size, changes):
    """Both count the growth of files alike, so that an honest transfer is not ended."""
    growth, now = GrowthAllowance(size), size
    quota = TransferQuota({"files": 1, "size": size, "entries": 1})
    for more in changes[:3]:
        if now + more >= 0 and growth.allows(more):
            now += more
        quota.count(FileEntry("top", size=now))
        quota.uncount(FileEntry("top", size=now))
    with pytest.raises(ProtocolError):
        quota.count(FileEntry("top", size=2 * size + GROWS + 1))
    assert not growth.allows(2 * size + GROWS + 1)


def test_what_is_held_to_the_end_has_a_bound(monkeypatch):
    monkeypatch.setattr(quotas, "MOST_HELD", 1000)
    quota = TransferQuota({"files": 0, "size": 0, "entries": 100})
    for _ in range(4):
        quota.hold("top/a", "/place/top/a")
    with pytest.raises(FileTrouble, match="too much for one transfer") as refused:
        quota.hold("top/a", "/place/top/a")
    assert refused.value.code is TroubleCode.WORDS


@pytest.mark.parametrize("key", ["path", "target"])
def test_paths_have_a_length(key):
    words = FileEntry("a", "link", target="b").to_dict(1, asks=False)
    assert getattr(entry_from_dict({**words, key: "x" * MOST_PATH}), key) == "x" * MOST_PATH
    with pytest.raises(ProtocolError):
        entry_from_dict({**words, key: "x" * (MOST_PATH + 1)})


def test_what_is_told_of_a_trouble_is_short():
    told = trouble_from_dict({"path": "p" * 10**6, "reason": "r" * 10**6})
    assert len(str(told)) < 5000
    assert trouble_from_dict({"path": "a", "reason": "no"}).reason == "no"


def test_troubles_without_end_are_one():
    """It names the first, and says that there were others."""
    troubles = []
    for number in range(MOST_TROUBLES):
        append_trouble(troubles, FileTrouble(f"{number}", "no", TroubleCode.FORBIDDEN))
    with pytest.raises(FileTrouble, match="0: no; 10,000 others") as ended:
        append_trouble(troubles, FileTrouble("x", "no"))
    assert ended.value.code is TroubleCode.FORBIDDEN
    assert len(troubles) == MOST_TROUBLES


@given(
    some.sampled_from(["file", "folder"]),
    some.none() | some.integers(0, 0o777),
    some.integers(0, 0o777),
    some.none() | some.integers(0, 0o7777),
)
def test_no_mode_is_more_open_than_it_was_sent_than_the_umask_and_than_what_was_there(
    kind, sent, mask, before
):
    mode = wanted_mode(FileEntry("a", kind, mode=sent), mask, before)
    usual = 0o777 if kind == "folder" else 0o666
    assert mode & ~(usual if sent is None else sent) == 0
    assert mode & mask == 0
    if before is not None:
        assert mode & 0o066 & ~before == 0


@pytest.mark.parametrize(
    ("sent", "mask", "before", "mode"),
    [
        (0o777, 0o022, None, 0o755),
        (0o664, 0o002, None, 0o664),
        (0o644, 0o022, 0o600, 0o600),
        (0o755, 0o022, 0o644, 0o755),
        (0o755, 0o022, 0o640, 0o750),
        (0o600, 0o022, 0o644, 0o600),
        (None, 0o022, None, 0o644),
    ],
)
def test_modes_are_what_a_person_expects(sent, mask, before, mode):
    assert wanted_mode(FileEntry("a", mode=sent), mask, before) == mode


def test_a_folder_of_a_system_without_modes_can_be_entered():
    assert wanted_mode(FileEntry("a", "folder"), 0o022) == 0o755
