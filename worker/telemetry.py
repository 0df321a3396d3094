"""Which steps are watched, and what is said of them: drift, cost of synchronization and variance between ranks, layer by layer.

Owns the rate and the size of these reports. What is measured, and how, is `syncbn.telemetry`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from syncbn import LayerTelemetry
from worker.contract.telemetry import LayerRecord, TelemetryRecord

INTERVAL_STEPS = 100
SHORTEST_INTERVAL_STEPS = 10
"""Of a job that is so short that it would be watched fewer than twenty times."""
FIRST_STEPS = (2, 5, 10, 20, 50)
"""Where running statistics leave their initial values behind, drift is largest. Not the first one of all: it warms up."""
MAX_SAMPLES = 500
"""Of one job: longer jobs are watched more seldom."""
MAX_LAYERS = 256
"""Of one report: of a deeper model the first ones."""

Layers = Mapping[str, LayerTelemetry]


def is_watched(step: int, total_steps: int) -> bool:
    """Whether a step, counted from 0, is watched: every 100th, some early ones, and the last; in short jobs more, in long ones at most 500.

    A function of the step alone, so that all ranks, also one that has just replaced another, take part in the collective of the same steps.

    >>> [step + 1 for step in range(48) if is_watched(step, 48)]
    [2, 5, 10, 20, 30, 40, 48]
    """
    usual = min(INTERVAL_STEPS, max(SHORTEST_INTERVAL_STEPS, total_steps // 20))
    interval = max(usual, math.ceil(total_steps / (MAX_SAMPLES - len(FIRST_STEPS) - 1)))
    return (step + 1) % interval == 0 or step + 1 == total_steps or step + 1 in FIRST_STEPS


def record_of(step: int, layers: Layers) -> TelemetryRecord:
    """Return what to say after `step` steps: four digits of each number; what is no finite number becomes None."""
    shown = list(layers.values())[:MAX_LAYERS]
    records = tuple(LayerRecord(**{name: _short(value) for name, value in asdict(layer).items()}) for layer in shown)
    return TelemetryRecord(step=step, layers=records, num_left_out=len(layers) - len(shown))


def cost(layers: Layers) -> dict[str, float]:
    """Return what synchronizing cost this rank in the step, over all layers: metrics."""
    return {
        "sync/time_s": sum(layer.time_s for layer in layers.values()),
        "sync/bytes": float(sum(layer.bytes_sent for layer in layers.values())),
    }


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None
