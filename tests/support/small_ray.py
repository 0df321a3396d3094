"""What worker/gang.py asks of Ray, over the socket of an ActorHost. So the controller under test is the real one down to that file."""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor, wait
from multiprocessing.connection import Client
from types import SimpleNamespace
from typing import Any

import ray

from service.cluster import RayCluster
from service.room import Node, Room
from tests.support.actor_host import KEY
from worker import gang, gang_members, rooms
from worker.gang_names import NAMESPACE

_POOL = ThreadPoolExecutor(256)


class Reference:
    """An answer that is on its way."""

    def __init__(self, future: "Future[Any]") -> None:
        self._future = future

    def future(self) -> "Future[Any]":
        """See ray.ObjectRef."""
        return self._future


class SmallRay:
    """The module `ray`, as far as gangs need it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.exceptions = ray.exceptions
        self.util = SimpleNamespace(list_named_actors=self._list_named_actors)
        self._private = SimpleNamespace(
            state=SimpleNamespace(actors=self._actor, available_resources_per_node=lambda: {"here": {"CPU": 64}})
        )

    def ask(self, method: str, *arguments: Any) -> Any:
        """Ask the host, and wait for the answer."""
        with Client(self._address, authkey=KEY) as connection:
            connection.send((method, arguments))
            is_fine, answer = connection.recv()
        if is_fine:
            return answer
        raise ray.exceptions.ActorDiedError if answer == "died" else RuntimeError(answer)

    def call(self, name: str, method: str, arguments: tuple[Any, ...]) -> Reference:
        """Call a rank, without waiting."""
        return Reference(_POOL.submit(self.ask, "call", name, method, arguments))

    def remote(self, _cls: type) -> Any:
        """See ray.remote: only for actors that have names."""
        return SimpleNamespace(
            options=lambda *, name, **_: SimpleNamespace(remote=lambda rank: Handle(self, self.ask("create", name, rank)))
        )

    def get(self, reference: Reference, timeout: float) -> Any:
        """See ray.get."""
        try:
            return reference.future().result(timeout)
        except TimeoutError as error:
            raise ray.exceptions.GetTimeoutError from error

    def wait(self, references: list[Reference], *, num_returns: int, timeout: float) -> tuple[list[Reference], list[Reference]]:
        """See ray.wait, for all of them."""
        assert num_returns == len(references)
        done, _ = wait([reference.future() for reference in references], timeout)
        return [one for one in references if one.future() in done], [one for one in references if one.future() not in done]

    def kill(self, handle: "Handle", *, no_restart: bool) -> None:
        """See ray.kill."""
        assert no_restart
        self.ask("kill", handle.name)

    def get_actor(self, name: str, namespace: str) -> "Handle":
        """See ray.get_actor."""
        if name not in self.ask("named"):
            raise ValueError(name)
        return Handle(self, name)

    def nodes(self) -> list[dict[str, Any]]:
        """See ray.nodes."""
        return [{"NodeID": "here", "Alive": True}]

    def get_runtime_context(self) -> Any:
        """See ray.get_runtime_context."""
        return SimpleNamespace(get_node_id=lambda: "here")

    def _actor(self, actor_id: str) -> dict[str, Any]:
        pid = self.ask("pid", bytes.fromhex(actor_id).decode())
        return {"State": "ALIVE", "Address": {"NodeID": "here"}, "Pid": pid} if pid else {"State": "DEAD"}

    def _list_named_actors(self, *, all_namespaces: bool) -> list[dict[str, str]]:
        return [{"namespace": NAMESPACE, "name": name} for name in self.ask("named")]


class Handle:
    """An actor's handle: `handle.method.remote(...)`."""

    def __init__(self, small: SmallRay, name: str) -> None:
        self.name = name
        self._small = small
        self._actor_id = name.encode()

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self._small.call(self.name, method, arguments))


class SmallCluster(RayCluster):
    """RayCluster on a SmallRay: always there, with room for everybody."""

    async def connect(self) -> None:
        """Be there."""

    async def disconnect(self) -> None:
        """Do nothing."""

    async def is_lost(self) -> bool:
        """Never."""
        return False

    async def room(self) -> Room:
        """There is room."""
        return Room((Node("here", 64, 0, 64, 0),), {})

    async def nodes(self) -> list[dict[str, Any]]:
        """Return none."""
        return await asyncio.sleep(0, [])


def install(address: str) -> None:
    """Have worker/gang.py of this process use the actors at an address."""
    small = SmallRay(address)

    def group(name: str) -> Any:
        return SimpleNamespace(name=name)

    def reserve(_bundles: Any, *, strategy: str, name: str, lifetime: str, _soft_target_node_id: str | None) -> Any:
        small.ask("reserve", name)
        return group(name)

    def find(name: str) -> Any:
        if name not in small.ask("rooms"):
            raise ValueError(name)
        return group(name)

    def table(of: Any = None) -> Any:
        rooms = {name: {"name": name, "state": "CREATED", "bundles_to_node_id": {0: "here"}} for name in small.ask("rooms")}
        return rooms if of is None else rooms[of.name]

    gang.ray = gang_members.ray = rooms.ray = small
    rooms.placement_group = reserve
    rooms.get_placement_group = find
    rooms.remove_placement_group = lambda group: small.ask("release", group.name)
    rooms.placement_group_table = table
    gang.PlacementGroupSchedulingStrategy = lambda **_: None
