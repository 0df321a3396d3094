"""What the routes need of the running controller, made once by `service.app`, and how a route gets hold of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from service.api.metering import Meter
from service.artifacts import Artifacts
from service.auth import authenticate
from service.policy import PolicyFile
from service.settings import Settings
from service.store.store import Store
from service.streams import StreamPlaces
from service.tails import Tails
from service.waiting import Wait


class Controller(Protocol):
    """What runs the jobs."""

    async def start(self, store: Store) -> None:
        """Begin to look after the jobs in the store. Returns at once; what takes long happens in tasks."""

    async def stop(self) -> None:
        """Let go: gangs go on, and are found again at the next start."""

    @property
    def waiting(self) -> Mapping[str, Wait]:
        """Why each queued job waits, as far as it is known."""

    async def view(self) -> dict[str, Any]:
        """Return what is known of the cluster, as JSON."""


@dataclass(frozen=True)
class Context:
    """The parts of the controller, wired."""

    settings: Settings
    store: Store
    artifacts: Artifacts
    places: StreamPlaces
    tails: Tails
    meter: Meter
    policy: PolicyFile
    controller: Controller | None


def context_of(request: Request) -> Context:
    """Return the context of the application that a request is for."""
    context: Context = request.app.state.context
    return context


InContext = Annotated[Context, Depends(context_of)]

_documented = HTTPBearer(auto_error=False, description="the token that `syncbn serve` printed at its first start")


async def authenticated(request: Request, context: InContext, _scheme: Annotated[object, Depends(_documented)]) -> None:
    """Let a request pass only with an admitted token."""
    await authenticate(context.store, request.headers.get("authorization"))
