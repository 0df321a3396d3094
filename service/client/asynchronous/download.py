"""A checkpoint's files onto this disk: resumed, verified while they are written, and in place only when whole."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from service.client.asynchronous import blocking
from service.client.asynchronous.transport import Transport
from service.client.errors import DownloadError, IntegrityError
from service.client.part import Part, digests
from service.client.wanted import Progress, Wanted, make_room, publish_manifest, wanted_files


async def fetch_checkpoint(transport: Transport, route: str, manifest: Mapping[str, Any], directory: Path, progress: Progress) -> None:
    """Bring every file of a manifest into a directory; whole files that are there already are only verified.

    Raises:
        IntegrityError: a file's bytes are not those of the manifest; the bad part is deleted.
        DownloadError: the connection kept breaking; run again to go on.
    """
    wanted = wanted_files(route, manifest)
    await blocking.run(partial(make_room, directory, manifest))
    for file in wanted:
        if not await _is_whole(file, directory / file.name, progress):
            await _fetch(transport, file, directory, progress)
    await blocking.run(partial(publish_manifest, directory, manifest))


async def _is_whole(file: Wanted, path: Path, progress: Progress) -> bool:
    if not await blocking.run(lambda: path.is_file() and path.stat().st_size == file.size):
        return False
    steps, sha256 = digests(path), ""
    while step := await blocking.run(lambda: next(steps, None)):
        size, sha256 = step
        progress(file.name, size, file.size)
    return sha256 == file.sha256


async def _fetch(transport: Transport, file: Wanted, directory: Path, progress: Progress) -> None:
    with await blocking.run(lambda: Part(directory / file.name)) as part:
        try:
            was_fresh = part.size == 0
            is_right = await _fill(transport, file, part, progress)
            if not is_right and not was_fresh:
                # The part of an earlier run may be of another file or damaged: once more, from the first byte.
                part.restart()
                is_right = await _fill(transport, file, part, progress)
            if not is_right:
                raise IntegrityError(
                    f"{file.name} arrived as SHA-256 {part.sha256}; expected the manifest's {file.sha256}; deleted: download it again"
                )
        except IntegrityError:
            part.discard()
            raise
        await blocking.run(part.publish)
    progress(file.name, file.size, file.size)


async def _fill(transport: Transport, file: Wanted, part: Part, progress: Progress) -> bool:
    """Append what is missing, over as many connections as it takes, and return whether the digest is right."""
    failures = 0
    while part.size < file.size:
        before, cause = part.size, "the answer ended early"
        try:
            await _receive(transport, file, part, progress)
        except httpx.TransportError as error:
            cause = str(error) or type(error).__name__
        failures = 0 if part.size > before else failures + 1
        if part.size < file.size and failures >= transport.patience.tries:
            raise DownloadError(
                f"{file.name} stopped at {part.size} of {file.size} bytes ({cause}); run the download again to go on from there"
            )
    return file.is_in(part)


async def _receive(transport: Transport, file: Wanted, part: Part, progress: Progress) -> None:
    """Append one answer to the part."""
    async with transport.stream(file.path, headers=file.headers(part)) as response:
        file.accept(response, part)
        # As they come: collected into larger chunks, what has arrived of the last one would be lost with the connection. A chunk is some
        # ten kilobytes, so writing it here holds an event loop up less than handing it to a thread.
        async for chunk in response.aiter_raw():
            file.append(chunk, part)
            progress(file.name, part.size, file.size)
