"""A controller killed with SIGKILL in the middle of many submissions: every acknowledged job is there."""

import asyncio
import itertools
import subprocess
import sys

from service.states import State
from service.store.store import Store

PROGRAM = """
import asyncio, sys
from service.store.ids import new_job_id
from service.store.store import Store
from tests.service.store.ranks import spec

async def main(url):
    store = await Store.open(url)
    async def submit():
        while True:
            job_id, _ = await store.jobs.create(new_job_id(), spec())
            print(job_id, flush=True)
    await asyncio.gather(*(submit() for _ in range(8)))

asyncio.run(main(sys.argv[1]))
"""


def test_every_acknowledged_job_survives_a_kill(database_url):
    """Three lives of a controller, each killed while it stores: nothing that it said is lost, nothing is half there."""
    acknowledged: list[str] = []
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", PROGRAM, database_url], stdout=subprocess.PIPE, text=True) as process:
            acknowledged += [line.strip() for line in itertools.islice(process.stdout, 20)]
            process.kill()
            # What was written into the pipe before the kill was acknowledged too; only a whole line is.
            acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]

    async def check():
        async with await Store.open(database_url) as store:
            jobs = {job.id: job for job in await store.jobs.in_states([State.QUEUED])}
            assert len(acknowledged) >= 60
            assert set(acknowledged) <= set(jobs)
            histories = await store.jobs.transitions_of(list(jobs)[:500])
            assert all(len(history) == 1 for history in histories.values())
            assert all(job.last_seq == 1 for job in jobs.values())

    asyncio.run(check())
