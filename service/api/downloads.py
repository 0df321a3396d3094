"""Routes that send files: one file of a checkpoint with ranges and digests, and all of them as a tar archive."""

import base64
import hashlib
import tarfile
from collections.abc import AsyncIterator, Sequence
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from service import jobs as use_cases
from service.api.context import READ, InContext
from service.api.parameters import FileName, JobId, Step
from service.api.ranges import Slice, slice_of
from service.artifacts import OpenedFile, close_all, read_chunks
from service.store.records import Checkpoint
from worker.contract import checkpoint_name

router = APIRouter(tags=["downloads"], dependencies=[READ])

_BINARY: Final = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_TAR_END: Final = bytes(2 * tarfile.BLOCKSIZE)


@router.get("/jobs/{job_id}/checkpoints/{step}/files/{name}", response_class=Response, responses={200: _BINARY, 206: _BINARY})
@router.head("/jobs/{job_id}/checkpoints/{step}/files/{name}", response_class=Response)
async def get_file(job_id: JobId, step: Step, name: FileName, request: Request, context: InContext) -> Response:
    """Download one file, or a range of it. The ETag is its SHA-256."""
    await use_cases.find(context.store, job_id)
    opened = await context.artifacts.open(await context.artifacts.find(job_id, step), name)
    try:
        asked = {name: value for name, value in request.headers.items() if name != "range" or request.method == "GET"}
        chosen = slice_of(asked, f'"{opened.sha256}"', opened.size)
        headers = _file_headers(opened, chosen)
    except BaseException:
        opened.file.close()
        raise
    if request.method == "HEAD" or chosen.status == 304:
        opened.file.close()
        return Response(status_code=chosen.status, headers=headers)
    return StreamingResponse(_one_file(opened, chosen), chosen.status, headers)


@router.get("/jobs/{job_id}/checkpoints/{step}/archive", response_class=Response, responses={200: {"content": {"application/x-tar": {}}}})
@router.head("/jobs/{job_id}/checkpoints/{step}/archive", response_class=Response)
async def get_archive(job_id: JobId, step: Step, request: Request, context: InContext) -> Response:
    """Download a whole checkpoint as a tar archive: manifest and files, not compressed."""
    await use_cases.find(context.store, job_id)
    checkpoint = await context.artifacts.find(job_id, step)
    opened = await context.artifacts.open_all(checkpoint)
    folder = checkpoint_name(checkpoint.step)
    entries = [(_tar_header(checkpoint, f"{folder}/{one.name}", one.size), one) for one in opened]
    headers = {
        "Content-Type": "application/x-tar",
        "Content-Length": str(sum(len(header) + _padded(one.size) for header, one in entries) + len(_TAR_END)),
        "Content-Disposition": f'attachment; filename="{job_id}-{folder}.tar"',
        "ETag": f'"{hashlib.sha256("".join(one.sha256 for one in opened).encode()).hexdigest()}"',
        "Cache-Control": "private, no-cache",
    }
    if request.method == "HEAD":
        close_all(opened)
        return Response(headers=headers)
    return StreamingResponse(_tar(entries), headers=headers)


def _file_headers(opened: OpenedFile, chosen: Slice) -> dict[str, str]:
    headers = {
        "ETag": f'"{opened.sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(opened.sha256)).decode()}:",
    }
    if chosen.status == 304:
        return headers
    if chosen.status == 206:
        headers["Content-Range"] = f"bytes {chosen.start}-{chosen.end - 1}/{opened.size}"
    is_json = opened.name.endswith(".json")
    return headers | {
        "Content-Type": "application/json" if is_json else "application/octet-stream",
        "Content-Length": str(chosen.end - chosen.start),
        "Content-Disposition": f'attachment; filename="{opened.name}"',
    }


async def _one_file(opened: OpenedFile, chosen: Slice) -> AsyncIterator[bytes]:
    try:
        async for chunk in read_chunks(opened, chosen.start, chosen.end):
            yield chunk
    finally:
        opened.file.close()


async def _tar(entries: Sequence[tuple[bytes, OpenedFile]]) -> AsyncIterator[bytes]:
    try:
        for header, opened in entries:
            yield header
            async for chunk in read_chunks(opened, 0, opened.size):
                yield chunk
            yield bytes(_padded(opened.size) - opened.size)
        yield _TAR_END
    finally:
        close_all([opened for _, opened in entries])


def _tar_header(checkpoint: Checkpoint, name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o644, int(checkpoint.manifest.created_at.timestamp())
    return entry.tobuf(tarfile.PAX_FORMAT)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
