"""ipykernel's own tests of its debugger and its subshells, there instead of here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests import ipykernel_suite as suite

if TYPE_CHECKING:
    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

FILES = ("test_debugger.py", "test_subshells.py")
AT_LEAST = 30  # tests that run


@pytest.mark.timeout(500)  # the suite runs as one
def test_passes_but_for_what_no_remote_can(
    here: JupyterHere, another_user: FarSide, python_remote: dict[str, Any]
) -> None:
    """Each test passes through a remote, but for those that are known not to."""
    with another_user.folder() as folder:
        argv = suite.remote_kernel(here, another_user, python_remote, folder)
        try:
            outcomes = suite.outcomes(argv, FILES, another_user, folder)
        finally:
            # Those tests kill what they started: of a front, the session stays.
            assert here.remoter("stop", "--all", "suite").returncode == 0
    assert not suite.surprises(outcomes, FILES, suite.CANNOT)
    assert len(outcomes) >= AT_LEAST
