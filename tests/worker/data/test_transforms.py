"""Tests of worker/data/geometry.py, values.py and pipeline.py."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from tests.support.images import pixels
from worker.contract.transforms import Transform
from worker.data import pipeline
from worker.errors import DataError

IMAGE = pixels(0).transpose(2, 0, 1)
MASK = pixels(1)[..., 0] % 4
TRANSFORMS = TypeAdapter(tuple[Transform, ...])


def _pipeline(*steps, seed=0, is_training=True):
    return pipeline.build(TRANSFORMS.validate_python(steps), seed, is_training=is_training)


def _runs(*steps, image=IMAGE, mask=None, count=200, epoch=0):
    """The same image as so many samples."""
    bound = _pipeline(*steps)
    return [bound.apply(image, mask, draws) for draws in bound.draws(np.arange(count), epoch)]


def test_a_sample_depends_on_seed_epoch_index_and_place_alone():
    """Not on its neighbours in the batch; another seed, epoch, index or place in the list changes the numbers."""
    flip, color = {"name": "flip"}, {"name": "color", "brightness": 0.5}
    draws = _pipeline(flip, color).draws(np.array([3, 9, 4]), 2)

    assert np.array_equal(_pipeline(flip, color).draws(np.array([9]), 2)[0], draws[1])
    assert len({*draws.flatten()}) == draws.size
    others = [_pipeline(flip, color, seed=1).draws(np.array([9]), 2), _pipeline(flip, color).draws(np.array([9]), 3)]
    assert not any(number in draws for other in others for number in other.flatten())
    assert _pipeline(color, flip).draws(np.array([9]), 2)[0, 0] == draws[1, 0]


@pytest.mark.parametrize(
    "step",
    [
        {"name": "random_crop", "size": [6, 9], "padding": 2},
        {"name": "center_crop", "size": 7},
        {"name": "flip", "axis": "vertical"},
        {"name": "resize", "size": [6, 7]},
        {"name": "random_resized_crop", "size": 8},
    ],
    ids=lambda step: step["name"],
)
def test_a_mask_moves_with_its_image(step):
    """An image whose pixels are its mask's classes still is, after any geometry; where it was padded, the mask says ignore."""
    coarse = np.kron(np.arange(20).reshape(4, 5) % 4, np.ones((6, 6), int))
    for image, mask in _runs(step, image=(coarse * 64).astype(np.uint8)[None], mask=coarse):
        assert mask.shape == image.shape[1:]
        kept = mask != 255
        difference = np.abs(image[0] * 255 / 64 - mask)[kept]
        # Resizing mixes neighbours of an image, and picks one of a mask.
        assert np.median(difference) < (0.5 if "resize" in step["name"] else 1e-4)
        assert (image[0][~kept] == 0).all()


def test_every_crop_and_both_flips_happen():
    """All places where a window fits, about as often as one another."""
    places = {image.tobytes() for image, _ in _runs({"name": "random_crop", "size": [11, 12]})}
    expected = {(IMAGE[:, row : row + 11, column : column + 12] * np.float32(1 / 255)).tobytes() for row in range(2) for column in range(3)}
    flipped = sum(np.array_equal(image, _runs({"name": "flip", "p": 1}, count=1)[0][0]) for image, _ in _runs({"name": "flip", "p": 0.25}))

    assert places == expected
    assert 25 < flipped < 75


def test_volumes_are_cropped_flipped_and_cut_out():
    """Three dimensions are no special case; sizes in plane are."""
    volume = np.random.default_rng(0).random((2, 5, 6, 7), dtype=np.float32) + 1
    image, mask = _runs(
        {"name": "random_crop", "size": 4},
        {"name": "flip"},
        {"name": "cutout", "size": 2},
        image=volume,
        mask=volume[0].astype(int),
        count=1,
    )[0]

    assert (image.shape, mask.shape) == ((2, 4, 4, 4), (4, 4, 4))
    with pytest.raises(DataError, match=r"an image of \(2, 5, 6, 7\) cannot be resized"):
        _runs({"name": "resize", "size": 4}, image=volume, count=1)


def test_the_shorter_side_is_resized():
    """The ratio stays; 16 bits keep their range."""
    ((image, _),) = _runs({"name": "resize", "size": 6}, count=1)
    ((deep, _),) = _runs({"name": "resize", "size": 6}, image=np.full((1, 12, 14), 65535, np.uint16), count=1)

    assert image.shape == (3, 6, 7)
    assert np.allclose(deep, 1)
    assert np.abs(image.mean() - IMAGE.mean() / 255) < 0.02


def test_an_image_too_small_for_its_crop_is_refused():
    """With its size and what to do."""
    with pytest.raises(DataError, match=r"an image of \(12, 14\) cannot be cropped to \(13, 13\); expected one at least as large; resize"):
        _runs({"name": "center_crop", "size": 13}, count=1)


def test_normalization_by_channel_and_by_sample():
    """Mean 0 and deviation 1: of the given numbers, or of the sample itself; a constant sample becomes 0."""
    x = IMAGE / 255
    mean, std = x.mean((1, 2)), x.std((1, 2))
    by_channel = _runs({"name": "normalize", "mean": mean.tolist(), "std": std.tolist()}, count=1)[0][0]
    by_sample = _runs({"name": "normalize", "per_sample": True}, count=1)[0][0]

    assert np.allclose(by_channel, (x - mean[:, None, None]) / std[:, None, None], atol=1e-5)
    assert np.allclose((by_sample.mean(), by_sample.std()), (0, 1), atol=1e-5)
    assert (_runs({"name": "normalize", "per_sample": True}, image=IMAGE * 0 + 9, count=1)[0][0] == 0).all()
    with pytest.raises(DataError, match="normalize has 2 means for images of 3 channels; expected 1 or 3"):
        _runs({"name": "normalize", "mean": [0, 0], "std": [1, 1]}, count=1)


def test_colours_change_within_their_strength():
    """Brightness scales, strength 0 changes nothing, full saturation down is gray, and all stays in [0, 1]."""
    dark = (IMAGE // 4).astype(np.uint8)
    factors = [image.sum() / (dark / 255).sum() for image, _ in _runs({"name": "color", "brightness": 0.5}, image=dark)]
    every = np.stack([image for image, _ in _runs({"name": "color", "brightness": 1, "contrast": 1, "saturation": 1})])

    assert 0.5 <= min(factors) < 0.6
    assert 1.4 < max(factors) <= 1.5
    assert np.allclose(_runs({"name": "color"}, count=1)[0][0], IMAGE / 255, atol=1e-6)
    assert every.min() >= 0
    assert every.max() <= 1


def test_cutout_blanks_one_square():
    """At most size by size, less at the border; p is how often."""
    areas = [int((image == 0).all(0).sum()) for image, _ in _runs({"name": "cutout", "size": 4, "p": 0.5}, image=IMAGE // 2 + 1)]

    assert max(areas) == 16
    assert 60 < areas.count(0) < 140
