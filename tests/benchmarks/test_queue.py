"""The benchmark of the queue runs, and a round reads no more of a deep queue than it looks at."""

import asyncio

import pytest

from service import planner
from service.store.queue import Queue
from tests.benchmarks.queue import measure


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """How many jobs each page had that was read."""
    read_page, sizes = Queue._page, []

    async def counted(queue, *args):
        page = await read_page(queue, *args)
        sizes.append(len(page))
        return page

    monkeypatch.setattr(Queue, "_page", counted)
    return sizes


def test_a_round_does_not_read_the_whole_queue(read):
    """Of a queue five times as long as what a round looks at, a round reads a fifth, and now and then one reads all."""
    found = asyncio.run(measure(5 * planner.NEAR))

    assert min(found.values()) > 0
    whole, near = [planner.PAGE] * 5 + [0], [planner.PAGE]
    assert read == 4 * whole + 3 * near
