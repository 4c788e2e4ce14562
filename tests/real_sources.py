"""The sources of an installed package, with its own tests, out of its source distribution."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def source_of(package: str, version: str) -> Path:
    """Return the folder of a package's sources, fetched from the package index into a cache."""
    cache = Path(tempfile.gettempdir()) / f"remoter-tests-{package}-{version}-{os.getuid()}"
    if not cache.exists():
        # Unpacked beside and renamed: an interrupted download is not half a cache.
        beside = Path(tempfile.mkdtemp(prefix=f"remoter-tests-{package}-"))
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
        command += ["--no-binary", ":all:", "--no-build-isolation", "-d", str(beside)]
        subprocess.run([*command, f"{package}=={version}"], check=True, timeout=100)
        with tarfile.open(next(beside.glob("*.tar.gz"))) as archive:
            archive.extractall(beside, filter="data")
        try:
            (beside / f"{package}-{version}").rename(cache)
        except OSError:  # the other half of the run was faster
            if not cache.exists():
                raise
        shutil.rmtree(beside)
    return cache
