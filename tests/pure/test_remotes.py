"""`remotes.toml`: what is read, what is refused in which words, and what survives."""

from __future__ import annotations

import threading
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remoter_kernel.errors import BadConfiguration, Usage
from remoter_kernel.local.config import remotes
from remoter_kernel.local.config import remotes_toml as remotes_text
from remoter_kernel.local.config.remotes import Remote, read_remotes, write_remote

WRITTEN_BY_HAND = """\
# my machines
default = "gpu-box"   # the big one

[remotes.gpu-box]
host = "me@gpu:2222"          # behind the VPN
python = "~/venvs/torch/bin/python"
init = [
    "module load cuda/12",    # twelve, not eleven
]
env = { OMP_NUM_THREADS = "8" }
cwd = "~/project"
on_shutdown = "keep"
idle_timeout = "2d"
journal_limit = "2GB"
waiting_limit = "1.5 MiB"
transport = "openssh"
ssh_config = "/somewhere/config"
login_lifetime = "90s"
local = "never"

# plain
[remotes.r]
host = "r"
kernel = "ir"
"""


@pytest.fixture(autouse=True)
def own_files(tmp_path, monkeypatch):
    monkeypatch.setenv("REMOTER_CONFIG", str(tmp_path / "folder" / "remotes.toml"))
    monkeypatch.setenv("REMOTER_STATE", str(tmp_path / "state"))


def configure(text):
    path = remotes.config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_every_key_is_read_as_what_it_means():
    configure(WRITTEN_BY_HAND)
    known = read_remotes()
    assert known.default == "gpu-box"
    assert known.all["gpu-box"] == Remote(
        name="gpu-box",
        host="me@gpu:2222",
        python="~/venvs/torch/bin/python",
        init=("module load cuda/12",),
        env={"OMP_NUM_THREADS": "8"},
        cwd="~/project",
        on_shutdown="keep",
        idle_timeout=2 * 86400.0,
        journal_limit=2 * 10**9,
        waiting_limit=3 * 2**19,
        transport="openssh",
        ssh_config=Path("/somewhere/config"),
        login_lifetime=90.0,
        local="never",
    )
    assert known.all["r"] == Remote(name="r", host="r", kernel="ir")


def test_a_missing_file_means_no_remotes():
    assert read_remotes() == remotes.Remotes({}, None)
    assert remotes.find_remote(None) is None


def test_the_file_is_where_the_variable_says_else_in_the_config_folder(monkeypatch):
    monkeypatch.delenv("REMOTER_CONFIG")
    assert remotes.config_path().name == "remotes.toml"
    assert remotes.config_path().parent.name == "remoter-kernel"
    monkeypatch.setenv("REMOTER_CONFIG", "~/elsewhere.toml")
    assert remotes.config_path() == Path("~/elsewhere.toml").expanduser()


REFUSED = {
    "unknown key": ('[remotes.a]\nhost = "a"\npyhton = "x"\n', 3, 'did you mean "python"?'),
    "unknown top key": ('defualt = "a"\n', 1, 'did you mean "default"?'),
    "table outside remotes": ('\n[gpu]\nhost = "a"\n', 2, "write [remotes.gpu] instead of [gpu]"),
    "wrong type": ('[remotes.a]\nhost = "a"\ncwd = 3\n', 3, "cwd must be a text in quotes"),
    "wrong list": ('[remotes.a]\nhost = "a"\ninit = "x"\n', 3, "init must be a list of strings"),
    "number in env": (
        '[remotes.a]\nhost = "a"\nenv = {A = 1}\n',
        3,
        "env must be a table of names",
    ),
    "bad env name": ('[remotes.a]\nhost = "a"\nenv = {"A B" = "1"}\n', 3, "'A B' is not"),
    "bad duration": ('[remotes.a]\nhost = "a"\nidle_timeout = "3 days"\n', 3, "not '3 days'"),
    "bad size": ('[remotes.a]\nhost = "a"\njournal_limit = "1 gig"\n', 3, "not '1 gig'"),
    "small size": ('[remotes.a]\nhost = "a"\nwaiting_limit = "3kB"\n', 3, "1 MiB or more"),
    "bare duration": ('[remotes.a]\nhost = "a"\nlogin_lifetime = 600\n', 3, 'such as "90s"'),
    "wrong word": ('[remotes.a]\nhost = "a"\ntransport = "opensh"\n', 3, 'mean "openssh"'),
    "no host": ('# x\n\n[remotes.a]\npython = "x"\n', 3, "the remote a has no host"),
    "empty host": ('[remotes.a]\nhost = " "\n', 2, "host must be a text that is not empty"),
    "name with spaces": ('[remotes."my box"]\nhost = "a"\n', 1, "'my box' cannot be"),
    "climbing name": ('[remotes."../../x"]\nhost = "a"\n', 1, "'../../x' cannot be"),
    "two dots": ('[remotes.".."]\nhost = "a"\n', 1, "'..' cannot be"),
    "capital letters": ('[remotes.GPU]\nhost = "a"\n', 1, "'GPU' cannot be"),
    "no table": ('[remotes]\na = "host"\n', 2, "write [remotes.a] above its keys"),
    "remotes no table": ("remotes = 3\n", 1, "write [remotes.NAME]"),
    "two of one name": (
        '[remotes.a]\nhost="a"\n[remotes.a]\nhost="b"\n',
        3,
        "remote a is there tw",
    ),
    "key twice": ('[remotes.a]\nhost = "a"\nhost = "b"\n', 3, "this key is there twice"),
    "no toml": ('[remotes.a]\nhost = "a\n', 2, "this is not TOML"),
    "unfinished": ('[remotes.a]\nhost = "a"\ninit = [\n\n', 3, "this is not TOML"),
    "default of nobody": ('default = "b"\n[remotes.a]\nhost = "a"\n', 1, "'b', which is no"),
    "inline": ('remotes = {a = {host = "a", kernle = "x"}}\n', 1, 'did you mean "kernel"?'),
    "below several lines": (
        '[remotes.a]\nhost = "a"\ninit = [\n "a",\n "b"]\n\n# no\nx = 1\n',
        8,
        '"x" is no key',
    ),
}


@pytest.mark.parametrize(("text", "line", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_mistake_is_named_with_file_line_and_right_word(text, line, words):
    path = configure(text)
    with pytest.raises(BadConfiguration) as caught:
        read_remotes()
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_bytes_that_are_no_text_are_named_with_their_line():
    path = configure("")
    path.write_bytes(b'[remotes.a]\nhost = "\xff"\n')
    with pytest.raises(BadConfiguration, match="line 2: this is not UTF-8"):
        read_remotes()


def test_a_file_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("REMOTER_CONFIG", str(tmp_path))
    with pytest.raises(BadConfiguration, match="cannot be read: Is a directory"):
        read_remotes()


@given(text=st.text(alphabet='[]remots.a"= \n#x{}', max_size=40))
def test_any_text_is_read_or_refused_with_a_line(text):
    try:
        remotes_text.parse_remotes(text, Path("f"))
    except BadConfiguration as err:
        assert str(err).startswith("f, line ")  # noqa: PT017 - both ends are fine


# --------------------------------------------------------------- which one is meant


def test_without_a_name_the_default_is_meant_or_the_only_one():
    configure(WRITTEN_BY_HAND)
    assert remotes.find_remote(None) == read_remotes().all["gpu-box"]
    configure('[remotes.a]\nhost = "a"\n')
    assert remotes.find_remote(None) == Remote("a", "a")


def test_without_a_name_several_remotes_need_a_default():
    configure('[remotes.a]\nhost = "a"\n[remotes.b]\nhost = "b"\n')
    with pytest.raises(Usage, match=r"several remotes \(a, b\)"):
        remotes.find_remote(None)


def test_an_unknown_name_is_answered_with_the_nearest():
    configure(WRITTEN_BY_HAND)
    with pytest.raises(Usage, match='did you mean "gpu-box"') as caught:
        remotes.find_remote("gpubox")
    assert caught.value.exit_code == 2


# --------------------------------------------------------------- writing


def test_adding_keeps_every_line_that_was_there():
    configure(WRITTEN_BY_HAND)
    write_remote(Remote("new", "new.example.org"), make_default=False, replace=False)
    text = remotes.config_path().read_text()
    assert text.startswith(WRITTEN_BY_HAND)
    assert read_remotes().all["new"].host == "new.example.org"


def test_replacing_keeps_comments_and_drops_what_is_not_said_any_more():
    configure(WRITTEN_BY_HAND)
    write_remote(Remote("gpu-box", "other"), make_default=False, replace=True)
    text = remotes.config_path().read_text()
    assert read_remotes().all["gpu-box"] == Remote("gpu-box", "other")
    for comment in ("# my machines", "# the big one", "# behind the VPN", "# plain"):
        assert comment in text


def test_nothing_is_overwritten_unless_asked():
    configure(WRITTEN_BY_HAND)
    with pytest.raises(Usage, match="--replace"):
        write_remote(Remote("r", "other"), make_default=False, replace=False)
    assert remotes.config_path().read_text() == WRITTEN_BY_HAND


def test_a_broken_file_stays_as_it_is():
    configure("[remotes.a\n")
    with pytest.raises(BadConfiguration):
        write_remote(Remote("b", "b"), make_default=False, replace=True)
    assert remotes.config_path().read_text() == "[remotes.a\n"


def test_the_default_goes_above_the_tables():
    configure('# mine\n[remotes.a]\nhost = "a"\n')
    write_remote(Remote("b", "b"), make_default=True, replace=False)
    assert read_remotes().default == "b"
    assert "# mine\n" in remotes.config_path().read_text()


def test_deleting_takes_the_default_along_and_leaves_the_others():
    configure(WRITTEN_BY_HAND)
    gpu_box = read_remotes().all["gpu-box"]
    remotes.remember_kernel_info(gpu_box, {"status": "ok"})
    remotes.delete_remote("gpu-box")
    assert read_remotes() == remotes.Remotes({"r": Remote("r", "r", kernel="ir")}, None)
    assert "# my machines" in remotes.config_path().read_text()
    assert remotes.last_kernel_info(gpu_box) is None
    remotes.delete_remote("r")
    assert read_remotes() == remotes.Remotes({}, None)
    with pytest.raises(Usage):
        remotes.delete_remote("r")


def test_files_are_private_and_nothing_lies_beside_them():
    write_remote(Remote("a", "a"), make_default=False, replace=False)
    path = remotes.config_path()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {file.name for file in path.parent.iterdir()} == {"remotes.toml", ".remotes.toml.lock"}


def test_a_symbolic_link_to_the_file_stays_one(tmp_path, monkeypatch):
    real = tmp_path / "dotfiles.toml"
    real.write_text("")
    link = tmp_path / "remotes.toml"
    link.symlink_to(real)
    monkeypatch.setenv("REMOTER_CONFIG", str(link))
    write_remote(Remote("a", "a"), make_default=False, replace=False)
    assert link.is_symlink()
    assert "[remotes.a]" in real.read_text()


def test_adds_at_the_same_time_lose_nothing():
    names = [f"box{number}" for number in range(12)]
    threads = [
        threading.Thread(
            target=write_remote,
            args=(Remote(name, "h"),),
            kwargs={"make_default": False, "replace": False},
        )
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read_remotes().all) == set(names)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
some_remotes = st.builds(
    Remote,
    name=st.from_regex(r"[a-z0-9_-][a-z0-9._-]{0,6}", fullmatch=True),
    host=texts.filter(str.strip),
    python=texts | st.just(""),
    kernel=texts.filter(str.strip),
    init=st.lists(texts, max_size=3).map(tuple),
    env=st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,5}", fullmatch=True), texts, max_size=3),
    cwd=texts | st.just(""),
    on_shutdown=st.sampled_from(["stop", "keep"]),
    idle_timeout=st.integers(0, 10**7).map(float),
    journal_limit=st.integers(2**20, 2**40),
    waiting_limit=st.integers(2**20, 2**40),
    transport=st.sampled_from(["auto", "paramiko", "openssh"]),
    login_lifetime=st.integers(0, 10**6).map(float),
    local=st.sampled_from(["ask", "allow", "never"]),
)
beginnings = st.sampled_from(
    [
        "",
        "# only a comment\n",
        WRITTEN_BY_HAND,
        "[remotes]\n",
        'remotes = {a = {host = "a"}}\n',
        '[remotes]\nx = {host = "a"}\n',
        '[remotes.r]\nhost = "r"\n[remotes.r.env]\nA = "1"\n',
    ]
)


@given(beginnings, st.lists(st.tuples(some_remotes, st.booleans()), max_size=4))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_what_is_written_is_what_is_read(text, additions):
    where = Path("f")
    wanted = dict(remotes_text.parse_remotes(text, where).all)
    for remote, make_default in additions:
        text = remotes_text.upsert_remote(text, remote, make_default=make_default)
        wanted[remote.name] = remote
        known = remotes_text.parse_remotes(text, where)
        assert known.all == wanted
        assert not make_default or known.default == remote.name
    for name in list(wanted):
        text = remotes_text.drop_remote(text, name)
        del wanted[name]
        assert remotes_text.parse_remotes(text, where).all == wanted


@given(st.sampled_from("smhd"), st.integers(0, 1000))
def test_durations_come_back_as_they_went(unit, number):
    seconds = remotes_text.read_duration(f"{number}{unit}")
    assert remotes_text.read_duration(remotes_text.write_duration(seconds)) == seconds


def test_the_key_table_and_the_remote_know_the_same_keys():
    names = {key.name for key in fields(Remote)}
    assert names == {"name", *remotes_text.VALUE_READERS}


# --------------------------------------------------------------- what was last seen


def test_kernel_info_is_remembered_per_remote():
    assert remotes.last_kernel_info(Remote("a", "h")) is None
    remotes.remember_kernel_info(Remote("a", "h"), {"language_info": {"name": "R"}})
    assert remotes.last_kernel_info(Remote("a", "h")) == {"language_info": {"name": "R"}}
    assert remotes.last_kernel_info(Remote("b", "h")) is None


@pytest.mark.parametrize("change", [{"kernel": "ir"}, {"python": "p"}, {"host": "other"}])
def test_what_another_kernel_has_said_is_no_reply(change):
    remotes.remember_kernel_info(Remote("a", "h"), {"debugger": True})
    assert remotes.last_kernel_info(replace(Remote("a", "h"), **change)) is None
    assert remotes.last_kernel_info(replace(Remote("a", "h"), cwd="~/x")) == {"debugger": True}


def test_a_damaged_memory_is_no_memory():
    remotes.remember_kernel_info(Remote("a", "h"), {})
    path = remotes.state_folder() / "kernel_info" / "a.json"
    for damage in ("{", "[1]", "", "{}", '{"of": 1, "content": {}}', '{"status": "ok"}'):
        path.write_text(damage)
        assert remotes.last_kernel_info(Remote("a", "h")) is None


def test_every_line_of_a_correct_file_is_found():
    lines = WRITTEN_BY_HAND.splitlines()
    for key in tomllib.loads(WRITTEN_BY_HAND)["remotes"]["gpu-box"]:
        line = remotes_text.line_number(WRITTEN_BY_HAND, ("remotes", "gpu-box", key))
        assert lines[line - 1].startswith(f"{key} = ")
