"""The service across hosts: Ray's head and the controller on one, a worker node on the other, and a rank on each."""

import json

import pytest

from tests.support.host_cluster import HostCluster, ranks_on
from tests.support.serving import spec, until

pytestmark = pytest.mark.ray
STEPS = 80


def test_a_killed_host_that_comes_back_costs_no_step(hosts, tmp_path):
    """Every process of a host is killed in mid-training, Ray's too, and it joins again: the job recovers and does every step."""
    left, right = hosts
    document = tmp_path / "spec.json"
    document.write_text(json.dumps(spec(STEPS, checkpoint={"every_steps": 10})))
    with HostCluster(tmp_path, left) as cluster:
        cluster.start_head(cpus=1)
        cluster.join(right, cpus=1)
        cluster.serve()
        job_id = cluster.ask("submit", document)["id"]
        until(lambda: cluster.checkpoints(job_id), 60, "a checkpoint")
        assert [len(ranks_on(host)) for host in hosts] == [1, 1]
        right.kill()
        cluster.join(right, cpus=1)
        job = cluster.ask("wait", job_id, "--timeout", "120", timeout_s=150)["data"][0]
        losses = cluster.ask("metrics", job_id, "--name", "train/loss")["series"][0]["points"]

        assert job["state"] == "succeeded"
        assert "recovering" in [transition["state"] for transition in job["transitions"]]
        assert [step for step, _ in losses] == list(range(1, STEPS + 1))
        assert [len(ranks_on(host)) for host in hosts] == [0, 0]
