"""What the routes need of the running controller, made once by `service.app`, and how a route gets hold of it and of who asks.

A route declares its scope with READ, SUBMIT, CODE or ADMIN among its dependencies; the OpenAPI document shows it, and a test tries each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Protocol

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer, SecurityScopes
from starlette.requests import HTTPConnection

from service.api.metering import Meter
from service.artifacts import Artifacts
from service.auth import authenticate, require
from service.limits import RequestRates
from service.policy import PolicyFile
from service.predictor import Predictor
from service.reading import Verified
from service.scopes import Scope
from service.scrubbing import Scrubber
from service.settings import Settings
from service.store.records import Token
from service.store.store import Store
from service.streams import StreamPlaces
from service.tails import Tails
from service.waiting import Wait
from worker.storage.storage import Storage


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
    storage: Storage
    artifacts: Artifacts
    predictor: Predictor
    verified: Verified
    scrubber: Scrubber
    places: StreamPlaces
    rates: RequestRates
    tails: Tails
    meter: Meter
    policy: PolicyFile
    controller: Controller | None


async def context_of(request: Request) -> Context:
    """Return the context of the application that a request is for. FastAPI would run a plain function in a thread."""
    context: Context = request.app.state.context
    return context


_IDENTITY: Final = "syncbn.identity"
InContext = Annotated[Context, Depends(context_of)]


class _Documented(HTTPBearer):
    """Says in the OpenAPI document how a token is sent. `identity_of` reads it."""

    async def __call__(self, request: HTTPConnection) -> None:
        """Do nothing."""


_documented = _Documented(
    scheme_name="HTTPBearer", auto_error=False, description="the token that `syncbn serve` printed at its first start, or one made with it"
)


async def identity_of(request: Request) -> Token:
    """Return who asks, and count the request: once, however many depend on it.

    Like the other dependencies of every route it depends on nothing: FastAPI resolves each anew for each request, which adds up.
    """
    known: Token | None = request.scope.get(_IDENTITY)
    if known is not None:
        return known
    context = await context_of(request)
    token = await authenticate(context.store, request.headers.get("authorization"))
    context.rates.take(token.id)
    request.scope[_IDENTITY] = token
    return token


InIdentity = Annotated[Token, Depends(identity_of)]


async def permitted(needed: SecurityScopes, request: Request, _scheme: Annotated[object, Depends(_documented)]) -> None:
    """Let a request pass only with a token that has every scope that the route declares."""
    identity = await identity_of(request)
    for scope in needed.scopes:
        require(identity, Scope(scope))


READ = Security(permitted, scopes=[Scope.READ.value])
SUBMIT = Security(permitted, scopes=[Scope.SUBMIT.value])
CODE = Security(permitted, scopes=[Scope.CODE.value])
ADMIN = Security(permitted, scopes=[Scope.ADMIN.value])
