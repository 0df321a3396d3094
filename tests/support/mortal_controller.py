"""`syncbn serve` in a process that kills or stops itself at a named point: before or after one of the things that a controller does.

The points are planted from outside, so the controller's own code knows nothing of them. EFFECTS names everything by which a controller
changes the world: tests/service/test_failpoints.py holds it to the interfaces.
"""

import asyncio
import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import service.app
import service.controller
from service.cluster import RayCluster, RayGang
from service.policy import PolicyFile
from service.reconciler import Reconciler
from service.settings import Settings
from service.store import events
from service.store.attempts import Attempts
from service.store.checkpoints import Checkpoints
from service.store.events import Events
from service.store.jobs import Jobs
from service.store.leases import Leases
from service.store.recoveries import Recoveries
from tests.support import small_ray
from worker import gang, rooms
from worker.storage.local import LocalStorage

EFFECTS: dict[str, tuple[Any, str]] = {
    "store job": (Jobs, "create"),
    "take leases": (Leases, "take"),
    "give leases back": (Leases, "give_back"),
    "begin attempt": (Attempts, "begin"),
    "say why": (Jobs, "set_message"),
    "enter state": (Jobs, "transition"),
    "store events": (Events, "ingest"),
    "begin recovery": (Recoveries, "begin"),
    "write catalogue": (Checkpoints, "replace"),
    "mark": (LocalStorage, "mark"),
    "unmark": (LocalStorage, "unmark"),
    "sweep storage": (LocalStorage, "sweep"),
    "form": (RayCluster, "form"),
    "adopt": (RayCluster, "adopt"),
    "dissolve by name": (RayCluster, "dissolve"),
    "assign": (RayGang, "assign"),
    "replace": (RayGang, "replace"),
    "drain": (RayGang, "drain"),
    "pause": (RayGang, "pause"),
    "stop": (RayGang, "stop"),
    "dissolve": (RayGang, "dissolve"),
    "create actor": (gang, "_create"),
    "identify": (gang, "identified"),
    "end families": (gang, "_on_their_nodes"),
    "remove group": (rooms, "_remove"),
    "reserve room": (rooms, "placement_group"),
    "tell": (small_ray.SmallRay, "call"),
    "kill actor": (small_ray.SmallRay, "kill"),
}

WITHIN: dict[str, tuple[Any, str]] = {"store events": (events, "take_metrics")}
"""In the midst of an effect: of the transaction that stores events, whose locks are held."""
LATE_S = 2.0
Point = tuple[str, str, int]
"""When, at which effect, at which time that the controller comes there, counted from 1.

When: `before`, `within` or `after`; with `stop ` before that, the controller stops there, as by SIGSTOP, until somebody has it go on.
"""


def serve(home: Path, actors: str, environment: Mapping[str, str], point: Point | None) -> None:
    """Run a controller on a home until it is killed.

    Args:
        home: its state directory.
        actors: the address of an ActorHost.
        environment: its settings, beside the home.
        point: where it dies, or stops; None: it lives until somebody else kills it.
    """
    os.setsid()
    os.environ |= environment
    log = os.open(home / "serve.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    small_ray.install(actors)
    service.controller.build_controller = _build
    if point is not None:
        plant(*point)
    from service.cli.main import main

    sys.argv = ["syncbn", "serve", "--port", "0", "--home", str(home)]
    main()


def _build(settings: Settings) -> Reconciler:
    storage = LocalStorage(settings.storage_path)
    return Reconciler(small_ray.SmallCluster(settings.home, ""), storage, PolicyFile(settings.policy_path))


def plant(when: str, effect: str, number: int) -> None:
    """Have this process die, or stop, at a point."""
    owner, name = (WITHIN if when.endswith("within") else EFFECTS)[effect]
    # As the kernel ends one that is out of memory, or a shell stops one.
    planted_at = when.removeprefix("stop ").replace("within", "after")
    sent = signal.SIGSTOP if when.startswith("stop ") else signal.SIGKILL
    original, left = getattr(owner, name), [number]

    def come(at: str) -> None:
        if at == planted_at:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), sent)
                _renew_late()

    setattr(owner, name, _around(original, come))


def _renew_late() -> None:
    """Have a controller that goes on find its leases lost by what it writes, and not by renewing them, which mostly is quicker."""
    renew = Leases.renew

    async def late(*given: Any) -> set[str]:
        await asyncio.sleep(LATE_S)
        return await renew(*given)

    Leases.renew = late  # type: ignore[method-assign]


def _around(original: Callable[..., Any], come: Callable[[str], None]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def slowly(*given: Any, **named: Any) -> Any:
            come("before")
            result = await original(*given, **named)
            come("after")
            return result

        return slowly

    @functools.wraps(original)
    def at_once(*given: Any, **named: Any) -> Any:
        come("before")
        result = original(*given, **named)
        come("after")
        return result

    return at_once
