"""Plain ipykernel is the oracle: through remoter the same cells say the same messages.

Per channel and per request, in the same order; ids and times aside, neighbouring `stream`
messages of one name joined. Both kernels run in the same Python, as the same far user, in
the same folder.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.real_jupyter import plain_kernel, started_kernel
from tests.whole.cells import CASES
from tests.whole.talk import Talk, Transcript

if TYPE_CHECKING:
    from pathlib import Path

    from jupyter_client.blocking.client import BlockingKernelClient

    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

pytestmark = pytest.mark.timeout(300)  # the first test runs all cases on both sides

AT_LEAST = 60  # cases
PATIENCE = 3  # cases without an end before the rest is not even tried
KERNEL_INFO_DIFFERENCES: dict[str, tuple[object, object]] = {}  # none: plain, through remoter


class Heard:
    """What one kernel said in all cases, and about itself."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.talk = Talk(client)
        self.kernel_info: dict[str, object] = {}
        self.cases: dict[str, Transcript] = {}

    def run(self) -> Heard:
        """Go through all cases in their order."""
        # Answers to what the client asked while it waited for the kernel are no case's.
        self.talk.case(lambda talk: talk.run("", silent=True))
        for name, case in CASES.items():
            self.cases[name] = self.talk.case(case.says)
            if sum("GAVE UP" in each for each in self.cases.values()) == PATIENCE:
                break
        asked = self.talk.case(lambda talk: talk.tell("kernel_info_request", {}))
        self.kernel_info = asked["shell under request 0"][0]["content"]
        return self


@pytest.fixture(scope="module")
def both(here: JupyterHere, far: FarSide, python_remote: dict[str, Any]) -> dict[str, Heard]:
    """Run all cases on both sides, one after the other in the same folder."""
    with far.folder() as folder:
        environment = {
            "IPYTHONDIR": f"{folder}/ipython",
            "COLUMNS": "80",
            "LINES": "24",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        with plain_kernel(far, folder, environment=environment) as client:
            plain = Heard(client).run()
        _empty(folder)
        if os.environ.get("REMOTER_TESTS_HARNESS_ONLY"):
            with plain_kernel(far, folder, environment=environment) as client:
                return {"plain": plain, "remote": Heard(client).run()}
        spec = here.add_remote("same", env=environment, cwd=str(folder), **python_remote)
        with started_kernel(spec) as kernel:
            return {"plain": plain, "remote": Heard(kernel.client).run()}


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def test_there_are_many_cases() -> None:
    """At least sixty cells are compared."""
    assert len(CASES) >= AT_LEAST


@pytest.mark.parametrize("name", CASES)
def test_says_the_same(both: dict[str, Heard], name: str) -> None:
    """Each case has the same messages in the same order per channel and request."""
    plain, remote = both["plain"].cases[name], both["remote"].cases.get(name, {})
    kinds = {message["type"] for said in plain.values() for message in said}
    assert CASES[name].shows <= kinds, "the case shows nothing any more"
    assert not [place for place in plain if place.startswith("GAVE UP")]
    assert set(remote) == set(plain)
    for place, said in plain.items():
        assert [m["type"] for m in remote[place]] == [m["type"] for m in said], place
        for ours, theirs in zip(remote[place], said, strict=True):
            assert ours == theirs, place


def test_kernel_info_is_the_kernels_own(both: dict[str, Heard]) -> None:
    """The differences between the two kernel_info replies are known and listed."""
    plain, remote = both["plain"].kernel_info, both["remote"].kernel_info
    different = {
        key: (plain.get(key), remote.get(key))
        for key in {*plain, *remote}
        if plain.get(key) != remote.get(key)
    }
    assert different == KERNEL_INFO_DIFFERENCES
