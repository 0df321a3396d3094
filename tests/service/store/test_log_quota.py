"""Tests of service/store/log_quota.py."""

import asyncio

from service.store.ids import new_job_id
from service.store.store import Store
from tests.service.store.ranks import metrics, said, spec
from worker.contract import EventType


def test_beyond_the_quota_the_oldest_lines_go_and_a_line_says_so(database_url):
    """The newest lines, all metrics and all numbers stay; nothing is said twice."""
    quota = 2**20

    async def scenario():
        async with await Store.open(database_url, max_log_bytes=quota) as store:
            job_id, _ = await store.jobs.create(new_job_id(), spec())
            await store.attempts.begin(job_id, "first", 2)
            seq = 0
            for batch in range(20):
                lines = [
                    said(seq + n, EventType.LOG, stream="stdout", level="info", message=f"{seq + n} " + "x" * 800) for n in range(1, 101)
                ]
                seq += 101
                assert await store.events.ingest(job_id, 1, 0, [*lines, metrics(seq, batch, train_loss=1.0)], 1)
            logs = await store.events.page(job_id, 0, 10_000, types=[EventType.LOG])
            marker, *kept = logs
            assert f"{marker.data['num_dropped']} lines were dropped here" in marker.data["message"]
            assert marker.data["num_dropped"] + len(kept) == 2000
            assert quota // 2 < sum(len(event.data["message"]) + 200 for event in kept) <= quota
            assert kept[-1].data["message"].startswith(f"{seq - 1} ")
            assert len(await store.events.page(job_id, 0, 10_000, types=[EventType.METRICS])) == 20
            assert await store.events.cursors(job_id, 1) == {0: seq}

    asyncio.run(scenario())
