"""The names a spec may use for tasks, models, data sets and norms, and the arguments each takes. The builders live in the worker."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

from pydantic import Field, StrictInt, field_validator, model_validator

from worker.contract.frozen import Frozen
from worker.contract.rules import refuse


class ClassificationArgs(Frozen):
    """Cross-entropy; one label per sample."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="share of the target spread evenly over all classes")


class SegmentationArgs(Frozen):
    """Cross-entropy plus Dice; one label per pixel or voxel."""

    cross_entropy: Annotated[float, Field(ge=0)] = Field(1.0, description="weight of the cross-entropy in the loss")
    dice: Annotated[float, Field(ge=0)] = Field(1.0, description="weight of the Dice loss in the loss")
    include_background: bool = Field(False, description="whether class 0 counts in Dice, loss and metric; IoU has all classes")
    ignore_label: StrictInt = Field(255, description="positions with this label count nowhere; 255 by the convention of Pascal VOC")

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if self.cross_entropy == self.dice == 0:
            raise refuse("cross_entropy and dice are both 0", "a weight above 0 for one of them", "remove one of them")
        return self


class ResNetArgs(Frozen):
    """ResNet for images of any size."""

    stem: Literal["small", "imagenet"] = Field("small", description="small: one 3x3 convolution; imagenet: 7x7 stride 2 and max pooling")
    width: Annotated[StrictInt, Field(ge=1, le=1024)] = Field(64, description="channels of the first stage; each later stage doubles")


class UNetArgs(Frozen):
    """U-Net for images or volumes of any size."""

    width: Annotated[StrictInt, Field(ge=1, le=1024)] = Field(32, description="channels at full resolution; each level doubles")
    depth: Annotated[StrictInt, Field(ge=1, le=7)] = Field(4, description="levels below full resolution; each halves it")


class HybridArgs(Frozen):
    """Convolutions, then attention, for images of any size."""

    width: Annotated[StrictInt, Field(ge=4, le=1024)] = Field(32, description="channels of the stem; each of the two stages doubles")
    blocks: Annotated[StrictInt, Field(ge=1, le=64)] = Field(2, description="blocks per stage")
    heads: Annotated[StrictInt, Field(ge=1, le=64)] = Field(4, description="attention heads; a divisor of 4 times width")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if 4 * self.width % self.heads:
            known = [heads for heads in range(1, 65) if 4 * self.width % heads == 0]
            raise refuse(
                f"{self.heads} heads do not divide {4 * self.width} channels", f"heads among {known}", f"set heads: {known[-1]} or less"
            )
        return self


class CspDarknetArgs(Frozen):
    """CSP backbone for images of any size."""

    width: Annotated[StrictInt, Field(ge=2, le=512)] = Field(16, description="channels of the stem; each of the four stages doubles")
    depth: Annotated[StrictInt, Field(ge=1, le=64)] = Field(1, description="bottlenecks of the first CSP block; others have up to 3 times")


class DigitsArgs(Frozen):
    """scikit-learn's 1,797 hand-written digits, 8x8, one channel, ten classes; bundled, so nothing is downloaded."""

    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="share of every class held out for testing")
    shift: Annotated[StrictInt, Field(ge=0, le=2)] = Field(0, description="augmentation: shift by up to this many pixels each way")


class SyntheticArgs(Frozen):
    """Deterministic samples, each a function of (seed, index). Never held in memory whole.

    classification: a pattern of the class plus noise. segmentation: balls of the classes 1, 2, ... on a background of class 0, plus noise.
    """

    task: Literal["classification", "segmentation"] = Field("classification", description="what the labels are for")
    num_samples: Annotated[StrictInt, Field(ge=1, le=2**40)] = Field(1024, description="training samples")
    num_test_samples: Annotated[StrictInt, Field(ge=1, le=2**40)] = Field(256, description="test samples")
    num_classes: Annotated[StrictInt, Field(ge=2, le=100_000)] = 10
    channels: Annotated[StrictInt, Field(ge=1, le=1024)] = 3
    image_size: Annotated[StrictInt, Field(ge=1, le=4096)] = Field(32, description="length of each side in pixels")
    dimensions: Literal[2, 3] = Field(2, description="2: images (C, H, W); 3: volumes (C, D, H, W)")


class ArraysArgs(Frozen):
    """Arrays in .npz or .safetensors files, `x` the samples and `y` the labels or masks; several files are one after the other."""

    x: str = Field("x", description="name of the array of samples")
    y: str = Field("y", description="name of the array of labels, (N,), or of masks, (N, *spatial); whole numbers")
    channels: Literal["first", "last", "none"] = Field("first", description="where x has its channels: (N, C, *), (N, *, C) or (N, *)")
    num_classes: Annotated[StrictInt, Field(ge=2, le=100_000)] | None = Field(None, description="default: the largest label plus 1")


class ImageFolderArgs(Frozen):
    """Image files. Classes: one directory each, numbered in the order of their names. Masks: images/ and masks/, files of equal name."""

    targets: Literal["classes", "masks"] = "classes"
    mode: Literal["rgb", "gray"] = Field(
        "rgb", description="colour images become gray, gray ones become colour, as asked; alpha is dropped"
    )
    num_classes: Annotated[StrictInt, Field(ge=2, le=100_000)] | None = Field(None, description="of masks, where it must be given")

    @model_validator(mode="after")
    def _masks_need_classes(self) -> Self:
        if (self.targets == "masks") != (self.num_classes is not None):
            raise refuse("num_classes belongs to masks", "num_classes with targets: masks, and only there", "add or remove num_classes")
        return self


class ParquetArgs(Frozen):
    """Parquet files of encoded images, or of lists of numbers, and labels. Row groups are read as they are needed."""

    image: str = Field("image", description="column of image files: bytes, {bytes, path}, or a list of numbers of `shape`")
    label: str = Field("label", description="column of whole numbers")
    mode: Literal["rgb", "gray"] = "rgb"
    shape: tuple[Annotated[StrictInt, Field(ge=1)], ...] | None = Field(None, description="(C, *spatial) of lists of numbers")
    cache_mb: Annotated[StrictInt, Field(ge=1)] = Field(256, description="row groups kept in memory, per process")


class WebDatasetArgs(Frozen):
    """Uncompressed tar shards: files of equal name up to the first dot are one sample, KEY.jpg with KEY.cls."""

    image: tuple[str, ...] = Field(("jpg", "jpeg", "png", "webp"), description="endings of the image, the first found")
    label: str = Field("cls", description="ending of the file that holds the number of the class")
    mode: Literal["rgb", "gray"] = "rgb"


class NormArgs(Frozen):
    """A norm that takes nothing beyond eps, momentum and group_size of the spec's `norm` section, as far as it has any of these."""


class GroupNormArgs(Frozen):
    """GroupNorm."""

    num_groups: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="a divisor of the channels of every norm of the model; null: for each norm the largest one that divides 32 too"
    )


class GhostBatchNormArgs(Frozen):
    """BatchNorm of virtual batches."""

    virtual_batch_size: Annotated[StrictInt, Field(ge=1)] = Field(32, description="samples of a rank's share that are normalized together")


class BatchRenormArgs(Frozen):
    """How far a batch's statistics are corrected towards the running ones: not at all at first, then ever more, up to r_max and d_max."""

    r_max: Annotated[float, Field(ge=1)] = Field(3.0, description="the largest factor, and its inverse the smallest")
    d_max: Annotated[float, Field(ge=0)] = Field(5.0, description="the largest shift, in standard deviations")
    start: Annotated[StrictInt, Field(ge=0)] = Field(5_000, description="the step at which the correction begins")
    r_end: Annotated[StrictInt, Field(ge=0)] = Field(40_000, description="the step at which r_max is reached")
    d_end: Annotated[StrictInt, Field(ge=0)] = Field(25_000, description="the step at which d_max is reached")

    @model_validator(mode="after")
    def _goes_forward(self) -> Self:
        if self.start > min(self.r_end, self.d_end):
            raise refuse(
                f"start {self.start} is after r_end {self.r_end} or d_end {self.d_end}",
                "start at or before both",
                f"set start: {min(self.r_end, self.d_end)} or less",
            )
        return self


class AutoNormArgs(Frozen):
    """The kinds of which the best is chosen."""

    kinds: tuple[str, ...] = Field(
        ("sync_bn", "batch_norm", "group_norm"), min_length=2, max_length=8, description="tried in this order; the earlier of equals wins"
    )

    @field_validator("kinds")
    @classmethod
    def _are_known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for kind in kinds:
            if kind not in NORMS:
                raise refuse(f"unknown norm kind {kind}", f"kinds among {', '.join(NORMS)}", f"remove {kind}")
            if kinds.count(kind) > 1:
                raise refuse(f"{kind} is there twice", "each kind once", "remove the second one")
        return kinds


@dataclass(frozen=True)
class Entry:
    """One name of the catalogue: what it is, and the arguments it takes."""

    name: str
    summary: str
    args: type[Frozen]
    tasks: tuple[str, ...] | None = None
    """The built-in tasks that it serves; None: it depends on the arguments."""
    is_stored: bool = False
    """Data that is read from files at `data.path`."""


def _table(*entries: Entry) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}


TASKS = _table(
    Entry("classification", "cross-entropy; accuracy and top-5 accuracy", ClassificationArgs),
    Entry("segmentation", "cross-entropy plus Dice, in 2-D and 3-D; IoU and Dice per class", SegmentationArgs),
)
_CLASSIFIES, _SEGMENTS = ("classification",), ("segmentation",)
MODELS = _table(
    Entry("resnet18", "ResNet-18: 8 basic blocks, every norm site built by the spec's norm", ResNetArgs, _CLASSIFIES),
    Entry("resnet34", "ResNet-34: 16 basic blocks", ResNetArgs, _CLASSIFIES),
    Entry("resnet50", "ResNet-50: 16 bottleneck blocks", ResNetArgs, _CLASSIFIES),
    Entry("hybrid", "convolutions, then attention with a norm after every linear map", HybridArgs, _CLASSIFIES),
    Entry("cspdarknet", "the backbone of one-stage detectors: CSP blocks and spatial pyramid pooling", CspDarknetArgs, _CLASSIFIES),
    Entry("unet", "U-Net for images and volumes", UNetArgs, _SEGMENTS),
)
DATASETS = _table(
    Entry("digits", "scikit-learn's hand-written digits, 8x8, ten classes", DigitsArgs, _CLASSIFIES),
    Entry("synthetic", "deterministic images of any number and size", SyntheticArgs),
    Entry("arrays", "samples and labels, or masks, in .npz or .safetensors files at data.path", ArraysArgs, is_stored=True),
    Entry("imagefolder", "image files at data.path: a directory per class, or images/ and masks/", ImageFolderArgs, is_stored=True),
    Entry("parquet", "images and labels in the columns of Parquet files at data.path", ParquetArgs, is_stored=True),
    Entry("webdataset", "images and labels in tar shards at data.path", WebDatasetArgs, is_stored=True),
)
NORMS = _table(
    Entry("sync_bn", "BatchNorm over the whole global batch, synchronized by one all-reduce", NormArgs),
    Entry("batch_norm", "BatchNorm over each rank's own share of the batch", NormArgs),
    Entry("ghost_bn", "BatchNorm over virtual batches, smaller than each rank's own share", GhostBatchNormArgs),
    Entry("batch_renorm", "sync_bn, corrected towards the running statistics: for small batches", BatchRenormArgs),
    Entry("frozen_bn", "BatchNorm with fixed statistics, weight and bias: for fine-tuning with initialize_from", NormArgs),
    Entry("group_norm", "GroupNorm over groups of channels of one sample, no running statistics", GroupNormArgs),
    Entry("layer_norm", "LayerNorm over the channels of one position, no running statistics", NormArgs),
    Entry("instance_norm", "InstanceNorm, each sample and channel alone, no running statistics", NormArgs),
    Entry("switchable", "a learned mixture of instance, layer and sync_bn statistics", NormArgs),
)
OWN_STATISTICS_NORMS: Final = frozenset({"batch_norm", "ghost_bn"})
"""Kinds whose running statistics are those of a rank's own share, and differ from rank to rank."""
AUTO_NORM: Final = "auto"
"""The controller replaces it by a kind before the job starts; a rank never sees it."""
AUTO = Entry(AUTO_NORM, "chosen by short trials of several kinds before the job starts", AutoNormArgs)
