"""What wheels must fit, in the words of uv and of pip, and what is refused with a reason."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from remoter_kernel.errors import RemoteLacks, Usage
from remoter_kernel.local.launch import wheelhouse
from remoter_kernel.local.launch.wheelhouse import Target, parse_target, uv_settings

HOST = {
    "python": [3, 9, 18],
    "implementation": "cpython",
    "is_free_threaded": False,
    "bits": 64,
    "machine": "x86_64",
    "system": "Linux",
    "libc": ["glibc", "2.36"],
}

FITTING = {
    "this year": ({}, "x86_64-manylinux_2_36", "manylinux_2_36_x86_64"),
    "a newer glibc than uv knows": (
        {"libc": ["glibc", "2.55"]},
        "x86_64-manylinux_2_40",
        "manylinux_2_55_x86_64",
    ),
    "CentOS 7": (
        {"libc": ["glibc", "2.17"]},
        "x86_64-manylinux_2_17",
        "manylinux_2_17_x86_64",
    ),
    "between two": ({"libc": ["glibc", "2.27"]}, "x86_64-manylinux_2_17", "manylinux_2_27_x86_64"),
    "ARM": ({"machine": "aarch64"}, "aarch64-manylinux_2_36", "manylinux_2_36_aarch64"),
    "musl": (
        {"libc": ["musl", "1.2.4"]},
        "x86_64-unknown-linux-musl",
        "musllinux_1_2_x86_64",
    ),
    "a Mac": (
        {"libc": ["macos", "14.5"], "machine": "arm64"},
        "aarch64-apple-darwin",
        "macosx_14_0_arm64",
    ),
}


@pytest.mark.parametrize(("facts", "platform", "best"), FITTING.values(), ids=FITTING)
def test_the_newest_that_the_host_allows_is_chosen(facts, platform, best):
    target = parse_target({**HOST, **facts})
    assert (target.platform, target.tags[0]) == (platform, best)
    assert target.python == "3.9"


def test_older_tags_run_there_too():
    tags = Target("3.9", "x86_64", "glibc", (2, 28)).tags
    assert "manylinux_2_29_x86_64" not in tags
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64"} <= set(tags)


REFUSED = {
    "an old glibc": ({"libc": ["glibc", "2.12"]}, "its glibc 2.12 is too old: wheels need 2.17"),
    "no C library that is known": ({"libc": ["", ""], "system": "FreeBSD"}, "FreeBSD"),
    "PyPy": ({"implementation": "pypy"}, "its Python is pypy"),
    "no lock": ({"is_free_threaded": True}, "a free-threaded CPython"),
    "32 bits": ({"bits": 32}, "32 bits"),
    "another machine": ({"machine": "ppc64le"}, "ppc64le"),
}


@pytest.mark.parametrize(("facts", "what"), REFUSED.values(), ids=REFUSED)
def test_what_no_wheels_are_collected_for_is_said(facts, what):
    with pytest.raises(RemoteLacks, match=what) as caught:
        parse_target({**HOST, **facts})
    assert "--offline" in caught.value.advice


def test_pips_settings_are_uvs_too():
    listed = """
:env:.index-url='https://env.example.org/simple'
:env:.cert='/etc/cert.pem'
global.index-url='https://file.example.org/simple'
global.extra-index-url='https://a.example.org\\nhttps://b.example.org'
global.find-links='/one /two'
install.no-binary=':all:'
nonsense
"""
    found = uv_settings(listed, {"SSL_CERT_FILE": "/mine.pem"})
    assert found == {
        "UV_DEFAULT_INDEX": "https://env.example.org/simple",
        "UV_INDEX": "https://a.example.org https://b.example.org",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/one,/two",
    }


def test_what_is_set_for_uv_itself_stays():
    listed = "global.index-url='https://file.example.org/simple'"
    assert uv_settings(listed, {"UV_DEFAULT_INDEX": "https://mine.example.org"}) == {}


@pytest.mark.parametrize("lost", ["uv", "pip"])
def test_without_uv_or_pip_one_sentence_says_how_to_get_it(lost, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == lost else find(n))
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(Usage, match=r"pip install 'remoter-kernel\[offline\]'"):
        {"uv": wheelhouse._find_uv, "pip": wheelhouse._pip_command}[lost]()
