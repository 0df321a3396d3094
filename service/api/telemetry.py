"""The route of live telemetry per layer, and the shape of its answer."""

from typing import Annotated, Self

from fastapi import APIRouter, Query

from service.api.context import READ, InContext
from service.api.parameters import JobId
from service.api.schemas import Shape
from service.telemetry import History, lay_out, readable
from worker.contract import EventType, LayerRecord

router = APIRouter(tags=["streams"], dependencies=[READ])

Layers = Annotated[list[str], Query(description="only these layers; repeated", max_length=256)]


class LayerTelemetryShape(Shape):
    """One layer: its newest record, and its drift at each of the answer's steps."""

    name: str
    newest: LayerRecord
    mean_drift: list[float | None]
    variance_drift: list[float | None]


class TelemetryShape(Shape):
    """What the normalization layers did on the watched steps: a grid of layers by steps."""

    steps: list[int]
    layers: list[LayerTelemetryShape]

    @classmethod
    def of(cls, history: History) -> Self:
        """Return the shape of a history."""
        layers = [LayerTelemetryShape.model_validate(vars(one) | {"name": one.newest.name}) for one in history.layers]
        return cls(steps=list(history.steps), layers=layers)


@router.get("/jobs/{job_id}/statistics")
async def get_telemetry(
    job_id: JobId,
    context: InContext,
    layer: Layers = [],  # noqa: B006 - FastAPI copies it
    max_points: Annotated[int, Query(ge=1, le=500, description="most steps of the history, evenly spread, the newest among them")] = 100,
) -> TelemetryShape:
    """Show, layer by layer, what synchronizing costs, the drift of the running statistics, and how ranks differ from each other."""
    events = await context.store.events.spread(job_id, EventType.TELEMETRY, max_points)
    return TelemetryShape.of(lay_out(readable(events), layer))
