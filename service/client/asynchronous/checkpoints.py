"""The routes about checkpoints as methods. A step is a number, "latest" or "best"."""

import hashlib
import mimetypes
from collections.abc import AsyncIterator
from pathlib import Path

from service.client.asynchronous import blocking
from service.client.asynchronous.download import fetch_checkpoint
from service.client.asynchronous.requests import Requests
from service.client.checkpoint_answers import Checkpoint, Manifest, Predictions, Statistics
from service.client.errors import IntegrityError
from service.client.routes import given, route
from service.client.wanted import Progress

PREDICTION_TIMEOUT_S = 180.0


class CheckpointCalls(Requests):
    """Checkpoints: listed, looked into, downloaded, kept."""

    def checkpoints(self, job_id: str, *, limit: int | None = None) -> AsyncIterator[Checkpoint]:
        """Yield a job's checkpoints, newest first."""
        return self._pages(Checkpoint, route("jobs", job_id, "checkpoints"), {}, limit)

    async def manifest(self, job_id: str, step: int | str = "best") -> Manifest:
        """Return a checkpoint's manifest."""
        return await self._answer(Manifest, "GET", route("jobs", job_id, "checkpoints", step))

    async def statistics(
        self, job_id: str, step: int | str = "best", *, layer: str | None = None, against: int | str | None = None
    ) -> Statistics:
        """Return the running statistics of every layer in summary, of one layer in full, or their difference to another checkpoint."""
        params = given(layer=layer, against=against)
        return await self._answer(Statistics, "GET", route("jobs", job_id, "checkpoints", step, "statistics"), params=params)

    async def download(self, job_id: str, step: int | str, directory: Path, progress: Progress = lambda *_: None) -> Manifest:
        """Bring a checkpoint into a directory, every file verified, and return its manifest. Going on after a failure is calling again.

        Raises:
            IntegrityError: the bytes are not those of the manifest. DownloadError: the connection kept breaking.
        """
        manifest = await self.manifest(job_id, step)
        # From here on by number: `best` may be another one before the last file is here.
        address = route("jobs", job_id, "checkpoints", manifest["step"])
        await fetch_checkpoint(self._transport, address, manifest, directory, progress)
        return manifest

    async def download_statistics(self, job_id: str, step: int | str = "best") -> bytes:
        """Return a safetensors file of the running statistics alone, verified; of the model nothing else is read or sent.

        Raises:
            IntegrityError: the bytes are not those of the digest that came with them.
        """
        address = route("jobs", job_id, "checkpoints", step, "files", "model.safetensors")
        response = await self._transport.request("GET", address, params={"include": "statistics"})
        found, promised = hashlib.sha256(response.content).hexdigest(), response.headers.get("etag", "").strip('"')
        if found != promised:
            raise IntegrityError(f"the statistics arrived as SHA-256 {found}; expected {promised} as the service said; ask again")
        return response.content

    async def predict(self, job_id: str, step: int | str, image: Path) -> Predictions:
        """Return the most probable classes of an image by the running statistics of a checkpoint: `{step, predictions}`.

        Raises:
            OSError: the file cannot be read.
            BadRequest: it is no image.
        """
        content = await blocking.run(image.read_bytes)
        headers = {"Content-Type": mimetypes.guess_type(image.name, strict=False)[0] or "application/octet-stream"}
        # The first image of a checkpoint waits for a process that loads the model.
        options = {"headers": headers, "is_repeatable": True, "timeout": PREDICTION_TIMEOUT_S}
        return await self._answer(Predictions, "POST", route("jobs", job_id, "checkpoints", step, "predict"), content=content, **options)

    async def pin(self, job_id: str, step: int | str) -> Checkpoint:
        """Keep a checkpoint from being pruned or deleted, and return it as it is listed. Doing it twice is doing it once."""
        return await self._answer(Checkpoint, "PUT", route("jobs", job_id, "checkpoints", step, "pin"), is_repeatable=True)

    async def unpin(self, job_id: str, step: int | str) -> Checkpoint:
        """Leave a checkpoint to the retention rule again, and return it as it is listed."""
        return await self._answer(Checkpoint, "DELETE", route("jobs", job_id, "checkpoints", step, "pin"), is_repeatable=True)

    async def delete_checkpoint(self, job_id: str, step: int | str) -> None:
        """Delete a checkpoint: not a pinned one, and not the newest of a job that has not ended."""
        await self._transport.request("DELETE", route("jobs", job_id, "checkpoints", step))
