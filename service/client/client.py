"""The routes of the service as methods. Owns paths, parameters and paging; answers are the decoded JSON, as docs/api.md describes it."""

import hashlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx

from service.client.address import Address
from service.client.download import Progress, fetch_checkpoint
from service.client.errors import ClientError, IntegrityError, PackError
from service.client.pack import pack
from service.client.streams import follow
from service.client.transport import Patience, Transport
from service.scopes import DEFAULT_PROJECT
from service.states import TERMINAL

Json = dict[str, Any]
PAGE = 100


class Client:
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
        http: httpx.BaseTransport | None = None,
    ) -> None:
        self._transport = Transport(Address(url, token, home), timeout_s, patience or Patience(), http)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where requests go now."""
        return self._transport.url

    def close(self) -> None:
        """Close every connection."""
        self._transport.close()

    # -- jobs

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Submit a job and return it. Tried again where needed: the key makes sure that it is one job."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._json("POST", "/v1/jobs", json=dict(spec), headers=headers, is_repeatable=True)

    def validate(self, spec: Mapping[str, Any]) -> Json:
        """Return the spec with every default filled in, or raise BadRequest with everything that is wrong with it. Submits nothing."""
        resolved: Json = self._json("POST", "/v1/jobs", params={"dry_run": "true"}, json=dict(spec), is_repeatable=True)["spec"]
        return resolved

    def jobs(self, *, state: str | None = None, label: str | None = None, limit: int | None = None) -> Iterator[Json]:
        """Yield jobs, newest first, fetching pages as they are needed. label: `key=value`."""
        return self._pages("/v1/jobs", {"state": state, "label": label}, limit)

    def job(self, job_id: str) -> Json:
        """Return one job."""
        return self._json("GET", _path("jobs", job_id))

    def upload_code(self, path: Path) -> Json:
        """Upload a directory with Python packages, or a .zip or .tar.gz of one; a spec names its `id` as `code`.

        Raises:
            PackError: it cannot be packed or read.
        """
        is_zip = path.suffix.lower() == ".zip"
        try:
            content = pack(path) if path.is_dir() else path.read_bytes()
        except OSError as error:
            raise PackError(f"{path} cannot be read: {error.strerror}; expected a directory, a .zip or a .tar.gz") from error
        headers = {"Content-Type": "application/zip" if is_zip and path.is_file() else "application/gzip"}
        return self._json("POST", "/v1/code", content=content, headers=headers, is_repeatable=True)

    def cancel(self, job_id: str) -> Json:
        """Ask for the end of a job and return it; it is cancelled when its processes are gone. Asking twice is asking once."""
        return self._json("POST", _path("jobs", job_id, "cancel"), is_repeatable=True)

    def pause(self, job_id: str) -> Json:
        """Ask a job to save after the present step and to give its room back, and return it. Asking twice is asking once."""
        return self._json("POST", _path("jobs", job_id, "pause"), is_repeatable=True)

    def resume(self, job_id: str) -> Json:
        """Have a paused job queued again, to go on from where it was paused, and return it. Asking twice is asking once."""
        return self._json("POST", _path("jobs", job_id, "resume"), is_repeatable=True)

    def resize(self, job_id: str, workers: int) -> Json:
        """Ask for another number of workers, of an elastic job for another `max`, and return it. Asking twice is asking once."""
        return self._json("POST", _path("jobs", job_id, "resize"), json={"workers": workers}, is_repeatable=True)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, and its checkpoints."""
        self._transport.request("DELETE", _path("jobs", job_id))

    def wait(self, job_id: str, *, timeout_s: float | None = None, interval_s: float = 0.5) -> Json:
        """Return the job once it has ended, however it did.

        Raises:
            TimeoutError: it has not ended after timeout_s.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (job := self.job(job_id))["state"] not in TERMINAL:
            if deadline is not None and time.monotonic() + interval_s > deadline:
                raise TimeoutError(f"{job_id} is {job['state']} after {timeout_s:g} s; expected it to end; wait longer or cancel it")
            time.sleep(interval_s)
        return job

    # -- what happened

    def events(self, job_id: str, *, after: str | None = None, limit: int | None = None) -> Iterator[Json]:
        """Yield what has happened so far, oldest first."""
        return self._pages(_path("jobs", job_id, "events"), {"after": after}, limit)

    def follow_events(self, job_id: str, *, after: str | None = None) -> Iterator[Json]:
        """Yield what has happened and what happens, each event once, until the `end` event, which is the last one."""
        return follow(self._transport, _path("jobs", job_id, "events"), after=after)

    def logs(self, job_id: str, *, rank: int | None = None, after: str | None = None, limit: int | None = None) -> Iterator[Json]:
        """Yield the lines written so far, oldest first."""
        return self._pages(_path("jobs", job_id, "logs"), {"rank": rank, "after": after}, limit)

    def follow_logs(self, job_id: str, *, rank: int | None = None, after: str | None = None) -> Iterator[Json]:
        """Yield lines as they are written, until the job ends."""
        for line in follow(self._transport, _path("jobs", job_id, "logs"), params=_given({"rank": rank}), after=after):
            if "message" in line:  # the end event is none
                yield line

    def metrics(self, job_id: str, names: Sequence[str] = (), *, max_points: int | None = None) -> Json:
        """Return the series of a job's metrics, all of them unless named, thinned out to max_points each."""
        return self._json("GET", _path("jobs", job_id, "metrics"), params=_given({"name": list(names) or None, "max_points": max_points}))

    def layers(self, job_id: str, names: Sequence[str] = (), *, max_points: int | None = None) -> Json:
        """Return what the normalization layers do: drift, cost of synchronizing, variance between ranks; all of them unless named."""
        params = _given({"layer": list(names) or None, "max_points": max_points})
        return self._json("GET", _path("jobs", job_id, "statistics"), params=params)

    # -- checkpoints; a step is a number, "latest" or "best"

    def checkpoints(self, job_id: str, *, limit: int | None = None) -> Iterator[Json]:
        """Yield a job's checkpoints, newest first."""
        return self._pages(_path("jobs", job_id, "checkpoints"), {}, limit)

    def manifest(self, job_id: str, step: int | str = "best") -> Json:
        """Return a checkpoint's manifest."""
        return self._json("GET", _path("jobs", job_id, "checkpoints", step))

    def statistics(self, job_id: str, step: int | str = "best", *, layer: str | None = None, against: int | str | None = None) -> Json:
        """Return the running statistics of every layer in summary, of one layer in full, or their difference to another checkpoint."""
        params = _given({"layer": layer, "against": against})
        return self._json("GET", _path("jobs", job_id, "checkpoints", step, "statistics"), params=params)

    def download(self, job_id: str, step: int | str, directory: Path, progress: Progress = lambda *_: None) -> Json:
        """Bring a checkpoint into a directory, every file verified, and return its manifest. Going on after a failure is calling again.

        Raises:
            IntegrityError: the bytes are not those of the manifest. DownloadError: the connection kept breaking.
        """
        manifest = self.manifest(job_id, step)
        # From here on by number: `best` may be another one before the last file is here.
        fetch_checkpoint(self._transport, _path("jobs", job_id, "checkpoints", manifest["step"]), manifest, directory, progress)
        return manifest

    def download_statistics(self, job_id: str, step: int | str = "best") -> bytes:
        """Return a safetensors file of the running statistics alone, verified; of the model nothing else is read or sent.

        Raises:
            IntegrityError: the bytes are not those of the digest that came with them.
        """
        path = _path("jobs", job_id, "checkpoints", step, "files", "model.safetensors")
        response = self._transport.request("GET", path, params={"include": "statistics"})
        found, promised = hashlib.sha256(response.content).hexdigest(), response.headers.get("etag", "").strip('"')
        if found != promised:
            raise IntegrityError(f"the statistics arrived as SHA-256 {found}; expected {promised} as the service said; ask again")
        return response.content

    def pin(self, job_id: str, step: int | str) -> Json:
        """Keep a checkpoint from being pruned or deleted, and return it as it is listed. Doing it twice is doing it once."""
        return self._json("PUT", _path("jobs", job_id, "checkpoints", step, "pin"), is_repeatable=True)

    def unpin(self, job_id: str, step: int | str) -> Json:
        """Leave a checkpoint to the retention rule again, and return it as it is listed."""
        return self._json("DELETE", _path("jobs", job_id, "checkpoints", step, "pin"), is_repeatable=True)

    def delete_checkpoint(self, job_id: str, step: int | str) -> None:
        """Delete a checkpoint: not a pinned one, and not the newest of a job that has not ended."""
        self._transport.request("DELETE", _path("jobs", job_id, "checkpoints", step))

    # -- tokens, for admins

    def create_token(self, name: str, scopes: Sequence[str], *, project: str = DEFAULT_PROJECT, expires_in_s: float | None = None) -> Json:
        """Make a token. Its `token` is in this answer and nowhere else."""
        document = {"name": name, "scopes": list(scopes), "project": project, "expires_in_s": expires_in_s}
        return self._json("POST", "/v1/tokens", json=document)

    def tokens(self, *, limit: int | None = None) -> Iterator[Json]:
        """Yield tokens, newest first, expired and revoked ones too."""
        return self._pages("/v1/tokens", {}, limit)

    def rotate_token(self, token_id: str, *, overlap_s: float = 3600) -> Json:
        """Make a token like another one, which ends after the overlap."""
        return self._json("POST", _path("tokens", token_id, "rotate"), params={"overlap_s": overlap_s})

    def revoke_token(self, token_id: str) -> None:
        """Have a token admitted no more."""
        self._transport.request("DELETE", _path("tokens", token_id), is_repeatable=True)

    # -- comparisons

    def compare(
        self, spec: Mapping[str, Any], values: Sequence[Any], *, field: str = "norm.kind", idempotency_key: str | None = None
    ) -> Json:
        """Submit one spec once for each value of a field, all or none, and return the comparison. Tried again where needed."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        ask = {"spec": dict(spec), "field": field, "values": list(values)}
        return self._json("POST", "/v1/comparisons", json=ask, headers=headers, is_repeatable=True)

    def comparisons(self, *, limit: int | None = None) -> Iterator[Json]:
        """Yield comparisons, newest first, without their tables."""
        return self._pages("/v1/comparisons", {}, limit)

    def comparison(self, comparison_id: str) -> Json:
        """Return a comparison with its table."""
        return self._json("GET", _path("comparisons", comparison_id))

    def delete_comparison(self, comparison_id: str) -> None:
        """Delete a comparison whose jobs have ended. The jobs stay."""
        self._transport.request("DELETE", _path("comparisons", comparison_id))

    # -- the service

    def cluster(self) -> Json:
        """Return what the cluster has and what is in use."""
        return self._json("GET", "/v1/cluster")

    def ready(self) -> Json:
        """Return whether the service can do its work, part by part."""
        return self._json("GET", "/readyz")

    def _json(self, method: str, path: str, **options: Any) -> Json:
        response = self._transport.request(method, path, **options)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ClientError(f"{method} {path} answered {response.text[:80]!r}; expected a JSON object; is {self.url} a syncbn service?")
        return answer

    def _pages(self, path: str, params: Mapping[str, Any], limit: int | None) -> Iterator[Json]:
        cursor, left = params.get("after"), limit
        while left is None or left > 0:
            page = self._json("GET", path, params=_given({**params, "after": cursor, "limit": PAGE if left is None else min(PAGE, left)}))
            yield from page["data"]
            left = None if left is None else left - len(page["data"])
            if not page.get("has_more") or not page["data"]:
                return
            cursor = page["next_cursor"]


def _path(*parts: str | int) -> str:
    return "/".join(("/v1", *(quote(str(part), safe="") for part in parts)))


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
