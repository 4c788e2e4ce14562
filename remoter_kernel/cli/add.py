"""The verb `add`: logs in once, finds the Pythons there, and writes remote and kernelspec."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from remoter_kernel.cli.kernelspec_repair import mend_with_notice
from remoter_kernel.cli.progress import StderrProgress
from remoter_kernel.cli.terminal import terminal_prompter
from remoter_kernel.errors import Usage, naming_remote
from remoter_kernel.local.config import kernelspec, remotes
from remoter_kernel.local.config.remotes import Remote
from remoter_kernel.local.config.remotes_toml import VALUE_READERS
from remoter_kernel.local.launch.host_probe import (
    FoundPython,
    HostProbeResult,
    RemoteKernelspec,
    probe_host,
)
from remoter_kernel.local.launch.remote_venv import install_venv
from remoter_kernel.local.login.keeper.keeper_login import log_in_by_keeper
from remoter_kernel.local.run.runner import Runner
from remoter_kernel.local.session.dialer import SessionDialer
from remoter_kernel.plain_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Callable

_Function = TypeVar("_Function", bound="Callable[..., Any]")


def _read_as_toml(_: click.Context, option: click.Parameter, value: Any) -> Any:
    """Read an option as the same key of `remotes.toml` is read; None where it was not given."""
    if value is None or value == ():
        return None
    try:
        words = list(value) if isinstance(value, tuple) else value
        return VALUE_READERS[str(option.name)](
            _parse_pairs(words) if option.name == "env" else words
        )
    except ValueError as err:
        raise click.BadParameter(f"must be {err}.") from err


def _parse_pairs(words: list[str]) -> dict[str, str]:
    pairs = dict(word.partition("=")[::2] for word in words)
    if not all("=" in word for word in words):
        raise ValueError("NAME=VALUE")
    return pairs


def _toml_option(
    name: str, metavar: str, text: str, *, multiple: bool = False
) -> Callable[[_Function], _Function]:
    """Declare the option that sets a key of `remotes.toml`."""
    return click.option(
        f"--{name}", callback=_read_as_toml, metavar=metavar, help=text, multiple=multiple
    )


@click.command()
@click.argument("name")
@click.argument("host", required=False)
@_toml_option(
    "python", "PATH", "The Python there that runs the evaluator; without it one is looked for."
)
@_toml_option("kernel", "NAME", "The kernelspec there: python3 (which is the default), ir, ...")
@_toml_option("init", "LINE", "A shell line to run before the kernel starts.", multiple=True)
@_toml_option("env", "NAME=VALUE", "An environment variable for the kernel.", multiple=True)
@_toml_option("cwd", "FOLDER", "The folder there in which the kernel starts; the home by default.")
@click.option("--display-name", default="", help='What Jupyter shows instead of "Remote (NAME)".')
@_toml_option("on-shutdown", "stop|keep", "What a shutdown from Jupyter does to the session.")
@_toml_option(
    "idle-timeout", "TIME", 'How long an idle session without a client lives, such as "72h".'
)
@_toml_option("transport", "NAME", "How to log in: auto, paramiko or openssh.")
@_toml_option("ssh-config", "FILE", "Another file than ~/.ssh/config.")
@click.option(
    "--remember", is_flag=True, help="Keep what the login asks for in the system's keyring."
)
@click.option("--default", "make_default", is_flag=True, help="Make this the default remote.")
@click.option("--replace", is_flag=True, help="Write a remote anew that is there already.")
@click.option("--no-check", is_flag=True, help="Write it down without logging in.")
@click.option("--install", is_flag=True, help="Make a Python environment of its own there.")
@click.option("--offline", is_flag=True, help="With --install: collect the packages here.")
def add(name: str, host: str | None, **given: Any) -> None:
    """Log in to HOST once, look around, and write it down as the remote NAME.

    HOST is an alias of ~/.ssh/config, or user@host[:port]; without it NAME is that alias.
    """
    words = ("display_name", "make_default", "replace", "no_check", "install", "offline")
    display_name, make_default, replace, no_check, install, offline = map(given.pop, words)
    if (offline and not install) or (no_check and install):
        raise Usage("--offline needs --install, and --install needs a login (no --no-check).")
    remote = _remote_from_options(name, host or name, given, replace=replace)
    display_name = kernelspec.free_display_name(name, display_name)
    language, debugger = kernelspec.language_of(remote), False
    if not no_check:
        python, kernel = _probe_remote(remote, is_private=install, is_offline=offline)
        # With --install, the Python that was named is only the base of the environment.
        chosen = "" if install else remote.python
        remote = dataclasses.replace(remote, python=chosen or python.path)
        language, debugger = kernel.language, kernel.debugger
        remotes.remember_kernel_info(remote, _try_kernel(remote))
    remotes.write_remote(remote, make_default=make_default, replace=replace)
    kernelspec.install_kernelspec(remote, display_name, language, debugger=debugger)
    mend_with_notice()
    spec = kernelspec.kernelspec_name(name)
    click.echo(f"Wrote {name} to {remotes.config_path()}, and the kernelspec {spec}.")
    click.echo(f"To use it: pick {display_name} in Jupyter, or run")
    click.echo(f"  jupyter console --kernel {spec}")


def _remote_from_options(name: str, host: str, given: dict[str, Any], *, replace: bool) -> Remote:
    """Make the remote of these options, before any login."""
    if not remotes.is_name(name):
        raise Usage(f"{name!r} cannot be a remote's name.", "Use only a-z 0-9 . _ -")
    if not replace and name in remotes.read_remotes().all:
        raise Usage(
            f"There is a remote {name} already.",
            "Use --replace to write it anew, or choose another name.",
        )
    values = {key: value for key, value in given.items() if value is not None}
    if "ssh_config" in values:
        values["ssh_config"] = Path(values["ssh_config"]).absolute()
    return Remote(name=name, host=host, **values)


def _probe_remote(
    remote: Remote, *, is_private: bool, is_offline: bool
) -> tuple[FoundPython, RemoteKernelspec]:
    """Log in, print which Pythons are there; return the Python and kernel that the remote will run.

    `is_private`: in an environment of its own, which is made if need be.
    """
    begin = time.monotonic()
    with naming_remote(remote.name):
        with contextlib.closing(log_in_by_keeper(remote, terminal_prompter())) as login:
            seconds = time.monotonic() - begin
            click.echo(f"Logged in to {login.host} as {login.user} in {seconds:.1f} s")
            click.echo(plain_text(f"  {login.host_key}, {login.cipher}"))
            probe = probe_host(login, remote.python)
            click.echo(f"{probe.system}, home {probe.home}")
            _print_pythons(probe)
            named = remote.python
            if is_private:
                with StderrProgress() as progress:
                    named = install_venv(login, remote, probe, progress, is_offline=is_offline)
                probe = probe_host(login, named)
                _print_pythons(probe)
        return probe.choose(named, remote.kernel)


def _try_kernel(remote: Remote) -> dict[str, Any]:
    """Start the kernel once; its `kernel_info` answers Jupyter before the next login."""
    runner = Runner(SessionDialer(lambda: remote, terminal_prompter()))
    try:
        runner.start()
    finally:
        runner.stop()
    click.echo(f"Test: a kernel started there in {runner.start_seconds:.1f} s")
    return runner.kernel_info


def _print_pythons(probe: HostProbeResult) -> None:
    for python in probe.pythons:
        lacks = f"lacks {', '.join(python.missing)}" if python.missing else "can run a kernel"
        click.echo(f"  {python.path}  {python.version}  {lacks}")
        if not python.missing and python.kernelspecs:
            names = (_describe_kernel(python, kernel) for kernel in python.kernelspecs)
            click.echo(f"    kernels: {', '.join(names)}")


def _describe_kernel(python: FoundPython, kernel: RemoteKernelspec) -> str:
    other = python.other_interpreter(kernel.name)
    where = f", runs in {other}" if other else ""
    return f"{kernel.name} ({kernel.display_name}{where})"
