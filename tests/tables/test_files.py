"""Test that the names of part files sort like their rows."""

from __future__ import annotations

import numpy as np

from raycluster.tables.files import part_name


def test_part_names_sort_like_their_rows() -> None:
    assert part_name(np.array([12, 7, 9])) == "part-000000000007.parquet"
    assert part_name(np.array([99])) < part_name(np.array([100]))
