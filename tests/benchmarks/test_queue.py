"""The benchmark of the queue runs, and a round stays cheap where the queue is deep."""

import asyncio

from tests.benchmarks.queue import measure


def test_a_round_does_not_read_the_whole_queue():
    """Five times as many jobs as a round looks at: it costs a fraction of reading them all."""
    found = asyncio.run(measure(5_000))
    every_row, deep, near, first_page, last_page = found.values()

    assert near < deep < every_row
    assert near < every_row / 2
    assert max(first_page, last_page) < every_row / 4
