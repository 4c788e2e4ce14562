"""Rules of the house that no linter knows: documentation is whole, files are small."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from remoter_kernel.cli.main import VERBS, remoter
from remoter_kernel.local.config.remotes_toml import VALUE_READERS
from remoter_kernel.local.launch.launcher import ENTRY, SHIPPED
from remoter_kernel.local.proxy.magics.help import HELP
from remoter_kernel.protocol import frames
from remoter_kernel.protocol.frames import LANE, Channel, MessageType
from tests.ipykernel_suite import CANNOT

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "remoter_kernel"

MOST_LINES = 400
LONGER_WITH_REASON = {
    "remoter_kernel/local/objects/codecs/values.py",  # one subject: values to bytes and back
    "remoter_kernel/local/proxy/prompter.py",  # one subject: questions in a cell
    "remoter_kernel/local/login/ssh_login.py",  # one subject: what a login can do, and how it ends
    "remoter_kernel/local/login/ssh_config.py",  # one subject: from words to a destination
    "remoter_kernel/evaluator/supervisor.py",  # one subject: the life of one kernel
    "remoter_kernel/local/proxy/handlers.py",  # one subject: who may answer, and in which order
    "remoter_kernel/evaluator/journal.py",  # one subject: a file, who writes it and who reads it
    "remoter_kernel/local/session/link.py",  # one subject: a conversation and its connections
    "remoter_kernel/protocol/output_backlog.py",  # one subject: what becomes of outputs that wait
    "remoter_kernel/transfer/sender.py",  # one subject: a plan on its way
    "remoter_kernel/evaluator/launch.py",  # one subject: a session is found, or begun
    "remoter_kernel/local/history/fault_report.py",  # one text, line by line
    "remoter_kernel/protocol/kernel_client.py",  # one subject: a kernel's messages, in its order
    "remoter_kernel/protocol/requests.py",  # one subject: the table, and what each stage means
    "remoter_kernel/protocol/stream.py",  # one subject: numbers, acknowledgements and credit
    "remoter_kernel/transfer/receiver.py",  # one subject: what arrives, and where it goes
    "remoter_kernel/local/proxy/magics/magic.py",  # one subject: the verbs of %remoter
    "remoter_kernel/local/run/runner.py",  # one subject: code without Jupyter
    "remoter_kernel/local/launch/launcher.py",  # one subject: questions and answers
    "remoter_kernel/local/login/ssh_keywords.py",  # one table of keywords, and tokens
    "remoter_kernel/local/login/openssh/mux_transport.py",  # one subject: a master process
    "remoter_kernel/local/login/paramiko/transport.py",  # one subject: a connection
}
FORBIDDEN_NAMES = {"utils", "helpers", "manager", "base", "connection"}
# Options of all verbs are described once, at the top of the page.
COMMON = {"--debug", "--help"}


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return str(path.relative_to(ROOT))


def section(verb):
    """The part of the page on commands that is about one verb."""
    page = (DOCS / "reference/commands.md").read_text()
    found = re.search(rf"^## remoter {verb}\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL)
    assert found, f"docs/reference/commands.md has no section on remoter {verb}"
    return found[1]


def options(verb):
    command = remoter.get_command(click.Context(remoter), verb)
    own = [option for option in command.params if isinstance(option, click.Option)]
    # A verb may have a --debug of its own, which says more than the common one.
    spellings = {max(option.opts, key=len): option.expose_value for option in own}
    return {name for name, is_own in spellings.items() if name not in COMMON or is_own}


# --------------------------------------------------------------- documentation


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_and_every_option_is_documented_and_nothing_else(verb):
    documented = set(re.findall(r"^`(--?[a-z][a-z-]*)", section(verb), re.MULTILINE))
    assert documented == options(verb)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_a_text_for_each_option(verb):
    command = remoter.get_command(click.Context(remoter), verb)
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_every_key_of_remotes_toml_is_documented_and_nothing_else():
    page = (DOCS / "reference/remotes-toml.md").read_text()
    documented = set(re.findall(r"^`([a-z_]+)`\n:", page, re.MULTILINE))
    assert documented == {"default", *VALUE_READERS}


def test_the_page_on_the_protocol_tells_the_numbers_of_the_code():
    page = (DOCS / "protocol.md").read_text()
    kinds, channels = page.split("| channel | | lane |")
    for kind in MessageType:
        assert f"| {kind.value} | {kind.name} |" in kinds
    for channel in Channel:
        row = (
            rf"^\| {channel.value} \| {channel.name.lower()}\b.*\| {LANE[channel].name.lower()} \|$"
        )
        assert re.search(row, channels, re.MULTILINE), channel
    sizes = re.findall(r"^\| (\d) \| [a-z ]*\| .* \|$", kinds, re.MULTILINE)
    assert f"A head has {sum(map(int, sizes))}" in " ".join(kinds.split())
    assert sum(map(int, sizes)) == frames._HEAD.size
    assert f"describes protocol {frames.PROTOCOL}." in kinds


def test_the_page_on_compatibility_tells_of_every_test_that_cannot_pass():
    page = (DOCS / "reference/compatibility.md").read_text()
    assert set(re.findall(r"^`(test_\w+\.py::\w+)`\n:", page, re.MULTILINE)) == set(CANNOT)


def test_the_page_for_those_who_come_from_r_names_verbs_that_there_are():
    page = (DOCS / "reference/from-remoter.md").read_text()
    assert set(re.findall(r"`%remoter ([a-z]+)", page)) <= set(HELP)
    named = set(re.findall(r"(?:`|\$ )remoter ([a-z]+)", page))
    assert {"add", "run", "attach", "stop"} <= named <= set(VERBS)


def test_every_page_is_within_reach():
    tree = (DOCS / "index.md").read_text()
    for page in DOCS.rglob("*.md"):
        name = str(page.relative_to(DOCS).with_suffix(""))
        assert name == "index" or re.search(rf"^{name}$", tree, re.MULTILINE), name


def test_links_from_the_readme_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


# --------------------------------------------------------------- the code


def test_no_file_is_long_without_a_reason():
    lines = {name_of(path): path.read_text().count("\n") for path in sources()}
    long = {name for name, count in lines.items() if count > MOST_LINES}
    assert long == set(LONGER_WITH_REASON)


def test_no_module_has_a_name_that_says_nothing():
    assert not [name_of(path) for path in sources() if path.stem in FORBIDDEN_NAMES]


def test_every_module_says_what_it_is_for():
    for path in sources():
        is_told = path.read_text().lstrip().startswith(('"', 'r"', "#"))
        assert is_told, f"{name_of(path)} begins without a sentence about itself"


def test_what_travels_is_exactly_protocol_transfer_evaluator_and_what_both_sides_read():
    travels = [PACKAGE / name for name in ("__init__.py", "errors.py", "logs.py", "plain_text.py")]
    travels += [
        path
        for folder in ("protocol", "transfer", "evaluator")
        for path in (PACKAGE / folder).glob("*.py")
    ]
    assert {ENTRY, *SHIPPED} == {str(path.relative_to(PACKAGE)) for path in travels}


def test_the_protocol_and_the_evaluator_are_python_3_9():
    shared = [PACKAGE / name for name in ("errors.py", "logs.py", "plain_text.py")]
    for path in [
        *shared,
        *(PACKAGE / "protocol").glob("*.py"),
        *(PACKAGE / "transfer").glob("*.py"),
    ]:
        compile_as(path, (3, 9))
    for path in (PACKAGE / "evaluator").glob("*.py"):
        compile_as(path, (3, 9))


def compile_as(path, version):
    import ast

    ast.parse(path.read_text(), filename=str(path), feature_version=version)


# ----------------------------------------------------------------------- starts


def test_no_front_and_no_command_begins_with_slow_imports():
    """The keeper knows paramiko, and who writes notebooks nbformat: others would start later."""
    verbs = sorted({f"remoter_kernel.cli.{verb.module}" for verb in VERBS.values()})
    modules = ["remoter_kernel.__main__", *verbs]
    code = f"import sys, {', '.join(modules)}; print({{'paramiko', 'nbformat'}} & {{*sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_proxies_and_commands_begin_without_jupyter_client():
    """It would cost them more than all the rest of their start."""
    verbs = ("sessions", "stop", "log", "outputs", "report", "put_get", "run")
    modules = [
        "remoter_kernel.local.proxy.proxy",
        *(f"remoter_kernel.cli.{verb}" for verb in verbs),
    ]
    slow = "{'jupyter_client', 'psutil'}"
    code = f"import sys, {', '.join(modules)}; print({slow} & {{*sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
