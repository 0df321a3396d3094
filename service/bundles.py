"""Uploaded code: reads the archives that users send, and stores what passes as one plain archive, named by its digest.

What a bundle may hold is said in `worker.contract.bundle`. Nothing is written under a name that a user chose, and
nothing is unpacked to disk: the controller has the files in memory while it looks at them, one upload after the other.
"""

import asyncio
import hashlib
import io
import stat
import zipfile
import zlib
from datetime import UTC, datetime
from functools import partial
from typing import Final

from service.errors import ConflictError, InvalidError, NotFoundError
from service.store.ids import new_id
from service.store.records import Bundle, Token
from service.store.store import Store
from worker.contract import Problem
from worker.contract.bundle import ARCHIVE_OVERHEAD_BYTES, MAX_FILES, MAX_UNPACKED_BYTES, BundleError, Names, read_tar, shown, write_tar
from worker.storage.storage import Storage

ZIP: Final = "application/zip"
TAR_GZ: Final = "application/gzip"
_CENTRAL_ENTRY: Final = b"PK\x01\x02"
_ENCRYPTED: Final = 1


async def store_bundle(store: Store, storage: Storage, data: bytes, media_type: str, project: str) -> tuple[Bundle, bool]:
    """Check an archive and store it, durably when this returns.

    Args:
        store: where its row goes.
        storage: where the archive goes.
        data: the archive as it was sent.
        media_type: ZIP or TAR_GZ.
        project: whose it is.
    Returns:
        The bundle, and whether it is new; it is not where the project has uploaded the same files before.
    Raises:
        InvalidError: it is not taken; says why, and nothing is stored.
    """
    try:
        archive, num_files = await asyncio.to_thread(_normal, data, media_type)
    except BundleError as error:
        problem = Problem(loc="body", expected="an archive of plain files", remedy=str(error))
        raise InvalidError(str(error), code="invalid_code", problems=[problem]) from error
    sha256, now = hashlib.sha256(archive).hexdigest(), datetime.now(UTC)
    # The file first: a crash between the two leaves a file that nobody names, not a name without a file.
    await asyncio.to_thread(storage.put_code, sha256, archive)
    added = await store.bundles.add(Bundle(new_id("code"), project, sha256, len(archive), num_files, now, now))
    # And once more, where it is there: who removed the last other bundle of this archive meanwhile has removed the file with it.
    await asyncio.to_thread(storage.put_code, sha256, archive)
    return added


async def find_bundle(store: Store, bundle_id: str, owner: Token) -> Bundle:
    """Return a bundle that the token's project has uploaded; any, for an admin. Raises NotFoundError."""
    bundle = await store.bundles.get(bundle_id)
    if bundle is None or not owner.sees(bundle.project):
        detail = f"code {bundle_id} is not here; expected the id of uploaded code; GET /v1/code lists it"
        raise NotFoundError(detail, code="code_not_found")
    return bundle


async def remove_bundle(store: Store, storage: Storage, bundle: Bundle) -> bool:
    """Delete a bundle and, where it is the last of its archive, the archive; return False where a job names it, or it came again."""
    return await store.bundles.remove(bundle, partial(asyncio.to_thread, storage.remove_code, bundle.sha256))


async def delete_bundle(store: Store, storage: Storage, bundle: Bundle) -> None:
    """Delete a bundle that no job names.

    Raises:
        ConflictError: a job names it.
    """
    if not await remove_bundle(store, storage, bundle):
        number = await store.bundles.num_jobs(bundle.id)
        detail = f"code {bundle.id} is named by {number} jobs; expected code that no job names; delete the jobs first"
        raise ConflictError(detail, code="code_in_use")


def read_archive(data: bytes, media_type: str) -> dict[str, bytes]:
    """Return the files of an archive by name.

    Raises:
        BundleError: it is not what it should be, or too large unpacked; found out without unpacking more than the limit.
    """
    files = _read_zip(data) if media_type == ZIP else read_tar(_gunzip(data))
    if not files:
        raise BundleError("the archive is empty; expected at least one file; pack the directory that holds your package")
    return files


def _normal(data: bytes, media_type: str) -> tuple[bytes, int]:
    files = read_archive(data, media_type)
    return write_tar(files), len(files)


def _gunzip(data: bytes) -> bytes:
    most = MAX_UNPACKED_BYTES + ARCHIVE_OVERHEAD_BYTES
    stream = zlib.decompressobj(wbits=31)
    try:
        content = stream.decompress(data, most)
    except zlib.error as error:
        raise BundleError(f"the archive is no gzip ({error}); expected a tar.gz; make it anew") from error
    if not stream.eof:
        # Either more than the limit or less than whole.
        raise BundleError(f"the archive is cut off or has more than {most} bytes unpacked; expected code; leave data and caches out")
    return content


def _read_zip(data: bytes) -> dict[str, bytes]:
    # Counted before zipfile makes an object of each: an archive of the permitted size can list hundreds of thousands.
    if data.count(_CENTRAL_ENTRY) > 2 * MAX_FILES:
        raise BundleError(f"the archive lists more than {2 * MAX_FILES} entries; expected code; leave data and caches out")
    names = Names()
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                if entry.orig_filename.endswith("/"):
                    names.directory(entry.orig_filename)
                    continue
                _require_plain(entry)
                name = names.file(entry.orig_filename, entry.file_size)
                with archive.open(entry) as stream:
                    files[name] = stream.read(entry.file_size + 1)
                if len(files[name]) != entry.file_size:
                    raise BundleError(f"{shown(name)} does not have the {entry.file_size} bytes that the archive says; make it anew")
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OverflowError, NotImplementedError, RuntimeError, OSError) as error:
        raise error if isinstance(error, BundleError) else BundleError(f"the archive is no whole zip ({error}); make it anew") from error
    return files


def _require_plain(entry: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in {0, stat.S_IFREG}:
        raise BundleError(f"{shown(entry.filename)} is a link, a device or the like; expected plain files; put the file itself there")
    if entry.flag_bits & _ENCRYPTED or entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise BundleError(f"{shown(entry.filename)} is encrypted or packed in an unusual way; expected deflate; make the archive anew")
