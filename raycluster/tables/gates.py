"""The gates that a table passes before it counts as finished: every row is there once, and not too many images have failed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from raycluster.errors import DataQualityError


def check_rows(table: str, found: np.ndarray, expected: np.ndarray, exact: bool) -> None:
    """Check that every expected row is there and no row twice (the count gate); with `exact`, also that no other row is there.

    Raises :class:`DataQualityError` with counts and examples.
    """
    unique, counts = np.unique(found, return_counts=True)
    doubled = unique[counts > 1]
    missing = np.setdiff1d(expected, unique, assume_unique=True)
    foreign = np.setdiff1d(unique, expected, assume_unique=True) if exact else missing[:0]
    problems = [
        f"{len(ids)} rows {what} (row_id {', '.join(map(str, ids[:3]))})"
        for what, ids in (("are missing", missing), ("occur twice", doubled), ("are not in the manifest", foreign))
        if len(ids)
    ]
    if problems:
        raise DataQualityError(
            f"{table}: {len(expected)} rows were expected, but {'; '.join(problems)}; "
            "nothing was marked finished: delete the folder of this table and run again"
        )


def check_failures(
    statuses: Mapping[str, int],
    examples: Mapping[str, list[tuple[str, str]]],
    allowed: float,
    total: int | None = None,
) -> None:
    """Raise :class:`DataQualityError` if too many images, or all of them, could not be read (the failure gate).

    `examples`: for each status, up to three pairs (uri, reason); `total`: the number of images, if not all were tried yet.
    """
    tried, failed = sum(statuses.values()), sum(n for status, n in statuses.items() if status != "ok")
    total = tried if total is None else total
    if failed <= allowed * total and failed < total:
        return
    lines = [
        f"  {status}: {n}" + "".join(f"\n    {uri}: {reason}" for uri, reason in examples.get(status, []))
        for status, n in sorted(statuses.items(), key=lambda item: -item[1])
        if status != "ok"
    ]
    stopped = f", and {total - tried} were not tried any more" if tried < total else ""
    raise DataQualityError(
        f"{failed} of {total} images ({failed / total:.1%}) could not be read{stopped}; max_failed_fraction allows {allowed:.1%}. "
        f"Repair or remove them{', or raise max_failed_fraction' if failed < total else ''}; what was read is kept.\n"
        + "\n".join(lines)
    )
