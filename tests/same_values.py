"""Are two values the same: of the same kinds, all the way down? Its text runs in kernels, too."""

from __future__ import annotations

import math
import struct
import sys
from typing import Any


def same(one: Any, two: Any) -> bool:
    """Compare by kind and value; NaN is NaN, and an order of keys is an order."""
    if type(one) is not type(two):
        return False
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", two) or math.isnan(one + two)
    if isinstance(one, complex):
        return same(one.real, two.real) and same(one.imag, two.imag)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return same(list(one.items()), list(two.items()))
    if isinstance(one, (set, frozenset)):
        return sorted(map(repr, one)) == sorted(map(repr, two))
    return _same_arrays(one, two)


def _same_arrays(one: Any, two: Any) -> bool:
    pandas, numpy, polars = (sys.modules.get(name) for name in ("pandas", "numpy", "polars"))
    if numpy and isinstance(one, (numpy.ndarray, numpy.generic)):
        is_alike = one.dtype == two.dtype and one.shape == two.shape
        return is_alike and numpy.asarray(one).tobytes() == numpy.asarray(two).tobytes()
    if pandas:
        if one is pandas.NA or one is pandas.NaT:
            return one is two
        for kind, check in (
            (pandas.DataFrame, pandas.testing.assert_frame_equal),
            (pandas.Series, pandas.testing.assert_series_equal),
            (pandas.Index, pandas.testing.assert_index_equal),
        ):
            if isinstance(one, kind):
                check(one, two, check_exact=True)
                return True
        if isinstance(one, pandas.api.extensions.ExtensionArray):
            pandas.testing.assert_extension_array_equal(one, two)
            return True
        if isinstance(one, pandas.Timestamp):
            return bool(one == two and one.unit == two.unit and str(one.tz) == str(two.tz))
    if polars and isinstance(one, (polars.DataFrame, polars.Series)):
        return bool(one.equals(two, null_equal=True))
    if hasattr(one, "tzinfo"):
        return bool(one == two and (one.tzinfo, one.fold) == (two.tzinfo, two.fold))
    return bool(one == two)
