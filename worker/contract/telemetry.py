"""What a rank says of its normalization layers in a telemetry event. What the fields mean is said at `syncbn.LayerTelemetry`."""

from worker.contract.frozen import Frozen


class LayerRecord(Frozen):
    """One layer in one watched step. None: not measured, or no finite number."""

    name: str
    num_ranks: int
    num_calls: int
    num_reductions: int
    bytes_sent: int
    time_s: float
    num_values: float | None
    mean_drift: float | None
    variance_drift: float | None
    between_to_within: float | None
    effective_num_values: float | None


class TelemetryRecord(Frozen):
    """The layers of a model after `step` steps, in the model's order; of a very deep one the first."""

    step: int
    layers: tuple[LayerRecord, ...]
    num_left_out: int = 0
