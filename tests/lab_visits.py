"""A notebook that is open in a real JupyterLab, and leaves nothing."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from tests.real_lab import Lab, one_person

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.real_jupyter import JupyterHere
    from tests.real_lab import LabServer


@contextlib.contextmanager
def visit(browser: Browser, server: LabServer, spec: str, pictures: Path) -> Iterator[Lab]:
    """Open a new notebook of that kernel in a tab; its kernel is shut down afterwards."""
    name = f"{spec.removeprefix('remoter-')}.ipynb"
    server.write_notebook(name, "", kernel=spec)
    with one_person(browser) as person:
        lab = Lab(person.new_page(), server, pictures)
        lab.open(name)
        try:
            lab.is_idle()  # before it has a kernel Lab asks, at the first cell, for one
            yield lab
        finally:
            server.end_kernels()


def sessions(here: JupyterHere, remote: str) -> list[dict[str, Any]]:
    """List the living sessions of a remote."""
    ran = here.remoter("sessions", remote, "--json")
    assert ran.returncode == 0, ran
    found = json.loads(ran.stdout)["sessions"]
    return [each for each in found if each["state"] not in {"ended", "dead"}]
