"""The service across hosts: Ray's head and the controller on one, a worker node on the other, and a rank on each."""

import json
from datetime import datetime

import pytest

from tests.support.host_cluster import HostCluster, ranks_on
from tests.support.serving import spec, until
from worker.vacancy import START_S

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


def test_an_elastic_job_goes_on_without_a_host_that_is_gone(hosts, tmp_path):
    """As soon as Ray says so, and not after the half minute that room may take to come back where it is needed."""
    left, right = hosts
    document = tmp_path / "spec.json"
    document.write_text(json.dumps(spec(10**6, resources={"workers": {"min": 1, "max": 2}}, checkpoint={"every_steps": 10})))
    with HostCluster(tmp_path, left) as cluster:
        cluster.start_head(cpus=1)
        cluster.join(right, cpus=1)
        cluster.serve()
        job_id = cluster.ask("submit", document)["id"]
        until(lambda: cluster.checkpoints(job_id) and [len(ranks_on(host)) for host in hosts] == [1, 1], 90, "both ranks and a checkpoint")
        right.kill()
        job = until(lambda: (job := cluster.ask("get", job_id))["world_size"] == 1 and job["state"] == "running" and job, 60, "one worker")
        at = {transition["state"]: datetime.fromisoformat(transition["at"]) for transition in job["transitions"]}

        assert (at["running"] - at["recovering"]).total_seconds() < START_S / 2
        assert len(job["attempts"]) == 1
        cluster.ask("cancel", job_id)
