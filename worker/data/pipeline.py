"""The transforms of a spec, bound to one split: in which order, with which random numbers. Owns the streams of these numbers.

A draw is a function of (seed, epoch, sample, place of the transform in the list, number of the draw): never of the rank, the process, or
the other samples of the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.contract.transforms import CenterCrop, Color, Cutout, Flip, Mixup, Normalize, RandomCrop, RandomResizedCrop, Resize, Transform
from worker.data import geometry, values
from worker.data.noise import uniforms
from worker.data.split import Array, Indices

FIRST_LANE = 1 << 8
"""Below it are the streams of the split, of substitutes and of mixing."""
_LANES_PER_TRANSFORM = 8
_RESIZE_SHARE = 0.875
"""Of the resized shorter side, what the central crop keeps: 224 of 256, the usual evaluation of ImageNet."""

_Moving = Callable[[Any, Array, Array | None, Sequence[float]], tuple[Array, Array | None]]
_Changing = Callable[[Any, Array, Sequence[float]], Array]
_MOVING: dict[type, tuple[_Moving, int]] = {
    RandomCrop: (geometry.random_crop, 3),
    RandomResizedCrop: (geometry.random_resized_crop, 4),
    CenterCrop: (geometry.center_crop, 0),
    Resize: (geometry.resize, 0),
    Flip: (geometry.flip, 1),
}
_CHANGING: dict[type, tuple[_Changing, int]] = {Color: (values.color, 3), Cutout: (values.cutout, 4), Normalize: (values.normalize, 0)}


@dataclass(frozen=True)
class Pipeline:
    """What happens to the samples of one split, after they are read. Mixup comes later: it needs the whole batch."""

    steps: tuple[tuple[int, Transform], ...]
    """Each with its place in the spec's list."""
    seed: int

    def draws(self, indices: Indices, epoch: int) -> npt.NDArray[np.float64]:
        """Return the random numbers of all transforms for each sample, (n, number of draws)."""
        lanes = [FIRST_LANE + _LANES_PER_TRANSFORM * place + draw for place, step in self.steps for draw in range(_num_draws(step))]
        return np.stack([uniforms(self.seed, epoch, indices, lane) for lane in lanes], axis=1) if lanes else np.empty((len(indices), 0))

    def apply(self, image: Array, mask: Array | None, draws: Sequence[float]) -> tuple[npt.NDArray[np.float32], Array | None]:
        """Return an image (C, *spatial) after all transforms, as float32, and its mask after those that move pixels.

        Raises:
            DataError: an image does not fit a transform.
        """
        used = 0
        for _, step in self.steps:
            own = draws[used : used + _num_draws(step)]
            used += len(own)
            if type(step) in _MOVING:
                image, mask = _MOVING[type(step)][0](step, image, mask, own)
            else:
                image = _CHANGING[type(step)][0](step, image, own)
        return values.floating(image), mask


def build(transforms: Sequence[Transform], seed: int, *, is_training: bool) -> Pipeline:
    """Return the pipeline of a split. What is random does nothing outside of training, but that crops become central."""
    steps: list[tuple[int, Transform]] = [(place, step) for place, step in enumerate(transforms) if not isinstance(step, Mixup)]
    if not is_training:
        steps = [(place, kept) for place, step in steps for kept in _for_evaluation(step)]
    return Pipeline(tuple(steps), seed)


def _num_draws(step: Transform) -> int:
    return (_MOVING.get(type(step)) or _CHANGING[type(step)])[1]


def _for_evaluation(step: Transform) -> tuple[Transform, ...]:
    match step:
        case RandomCrop():
            return (CenterCrop(name="center_crop", size=step.size),)
        case RandomResizedCrop():
            side = round(step.size / _RESIZE_SHARE)
            return (Resize(name="resize", size=side), CenterCrop(name="center_crop", size=step.size))
        case Flip() | Color() | Cutout():
            return ()
    return (step,)
