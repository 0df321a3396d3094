"""A job as a client has it: the decoded answer, which also knows whom to ask for more. In a notebook it shows itself."""

from collections.abc import Sequence
from typing import Any, Protocol, final

from service.client.answers import Metrics
from service.client.figures import figure
from service.client.job_fields import JobFields
from service.client.notebook import job_html
from service.client.routes import Json


class MetricsSource(Protocol):
    """Whoever answers for a job's metrics: the client."""

    async def metrics(self, job_id: str, names: Sequence[str] = (), *, max_points: int | None = None) -> Metrics:
        """Return series of metrics."""


@final
class AsyncJob(JobFields):
    """A job as docs/api.md describes it; as it was when it was asked for."""

    def __init__(self, document: Json, source: MetricsSource) -> None:
        super().__init__(document)
        self._source = source

    @property
    def id(self) -> str:
        """The job's id."""
        return self["id"]

    async def metrics(self, *names: str, max_points: int | None = None) -> dict[str, list[list[int | float]]]:
        """Return the points [step, value] of each metric, all metrics unless named, as they are now."""
        answer = await self._source.metrics(self.id, names, max_points=max_points)
        return {series["name"]: series["points"] for series in answer["series"]}

    async def plot(self, *names: str, max_points: int = 1000) -> Any:
        """Return a Plotly figure of metrics over steps, all metrics unless named; the last value of a notebook's cell is shown.

        Raises:
            MissingExtra: Plotly is not installed. PlotError: the job has no such metric yet.
        """
        return figure(await self.metrics(*names, max_points=max_points), title=str(self.get("name") or self.id))

    def _repr_html_(self) -> str:
        return job_html(self)
