"""Test the gates that a table passes before it counts as finished."""

from __future__ import annotations

import numpy as np
import pytest

from raycluster.errors import DataQualityError
from raycluster.tables.gates import check_failures, check_rows


def test_count_gate_passes_complete_tables_in_any_order() -> None:
    check_rows("t", np.array([3, 1, 2]), np.array([1, 2, 3]), exact=True)
    check_rows("t", np.array([9, 3, 1, 2]), np.array([1, 2, 3]), exact=False)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ([1, 3], "1 rows are missing .row_id 2."),
        ([1, 2, 2, 3], "1 rows occur twice .row_id 2."),
        ([1, 2, 3, 9], "1 rows are not in the manifest"),
    ],
)
def test_count_gate_names_what_is_wrong(found: list[int], problem: str) -> None:
    with pytest.raises(DataQualityError, match=problem):
        check_rows("t", np.array(found), np.array([1, 2, 3]), exact=True)


def test_failure_gate_shows_the_histogram_and_examples() -> None:
    statuses = {"ok": 90, "missing": 8, "empty": 2}
    check_failures(statuses, {}, allowed=0.10)
    with pytest.raises(DataQualityError) as caught:
        check_failures(statuses, {"missing": [("s3://b/a.jpg", "no such key")]}, allowed=0.09)
    assert "10 of 100 images (10.0%)" in str(caught.value)
    assert "s3://b/a.jpg: no such key" in str(caught.value)


def test_failure_gate_before_all_were_tried_counts_against_all() -> None:
    check_failures({"ok": 5, "missing": 5}, {}, allowed=0.1, total=100)
    with pytest.raises(
        DataQualityError, match=r"11 of 100 images \(11.0%\) could not be read, and 84 were not tried any more"
    ):
        check_failures({"ok": 5, "missing": 11}, {}, allowed=0.1, total=100)


def test_failure_gate_never_passes_a_run_without_a_single_image() -> None:
    with pytest.raises(DataQualityError):
        check_failures({"missing": 3}, {}, allowed=1.0)
