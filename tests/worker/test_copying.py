"""Tests of worker/copying.py: no checkpoint holds half of an update, however late its copy is made."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import copies, user_models
from tests.support.checkpoints import JOB, draft, snapshot
from tests.support.jobs import run_job, run_one_rank, small_spec
from worker import copying as module
from worker.checkpoint import Snapshot
from worker.contract.failure import FailureCode
from worker.contract.spec import CheckpointSpec
from worker.copying import Buffers, Copying
from worker.errors import CheckpointWriteError, WorkerError, to_failure
from worker.progress import EventBuffer
from worker.publisher import Publisher
from worker.storage.local import LocalStorage

WAIT_S = 30.0
EVERY_STEP = {"steps": 5, "checkpoint": {"every_steps": 1, "keep_last": 9}}
WAYS = {
    "momentum": {},
    "adamw": {"optimizer": {"name": "adamw"}},
    "ema": {"average": {"kind": "ema", "decay": 0.9}},
    "swa": {"average": {"kind": "swa", "start": 0.2}, "data": {"name": "synthetic", "args": {"num_samples": 20, "image_size": 8}}},
    "accumulated": {"accumulate": 3, "clip_norm": 0.1},
    "scaled": {"precision": "fp16", "clip_norm": 0.1},
    "own statistics": {"norm": {"kind": "batch_norm"}},
    "own model": {"model": {"name": f"code:{user_models.__name__}:shrinking"}},
}


def _slow_rank(rank: int, world_size: int, *given: Any) -> Any:
    *job, expected, is_gated = given
    with copies.slow_copies(expected, is_gated=is_gated):
        return run_one_rank(rank, world_size, *job)


def _failing_rank(rank: int, world_size: int, *given: Any) -> Any:
    *job, steps = given
    with copies.failing_copies(steps):
        return run_one_rank(rank, world_size, *job)


def _differences(pool, folder: Path, spec: Any, *, is_gated: bool = True) -> list[list[str]]:
    """Run a job whose copies are as late as can be, and return what each of its checkpoints has otherwise than its state was."""
    expected = folder / "expected"
    expected.mkdir()
    runs = run_job(pool, spec, folder, program=_slow_rank, more=(expected, is_gated))
    assert [run.outcome for run in runs] == ["succeeded"] * len(runs), runs[0].failure
    assert runs[0].of("warning") == []
    return [copies.differences(expected, folder, JOB, step) for step in range(1, spec.steps + 1)]


@pytest.mark.ranks
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_is_the_state_of_its_step_in_every_bit(pool, tmp_path, way, workers):
    """The copy is made when the next step is about to update; what was saved is what a copy on the spot would have been."""
    assert _differences(pool, tmp_path, small_spec(workers, **EVERY_STEP | WAYS[way])) == [[]] * 5


@pytest.mark.ranks
def test_without_the_gate_it_is_not(pool, tmp_path):
    """The test above can fail: parameters and momentum of the next step, beside the running statistics of this one. The end is no step."""
    *torn, last = _differences(pool, tmp_path, small_spec(**EVERY_STEP), is_gated=False)

    assert last == []
    for names in torn:
        assert {"model: conv1.weight", "training: optimizer.conv1.weight.momentum_buffer"} <= set(names)
        assert not any("running" in name for name in names)


@pytest.mark.ranks
def test_a_copy_that_fails_costs_one_checkpoint(pool, tmp_path):
    """A warning, and training goes on. The last one is copied again, because nothing has changed since."""
    spec = small_spec(2, steps=4, checkpoint={"every_steps": 1, "keep_last": 9})
    first, *_ = run_job(pool, spec, tmp_path, program=_failing_rank, more=([2, 4],))

    assert first.outcome == "succeeded", first.failure
    assert [(data["code"], data["step"]) for data in first.of("warning")] == [("checkpoint_not_written", step) for step in (2, 4)]
    assert "no memory for the copy" in first.of("warning")[0]["message"]
    assert list(LocalStorage(tmp_path).published(JOB)) == [1, 3, 4]


@pytest.mark.ranks
@pytest.mark.parametrize("is_gated", [True, False])
def test_state_that_is_taken_over_waits_for_the_copy(pool, tmp_path, is_gated):
    """Rank 0 lost a step that rank 1 completed, and takes its state over while its own is being copied. Without the gate that is torn."""
    [(before, copied, after), _] = pool.run(2, _taking_over, str(tmp_path), is_gated)

    assert not torch.equal(before, after)
    assert torch.equal(copied, before if is_gated else after)


def _taking_over(rank: int, world_size: int, folder: str, is_gated: bool) -> Any:
    """Return a parameter of this rank before and after it met the other, and its copy that was under way."""
    from tests.support.jobs import MARKER, meeting_store
    from worker.contract.assignment import Assignment
    from worker.holding import Holding
    from worker.meeting import connect_store
    from worker.ranks import join, leave
    from worker.state import present

    store, host, port = meeting_store(rank, f"{folder}/port")
    ranks = join(store or connect_store(host, port), rank, world_size, torch.device("cpu"))
    assignment = Assignment(
        job_id=JOB, attempt=1, fence=1, rank=rank, world_size=world_size, spec=small_spec(world_size), storage=folder, marker=MARKER,
        store_host=host, store_port=port,
    )  # fmt: skip
    holding = Holding(assignment, torch.device("cpu"), LocalStorage(Path(folder)), EventBuffer())
    name, parameter = next(iter(holding.trainer.model.named_parameters()))
    holding.step = 3 + rank
    if rank == 1:
        with torch.no_grad():
            parameter.add_(1)
    before, copied, arrived = parameter.detach().clone(), {}, threading.Event()
    gate = holding.copying.settle

    def late(tensors: Any, _: Any) -> Any:
        assert arrived.wait(WAIT_S), "rank 0 has not come to the gate"
        return Buffers().copy(tensors)

    def arriving() -> None:
        arrived.set()
        if is_gated:
            gate()

    holding.copying._copy = late
    copy = holding.copying.begin(3, present(holding.trainer, 3, world_size).tensors)
    holding.copying.settle = arriving if is_gated else lambda: None
    writer = threading.Thread(target=lambda: copied.update(copy.take()["model"]))
    writer.start()
    holding.join(ranks, None)
    arrived.set()
    writer.join(WAIT_S)
    assert not writer.is_alive(), "the copy has not ended"
    holding.leave()
    holding.trainer.close()
    ranks.sum(torch.zeros(1))
    del ranks, store
    leave()
    return before, copied[name].clone(), parameter.detach().clone()


def test_the_gate_waits_for_a_copy_under_way(tmp_path):
    """And opens when it is done: what was copied is what was there before."""
    begun, may_end, order = threading.Event(), threading.Event(), []

    def slow(tensors, _):
        begun.set()
        assert may_end.wait(WAIT_S), "nobody let the copy end"
        order.append("copied")
        return Buffers().copy(tensors)

    copying, weight = Copying(slow), torch.zeros(3)
    copy = copying.begin(4, {"model": {"weight": weight}})

    def updating():
        copying.settle()
        weight.fill_(1)
        order.append("updated")

    writer, update = threading.Thread(target=copy.take), threading.Thread(target=updating)
    writer.start()
    assert begun.wait(WAIT_S), "the copy has not begun"
    update.start()
    order.append("let on")
    may_end.set()
    for thread in (writer, update):
        thread.join(WAIT_S)
        assert not thread.is_alive()

    assert order == ["let on", "copied", "updated"]
    assert torch.equal(copy.take()["model"]["weight"], torch.zeros(3))


def test_the_gate_does_not_open_for_a_copy_that_hangs(monkeypatch):
    """It says what it waited for and how long, and the training ends before it changes anything."""
    monkeypatch.setattr(module, "COPY_TIMEOUT_S", 0.2)
    begun, may_end = threading.Event(), threading.Event()

    def hanging(tensors, _):
        begun.set()
        assert may_end.wait(WAIT_S), "nobody let the copy end"
        return Buffers().copy(tensors)

    copying = Copying(hanging)
    copy = copying.begin(4, {"model": {"weight": torch.zeros(3)}})
    writer = threading.Thread(target=copy.take)
    writer.start()
    assert begun.wait(WAIT_S), "the copy has not begun"
    try:
        for _ in range(2):
            with pytest.raises(WorkerError, match=r"state after step 4 is still being copied .* after 0\.2 s; .* rank 0's node") as refused:
                copying.settle()
        assert to_failure(refused.value, 0).code is FailureCode.SYSTEM_ERROR
        with pytest.raises(CheckpointWriteError, match="step 4 is still being copied"):
            copy.take()
    finally:
        may_end.set()
        writer.join(WAIT_S)
    copying.settle()


def test_who_comes_to_the_gate_first_makes_the_copy():
    """The writer has not begun, or never will: nobody waits for it, and its late copy is that of before."""
    copying, weight = Copying(), torch.zeros(3)
    copy = copying.begin(4, {"model": {"weight": weight}, "training": {}})
    copying.settle()
    weight.fill_(1)

    assert torch.equal(copy.take()["model"]["weight"], torch.zeros(3))


@pytest.mark.parametrize("is_settled", [False, True])
def test_a_copy_that_failed_is_made_again_only_until_the_gate(is_settled):
    """Then what it would read may have changed: there is none."""
    failures = [MemoryError("no memory")]

    def failing(tensors, _):
        if failures:
            raise failures.pop()
        return Buffers().copy(tensors)

    copying, weight = Copying(failing), torch.zeros(3)
    copy = copying.begin(4, {"model": {"weight": weight}})
    with pytest.raises(CheckpointWriteError, match=r"state after step 4 was not copied .*MemoryError: no memory; see that rank 0 has"):
        copy.take()
    if is_settled:
        copying.settle()
        with pytest.raises(CheckpointWriteError, match="no memory"):
            copy.take()
    else:
        assert torch.equal(copy.take()["model"]["weight"], weight)


def test_a_failed_copy_is_a_warning_like_a_failed_write(tmp_path):
    """The checkpoint before stays, the one after is written."""
    events, copying = EventBuffer(), Copying(_no_memory)
    publisher = Publisher(LocalStorage(tmp_path), JOB, CheckpointSpec(keep_last=9), events)
    copy = copying.begin(2, {"model": {"weight": torch.zeros(3)}})
    publisher.submit(1, lambda: snapshot(1))
    publisher.submit(2, lambda: Snapshot(draft(2), copy.take()["model"], {}, {}))
    copying.settle()
    publisher.submit(3, lambda: snapshot(3))
    publisher.finish()

    assert list(LocalStorage(tmp_path).published(JOB)) == [1, 3]
    [warning] = [event.data for event in events.drain(0, 0)[0] if event.type.value == "warning"]
    assert {"code": "checkpoint_not_written", "step": 2}.items() <= warning.items()


def test_memory_is_used_again():
    """The copies of a job lie where those before lay, as long as nothing changes its shape."""
    copying = Copying()
    tensors = {"model": {"weight": torch.arange(6.0).reshape(2, 3).T, "count": torch.tensor(3)}, "training": {}}
    first, second = (copying.begin(step, tensors).take()["model"] for step in (1, 2))
    other = copying.begin(3, {"model": {"weight": torch.zeros(2)}}).take()["model"]

    assert first["weight"].is_contiguous()
    assert torch.equal(second["weight"], tensors["model"]["weight"])
    assert {name: tensor.data_ptr() for name, tensor in first.items()} == {name: tensor.data_ptr() for name, tensor in second.items()}
    assert other["weight"].data_ptr() != first["weight"].data_ptr()


def _no_memory(tensors: Any, _: Any) -> Any:
    raise MemoryError("no memory")
