"""The shape of a checkpoint's running statistics, as the API answers them."""

from pydantic import Field

from service.api.schemas import Shape
from worker.contract import Health


class VectorShape(Shape):
    """A vector over channels: in summary, and whole where one layer was asked for. None: not finite."""

    min: float | None
    max: float | None
    mean: float | None
    values: list[float | None] = Field(default_factory=list)


class FindingShape(Shape):
    """What is wrong with a layer."""

    code: str
    message: str


class DifferenceShape(Shape):
    """This checkpoint minus the other."""

    running_mean: VectorShape
    running_var: VectorShape


class LayerShape(Shape):
    """One layer. The last three are there where another checkpoint was asked for, and None where it has no such layer."""

    name: str
    kind: str
    num_channels: int
    num_batches_tracked: int | None
    eps: float
    momentum: float | None
    running_mean: VectorShape
    running_var: VectorShape
    health: list[FindingShape]
    difference: DifferenceShape | None = None
    mean_shift: float | None = None
    distance: float | None = None


class AgainstShape(Shape):
    """The other checkpoint."""

    job_id: str
    step: int


class StatisticsShape(Shape):
    """The running statistics of a checkpoint, layer by layer."""

    step: int
    health: Health
    against: AgainstShape | None = None
    layers: list[LayerShape]
