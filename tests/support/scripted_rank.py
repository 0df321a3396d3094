"""A rank that plays a script instead of training: a real process with the real mailbox, without torch, so that it starts in no time.

label `script`   what its ranks do
mortal           a checkpoint of which nobody hears; then rank 1 dies by SIGKILL, in the middle, once in each attempt; the other parks and
                 goes on when it was told where to meet anew
fails            rank 0 makes a mistake in the middle, and says so; the other parks
loud             prints LOUD_LINES lines of LOUD_CHARS characters in each step, as fast as it can, and a last word
anything else    every step, a checkpoint in the middle and one at the end
All meet before the first step, and part when the last checkpoint is published. Each step, rank 0 reports a metric, and every rank a line
of log with the step's number.
"""

import contextlib
import ctypes
import json
import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

import worker.mailbox
from tests.support.calling import answer_calls
from worker.contract import Assignment, EventType, Health, Manifest
from worker.mailbox import Mailbox
from worker.orders import Request
from worker.output import captured_output
from worker.storage.local import LocalStorage

_PR_SET_NAME = 15
STEP_S = 0.02
LOUD_LINES, LOUD_CHARS = 8000, 250
PATIENCE_S = 120.0
"""How long a parked rank waits for a controller."""


def serve(rank: int, pipe: Connection) -> None:
    """Answer calls of (number, method, arguments), each in a thread of its own, until the pipe closes."""
    worker.mailbox.load_torch = lambda: None
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"ray::RankActor", 0, 0, 0)  # as Ray calls its actors
    answer_calls(pipe, ScriptedRank(rank))
    os._exit(0)


class ScriptedRank(Mailbox):
    """The methods of worker/rank_actor.py over a script."""

    def __init__(self, rank: int) -> None:
        super().__init__("127.0.0.1")
        self._rank = rank

    def identify(self) -> dict[str, Any]:
        """See RankActor."""
        created = psutil.Process().create_time()
        who = {"place": self._rank, "pid": os.getpid(), "created": created, "node_id": "here", "node_ip": "127.0.0.1"}
        return who | {"generation": self.generation}

    def host_store(self, generation: int) -> int:
        """Serve nothing: nobody meets."""
        return generation

    def drain(self, after_seq: int, timeout_s: float) -> dict[str, Any]:
        """See RankActor."""
        return {"rank": self._rank, **super().drain(after_seq, timeout_s)}

    def _train(self, rank: int, world_size: int) -> None:
        del world_size
        outcome, failure = "failed", None
        try:
            # What is let through is passed on to the process's own output: here that of the tests.
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), captured_output(self._events):
                outcome = self._play()
        except Exception as error:  # noqa: BLE001  the last word
            failure = {"code": "task_error", "message": repr(error), "rank": rank, "retryable": False}
        self._events.emit(EventType.END, {"outcome": outcome, "failure": failure})

    def _play(self) -> str:
        """Go from step to step and from group to group; return the outcome."""
        first = self._orders.await_newer(0, 0)
        assert first is not None
        told, resume = first, int((first.resume or "/0").split("/")[1])
        step = resume if told.generation == 1 else told.reported.get("train/loss", resume)
        while True:
            self._events.emit(EventType.STATE, {"phase": "starting", "generation": told.generation, "step": step})
            is_met = self._is_met(told)
            if is_met:
                self._events.emit(EventType.STATE, {"phase": "training", "generation": told.generation, "step": step})
            while step < told.spec.steps and not self._orders.is_superseded(told.generation):
                if self._orders.request is Request.PAUSE:
                    self._publish(told, step)
                    return "paused"
                step += 1
                self._step(told, step, is_fresh=step == max(resume + 1, told.spec.steps // 2))
                if self._is_to_park(told, step, resume):
                    break
            if self._orders.stop.is_set():
                return "stopped"
            if is_met and step == told.spec.steps:
                return self._finish(told, step)
            newer = self._orders.await_newer(told.generation, 0)
            if newer is None:
                self._events.emit(EventType.STATE, {"phase": "parked", "generation": told.generation, "step": step})
                newer = self._orders.await_newer(told.generation, PATIENCE_S)
            if newer is None:
                return "stopped"
            told = newer

    def _finish(self, told: Assignment, step: int) -> str:
        self._publish(told, step)
        if told.spec.labels["script"] == "loud":
            print(f"the last word of rank {self._rank}")
        self._wait(told, lambda: step in LocalStorage(Path(told.storage)).steps(told.job_id))
        return "succeeded"

    def _is_met(self, told: Assignment) -> bool:
        """Wait until every rank was told of the group; return False where it is not wanted any more."""
        here = Path(told.storage) / ".met" / f"{told.job_id}-{told.attempt}-{told.generation}"
        here.mkdir(parents=True, exist_ok=True)
        (here / str(self._rank)).touch()
        return self._wait(told, lambda: len(list(here.iterdir())) == told.world_size)

    def _wait(self, told: Assignment, is_so: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline
            if self._orders.is_superseded(told.generation):
                return False
            time.sleep(STEP_S / 2)
        return True

    def _is_to_park(self, told: Assignment, step: int, resume: int) -> bool:
        is_mortal = told.spec.labels["script"] == "mortal" and told.generation == 1
        return (is_mortal or told.spec.labels["script"] == "fails") and step == max(resume + 1, told.spec.steps // 2)

    def _step(self, told: Assignment, step: int, *, is_fresh: bool) -> None:
        time.sleep(STEP_S)
        script = told.spec.labels["script"]
        if script == "loud":
            for _ in range(LOUD_LINES):
                print("x" * LOUD_CHARS)
        else:
            self._events.emit(EventType.LOG, {"stream": "stdout", "level": "info", "message": str(step)})
        if self._rank == 0:
            values = {"train/loss": 1 / step}
            data = {"step": step, "total_steps": told.spec.steps, "epoch": 0.1, "samples": step, "values": values}
            self._events.emit(EventType.METRICS, data)
        if is_fresh and script == "mortal" and told.generation == 1 and self._rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if is_fresh and script == "fails" and self._rank == 0:
            raise RuntimeError("a mistake")
        if step == told.spec.steps // 3:
            self._publish(told, step, is_heard=script != "mortal")

    def _publish(self, told: Assignment, step: int, *, is_heard: bool = True) -> None:
        storage = LocalStorage(Path(told.storage))
        if self._rank or step in storage.steps(told.job_id):
            return
        draft = Manifest(
            job_id=told.job_id, attempt=told.attempt, fence=told.fence, step=step, epoch=0.1, samples=step, world_size=told.world_size,
            created_at=datetime.now(UTC), metrics={}, spec={}, spec_sha256="0" * 64, versions={}, health=Health(status="healthy"),
            layers=(), files={},
        )  # fmt: skip
        with storage.staging(draft) as directory:
            storage.publish(directory, draft)
        if is_heard:
            self._events.emit(EventType.CHECKPOINT, json.loads(draft.model_dump_json()))
