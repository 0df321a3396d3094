"""Route of predictions: an image in, the most probable classes out."""

from typing import Any, Final

from fastapi import APIRouter, Request

from service.api.bodies import media_type_of, read_bounded
from service.api.context import READ, InContext
from service.api.parameters import Step, VisibleJob
from service.api.schemas import Shape

router = APIRouter(tags=["checkpoints"], dependencies=[READ])

MAX_IMAGE_BYTES: Final = 16 * 2**20
IMAGES: Final = frozenset({f"image/{kind}" for kind in ("png", "jpeg", "webp", "bmp", "gif", "tiff")})
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_DOCUMENTED: Final[dict[str, Any]] = {"requestBody": {"required": True, "content": dict.fromkeys(sorted(IMAGES), _BINARY)}}


class PredictionShape(Shape):
    """A class, by its number and, where the data set has names, by its name, and how probable it is."""

    label: int
    name: str | None
    probability: float


class PredictionsShape(Shape):
    """What a checkpoint makes of an image: the most probable classes, the first the most."""

    step: int
    predictions: list[PredictionShape]


@router.post("/jobs/{job_id}/checkpoints/{step}/predict", openapi_extra=_DOCUMENTED)  # noqa: FAST003 - VisibleJob takes it
async def predict_image(job: VisibleJob, step: Step, request: Request, context: InContext) -> PredictionsShape:
    """Classify one image, as a batch of its own, by the running statistics of a checkpoint."""
    media_type_of(request, IMAGES)
    image = await read_bounded(request, MAX_IMAGE_BYTES, context.settings.body_timeout_s)
    checkpoint = await context.artifacts.find(job.id, step)
    found = await context.predictor.predict(checkpoint, job.spec, image)
    return PredictionsShape(step=checkpoint.step, predictions=[PredictionShape(**one) for one in found])
