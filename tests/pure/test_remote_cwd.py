"""Where a kernel starts there."""

from __future__ import annotations

from pathlib import Path

import pytest

from remoter_kernel.errors import BadConfiguration
from remoter_kernel.local.config.remotes import remote_cwd

HOME = Path("/home/ada")


@pytest.mark.parametrize(
    ("cwd", "path_map", "folder", "expected"),
    [
        ("~/project", {}, "/anywhere", "~/project"),
        ("", {}, "/anywhere", ""),
        ("notebook", {}, "/home/ada/work/a b", "~/work/a b"),
        ("notebook", {}, "/home/ada", "~"),
        ("notebook", {"~/work": "/scratch/ada"}, "/home/ada/work/x", "/scratch/ada/x"),
        ("notebook", {"/data": "/d", "/data/big": "$BIG"}, "/data/big/one", "$BIG/one"),
        ("notebook", {"/data": "/d", "/data/big": "$BIG"}, "/data/bigger", "/d/bigger"),
    ],
)
def test_a_folder_is_called_there_as_its_map_says(cwd, path_map, folder, expected):
    assert remote_cwd(cwd, path_map, Path(folder), HOME) == expected


def test_a_folder_without_a_counterpart_is_told_with_the_line_that_would_help():
    with pytest.raises(BadConfiguration, match=r'path_map = \{ "/data" = '):
        remote_cwd("notebook", {"~/work": "/w"}, Path("/data"), HOME)
