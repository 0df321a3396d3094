# Generated from service/client/asynchronous/history.py by `make format`: change that file.
"""The routes about what a job did, as methods."""

from collections.abc import Iterator, Sequence

from service.client.answers import Event, LogLine, Metrics
from service.client.checkpoint_answers import Telemetry
from service.client.routes import given, route
from service.client.synchronous.requests import Requests
from service.client.synchronous.streams import follow


class HistoryCalls(Requests):
    """Events, logs and figures of a job, so far and live."""

    def events(self, job_id: str, types: Sequence[str] = (), *, after: str | None = None, limit: int | None = None) -> Iterator[Event]:
        """Yield what has happened so far, oldest first; of all types unless named."""
        return self._pages(Event, route("jobs", job_id, "events"), {"type": list(types) or None, "after": after}, limit, size=1000)

    def follow_events(self, job_id: str, *, after: str | None = None) -> Iterator[Event]:
        """Yield what has happened and what happens, each event once, until the `end` event, which is the last one."""
        return follow(Event, self._transport, route("jobs", job_id, "events"), after=after)

    def logs(
        self, job_id: str, *, rank: int | None = None, contains: str | None = None, after: str | None = None, limit: int | None = None
    ) -> Iterator[LogLine]:
        """Yield the lines written so far, oldest first. contains: only those with this text in them, in capitals or not."""
        params = {"rank": rank, "contains": contains, "after": after}
        return self._pages(LogLine, route("jobs", job_id, "logs"), params, limit, size=1000)

    def follow_logs(
        self, job_id: str, *, rank: int | None = None, contains: str | None = None, after: str | None = None
    ) -> Iterator[LogLine]:
        """Yield lines as they are written, until the job ends. contains: as in `logs`."""
        params = given(rank=rank, contains=contains)
        for line in follow(LogLine, self._transport, route("jobs", job_id, "logs"), params=params, after=after):
            if "message" in line:  # the end event is none
                yield line

    def metrics(
        self,
        job_id: str,
        names: Sequence[str] = (),
        *,
        max_points: int | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
    ) -> Metrics:
        """Return the series of a job's metrics, all of them unless named, thinned out to max_points each between the two steps."""
        params = given(name=list(names) or None, max_points=max_points, from_step=from_step, to_step=to_step)
        return self._answer(Metrics, "GET", route("jobs", job_id, "metrics"), params=params)

    def layers(self, job_id: str, names: Sequence[str] = (), *, max_points: int | None = None) -> Telemetry:
        """Return what the normalization layers do: drift, cost of synchronizing, variance between ranks; all of them unless named."""
        params = given(layer=list(names) or None, max_points=max_points)
        return self._answer(Telemetry, "GET", route("jobs", job_id, "statistics"), params=params)
