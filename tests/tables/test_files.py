"""Test that the names of part files sort like their rows."""

from __future__ import annotations

import numpy as np

from raycluster.storage.location import locate
from raycluster.tables.names import named_ids, part_name


def test_part_names_sort_like_their_rows_and_tell_them() -> None:
    assert part_name(np.array([12, 7, 9])) == "part-000000000007.parquet"
    assert part_name(np.array([8, 7, 9])) == "part-000000000007-000000000010.parquet"
    assert part_name(np.array([99])) < part_name(np.array([100, 103])) < part_name(np.array([101]))
    for ids in ([12, 7, 9], [8, 7, 9], [5]):
        named = named_ids(locate("/table") / part_name(np.array(ids)))
        assert named is None if len(ids) < max(ids) - min(ids) + 1 else named.tolist() == sorted(ids)
