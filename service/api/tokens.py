"""Routes of tokens: make, list, renew, revoke. For admins; a token is shown in the answer that makes it, and never again."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.api.bodies import read_json
from service.api.context import ADMIN, InContext
from service.api.problems import problems_of
from service.api.schemas import Shape
from service.auth import create_token, revoke_token, rotate_token
from service.errors import InvalidError
from service.scopes import DEFAULT_PROJECT, PROJECT_PATTERN, Scope
from service.store.ids import TOKEN_ID_PATTERN

router = APIRouter(tags=["tokens"], dependencies=[ADMIN])

MAX_LIFE_S = 10 * 365 * 86_400

TokenId = Annotated[str, Path(pattern=TOKEN_ID_PATTERN, description="id of a token")]
AfterToken = Annotated[str | None, Query(pattern=TOKEN_ID_PATTERN, description="the next_cursor of the page before")]
OverlapS = Annotated[float, Query(ge=0, le=30 * 86_400, description="how long the old one is still admitted")]


class TokenRequest(BaseModel):
    """What a new token is to be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[^\x00-\x1f\x7f]{1,128}$", description="for people: who has it, what for")
    project: str = Field(DEFAULT_PROJECT, pattern=PROJECT_PATTERN)
    scopes: frozenset[Scope] = Field(min_length=1)
    expires_in_s: float | None = Field(None, gt=0, le=MAX_LIFE_S, description="null: never")


class TokenShape(Shape):
    """A token, without itself."""

    id: str
    name: str
    project: str
    scopes: Annotated[list[Scope], BeforeValidator(lambda scopes: sorted(scopes, key=list(Scope).index))]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class NewTokenShape(TokenShape):
    """A token that was just made, with itself: shown this once."""

    token: str


class TokenPage(Shape):
    """Tokens, newest first."""

    data: list[TokenShape]
    has_more: bool
    next_cursor: str | None


@router.post("/tokens", status_code=201)
async def make_token(context: InContext, document: Annotated[Any, Depends(read_json)]) -> NewTokenShape:
    """Make a token. The answer shows it this once."""
    try:
        asked = TokenRequest.model_validate(document)
    except ValidationError as error:
        raise InvalidError.of(problems_of(error.errors())) from error
    expires_at = None if asked.expires_in_s is None else datetime.now(UTC) + timedelta(seconds=asked.expires_in_s)
    secret, token = await create_token(context.store, asked.name, asked.project, asked.scopes, expires_at)
    return NewTokenShape.model_validate(vars(token) | {"token": secret})


@router.get("/tokens")
async def list_tokens(context: InContext, after: AfterToken = None, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> TokenPage:
    """List tokens, newest first, expired and revoked ones too."""
    found = await context.store.tokens.page(after, limit + 1)
    has_more = len(found) > limit
    data = [TokenShape.model_validate(token) for token in found[:limit]]
    return TokenPage(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.post("/tokens/{token_id}/rotate", status_code=201)
async def renew_token(token_id: TokenId, context: InContext, overlap_s: OverlapS = 3600) -> NewTokenShape:
    """Make a token like this one, shown this once; the old one ends after the overlap."""
    secret, token = await rotate_token(context.store, token_id, timedelta(seconds=overlap_s))
    return NewTokenShape.model_validate(vars(token) | {"token": secret})


@router.delete("/tokens/{token_id}", status_code=204)
async def remove_token(token_id: TokenId, context: InContext) -> Response:
    """Revoke a token: from now on it is not admitted."""
    await revoke_token(context.store, token_id)
    return Response(status_code=204)
