"""Thins out a series for drawing. Pure."""

from collections.abc import Sequence


def downsample(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """Return at most `most` of the points, in order, so that a drawing of them shows the same peaks.

    The first and the last point stay. The rest is cut into equal buckets, and of each its lowest and its highest point stay.

    Args:
        points: by step.
        most: at least 2; from 4 on the highest and the lowest of all are among the result.

    >>> downsample([(0, 1.0), (1, 9.0), (2, 2.0), (3, 0.0), (4, 2.0), (5, 3.0)], 4)
    [(0, 1.0), (1, 9.0), (3, 0.0), (5, 3.0)]
    """
    if len(points) <= most:
        return list(points)
    inner = range(1, len(points) - 1)
    num_buckets = (most - 2) // 2
    kept = {0, len(points) - 1}
    for bucket in range(num_buckets):
        members = inner[bucket * len(inner) // num_buckets : (bucket + 1) * len(inner) // num_buckets]
        kept |= {min(members, key=lambda index: points[index][1]), max(members, key=lambda index: points[index][1])}
    return [points[index] for index in sorted(kept)]
