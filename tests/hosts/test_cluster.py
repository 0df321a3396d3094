"""The service across hosts: Ray's head and the controller on one, half of the ranks on the other, and the network between them."""

import json
import time

import pytest

from tests.support.host_cluster import HostCluster, ranks_on
from tests.support.hosts import two_hosts, why_not
from tests.support.serving import spec, until

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def hosts():
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with two_hosts() as made:
        yield made


def test_cluster(hosts, tmp_path):
    left, right = hosts
    t0 = time.monotonic()
    def say(*a):
        print(f"{time.monotonic() - t0:.1f}", *a, flush=True)
    with HostCluster(tmp_path, left) as cluster:
        cluster.start_head(1)
        say("head")
        cluster.join(right, 1)
        say("joined")
        cluster.serve()
        say("serving")
        f = tmp_path / "spec.json"
        f.write_text(json.dumps(spec(20, precision="fp64")))
        job = cluster.ask("submit", f)
        say(job)
        job = cluster.ask("wait", job["id"], "--timeout", "60")["data"][0]
        say(job)
        f.write_text(json.dumps(spec(60, checkpoint={"every_steps": 5})))
        job = cluster.ask("submit", f)
        until(lambda: list((cluster.storage / "jobs" / job["id"] / "checkpoints").glob("step-*/manifest.json")), 60, "a checkpoint")
        say("training", ranks_on(left), ranks_on(right))
        right.kill()
        say("killed")
        cluster.join(right, 1)
        say("rejoined")
        try:
            job = cluster.ask("wait", job["id"], "--timeout", "60")["data"][0]
        finally:
            job = cluster.ask("get", job["id"])
            say(job["state"], job["reason"], job["message"], ranks_on(left), ranks_on(right))
            say(*(f'{t["at"]} {t["state"]} {t["reason"]} {t["message"]}\n' for t in job["transitions"]))
            print((tmp_path / "serve.log").read_text()[-6000:])
