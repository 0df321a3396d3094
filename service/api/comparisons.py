"""Routes of comparisons: start, list, show as a table, delete; and the shapes of their bodies and answers."""

from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Path, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from service import comparisons as use_cases
from service.api.bodies import read_json_or_yaml
from service.api.context import READ, SUBMIT, Context, InContext, InIdentity
from service.api.jobs import IdempotencyKey, fingerprint
from service.api.problems import problems_of
from service.api.schemas import Shape
from service.comparison_table import Row, Stage, stage
from service.comparisons import Wish
from service.errors import InvalidError
from service.states import State
from service.store.ids import COMPARISON_ID_PATTERN, new_id
from service.store.records import Comparison, IdempotencyClaim
from worker.contract import Health, advise
from worker.contract.rules import refuse

router = APIRouter(tags=["comparisons"])


async def _visible_comparison(
    comparison_id: Annotated[str, Path(pattern=COMPARISON_ID_PATTERN, description="id of a comparison")],
    context: InContext,
    identity: InIdentity,
) -> str:
    """Return the id of a comparison that the token's project owns; of any, for an admin."""
    comparison = await use_cases.find(context.store, comparison_id)
    if not identity.sees(comparison.project):
        raise use_cases.not_here(comparison_id)
    return comparison_id


ComparisonId = Annotated[str, Depends(_visible_comparison)]
AfterComparison = Annotated[str | None, Query(pattern=COMPARISON_ID_PATTERN, description="the next_cursor of the page before")]


class ComparisonAsk(BaseModel):
    """One spec, and the values that one of its fields has in turn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec: dict[str, JsonValue] = Field(description="a job spec")
    field: str = Field(default="norm.kind", max_length=200, description="a dotted path into the spec")
    values: list[JsonValue] = Field(min_length=2, max_length=32, description="one job for each")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        # By their JSON: 1 and true are equal in Python.
        twice = [one for number, one in enumerate(self.values) if any(repr(one) == repr(other) for other in self.values[:number])]
        if twice:
            raise refuse(f"values has {twice[0]!r} twice", "each value once", "leave the second out of values")
        return self


class ScoreShape(Shape):
    """A metric on the validation data."""

    last: float
    best: float


class RowShape(Shape):
    """One variant of a comparison, with what came of it so far; null: not known, or not yet."""

    value: Any
    job_id: str
    state: State | None
    message: str
    step: int
    total_steps: int | None
    train_loss: float | None
    validation: dict[str, ScoreShape]
    samples_per_s: float | None
    sync_time_s: float | None
    sync_bytes: float | None
    health: Health | None


class ComparisonShape(Shape):
    """A comparison and its table."""

    id: str
    state: Stage
    field: str
    created_at: datetime
    spec: dict[str, Any]
    rows: list[RowShape]

    @classmethod
    def of(cls, comparison: Comparison, rows: list[Row]) -> Self:
        """Return the shape of a comparison."""
        shown = [RowShape.model_validate(row) for row in rows]
        return cls.model_validate(vars(comparison) | {"state": stage(comparison), "spec": comparison.document, "rows": shown})


class VariantShape(Shape):
    """One variant in a list of comparisons."""

    value: Any
    job_id: str
    state: State | None


class ComparisonEntry(Shape):
    """A comparison in a list, without the table."""

    id: str
    state: Stage
    field: str
    created_at: datetime
    variants: list[VariantShape]


class ComparisonPage(Shape):
    """Comparisons, newest first."""

    data: list[ComparisonEntry]
    has_more: bool
    next_cursor: str | None


class ComparisonCheckShape(Shape):
    """The specs as they would be run, in the order of the values: every default filled in; and what to think twice about."""

    specs: list[dict[str, Any]]
    warnings: list[str]


@router.post(
    "/comparisons",
    status_code=201,
    response_model=ComparisonShape,
    responses={200: {"model": ComparisonCheckShape | ComparisonShape}},
    dependencies=[SUBMIT],
)
async def start_comparison(
    response: Response,
    context: InContext,
    identity: InIdentity,
    *,
    document: Annotated[Any, Depends(read_json_or_yaml)],
    dry_run: Annotated[bool, Query(description="only validate, and answer with the resolved specs")] = False,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Submit one spec several times, alike but for one field. When the answer is there, all of the jobs are stored."""
    try:
        ask = ComparisonAsk.model_validate(document)
    except ValidationError as error:
        raise InvalidError.of(problems_of(error.errors())) from error
    wish, roots = Wish(ask.spec, ask.field, ask.values), context.settings.data_roots
    if dry_run:
        specs = await use_cases.admitted(context.store, context.artifacts, wish, identity, roots=roots, comparison_id=new_id("cmp"))
        warnings = dict.fromkeys(str(problem) for spec in specs for problem in advise(spec))
        return JSONResponse({"specs": [spec.model_dump(mode="json") for spec in specs], "warnings": list(warnings)})
    claim = None if idempotency_key is None else IdempotencyClaim(idempotency_key, fingerprint(document))
    quotas = context.policy.current().quotas
    comparison, is_new = await use_cases.start(context.store, context.artifacts, wish, identity, roots=roots, quotas=quotas, claim=claim)
    response.headers["Location"] = f"/v1/comparisons/{comparison.id}"
    if not is_new:
        response.headers["Idempotent-Replayed"] = "true"
    return await _shown(context, comparison)


@router.get("/comparisons", dependencies=[READ])
async def list_comparisons(
    context: InContext, identity: InIdentity, after: AfterComparison = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> ComparisonPage:
    """List comparisons, newest first."""
    found = await context.store.comparisons.page(after, limit + 1, None if identity.is_admin else identity.project)
    data = [ComparisonEntry.model_validate(vars(one) | {"state": stage(one), "variants": list(one.variants)}) for one in found[:limit]]
    has_more = len(found) > limit
    return ComparisonPage(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/comparisons/{comparison_id}", dependencies=[READ])
async def get_comparison(comparison_id: ComparisonId, context: InContext) -> ComparisonShape:
    """Show a comparison as a table: accuracy, loss, throughput, cost of synchronizing, health of the statistics."""
    return await _shown(context, await use_cases.find(context.store, comparison_id))


@router.delete("/comparisons/{comparison_id}", status_code=204, dependencies=[SUBMIT])
async def delete_comparison(comparison_id: ComparisonId, context: InContext) -> Response:
    """Delete a comparison whose jobs have ended. The jobs stay."""
    await use_cases.delete(context.store, comparison_id)
    return Response(status_code=204)


async def _shown(context: Context, comparison: Comparison) -> ComparisonShape:
    return ComparisonShape.of(comparison, await use_cases.table(context.store, comparison))
