"""qtconsole's own widget, without a screen, on a remote kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import notebooks
from tests.real_jupyter import wait_for
from tests.real_parts import real_part
from tests.whole.test_life import there

if TYPE_CHECKING:
    from tests.real_jupyter import JupyterHere
    from tests.real_users import FarSide

SESSION = Path(__file__).with_name("qtconsole_session.py")


def test_a_session(
    here: JupyterHere, another_user: FarSide, python_remote: dict[str, Any], tmp_path: Path
) -> None:
    """Values, completion, an interrupt and a figure come as from a local kernel."""
    real_part("qtconsole")
    spec = here.add_remote("qt", env=notebooks.ENVIRONMENT, **python_remote)
    picture = tmp_path / "console.png"
    ran = subprocess.run(
        [sys.executable, str(SESSION), spec, str(picture)],
        check=False,
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert "Out[1]: 42" in told["text"]
    assert f"I am {another_user.user}" in told["text"]
    assert told["completed"] == "a_long_name"
    assert "KeyboardInterrupt" in told["text"]
    assert "('still', 'here')" in told["text"]
    assert picture.stat().st_size > 0
    wait_for(lambda: not there(another_user), what="the far side is empty")
