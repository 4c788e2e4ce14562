"""ipykernel's own tests that talk to a kernel, there instead of here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests import ipykernel_suite as suite

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

QUICK = ("test_message_spec.py",)
LONG = ("test_kernel.py", "test_async.py", "test_debugger.py", "test_subshells.py")
AT_LEAST = {QUICK: 20, LONG: 60}  # tests that run

pytestmark = pytest.mark.timeout(500)  # the suite runs as one


@pytest.fixture
def folder(far: FarSide) -> Iterator[Path]:
    """A folder that both sides can enter."""
    with far.folder() as folder:
        yield folder


@pytest.mark.parametrize(
    "files",
    [pytest.param(QUICK, id="quick"), pytest.param(LONG, id="long", marks=pytest.mark.slow)],
)
def test_passes_but_for_what_no_remote_can(
    here: JupyterHere,
    another_user: FarSide,
    python_remote: dict[str, Any],
    folder: Path,
    files: tuple[str, ...],
) -> None:
    """Each test passes through a remote, but for those that are known not to."""
    argv = suite.remote_kernel(here, another_user, python_remote, folder)
    try:
        outcomes = suite.outcomes(argv, files, another_user, folder)
    finally:
        # Those tests kill what they started: of a proxy, the session stays.
        assert here.remoter("stop", "--all", "suite").returncode == 0
    assert not suite.surprises(outcomes, files, suite.CANNOT)
    assert len(outcomes) >= AT_LEAST[files]


@pytest.mark.slow
def test_passes_plainly(here: JupyterHere, far: FarSide, folder: Path) -> None:
    """Without us in between every test passes: what fails above is for us to explain."""
    files = (*QUICK, *LONG)
    outcomes = suite.outcomes(suite.plain_kernel(far), files, far, folder)
    assert not suite.surprises(outcomes, files, {})
    assert len(outcomes) >= sum(AT_LEAST.values())
