"""The names a spec may use for models, data sets and norms, and the arguments each takes. The builders live in the worker."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StrictInt

from worker.contract.frozen import Frozen


class ResNetArgs(Frozen):
    """ResNet for images of any size."""

    stem: Literal["small", "imagenet"] = Field("small", description="small: one 3x3 convolution; imagenet: 7x7 stride 2 and max pooling")
    width: Annotated[StrictInt, Field(ge=1, le=1024)] = Field(64, description="channels of the first stage; each later stage doubles")


class DigitsArgs(Frozen):
    """scikit-learn's 1,797 hand-written digits, 8x8, one channel, ten classes; bundled, so nothing is downloaded."""

    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="share of every class held out for testing")
    shift: Annotated[StrictInt, Field(ge=0, le=2)] = Field(0, description="augmentation: shift by up to this many pixels each way")


class SyntheticArgs(Frozen):
    """Deterministic images, each a function of (seed, index): a class pattern plus noise. Never held in memory whole."""

    num_samples: Annotated[StrictInt, Field(ge=1, le=2**40)] = Field(1024, description="training samples")
    num_test_samples: Annotated[StrictInt, Field(ge=1, le=2**40)] = Field(256, description="test samples")
    num_classes: Annotated[StrictInt, Field(ge=2, le=100_000)] = 10
    channels: Annotated[StrictInt, Field(ge=1, le=1024)] = 3
    image_size: Annotated[StrictInt, Field(ge=1, le=4096)] = Field(32, description="height and width in pixels")


class NormArgs(Frozen):
    """Every norm takes its options from the spec's `norm` section."""


@dataclass(frozen=True)
class Entry:
    """One name of the catalogue: what it is, and the arguments it takes."""

    name: str
    summary: str
    args: type[Frozen]


def _table(*entries: Entry) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}


MODELS = _table(
    Entry("resnet18", "ResNet-18: 8 basic blocks, every norm site built by the spec's norm", ResNetArgs),
)
DATASETS = _table(
    Entry("digits", "scikit-learn's hand-written digits, 8x8, ten classes", DigitsArgs),
    Entry("synthetic", "deterministic images of any number and size", SyntheticArgs),
)
NORMS = _table(
    Entry("sync_bn", "BatchNorm over the whole global batch, synchronized by one all-reduce", NormArgs),
    Entry("batch_norm", "BatchNorm over each rank's own share of the batch", NormArgs),
    Entry("group_norm", "GroupNorm, up to 32 groups of channels, no running statistics", NormArgs),
    Entry("layer_norm", "LayerNorm over channels and space, no running statistics", NormArgs),
    Entry("instance_norm", "InstanceNorm, each sample and channel alone, no running statistics", NormArgs),
)
