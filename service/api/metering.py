"""What Prometheus is told: requests by route, and at each scrape what the store, the streams and the cluster are like.

Owns the metric names, which are stable: docs/operations.md lists them, and dashboards and alerts are written against them.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class FileCounts(NamedTuple):
    """Files of checkpoints, as `service.scrubbing` counts them."""

    verified: int
    """Read and found right since the start."""
    damaged: int
    """Known to be damaged now."""


class Meter:
    """The counters of one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._seconds = Histogram(
            "syncbn_http_request_duration_seconds", "Time to the head of the answer.", ["method", "route"],
            buckets=_BUCKETS_S, registry=self._registry,
        )  # fmt: skip
        self._requests = Counter("syncbn_http_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def exposition(self, jobs: Mapping[str, int], streams_open: int, view: Mapping[str, Any], files: FileCounts) -> Response:
        """Return everything in Prometheus' text format.

        Args:
            jobs: number of jobs by state.
            streams_open: live streams.
            view: the cluster, as `GET /v1/cluster` shows it.
            files: of checkpoints.
        """
        now = CollectorRegistry()
        _gauge(now, "syncbn_jobs", "Jobs by state.", [({"state": state}, number) for state, number in jobs.items()])
        _gauge(now, "syncbn_streams_open", "Live streams.", [({}, streams_open)])
        _gauge(now, "syncbn_jobs_supervised", "Live jobs that this controller looks after.", [({}, len(view.get("gangs", [])))])
        _gauge(now, "syncbn_cluster_connected", "1 while Ray answers.", [({}, int(bool(view.get("is_connected"))))])
        _gauge(now, "syncbn_checkpoint_files_damaged", "Files that are not what their manifest says.", [({}, files.damaged)])
        Counter("syncbn_checkpoint_files_verified", "Files read and found right in the background.", registry=now).inc(files.verified)
        for kind, total, free in _room(view):
            rows = [({"kind": kind, "of": "total"}, total), ({"kind": kind, "of": "free"}, free)]
            _gauge(now, f"syncbn_cluster_{kind}s", f"{kind.upper()}s of the cluster.", rows)
        return Response(generate_latest(now) + generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


class Metered:
    """ASGI middleware: counts each request under its route's template, so that ids do not become labels."""

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count it when the head of its answer is sent."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._meter.count(scope["method"], _template(scope), message["status"], time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, send_counted)


def _template(scope: Scope) -> str:
    """Return the path of the route that a request came to, ids as `{names}`; the route itself does not know its router's prefix."""
    own = getattr(scope.get("route"), "path", None)
    if own is None:
        return "none"
    prefix = scope["path"].split("/")[: scope["path"].count("/") - own.count("/") + 1]
    return "/".join(prefix) + str(own)


def _room(view: Mapping[str, Any]) -> Iterable[tuple[str, float, float]]:
    room = view.get("room")
    if room:
        yield "cpu", room["total_cpus"], room["free_cpus"]
        yield "gpu", room["total_gpus"], room["free_gpus"]


def _gauge(registry: CollectorRegistry, name: str, text: str, rows: Sequence[tuple[Mapping[str, str], float]]) -> None:
    gauge = Gauge(name, text, list(rows[0][0]), registry=registry)
    for labels, value in rows:
        (gauge.labels(**labels) if labels else gauge).set(value)
