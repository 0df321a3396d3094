"""The benchmark of the service runs."""

from tests.benchmarks.service import Sizes, run


def test_every_row_of_the_table_is_measured():
    """At a small size and without other people's services, the whole table is printed."""
    sizes = Sizes(
        jobs=200, submissions=20, calls=40, steps=50, readers=10, told=5, file_bytes=3_000_000, rounds=1, hour=40, has_peers=False
    )

    rows = run(sizes)

    assert len(rows) == 9
    assert not [row for row in rows if "REFUSED" in row.found]
