"""What the ranks told of their normalization layers, laid out over steps and layers. Pure."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from service.errors import NotFoundError
from service.store.records import Event
from worker.contract import LayerRecord, TelemetryRecord


@dataclass(frozen=True)
class LayerHistory:
    """One layer: its newest record, and its drift at each of the steps of the whole; None where it was not told."""

    newest: LayerRecord
    mean_drift: tuple[float | None, ...]
    variance_drift: tuple[float | None, ...]


@dataclass(frozen=True)
class History:
    """Layers in the model's order, over the steps that were watched."""

    steps: tuple[int, ...]
    layers: tuple[LayerHistory, ...]


def readable(events: Sequence[Event]) -> Iterator[TelemetryRecord]:
    """Yield what telemetry events say; one that says it in words of another version is passed over."""
    for event in events:
        try:
            yield TelemetryRecord.model_validate(event.data)
        except ValidationError:
            continue


def lay_out(records: Iterable[TelemetryRecord], names: Collection[str] = ()) -> History:
    """Return the history that records tell. A step that was done again, after a restart, counts as it was done last.

    Args:
        records: oldest first.
        names: only these layers; all, where empty.
    Raises:
        NotFoundError: no record has one of the names.
    """
    by_step = dict(sorted({record.step: {layer.name: layer for layer in record.layers} for record in records}.items()))
    newest = {name: layer for layers in by_step.values() for name, layer in layers.items()}
    for name in names:
        if name not in newest:
            known = ", ".join(list(newest)[:5]) or "none yet"
            raise NotFoundError(f"layer {name[:100]!r} was not told of; expected one of {known}; leave ?layer= out", code="layer_not_found")
    rows = [[layers.get(name) for layers in by_step.values()] for name in newest]
    histories = [
        LayerHistory(
            layer, tuple(one.mean_drift if one else None for one in row), tuple(one.variance_drift if one else None for one in row)
        )
        for layer, row in zip(newest.values(), rows, strict=True)
        if not names or layer.name in names
    ]
    return History(tuple(by_step), tuple(histories))
