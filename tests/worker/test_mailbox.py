"""Tests of worker/mailbox.py that need no gang. Of what a rank does when it is told, in test_session.py."""

import json
import subprocess
import sys

import pytest

_PROGRAM = """
from worker.mailbox import Mailbox
print(Mailbox("127.0.0.1").host_store(1))
"""


def test_a_new_process_serves_the_store_while_it_still_loads_torch():
    """Asked at once, it answers with a port; two threads in the import of torch.distributed would end the process."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


_PREPARED = """
import json, sys
import worker.session
from worker.contract import Assignment, parse_spec
from worker.mailbox import Mailbox
from worker.storage.local import LocalStorage
from pathlib import Path

folder, data = sys.argv[1], json.loads(sys.argv[2])
LocalStorage(Path(folder)).mark("marker")
spec = parse_spec({"name": "t", "model": {"name": "resnet18", "args": {"width": 2}}, "data": data, "batch_size": 8, "steps": 1,
                   "resources": {"workers": 1}})
build, built = worker.session.Holding, []
worker.session.Holding = lambda *given: built.append(mailbox.generation) or build(*given)
mailbox = Mailbox("127.0.0.1")

def told(port):
    return Assignment(job_id="job_0", attempt=1, fence=1, generation=2, rank=0, world_size=1, spec=spec, storage=folder, marker="marker",
                      store_host="127.0.0.1", store_port=port, after_seq=7).model_dump(mode="json")

mailbox.prepare(told(0), 100.0)
before = mailbox.drain(0, 0.0)["events"]
mailbox.assign(told(mailbox.host_store(2)))
events = before
while not events or events[-1]["type"] != "end":
    events = events + mailbox.drain(events[-1]["seq"] if events else 0, 60.0)["events"]
print(json.dumps({"built": built, "before": len(before), "events": events}))
"""
SYNTHETIC = {"name": "synthetic", "args": {"num_samples": 16, "num_test_samples": 4, "image_size": 8}}


def _prepared(folder, data):
    """Have a process get ready for a group that is to be, then tell it of the group; return what it has said."""
    command = [sys.executable, "-c", _PREPARED, str(folder), json.dumps(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.ranks
def test_a_process_gets_ready_before_it_is_told_where_to_meet(tmp_path):
    """Data and model are built once, for a group that is only to be: no member yet, nothing said. Told of the group, it trains."""
    said = _prepared(tmp_path, SYNTHETIC)

    assert said["built"] == [0], "built while no assignment was there"
    assert said["before"] == 0
    assert said["events"][0]["seq"] == 8
    assert (said["events"][0]["data"]["phase"], said["events"][0]["data"]["generation"]) == ("starting", 2)
    assert said["events"][-1]["data"]["outcome"] == "succeeded"


@pytest.mark.ranks
def test_what_goes_wrong_while_it_gets_ready_is_its_last_word(tmp_path):
    """Whoever waits for it is not kept waiting."""
    said = _prepared(tmp_path, {"name": "arrays", "path": str(tmp_path / "missing.npz")})

    assert said["before"] == 1
    assert said["events"][-1]["data"]["outcome"] == "failed"
    assert "missing.npz" in said["events"][-1]["data"]["failure"]["message"]
