"""Routes that send files: one file of a checkpoint with ranges and digests, its statistics alone, and all files as a tar archive."""

import base64
import hashlib
import tarfile
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service import jobs as use_cases
from service.api.context import READ, InContext
from service.api.parameters import FileName, JobId, Step
from service.api.ranges import slice_of
from service.api.sending import FilesResponse
from service.artifacts import MODEL_NAME, OpenedFile, close_all
from service.errors import NotFoundError
from service.reading import Verified
from service.store.records import Checkpoint
from worker.contract import checkpoint_name
from worker.storage.tensors import Bytes

router = APIRouter(tags=["downloads"], dependencies=[READ])

_BINARY: Final = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_TAR: Final = {"content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}}
_TAR_END: Final = bytes(2 * tarfile.BLOCKSIZE)

Include = Annotated[
    Literal["statistics"] | None, Query(description="of model.safetensors only the running statistics, as a safetensors file of their own")
]


@router.get("/jobs/{job_id}/checkpoints/{step}/files/{name}", response_class=Response, responses={200: _BINARY, 206: _BINARY})
@router.head("/jobs/{job_id}/checkpoints/{step}/files/{name}", response_class=Response)
async def get_file(  # noqa: PLR0917 - FastAPI fills them by name
    job_id: JobId, step: Step, name: FileName, request: Request, context: InContext, include: Include = None
) -> Response:
    """Download one file, or a range of it. The ETag is its SHA-256."""
    await use_cases.find(context.store, job_id)
    checkpoint = await context.artifacts.find(job_id, step)
    if include is not None and name != MODEL_NAME:
        raise NotFoundError(
            f"file {name!r} has no statistics; expected {MODEL_NAME}; ask for that, or leave out include", code="file_not_found"
        )
    opened = await (context.artifacts.open(checkpoint, name) if include is None else context.artifacts.open_statistics(checkpoint))
    kind = "application/json" if opened.name.endswith(".json") else "application/octet-stream"
    headers = {
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(opened.sha256)).decode()}:",
        "Content-Type": kind,
        "Content-Disposition": f'attachment; filename="{opened.name}"',
    }
    return _sent(request, [opened], opened.sha256, headers, context.verified)


@router.get("/jobs/{job_id}/checkpoints/{step}/archive", response_class=Response, responses={200: _TAR, 206: _TAR})
@router.head("/jobs/{job_id}/checkpoints/{step}/archive", response_class=Response)
async def get_archive(job_id: JobId, step: Step, request: Request, context: InContext) -> Response:
    """Download a whole checkpoint as a tar archive, or a range of it: manifest and files, not compressed."""
    await use_cases.find(context.store, job_id)
    checkpoint = await context.artifacts.find(job_id, step)
    opened = await context.artifacts.open_all(checkpoint)
    folder = checkpoint_name(checkpoint.step)
    parts: list[OpenedFile] = []
    for one in opened:
        padding = bytes(-one.size % tarfile.BLOCKSIZE)
        parts += [_in_memory(_tar_header(checkpoint, f"{folder}/{one.name}", one.size)), one, _in_memory(padding)]
    headers = {"Content-Type": "application/x-tar", "Content-Disposition": f'attachment; filename="{job_id}-{folder}.tar"'}
    # Made of nothing but the files, so their digests tell it apart from every other.
    digest = hashlib.sha256("".join(one.sha256 for one in opened).encode()).hexdigest()
    return _sent(request, [*parts, _in_memory(_TAR_END)], digest, headers, context.verified)


def _sent(request: Request, parts: Sequence[OpenedFile], digest: str, headers: dict[str, str], verified: Verified) -> Response:
    """Answer with the parts one after the other, or with the range of the whole that was asked for."""
    size = sum(part.size for part in parts)
    try:
        asked = {name: value for name, value in request.headers.items() if name != "range" or request.method == "GET"}
        chosen = slice_of(asked, f'"{digest}"', size)
    except BaseException:
        close_all(parts)
        raise
    common = {"ETag": f'"{digest}"', "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    if chosen.status == 304:
        close_all(parts)
        return Response(status_code=304, headers=common)
    headers = headers | common | {"Content-Length": str(chosen.end - chosen.start)}
    if chosen.status == 206:
        headers["Content-Range"] = f"bytes {chosen.start}-{chosen.end - 1}/{size}"
    if request.method == "HEAD":
        close_all(parts)
        return Response(status_code=chosen.status, headers=headers)
    return FilesResponse(parts, chosen, verified, headers)


def _in_memory(content: bytes) -> OpenedFile:
    return OpenedFile("", len(content), hashlib.sha256(content).hexdigest(), Bytes(content))


def _tar_header(checkpoint: Checkpoint, name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o644, int(checkpoint.manifest.created_at.timestamp())
    return entry.tobuf(tarfile.PAX_FORMAT)
