"""A pool of processes that form gloo groups of any size, for tests of what ranks do together.

Owns: starting processes once, forming a group per world size, running a program on every rank, and saying which rank failed, died or hung.
Every wait is bounded, and no process outlives the pool. Does not own what the programs do.

A program is a function `program(rank, world_size, *arguments)` at the top level of any file; its result must pickle.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import multiprocessing
import os
import pickle
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any, final

COLLECTIVE_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 60.0
START_TIMEOUT_S = 90.0
GRACE_S = 2.0


class RankError(AssertionError):
    """A program failed: the message names the ranks and what each of them did."""


@final
class RankPool:
    """Processes that stay up between calls; use as a context manager, one per test session."""

    def __init__(self, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._answer_timeout_s = answer_timeout_s
        self._workers: list[_Worker] = []
        self._folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        self._groups_formed = 0
        self._world_size = 0

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, world_size: int, program: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run a program on ranks 0 .. world_size - 1 of a group of their own.

        Returns:
            What each rank returned, in rank order.
        Raises:
            RankError: a rank raised, died, or did not answer in time. The pool then starts afresh with the next call.
        """
        self._start(world_size)
        store = self._store_for(world_size)
        job = pickle.dumps((inspect.getfile(program), program.__qualname__, world_size, store, arguments))
        workers = self._workers[:world_size]
        for worker in workers:
            worker.pipe.send_bytes(job)
        answers = _answers(workers, self._answer_timeout_s)
        problems = [f"rank {rank} {answer}" for rank, (fine, answer) in answers.items() if not fine]
        if problems:
            self._recover(answers)
            raise RankError(f"{program.__qualname__} on {world_size} ranks: " + "\n".join(problems))
        return [answers[rank][1] for rank in range(world_size)]

    def close(self) -> None:
        """End all processes and remove the folder."""
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, number: int) -> None:
        new = [_Worker(rank) for rank in range(len(self._workers), number)]
        self._workers += new
        answers = _answers(new, START_TIMEOUT_S) if new else {}
        problems = [f"process {rank} {answer}" for rank, (fine, answer) in answers.items() if not fine]
        if problems:
            self._stop()
            raise RankError("starting: " + "\n".join(problems))

    def _recover(self, answers: dict[int, tuple[bool, Any]]) -> None:
        """After a failure: a new group if every rank has answered, new processes if one has not."""
        if all(fine or str(answer).startswith("raised") for fine, answer in answers.values()):
            self._world_size = 0
        else:
            self._stop()

    def _store_for(self, world_size: int) -> str | None:
        """The file at which to form a new group; None where the last call's group can be used again."""
        if world_size == self._world_size:
            return None
        self._world_size = world_size
        self._groups_formed += 1
        return str(self._folder / f"store-{self._groups_formed}")

    def _stop(self) -> None:
        self._world_size = 0
        for worker in self._workers:
            worker.pipe.close()  # a process that waits for a program ends by this
        for worker in self._workers:
            worker.end()
        self._workers = []


@final
class _Worker:
    def __init__(self, rank: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.rank = rank
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(rank, child), daemon=True, name=f"rank-{rank}")
        self.process.start()
        child.close()

    def end(self) -> None:
        self.process.join(GRACE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(GRACE_S)
        self.process.close()


def _answers(workers: list[_Worker], timeout_s: float) -> dict[int, tuple[bool, Any]]:
    """(fine, result or what went wrong) by rank. After the first failure the others get a moment only: they may wait for it in vain."""
    answers: dict[int, tuple[bool, Any]] = {}
    deadline = time.monotonic() + timeout_s
    while waiting := [worker for worker in workers if worker.rank not in answers]:
        ready = wait([thing for worker in waiting for thing in (worker.pipe, worker.process.sentinel)], deadline - time.monotonic())
        for worker in waiting:
            if worker.pipe in ready or worker.process.sentinel in ready:
                answers[worker.rank] = _answer(worker)
        if not ready:
            answers |= {worker.rank: (False, "has not answered: it hangs, or waits for a rank that does") for worker in waiting}
        if any(not fine for fine, _ in answers.values()):
            deadline = min(deadline, time.monotonic() + GRACE_S)
    return answers


def _answer(worker: _Worker) -> tuple[bool, Any]:
    try:
        fine, result = pickle.loads(worker.pipe.recv_bytes())
    except (EOFError, OSError):
        worker.process.join(GRACE_S)
        return False, f"died with exit code {worker.process.exitcode}"
    return fine, result


def _serve(rank: int, pipe: Connection) -> None:
    """The life of a process: say that torch is loaded, then run programs until the pipe closes."""
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch

    torch.set_num_threads(1)
    pipe.send_bytes(pickle.dumps((True, None)))
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            file, name, world_size, store, arguments = pickle.loads(pipe.recv_bytes())
            try:
                _form(rank, world_size, store)
                answer = True, _find(file, name)(rank, world_size, *arguments)
            except Exception:  # noqa: BLE001  whatever a program raises is for the test to see
                answer = False, "raised\n" + traceback.format_exc()
            pipe.send_bytes(pickle.dumps(answer))
    os._exit(0)  # a group left behind may wait for ranks that are gone


def _form(rank: int, world_size: int, store: str | None) -> None:
    """Leave the present group for one that meets at `store`; None stays."""
    import torch.distributed as dist

    if store is None:
        return
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size, timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    )


_MODULES: dict[str, ModuleType] = {}


def _find(file: str, name: str) -> Callable[..., Any]:
    """The program by its file and name: test files are no importable modules."""
    if file not in _MODULES:
        spec = importlib.util.spec_from_file_location(f"program_{len(_MODULES)}_{Path(file).stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        _MODULES[file] = module
    program: Callable[..., Any] = getattr(_MODULES[file], name)
    return program
