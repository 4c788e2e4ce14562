"""What a report leaves out: names that are known, addresses, and what nobody knows."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remoter_kernel.local.history.mask import Mask, vocabulary

WORDS = frozenset(
    [
        "the",
        "link",
        "is",
        "waiting",
        "cut",
        "could",
        "not",
        "be",
        "reached",
        "root",
        "file",
        "session",
        "of",
    ]
)


@pytest.fixture
def mask():
    mask = Mask(WORDS)
    mask.add_names("HOST", "gpu7.example.org", "gpu7")
    mask.add_names("USER", "ada", "root")
    mask.add_names("HOME", "/home/ada")
    return mask


def test_a_name_is_always_the_same_word(mask):
    assert mask.mask_names("gpu7 or GPU7, and gpu7.example.org") == "HOST2 or HOST2, and HOST1"


def test_a_name_is_found_within_other_words(mask):
    assert mask.mask_names("login_gpu7x") == "login_HOST2x"


def test_a_short_name_and_one_that_is_a_word_are_names_by_themselves_alone(mask):
    assert mask.mask_names("root@gpu7: rooted, adagio, ada") == "USER2@HOST2: rooted, adagio, USER1"


def test_the_longest_name_counts(mask):
    assert mask.mask_names("/home/ada/work") == "HOME1/work"


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "192.168.100.200:22",
        "ip-10-1-2-3",
        "2001:db8::1",
        "[2001:db8:0:1:2:3:4:5]:22",
        "fe80::1%eth0",
        "::1",
        "::ffff:10.1.2.3",
        "aa:bb:cc:dd:ee:ff",
    ],
)
@pytest.mark.parametrize("frame", ["{}", "the link to {} is cut", "the link: {}: is cut", "{}."])
def test_addresses_are_replaced_also_in_words_of_our_own(mask, address, frame):
    digits = re.findall(r"[0-9a-f]{2,}", address.removesuffix(":22"))
    said = mask.mask_names(frame.format(address))
    assert "ADDRESS1" in said
    assert not [each for each in digits if each in said.replace("ADDRESS1", "")], said


def test_versions_and_times_are_no_addresses(mask):
    said = "3.11.2 at 16:32:09, 2026-11-29 16:32:09.123Z, 27.1.0, 1:2"
    assert mask.mask_names(said) == said


def test_of_words_of_others_only_known_ones_stay(mask):
    assert mask.mask_foreign("the file hunter2-of-session is cut: Zwiebel!") == (
        "the file WORD1 is cut: WORD2!"
    )
    assert mask.mask_foreign("Zwiebel") == "WORD2"


def test_known_words_may_be_a_name_together():
    mask = Mask(WORDS)
    assert mask.mask_foreign("root-file.session link-7 file:12 link.") == "WORD1 WORD2 WORD3 link."


def test_modules_of_this_program_and_places_in_them_stay():
    said = "local.session.link: remoter_kernel.local.session.link:123 _dial, <MessageType.ITEM: 3>"
    assert Mask(vocabulary()).mask_foreign(said) == said


def test_a_code_is_not_shown_and_an_amount_is(mask):
    said = "2026-11-29 16:32:09.123Z the link is cut: 314159, 27182 of 12345 bytes, 0.02512 s, 255"
    assert mask.mask_foreign(said) == (
        "2026-11-29 16:32:09.123Z the link is cut: WORD1, WORD2 of 12345 bytes, 0.02512 s, 255"
    )


@pytest.mark.parametrize("code", ["771 902", "12 34 56", "771-902", "1 2 3 4 5 6", "771 - 902"])
def test_a_code_that_is_written_in_groups_is_not_shown_either(mask, code):
    assert (
        mask.mask_foreign(f"the link is {code}, 255, of 42 s") == "the link is WORD1, 255, of 42 s"
    )


def test_a_short_number_is_no_name(mask):
    """The value of a variable may be 1, and so may be the last part of each version."""
    mask.add_names("VALUE", "1", "0", "314159")
    assert mask.mask_names("1 of 10, 3.11.1, 314159") == "1 of 10, 3.11.1, VALUE1"


@pytest.mark.parametrize(
    "path", ["/the/file", "~/the/file", "C:\\the\\file", "\\\\the\\file", "/tmp/x", "~ada/file"]
)
def test_a_path_is_not_shown_though_its_words_are_known(path):
    assert Mask(WORDS).mask_foreign(f"could not be reached: {path}").endswith("PATH1")


def test_an_id_of_ours_may_stay(mask):
    mask.allow("a1b2c3")
    assert mask.mask_foreign("session a1b2c3 of d4e5f6") == "session a1b2c3 of WORD1"


@given(st.text(), st.text())
def test_whatever_is_said_nothing_unknown_stays(before, after):
    """A mark that is in no vocabulary is gone, whatever stands around it."""
    mask = Mask(WORDS)
    assert "qzxv7" not in mask.mask_foreign(f"{before}qzxv7{after}").lower()


@given(st.text(), st.text(min_size=4), st.text())
def test_whatever_is_said_a_name_is_gone(before, name, after):
    mask = Mask(WORDS)
    mask.add_names("HOST", f"qz{name}xv")
    assert f"qz{name}xv".strip() not in mask.mask_names(f"{before}qz{name}xv{after}")


def test_the_vocabulary_is_that_of_this_program():
    words = vocabulary()
    assert {"evaluator", "link", "refused", "denied", "paramiko"} <= words
    assert not {"zwiebel", "qzxv7"} & words
