"""Times files there and back beside OpenSSH's sftp and scp: `python -m bench.files`.

One large file and many small ones, over loopback and over a long path. Over loopback there is
no proxy in between: it would be the narrowest part.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.ground import Ground
from bench.proxy import Proxy
from bench.table import aligned
from remoter_kernel.local.login.keeper.endpoint import end_logins

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024
LARGE = 1024  # MiB
MANY = 5000  # files of 1 to 20 kB
LIMIT = 120.0  # seconds that one tool may take
SEED = 20261126
TOOLS = ("sftp", "scp", "remoter")
ROWS = ("one large file, put", "one large file, get", "small files, put", "small files, get")


@dataclass(frozen=True)
class Errand:
    """What is carried, which way."""

    is_put: bool
    here: Path
    there: Path


def command(tool: str, config: Path, errand: Errand) -> tuple[list[str], str]:
    """Return the words of a command, and its stdin."""
    here, there = str(errand.here), str(errand.there)
    if tool == "sftp":
        verb = "put -pr" if errand.is_put else "get -pr"
        places = (here, there) if errand.is_put else (there, here)
        return ["sftp", "-q", "-F", str(config), "-b", "-", "files"], f"{verb} {' '.join(places)}\n"
    if tool == "scp":
        far = f"files:{there}"
        places = (here, far) if errand.is_put else (far, here)
        return ["scp", "-q", "-p", "-r", "-F", str(config), *places], ""
    verb, places = ("put", (here, there)) if errand.is_put else ("get", (there, here))
    return [str(Path(sys.executable).with_name("remoter")), verb, "files", *places], ""


def timed(tool: str, config: Path, errand: Errand, limit: float) -> float | None:
    """Carry something; return how many seconds that took, None if it was not over in time."""
    words, stdin = command(tool, config, errand)
    begun = time.perf_counter()
    try:
        subprocess.run(
            words, input=stdin, text=True, capture_output=True, check=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return None
    return time.perf_counter() - begun


def make_sources(folder: Path, scale: float) -> tuple[Path, Path, int]:
    """Write what is carried; return the file, the folder, and how many files that has."""
    large, many = folder / "large", folder / "many"
    many.mkdir(parents=True)
    dice = random.Random(SEED)
    with large.open("wb") as file:
        for _ in range(max(1, int(LARGE * scale))):
            file.write(dice.randbytes(MIB))
    count = max(1, int(MANY * scale))
    for number in range(count):
        (many / f"{number:05}").write_bytes(dice.randbytes(dice.randint(1000, 20_000)))
    return large, many, count


@contextlib.contextmanager
def path_to(ground: Ground, rtt: float) -> Iterator[Path]:
    """Write the SSH configuration of one path, and the remote that goes by it."""
    with contextlib.ExitStack() as stack:
        port = ground.sshd.port
        if rtt:
            port = stack.enter_context(Proxy(port, rtt=rtt)).port
        kind, key = ground.sshd.host_key().with_suffix(".pub").read_text().split()[:2]
        known_hosts = ground.folder / "known_hosts_of_files"
        known_hosts.write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
        config = ground.folder / f"files_config_{port}"
        extra = f"Port {port}\nUserKnownHostsFile {known_hosts}\nBatchMode yes"
        ground.sshd.ssh_config(config, "files", extra=extra)
        remotes = Path(os.environ["REMOTER_CONFIG"])
        remotes.write_text(
            f'[remotes.files]\nhost = "files"\npython = "{sys.executable}"\n'
            f'ssh_config = "{config}"\n'
        )
        yield config
        end_logins()


def measure(ground: Ground, rtt: float, wish: argparse.Namespace) -> list[list[str]]:
    """Carry everything with every tool; return the rows of a table."""
    sources, tools, limit = ground.folder / "sources", wish.tools, wish.limit
    large, many, count = make_sources(sources, wish.scale)
    figures: dict[tuple[str, str], float | None] = {}
    with path_to(ground, rtt) as config:
        for tool in tools:
            timed(tool, config, Errand(True, many / "00000", ground.folder / "warm"), limit)
            there, back = ground.folder / f"there-{tool}", ground.folder / f"back-{tool}"
            for folder in (there, back):
                folder.mkdir()
            errands = (
                Errand(True, large, there / "large"),
                Errand(False, back / "large", there / "large"),
                Errand(True, many, there / "many"),
                Errand(False, back / "many", there / "many"),
            )
            for row, errand in zip(ROWS, errands, strict=True):
                if errand.is_put or errand.there.exists():
                    figures[row, tool] = timed(tool, config, errand, limit)
                print(f"{row}, {tool}: {figures.get((row, tool))}", file=sys.stderr, flush=True)
            for folder in (there, back):
                shutil.rmtree(folder)
    amount = f"{int(LARGE * wish.scale)} MiB"
    shutil.rmtree(sources)
    return [
        [
            row.replace("one large file", amount).replace("small", f"{count:,} small") + " (s)",
            *(_shown(figures.get((row, tool)), limit) for tool in tools),
            *_ratios(row, figures, wish),
        ]
        for row in ROWS
    ]


def _shown(figure: float | None, limit: float) -> str:
    return f"> {limit:.0f}" if figure is None else f"{figure:.2f}"


def _ratios(
    row: str, figures: dict[tuple[str, str], float | None], wish: argparse.Namespace
) -> list[str]:
    """Say how many times as fast as each other tool we are."""
    ours = figures.get((row, "remoter"))
    shown = []
    for tool in wish.tools:
        if tool != "remoter" and "remoter" in wish.tools:
            theirs = figures.get((row, tool))
            is_known = ours and theirs
            least = f"> {wish.limit / ours:.1f}" if ours else "–"
            shown.append(f"{theirs / ours:.2f}" if is_known else least)  # type: ignore[operator]
    return shown


def main() -> None:
    """Measure what the command line asks for, and print a table for each path."""
    parser = argparse.ArgumentParser(prog="python -m bench.files", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="1 GiB and 5,000 files times this")
    parser.add_argument("--rtt", type=float, nargs="+", default=[0, 50], metavar="MS")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="S", help="for each errand")
    wish = parser.parse_args()
    busy = os.getloadavg()[0]
    with Ground() as ground:
        tables = {rtt: measure(ground, rtt / 1000, wish) for rtt in wish.rtt}
    print(f"Load average before: {busy:.1f}; ÷ says how many times as fast remoter is")
    for rtt, rows in tables.items():
        others = [f"{tool} ÷" for tool in wish.tools if tool != "remoter"]
        head = [f"RTT {rtt:g} ms", *wish.tools, *(others if "remoter" in wish.tools else [])]
        print("\n".join(["", *aligned([head, *rows])]))


if __name__ == "__main__":
    main()
