"""The running statistics in a checkpoint: per layer a summary, on request the vectors, and the difference to another checkpoint."""

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.artifacts import MODEL_NAME, Artifacts
from service.errors import DamagedError, NotFoundError
from service.store.records import Checkpoint
from worker.contract import LayerEntry
from worker.storage.tensors import TensorFile, TensorFileError, tensor_name

_BUFFERS: Final = ("running_mean", "running_var")


@dataclass(frozen=True)
class Vectors:
    """One layer's running statistics."""

    running_mean: list[float]
    running_var: list[float]
    num_batches_tracked: int | None


async def read_statistics(
    artifacts: Artifacts, checkpoint: Checkpoint, *, layer: str | None = None, against: Checkpoint | None = None
) -> dict[str, Any]:
    """Return the running statistics of a checkpoint, as the API says them.

    Args:
        artifacts: where the files are.
        checkpoint: the one to read.
        layer: only this layer, and its vectors; None for a summary of all.
        against: a checkpoint of the same layers; each layer then has the difference, this minus that, and how far they are apart.
    Raises:
        NotFoundError: no such layer.
        DamagedError: a file is not what its manifest says.
    """
    layers = _chosen(checkpoint, layer)
    ours = await _load(artifacts, checkpoint, layers)
    common = [] if against is None else _common(layers, against)
    other_eps = {entry.name: entry.eps for entry in common}
    theirs = {} if against is None else await _load(artifacts, against, common)
    health: dict[str, list[dict[str, str]]] = {entry.name: [] for entry in layers}
    for finding in checkpoint.manifest.health.findings:
        if finding.layer in health:
            health[finding.layer].append({"code": finding.code, "message": finding.message})
    answer: dict[str, Any] = {"step": checkpoint.step, "health": checkpoint.manifest.health.model_dump(mode="json")}
    if against is not None:
        answer["against"] = {"job_id": against.job_id, "step": against.step}
    has_vectors = layer is not None
    answer["layers"] = []
    for entry in layers:
        shown = _layer(entry, ours[entry.name], has_vectors=has_vectors) | {"health": health[entry.name]}
        if against is not None:
            other = theirs.get(entry.name)
            shown["difference"] = _difference(ours[entry.name], other, has_vectors=has_vectors)
            shown |= _measures(ours[entry.name], other, entry.eps, other_eps.get(entry.name, entry.eps))
        answer["layers"].append(shown)
    return answer


def summarize(values: Sequence[float], *, has_vectors: bool = False) -> dict[str, Any]:
    """Return minimum, maximum and mean; None where one of the values is no finite number, or there are none.

    >>> summarize([1.0, 2.0, 6.0])
    {'min': 1.0, 'max': 6.0, 'mean': 3.0}
    """
    is_sound = bool(values) and all(map(math.isfinite, values))
    low, high = (min(values), max(values)) if is_sound else (None, None)
    mean = math.fsum(values) / len(values) if is_sound else None
    shown: dict[str, Any] = {"min": low, "max": high, "mean": mean}
    if has_vectors:
        shown["values"] = [value if math.isfinite(value) else None for value in values]
    return shown


def _chosen(checkpoint: Checkpoint, layer: str | None) -> list[LayerEntry]:
    entries = [entry for entry in checkpoint.manifest.layers if layer is None or entry.name == layer]
    if layer is not None and not entries:
        names = ", ".join(entry.name for entry in checkpoint.manifest.layers)
        raise NotFoundError(f"layer {layer!r} has no running statistics here; expected one of {names}", code="layer_not_found")
    return entries


def _common(layers: Iterable[LayerEntry], other: Checkpoint) -> list[LayerEntry]:
    names = {entry.name for entry in layers}
    return [entry for entry in other.manifest.layers if entry.name in names]


async def _load(artifacts: Artifacts, checkpoint: Checkpoint, layers: Sequence[LayerEntry]) -> dict[str, Vectors]:
    if not layers:
        return {}
    opened = await artifacts.open_statistics(checkpoint)
    try:
        return await asyncio.to_thread(_vectors, TensorFile.read(opened.file), layers)
    except TensorFileError as error:
        raise DamagedError(f"file {MODEL_NAME} of checkpoint {checkpoint.step} is damaged: {error}; use another one") from error


def _vectors(file: TensorFile, layers: Sequence[LayerEntry]) -> dict[str, Vectors]:
    found = {}
    for entry in layers:
        mean, var = (file.vector(tensor_name(entry.name, name)) for name in _BUFFERS)
        tracked = tensor_name(entry.name, "num_batches_tracked")
        found[entry.name] = Vectors(mean, var, int(file.vector(tracked)[0]) if tracked in file else None)
    return found


def _layer(entry: LayerEntry, vectors: Vectors, *, has_vectors: bool) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "num_channels": entry.num_channels,
        "num_batches_tracked": vectors.num_batches_tracked,
        "eps": entry.eps,
        "momentum": entry.momentum,
        "running_mean": summarize(vectors.running_mean, has_vectors=has_vectors),
        "running_var": summarize(vectors.running_var, has_vectors=has_vectors),
    }


def _difference(ours: Vectors, theirs: Vectors | None, *, has_vectors: bool) -> dict[str, Any] | None:
    """Return ours minus theirs, or None where the other checkpoint has no such layer of the same width."""
    if theirs is None or len(ours.running_mean) != len(theirs.running_mean):
        return None
    return {
        name: summarize([a - b for a, b in zip(getattr(ours, name), getattr(theirs, name), strict=True)], has_vectors=has_vectors)
        for name in _BUFFERS
    }


def _measures(ours: Vectors, theirs: Vectors | None, eps: float, other_eps: float) -> dict[str, float | None]:
    """Return `mean_shift` and `distance` as `syncbn.compare_statistics` defines them; None where they cannot be measured."""
    unmeasured: dict[str, float | None] = {"mean_shift": None, "distance": None}
    if theirs is None or not ours.running_mean or len(ours.running_mean) != len(theirs.running_mean):
        return unmeasured
    if not (_is_measurable(ours) and _is_measurable(theirs)):
        return unmeasured
    shift, distances = 0.0, []
    for mean, variance, other_mean, other_variance in zip(
        ours.running_mean, ours.running_var, theirs.running_mean, theirs.running_var, strict=True
    ):
        v, other_v = variance + eps, other_variance + other_eps
        delta = mean - other_mean
        shift = max(shift, abs(delta) / math.sqrt(other_v))
        distances.append((v / other_v + other_v / v + delta * delta * (1 / v + 1 / other_v)) / 2 - 1)
    return {"mean_shift": shift, "distance": max(0.0, math.fsum(distances) / len(distances))}


def _is_measurable(vectors: Vectors) -> bool:
    return all(map(math.isfinite, [*vectors.running_mean, *vectors.running_var])) and min(vectors.running_var) >= 0
