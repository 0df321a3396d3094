"""Routes that make a job of a checkpoint: fork, recalibrate, export; and the bodies that say how."""

from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from service import derivation
from service.api.bodies import read_json
from service.api.context import SUBMIT, InContext, InIdentity
from service.api.jobs import IdempotencyKey, fingerprint, stored
from service.api.parameters import STEP_PATTERN, Step, VisibleJob
from service.api.problems import problems_of
from service.api.schemas import JobShape
from service.errors import ConflictError, InvalidError
from service.store.records import IdempotencyClaim

router = APIRouter(dependencies=[SUBMIT])

Body = Annotated[Any, Depends(read_json)]


class Ask(BaseModel):
    """What a job that is made of a checkpoint has otherwise than the job of the checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    changes: dict[str, JsonValue] = Field(
        default_factory=dict, alias="set", max_length=100, description='values at dotted paths of the spec: {"resources.workers": 2}'
    )


AnyAsk = TypeVar("AnyAsk", bound=Ask)


class ForkAsk(Ask):
    """How to train on."""

    step: str = Field("latest", pattern=STEP_PATTERN, description="a step, `latest` or `best`")


class RecalibrateAsk(Ask):
    """How to re-estimate the running statistics."""

    num_samples: int = Field(10_000, ge=1, description="of the training data; at most all")
    estimator: Literal["exact", "mean_of_batches"] = "exact"


class ExportAsk(Ask):
    """Which files to make."""

    formats: list[Literal["plain", "folded", "onnx"]] = Field(min_length=1, max_length=8)


@router.post("/jobs/{job_id}/fork", status_code=201, response_model=JobShape, tags=["jobs"])  # noqa: FAST003 - VisibleJob takes it
async def fork_job(
    job: VisibleJob, context: InContext, identity: InIdentity, document: Body, idempotency_key: IdempotencyKey = None
) -> Response:
    """Submit a job like this one that begins with the weights of one of its checkpoints."""
    ask = _read(ForkAsk, document)
    checkpoint = await context.artifacts.find(job.id, ask.step)
    spec = derivation.changed(derivation.fork(job, checkpoint.step), ask.changes)
    return await stored(context, identity, spec, _claim(idempotency_key, "fork", job.id, document))


@router.post("/jobs/{job_id}/checkpoints/{step}/recalibrate", status_code=201, response_model=JobShape, tags=["checkpoints"])  # noqa: FAST003 - VisibleJob takes it
async def recalibrate_checkpoint(  # noqa: PLR0917 - FastAPI fills them by name
    job: VisibleJob,
    step: Step,
    context: InContext,
    identity: InIdentity,
    document: Body,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Submit a job that re-estimates the running statistics of a checkpoint; its result is a checkpoint of its own."""
    ask = _read(RecalibrateAsk, document)
    checkpoint = await context.artifacts.find(job.id, step)
    if not checkpoint.manifest.layers:
        raise ConflictError(
            f"checkpoint {checkpoint.step} of {job.id} has no layer with running statistics; expected one at least, as with"
            " norm.kind sync_bn or batch_norm; there is nothing to re-estimate",
            code="no_running_statistics",
        )
    spec = derivation.changed(derivation.recalibration(job, checkpoint.step, ask.num_samples, ask.estimator), ask.changes)
    return await stored(context, identity, spec, _claim(idempotency_key, "recalibrate", job.id, step, document))


@router.post("/jobs/{job_id}/checkpoints/{step}/export", status_code=201, response_model=JobShape, tags=["checkpoints"])  # noqa: FAST003 - VisibleJob takes it
async def export_checkpoint(  # noqa: PLR0917 - FastAPI fills them by name
    job: VisibleJob,
    step: Step,
    context: InContext,
    identity: InIdentity,
    document: Body,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Submit a job that brings a checkpoint into other formats; they are files of its checkpoint."""
    ask = _read(ExportAsk, document)
    checkpoint = await context.artifacts.find(job.id, step)
    spec = derivation.changed(derivation.export(job, checkpoint.step, ask.formats), ask.changes)
    return await stored(context, identity, spec, _claim(idempotency_key, "export", job.id, step, document))


def _read(shape: type[AnyAsk], document: Any) -> AnyAsk:
    try:
        return shape.model_validate(document)
    except ValidationError as error:
        raise InvalidError.of(problems_of(error.errors())) from error


def _claim(key: str | None, *request: Any) -> IdempotencyClaim | None:
    """Return the claim of a request as it was sent: by the next time `latest` may mean another checkpoint."""
    return None if key is None else IdempotencyClaim(key, fingerprint(request))
