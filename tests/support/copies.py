"""Copies of the state that are as slow as can be, planted into a rank: none is made before training has come to the gate in front of it.

Owns what each checkpoint should hold: the state at the moment of the save, in files beside the storage, `difference` compares.
"""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file

from worker.contract import checkpoint_name, checkpoints_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ARRIVAL_S = 60.0


@contextmanager
def slow_copies(expected: Path, *, is_gated: bool = True) -> Iterator[None]:
    """Within this, copies wait until the training thread is at the gate, or where there is none, has done the next step.

    Args:
        expected: an existing directory, for the state at every save.
        is_gated: False takes the gate away.
    """
    from worker import course
    from worker.copying import Buffers, Copying
    from worker.course import Course
    from worker.training import Trainer

    arrived, present, copy, begin, settle = threading.Event(), course.present, Buffers.copy, Copying.begin, Copying.settle

    def remembering(trainer: Any, step: int, world_size: int) -> Any:
        state = present(trainer, step, world_size)
        for kind, tensors in state.tensors.items():
            save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, expected / f"{kind}-{step}.safetensors")
        (expected / f"training-{step}.json").write_text(json.dumps(state.scalars))
        return state

    def slow(buffers: Any, *given: Any) -> Any:
        assert arrived.wait(ARRIVAL_S), f"the training thread has come neither to the gate nor to its end for {ARRIVAL_S:g} s"
        return copy(buffers, *given)

    def beginning(copying: Any, *given: Any) -> Any:
        begun = begin(copying, *given)
        arrived.clear()
        return begun

    def at_the_gate(copying: Any) -> None:
        if is_gated:
            arrived.set()
            settle(copying)

    def then_arrived(original: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            result = original(*given, **named)
            arrived.set()
            return result

        return call

    def before_the_end(part: Any) -> Any:
        def call(*given: Any) -> Any:
            arrived.set()
            return part(*given)

        return call

    with ExitStack() as planted:
        for where, name, what in (
            (course, "present", remembering),
            (Buffers, "copy", slow),
            (Copying, "begin", beginning),
            (Copying, "settle", at_the_gate),
            (Trainer, "step", then_arrived(Trainer.step)),
            (Course, "_part", before_the_end(Course._part)),
        ):
            planted.enter_context(patch.object(where, name, what))
        yield


@contextmanager
def failing_copies(steps: list[int]) -> Iterator[None]:
    """Within this, the first copy of the state after each of these steps fails for want of memory."""
    from worker.copying import Copy

    init, left = Copy.__init__, list(steps)

    def failing(copy: Any, step: int, make: Any) -> None:
        def once() -> Any:
            if step in left:
                left.remove(step)
                raise MemoryError("no memory for the copy")
            return make()

        init(copy, step, once)

    with patch.object(Copy, "__init__", failing):
        yield


def differences(expected: Path, storage: Path, job_id: str, step: int) -> list[str]:
    """Return the names of what a published checkpoint has otherwise than the state that was saved, in any bit."""
    published = storage / checkpoints_directory(job_id) / checkpoint_name(step)
    found = []
    for kind in ("model", "training"):
        theirs, ours = load_file(published / f"{kind}.safetensors"), load_file(expected / f"{kind}-{step}.safetensors")
        found += [f"{kind}: {name}" for name in theirs.keys() ^ ours.keys()]
        found += [f"{kind}: {name}" for name in theirs.keys() & ours.keys() if not _is_equal(theirs[name], ours[name])]
    scalars = [json.loads(path.read_text()) for path in (published / "training.json", expected / f"training-{step}.json")]
    scalars[0].pop("reports")  # what was said of the steps, times among it; no state
    return found if scalars[0] == scalars[1] else [*found, "training.json"]


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
