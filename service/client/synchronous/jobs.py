# Generated from service/client/asynchronous/jobs.py by `make format`: change that file.
"""The routes about jobs as methods, and what is made of a job's history."""

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from service.client.answers import Code
from service.client.history import points
from service.client.mlflow import Mirror
from service.client.pack import bundle
from service.client.patience import Deadline
from service.client.routes import Json, given, route
from service.client.synchronous import blocking
from service.client.synchronous.history import HistoryCalls
from service.client.synchronous.job import Job
from service.client.tensorboard import write_events
from service.states import TERMINAL


class JobCalls(HistoryCalls):
    """Jobs: submitted, shown, waited for, ended."""

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a job and return it. Tried again where needed: the key makes sure that it is one job."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._job("POST", "/v1/jobs", json=dict(spec), headers=headers, is_repeatable=True)

    def validate(self, spec: Mapping[str, Any]) -> Json:
        """Return the spec with every default filled in, or raise BadRequest with everything that is wrong with it. Submits nothing."""
        answer = self._json("POST", "/v1/jobs", params={"dry_run": "true"}, json=dict(spec), is_repeatable=True)
        resolved: Json = answer["spec"]
        return resolved

    def jobs(
        self, *, state: str | None = None, label: str | None = None, search: str | None = None, limit: int | None = None
    ) -> Iterator[Job]:
        """Yield jobs, newest first, fetching pages as they are needed. label: `key=value`; search: a part of name or id."""
        for row in self._pages(dict, "/v1/jobs", {"state": state, "label": label, "search": search}, limit):
            yield Job(row, self)

    def job(self, job_id: str) -> Job:
        """Return one job."""
        return self._job("GET", route("jobs", job_id))

    def edit(self, job_id: str, *, priority: int | None = None, labels: Mapping[str, str] | None = None) -> Job:
        """Change what is given of a job's priority and labels, and return it. Doing it twice is doing it once."""
        change = given(priority=priority, labels=None if labels is None else dict(labels))
        return self._job("PATCH", route("jobs", job_id), json=change, is_repeatable=True)

    def upload_code(self, path: Path) -> Code:
        """Upload a directory with Python packages, or a .zip or .tar.gz of one; a spec names its `id` as `code`.

        Raises:
            PackError: it cannot be packed or read.
        """
        content, media_type = blocking.run(lambda: bundle(path))
        return self._answer(Code, "POST", "/v1/code", content=content, headers={"Content-Type": media_type}, is_repeatable=True)

    def code(self, *, limit: int | None = None) -> Iterator[Code]:
        """Yield uploaded code, newest first."""
        return self._pages(Code, "/v1/code", {}, limit)

    def delete_code(self, code_id: str) -> None:
        """Delete uploaded code that no job names."""
        self._transport.request("DELETE", route("code", code_id))

    def cancel(self, job_id: str) -> Job:
        """Ask for the end of a job and return it; it is cancelled when its processes are gone. Asking twice is asking once."""
        return self._job("POST", route("jobs", job_id, "cancel"), is_repeatable=True)

    def pause(self, job_id: str) -> Job:
        """Ask a job to save after the present step and to give its room back, and return it. Asking twice is asking once."""
        return self._job("POST", route("jobs", job_id, "pause"), is_repeatable=True)

    def resume(self, job_id: str) -> Job:
        """Have a paused job queued again, to go on from where it was paused, and return it. Asking twice is asking once."""
        return self._job("POST", route("jobs", job_id, "resume"), is_repeatable=True)

    def resize(self, job_id: str, workers: int) -> Job:
        """Ask for another number of workers, of an elastic job for another `max`, and return it. Asking twice is asking once."""
        return self._job("POST", route("jobs", job_id, "resize"), json={"workers": workers}, is_repeatable=True)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, and its checkpoints."""
        self._transport.request("DELETE", route("jobs", job_id))

    def wait(self, job_id: str, *, timeout_s: float | None = None, interval_s: float = 0.5) -> Job:
        """Return the job once it has ended, however it did.

        Raises:
            TimeoutError: it has not ended after timeout_s.
        """
        deadline = Deadline(timeout_s)
        while (job := self.job(job_id))["state"] not in TERMINAL:
            if deadline.passes_within(interval_s):
                raise TimeoutError(f"{job_id} is {job['state']} after {timeout_s:g} s; expected it to end; wait longer or cancel it")
            blocking.sleep(interval_s)
        return job

    def export_tensorboard(self, job_id: str, directory: Path) -> Path:
        """Write what a job measured so far as an event file for TensorBoard into DIRECTORY/JOB_ID, and return the file.

        Raises:
            MissingExtra: the tensorboard package is not installed.
        """
        measured = points([event for event in self.events(job_id, ["metrics"])])
        return blocking.run(lambda: write_events(job_id, measured, directory))

    def mirror_to_mlflow(self, job_id: str, *, experiment: str = "syncbn", tracking_uri: str | None = None) -> str:
        """Bring a job into MLflow as a run, or the run up to date, and return the run's id. tracking_uri: default MLFLOW_TRACKING_URI.

        Raises:
            MissingExtra: mlflow is not installed. What MLflow raises is passed on.
        """
        job = self.job(job_id)
        mirror = blocking.run(lambda: Mirror(job, experiment, tracking_uri))
        events = [event for event in self.events(job_id, ["metrics"], after=mirror.after)]
        blocking.run(lambda: mirror.add(events, job))
        return mirror.run_id

    def _job(self, method: str, path: str, **options: Any) -> Job:
        return Job(self._json(method, path, **options), self)
