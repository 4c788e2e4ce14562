"""Makes the pictures of these pages from what the program prints: `make images`.

Those of JupyterLab are made by the tests that work in it, tests/whole/test_lab*.py.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).parent / "images"
WIDTH = 112  # columns


def main() -> None:
    """Run the demo and draw its terminal."""
    command = [str(Path(sys.executable).with_name("remoter")), "demo"]
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ remoter demo", "bold"))
    console.print(Text.from_ansi(ran.stdout))
    IMAGES.mkdir(exist_ok=True)
    console.save_svg(str(IMAGES / "demo.svg"), title="remoter demo")


if __name__ == "__main__":
    main()
