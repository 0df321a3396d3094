"""Route of uploaded code."""

import asyncio
from datetime import datetime
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from service.api.bodies import media_type_of, read_bounded
from service.api.context import CODE, InContext, InIdentity
from service.api.schemas import Shape
from service.bundles import TAR_GZ, ZIP, store_bundle

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
