# Generated from service/client/asynchronous/checkpoints.py by `make format`: change that file.
"""The routes about checkpoints as methods. A step is a number, "latest" or "best"."""

import hashlib
import mimetypes
from collections.abc import Iterator
from pathlib import Path

from service.client.checkpoint_answers import Checkpoint, Manifest, Predictions, Statistics
from service.client.errors import IntegrityError
from service.client.routes import given, route
from service.client.synchronous import blocking
from service.client.synchronous.download import fetch_checkpoint
from service.client.synchronous.requests import Requests
from service.client.wanted import Progress

PREDICTION_TIMEOUT_S = 180.0


class CheckpointCalls(Requests):
    """Checkpoints: listed, looked into, downloaded, kept."""

    def checkpoints(self, job_id: str, *, limit: int | None = None) -> Iterator[Checkpoint]:
        """Yield a job's checkpoints, newest first."""
        return self._pages(Checkpoint, route("jobs", job_id, "checkpoints"), {}, limit)

    def manifest(self, job_id: str, step: int | str = "best") -> Manifest:
        """Return a checkpoint's manifest."""
        return self._answer(Manifest, "GET", route("jobs", job_id, "checkpoints", step))

    def statistics(
        self, job_id: str, step: int | str = "best", *, layer: str | None = None, against: int | str | None = None
    ) -> Statistics:
        """Return the running statistics of every layer in summary, of one layer in full, or their difference to another checkpoint."""
        params = given(layer=layer, against=against)
        return self._answer(Statistics, "GET", route("jobs", job_id, "checkpoints", step, "statistics"), params=params)

    def download(self, job_id: str, step: int | str, directory: Path, progress: Progress = lambda *_: None) -> Manifest:
        """Bring a checkpoint into a directory, every file verified, and return its manifest. Going on after a failure is calling again.

        Raises:
            IntegrityError: the bytes are not those of the manifest. DownloadError: the connection kept breaking.
        """
        manifest = self.manifest(job_id, step)
        # From here on by number: `best` may be another one before the last file is here.
        address = route("jobs", job_id, "checkpoints", manifest["step"])
        fetch_checkpoint(self._transport, address, manifest, directory, progress)
        return manifest

    def download_statistics(self, job_id: str, step: int | str = "best") -> bytes:
        """Return a safetensors file of the running statistics alone, verified; of the model nothing else is read or sent.

        Raises:
            IntegrityError: the bytes are not those of the digest that came with them.
        """
        address = route("jobs", job_id, "checkpoints", step, "files", "model.safetensors")
        response = self._transport.request("GET", address, params={"include": "statistics"})
        found, promised = hashlib.sha256(response.content).hexdigest(), response.headers.get("etag", "").strip('"')
        if found != promised:
            raise IntegrityError(f"the statistics arrived as SHA-256 {found}; expected {promised} as the service said; ask again")
        return response.content

    def predict(self, job_id: str, step: int | str, image: Path) -> Predictions:
        """Return the most probable classes of an image by the running statistics of a checkpoint: `{step, predictions}`.

        Raises:
            OSError: the file cannot be read.
            BadRequest: it is no image.
        """
        content = blocking.run(image.read_bytes)
        headers = {"Content-Type": mimetypes.guess_type(image.name, strict=False)[0] or "application/octet-stream"}
        # The first image of a checkpoint waits for a process that loads the model.
        options = {"headers": headers, "is_repeatable": True, "timeout": PREDICTION_TIMEOUT_S}
        return self._answer(Predictions, "POST", route("jobs", job_id, "checkpoints", step, "predict"), content=content, **options)

    def pin(self, job_id: str, step: int | str) -> Checkpoint:
        """Keep a checkpoint from being pruned or deleted, and return it as it is listed. Doing it twice is doing it once."""
        return self._answer(Checkpoint, "PUT", route("jobs", job_id, "checkpoints", step, "pin"), is_repeatable=True)

    def unpin(self, job_id: str, step: int | str) -> Checkpoint:
        """Leave a checkpoint to the retention rule again, and return it as it is listed."""
        return self._answer(Checkpoint, "DELETE", route("jobs", job_id, "checkpoints", step, "pin"), is_repeatable=True)

    def delete_checkpoint(self, job_id: str, step: int | str) -> None:
        """Delete a checkpoint: not a pinned one, and not the newest of a job that has not ended."""
        self._transport.request("DELETE", route("jobs", job_id, "checkpoints", step))
