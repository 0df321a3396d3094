"""Routes of uploaded code: upload, list, delete."""

import asyncio
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response

from service.api.bodies import media_type_of, read_bounded
from service.api.context import CODE, InContext, InIdentity
from service.api.schemas import Shape
from service.bundles import TAR_GZ, ZIP, delete_bundle, find_bundle, store_bundle
from service.store.ids import CODE_ID_PATTERN

router = APIRouter(tags=["code"], dependencies=[CODE])

_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_DOCUMENTED: Final[dict[str, Any]] = {"requestBody": {"required": True, "content": {ZIP: _BINARY, TAR_GZ: _BINARY}}}
# An upload may take tens of megabytes of memory; the next one waits.
_one_at_a_time = asyncio.Lock()


class CodeShape(Shape):
    """Uploaded code."""

    id: str
    project: str
    sha256: str
    size_bytes: int
    num_files: int
    created_at: datetime
    uploaded_at: datetime


class CodePage(Shape):
    """Uploaded code, newest first."""

    data: list[CodeShape]
    has_more: bool
    next_cursor: str | None


CodeId = Annotated[str, Path(pattern=CODE_ID_PATTERN, description="id of uploaded code")]


@router.post(
    "/code", status_code=201, responses={200: {"model": CodeShape, "description": "the project has it already"}}, openapi_extra=_DOCUMENTED
)
async def upload_code(request: Request, response: Response, context: InContext, identity: InIdentity) -> CodeShape:
    """Upload a zip or tar.gz of a directory with Python packages. A spec names it as `code`."""
    media_type = media_type_of(request, frozenset({ZIP, TAR_GZ}))
    data = await read_bounded(request, context.settings.max_code_bytes, context.settings.body_timeout_s)
    async with _one_at_a_time:
        bundle, is_new = await store_bundle(context.store, context.storage, data, media_type, identity.project)
    response.status_code = 201 if is_new else 200
    return CodeShape.model_validate(bundle)


@router.get("/code")
async def list_code(
    context: InContext,
    identity: InIdentity,
    after: Annotated[str | None, Query(pattern=CODE_ID_PATTERN, description="the next_cursor of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> CodePage:
    """List what the project has uploaded, newest first; for an admin, what all have."""
    project = None if identity.is_admin else identity.project
    found = await context.store.bundles.page(after, limit + 1, project)
    page, has_more = found[:limit], len(found) > limit
    return CodePage(data=[CodeShape.model_validate(one) for one in page], has_more=has_more, next_cursor=page[-1].id if has_more else None)


@router.delete("/code/{code_id}", status_code=204)
async def delete_code(code_id: CodeId, context: InContext, identity: InIdentity) -> Response:
    """Delete uploaded code that no job names."""
    await delete_bundle(context.store, context.storage, await find_bundle(context.store, code_id, identity))
    return Response(status_code=204)
