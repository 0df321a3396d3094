"""The routes of the service as methods. Owns paths, parameters and paging; answers are the decoded JSON, as docs/api.md describes it."""

import hashlib
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from service.client.address import Address
from service.client.asynchronous import blocking
from service.client.asynchronous.download import fetch_checkpoint
from service.client.asynchronous.job import AsyncJob
from service.client.asynchronous.streams import follow
from service.client.asynchronous.transport import Transport
from service.client.errors import IntegrityError
from service.client.history import points
from service.client.mlflow import Mirror
from service.client.pack import bundle
from service.client.patience import Deadline, Patience
from service.client.routes import Json, ahead_s, decoded, given, route
from service.client.tensorboard import write_events
from service.client.wanted import Progress
from service.scopes import DEFAULT_PROJECT
from service.states import TERMINAL

PAGE = 100


class AsyncClient:
    """A synchronous client, safe to keep open. Use as a context manager, or call `close`.

    Args:
        url: of the service. Default: SYNCBN_URL, else the controller that runs on the home.
        token: Default: SYNCBN_TOKEN, else the home's.
        home: state directory of a controller on this machine; goes before the environment. Default: SYNCBN_HOME, else the platform's.
        timeout_s: for each connection, write and read of bytes; a whole download or stream has no limit.
        patience: how often requests that may be repeated are tried again.
    Raises:
        Unreachable: from every method, when nobody answers.
        ServiceError: from every method, when the service refuses.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        home: Path | None = None,
        timeout_s: float = 30.0,
        patience: Patience | None = None,
        http: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._transport = Transport(Address(url, token, home), timeout_s, patience or Patience(), http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def url(self) -> str:
        """Where requests go now."""
        return self._transport.url

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    # -- jobs

    async def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> AsyncJob:
        """Submit a job and return it. Tried again where needed: the key makes sure that it is one job."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return await self._job("POST", "/v1/jobs", json=dict(spec), headers=headers, is_repeatable=True)

    async def validate(self, spec: Mapping[str, Any]) -> Json:
        """Return the spec with every default filled in, or raise BadRequest with everything that is wrong with it. Submits nothing."""
        answer = await self._json("POST", "/v1/jobs", params={"dry_run": "true"}, json=dict(spec), is_repeatable=True)
        resolved: Json = answer["spec"]
        return resolved

    async def jobs(
        self, *, state: str | None = None, label: str | None = None, search: str | None = None, limit: int | None = None
    ) -> AsyncIterator[AsyncJob]:
        """Yield jobs, newest first, fetching pages as they are needed. label: `key=value`; search: a part of name or id."""
        async for row in self._pages("/v1/jobs", {"state": state, "label": label, "search": search}, limit):
            yield AsyncJob(row, self)

    async def job(self, job_id: str) -> AsyncJob:
        """Return one job."""
        return await self._job("GET", route("jobs", job_id))

    async def edit(self, job_id: str, *, priority: int | None = None, labels: Mapping[str, str] | None = None) -> AsyncJob:
        """Change what is given of a job's priority and labels, and return it. Doing it twice is doing it once."""
        change = given(priority=priority, labels=None if labels is None else dict(labels))
        return await self._job("PATCH", route("jobs", job_id), json=change, is_repeatable=True)

    async def upload_code(self, path: Path) -> Json:
        """Upload a directory with Python packages, or a .zip or .tar.gz of one; a spec names its `id` as `code`.

        Raises:
            PackError: it cannot be packed or read.
        """
        content, media_type = await blocking.run(lambda: bundle(path))
        return await self._json("POST", "/v1/code", content=content, headers={"Content-Type": media_type}, is_repeatable=True)

    async def cancel(self, job_id: str) -> AsyncJob:
        """Ask for the end of a job and return it; it is cancelled when its processes are gone. Asking twice is asking once."""
        return await self._job("POST", route("jobs", job_id, "cancel"), is_repeatable=True)

    async def pause(self, job_id: str) -> AsyncJob:
        """Ask a job to save after the present step and to give its room back, and return it. Asking twice is asking once."""
        return await self._job("POST", route("jobs", job_id, "pause"), is_repeatable=True)

    async def resume(self, job_id: str) -> AsyncJob:
        """Have a paused job queued again, to go on from where it was paused, and return it. Asking twice is asking once."""
        return await self._job("POST", route("jobs", job_id, "resume"), is_repeatable=True)

    async def delete(self, job_id: str) -> None:
        """Delete a job that has ended, and its checkpoints."""
        await self._transport.request("DELETE", route("jobs", job_id))

    async def wait(self, job_id: str, *, timeout_s: float | None = None, interval_s: float = 0.5) -> AsyncJob:
        """Return the job once it has ended, however it did.

        Raises:
            TimeoutError: it has not ended after timeout_s.
        """
        deadline = Deadline(timeout_s)
        while (job := await self.job(job_id))["state"] not in TERMINAL:
            if deadline.passes_within(interval_s):
                raise TimeoutError(f"{job_id} is {job['state']} after {timeout_s:g} s; expected it to end; wait longer or cancel it")
            await blocking.sleep(interval_s)
        return job

    # -- what happened

    def events(self, job_id: str, types: Sequence[str] = (), *, after: str | None = None, limit: int | None = None) -> AsyncIterator[Json]:
        """Yield what has happened so far, oldest first; of all types unless named."""
        return self._pages(route("jobs", job_id, "events"), {"type": list(types) or None, "after": after}, limit, size=1000)

    def follow_events(self, job_id: str, *, after: str | None = None) -> AsyncIterator[Json]:
        """Yield what has happened and what happens, each event once, until the `end` event, which is the last one."""
        return follow(self._transport, route("jobs", job_id, "events"), after=after)

    def logs(self, job_id: str, *, rank: int | None = None, after: str | None = None, limit: int | None = None) -> AsyncIterator[Json]:
        """Yield the lines written so far, oldest first."""
        return self._pages(route("jobs", job_id, "logs"), {"rank": rank, "after": after}, limit, size=1000)

    async def follow_logs(self, job_id: str, *, rank: int | None = None, after: str | None = None) -> AsyncIterator[Json]:
        """Yield lines as they are written, until the job ends."""
        async for line in follow(self._transport, route("jobs", job_id, "logs"), params=given(rank=rank), after=after):
            if "message" in line:  # the end event is none
                yield line

    async def metrics(self, job_id: str, names: Sequence[str] = (), *, max_points: int | None = None) -> Json:
        """Return the series of a job's metrics, all of them unless named, thinned out to max_points each."""
        return await self._json("GET", route("jobs", job_id, "metrics"), params=given(name=list(names) or None, max_points=max_points))

    async def layers(self, job_id: str, names: Sequence[str] = (), *, max_points: int | None = None) -> Json:
        """Return what the normalization layers do: drift, cost of synchronizing, variance between ranks; all of them unless named."""
        params = given(layer=list(names) or None, max_points=max_points)
        return await self._json("GET", route("jobs", job_id, "statistics"), params=params)

    async def export_tensorboard(self, job_id: str, directory: Path) -> Path:
        """Write what a job measured so far as an event file for TensorBoard into DIRECTORY/JOB_ID, and return the file.

        Raises:
            MissingExtra: the tensorboard package is not installed.
        """
        measured = points([event async for event in self.events(job_id, ["metrics"])])
        return await blocking.run(lambda: write_events(job_id, measured, directory))

    async def mirror_to_mlflow(self, job_id: str, *, experiment: str = "syncbn", tracking_uri: str | None = None) -> str:
        """Bring a job into MLflow as a run, or the run up to date, and return the run's id. tracking_uri: default MLFLOW_TRACKING_URI.

        Raises:
            MissingExtra: mlflow is not installed. What MLflow raises is passed on.
        """
        job = await self.job(job_id)
        mirror = await blocking.run(lambda: Mirror(job, experiment, tracking_uri))
        events = [event async for event in self.events(job_id, ["metrics"], after=mirror.after)]
        await blocking.run(lambda: mirror.add(events, job))
        return mirror.run_id

    # -- checkpoints; a step is a number, "latest" or "best"

    def checkpoints(self, job_id: str, *, limit: int | None = None) -> AsyncIterator[Json]:
        """Yield a job's checkpoints, newest first."""
        return self._pages(route("jobs", job_id, "checkpoints"), {}, limit)

    async def manifest(self, job_id: str, step: int | str = "best") -> Json:
        """Return a checkpoint's manifest."""
        return await self._json("GET", route("jobs", job_id, "checkpoints", step))

    async def statistics(
        self, job_id: str, step: int | str = "best", *, layer: str | None = None, against: int | str | None = None
    ) -> Json:
        """Return the running statistics of every layer in summary, of one layer in full, or their difference to another checkpoint."""
        params = given(layer=layer, against=against)
        return await self._json("GET", route("jobs", job_id, "checkpoints", step, "statistics"), params=params)

    async def download(self, job_id: str, step: int | str, directory: Path, progress: Progress = lambda *_: None) -> Json:
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

    async def pin(self, job_id: str, step: int | str) -> Json:
        """Keep a checkpoint from being pruned or deleted, and return it as it is listed. Doing it twice is doing it once."""
        return await self._json("PUT", route("jobs", job_id, "checkpoints", step, "pin"), is_repeatable=True)

    async def unpin(self, job_id: str, step: int | str) -> Json:
        """Leave a checkpoint to the retention rule again, and return it as it is listed."""
        return await self._json("DELETE", route("jobs", job_id, "checkpoints", step, "pin"), is_repeatable=True)

    async def delete_checkpoint(self, job_id: str, step: int | str) -> None:
        """Delete a checkpoint: not a pinned one, and not the newest of a job that has not ended."""
        await self._transport.request("DELETE", route("jobs", job_id, "checkpoints", step))

    # -- tokens, for admins

    async def create_token(
        self, name: str, scopes: Sequence[str], *, project: str = DEFAULT_PROJECT, expires_in_s: float | None = None
    ) -> Json:
        """Make a token. Its `token` is in this answer and nowhere else."""
        document = {"name": name, "scopes": list(scopes), "project": project, "expires_in_s": expires_in_s}
        return await self._json("POST", "/v1/tokens", json=document)

    def tokens(self, *, limit: int | None = None) -> AsyncIterator[Json]:
        """Yield tokens, newest first, expired and revoked ones too."""
        return self._pages("/v1/tokens", {}, limit)

    async def rotate_token(self, token_id: str, *, overlap_s: float = 3600) -> Json:
        """Make a token like another one, which ends after the overlap."""
        return await self._json("POST", route("tokens", token_id, "rotate"), params={"overlap_s": overlap_s})

    async def revoke_token(self, token_id: str) -> None:
        """Have a token admitted no more."""
        await self._transport.request("DELETE", route("tokens", token_id), is_repeatable=True)

    # -- comparisons

    async def compare(
        self, spec: Mapping[str, Any], values: Sequence[Any], *, field: str = "norm.kind", idempotency_key: str | None = None
    ) -> Json:
        """Submit one spec once for each value of a field, all or none, and return the comparison. Tried again where needed."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        ask = {"spec": dict(spec), "field": field, "values": list(values)}
        return await self._json("POST", "/v1/comparisons", json=ask, headers=headers, is_repeatable=True)

    def comparisons(self, *, limit: int | None = None) -> AsyncIterator[Json]:
        """Yield comparisons, newest first, without their tables."""
        return self._pages("/v1/comparisons", {}, limit)

    async def comparison(self, comparison_id: str) -> Json:
        """Return a comparison with its table."""
        return await self._json("GET", route("comparisons", comparison_id))

    async def delete_comparison(self, comparison_id: str) -> None:
        """Delete a comparison whose jobs have ended. The jobs stay."""
        await self._transport.request("DELETE", route("comparisons", comparison_id))

    # -- the service

    async def cluster(self) -> Json:
        """Return what the cluster has and what is in use."""
        return await self._json("GET", "/v1/cluster")

    def queue(self, *, limit: int | None = None) -> AsyncIterator[Json]:
        """Yield the jobs that wait, in the order in which they may start, and why each waits."""
        return self._pages("/v1/queue", {}, limit)

    async def models(self) -> Json:
        """Return the models that a spec may name, with a JSON schema of their arguments."""
        return await self._json("GET", "/v1/models")

    async def datasets(self) -> Json:
        """Return the data sets that a spec may name, with a JSON schema of their arguments."""
        return await self._json("GET", "/v1/datasets")

    async def norms(self) -> Json:
        """Return the kinds of normalization that a spec may name, with a JSON schema of their arguments."""
        return await self._json("GET", "/v1/norms")

    async def describe(self) -> Json:
        """Return the service's OpenAPI document; its version is that of the service."""
        return await self._json("GET", "/openapi.json")

    async def clock_ahead_s(self) -> float:
        """Return by how much the service's clock is ahead of this machine's, to half a second and half the time of a request."""
        return ahead_s(await self._transport.request("GET", "/healthz"))

    async def alive(self) -> Json:
        """Return at once whether the process answers."""
        return await self._json("GET", "/healthz")

    async def ready(self) -> Json:
        """Return whether the service can do its work, part by part."""
        return await self._json("GET", "/readyz")

    async def _json(self, method: str, path: str, **options: Any) -> Json:
        return decoded(await self._transport.request(method, path, **options))

    async def _job(self, method: str, path: str, **options: Any) -> AsyncJob:
        return AsyncJob(await self._json(method, path, **options), self)

    async def _pages(self, path: str, params: Mapping[str, Any], limit: int | None, *, size: int = PAGE) -> AsyncIterator[Json]:
        cursor, left = params.get("after"), limit
        while left is None or left > 0:
            num_wanted = size if left is None else min(size, left)
            page = await self._json("GET", path, params=given(**{**params, "after": cursor, "limit": num_wanted}))
            for row in page["data"]:
                yield row
            left = None if left is None else left - len(page["data"])
            if not page.get("has_more") or not page["data"]:
                return
            cursor = page["next_cursor"]
