"""The verb `attach`: opens a console on a session that is there."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from remoter_kernel.cli.params import complete_session
from remoter_kernel.cli.terminal import terminal_prompter
from remoter_kernel.errors import NoSuchSession, Usage
from remoter_kernel.local.config.kernelspec import proxy_argv
from remoter_kernel.local.history.remote_query import SessionRef, locate_session
from remoter_kernel.local.launch.launcher import is_over
from remoter_kernel.local.session.dialer import THIS_MACHINE

SPEC_NAME = "remoter-attached"


@click.command()
@click.argument("session", shell_complete=complete_session)
def attach(session: str) -> None:
    """Open a console on SESSION. It begins where the session is now; `exit` leaves it running."""
    if importlib.util.find_spec("jupyter_console") is None:
        raise Usage("The Jupyter console is not installed here.", "pip install jupyter-console")
    with locate_session(session, terminal_prompter()) as found:
        if is_over(found.about):
            raise NoSuchSession(
                f"Session {found.id} is over. {found.about['why']}".rstrip(),
                f"`remoter outputs {found.id}` shows what it said.",
                remote=found.query.remote.name,
            )
    with tempfile.TemporaryDirectory(prefix="remoter-attach-") as folder:
        _write_kernelspec(Path(folder) / "kernels" / SPEC_NAME, found)
        # Not `--existing`: jupyter_console interrupts only a kernel that it has started.
        path = os.pathsep.join(filter(None, (folder, os.environ.get("JUPYTER_PATH"))))
        command = [sys.executable, "-P", "-m", "jupyter_console", "--kernel", SPEC_NAME]
        # Ctrl-C comes to both processes of the terminal, and is for the console.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            ran = subprocess.run(command, env={**os.environ, "JUPYTER_PATH": path}, check=False)
        finally:
            signal.signal(signal.SIGINT, before)
    if ran.returncode:  # jupyter_console has said why
        raise click.exceptions.Exit(1)


def _write_kernelspec(folder: Path, found: SessionRef) -> None:
    remote = found.query.remote
    named = [] if remote is THIS_MACHINE else ["--remote", remote.name]
    spec = {
        "argv": proxy_argv(*named, "--session", found.id),
        "display_name": f"{remote.name}/{found.id}",
        "language": "python",
        "interrupt_mode": "message",
    }
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
