"""The `data` section of a spec: which samples, how they are divided, changed and loaded. Owns its fields and their contradictions."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, StrictInt, field_validator, model_validator

from worker.contract.catalogue import DATASETS
from worker.contract.frozen import Frozen
from worker.contract.rules import StoredPath, is_object_uri, refuse, stored_path
from worker.contract.transforms import Mixup, Transform


def _share_or_path(value: Any) -> Any:
    """Refuse in one sentence what is neither; a union of types would complain twice."""
    if isinstance(value, str):
        return stored_path(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise refuse("is neither a share nor a path", "a share between 0 and 1, or an absolute path", "write 0.1, or /data/photos/val")
    return value


class SplitSpec(Frozen):
    """What is held out for validation: a share of every class, drawn by its own seed, or data of its own."""

    validation: Annotated[float | str, BeforeValidator(_share_or_path)] = 0.1
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    """Not the job's: jobs of different seeds are compared on the same samples."""


def _at_most_one_mixup(transforms: tuple[Transform, ...]) -> tuple[Transform, ...]:
    if sum(isinstance(transform, Mixup) for transform in transforms) > 1:
        raise refuse("mixup is listed twice", "at most one mixup", "remove one")
    return transforms


class DataSpec(Frozen):
    """The data set by name, its arguments, and what is done with its samples."""

    name: str
    path: StoredPath | None = None
    """Of the sets that are read from files: a file, a directory, or for several files a pattern like /data/part-*.npz; or their URI,
    s3://bucket/part-*.npz or gs://..., of which every node makes itself a copy."""
    profile: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    """By which of the operator's named ways into object stores URIs are read; none: by the node's own credentials."""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    split: SplitSpec | None = None
    """Of the sets that are read from files; the generated ones come divided."""
    transforms: Annotated[tuple[Transform, ...], Field(max_length=16), AfterValidator(_at_most_one_mixup)] = ()
    loader_workers: Annotated[StrictInt, Field(ge=0, le=64)] = 0
    """Processes per rank that load batches; 0: the rank itself."""
    prefetch: Annotated[StrictInt, Field(ge=0, le=64)] = 2
    """Batches that are kept ready ahead of the step; 0 without processes: loaded when the step asks."""
    max_bad: Annotated[StrictInt, Field(ge=0)] = 0
    """Samples that may be unreadable in one pass over training or validation data, each replaced by another; one more ends the job."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in DATASETS:
            raise refuse("unknown data set", f"one of {', '.join(DATASETS)}", f"use one of {', '.join(DATASETS)}")
        return name

    @model_validator(mode="before")
    @classmethod
    def _files_are_split(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("split") is None and _is_stored(raw.get("name")):
            return {**raw, "split": SplitSpec()}
        return raw

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if _is_stored(self.name) and self.path is None:
            raise refuse(f"{self.name} is read from files", "data.path", "add data.path: /where/the/data/is")
        if not _is_stored(self.name) and (self.path is not None or self.split is not None):
            raise refuse(f"{self.name} is not read from files", "no data.path and no data.split", "remove them")
        places = (self.path, None if self.split is None else self.split.validation)
        if self.profile is not None and not any(isinstance(place, str) and is_object_uri(place) for place in places):
            raise refuse("data.profile is for object stores", "a data.path of s3:// or gs://", "remove data.profile")
        return self

    @property
    def mixup(self) -> Mixup | None:
        """The mixup of the list, if there is one."""
        return next((transform for transform in self.transforms if isinstance(transform, Mixup)), None)


def _is_stored(name: Any) -> bool:
    return isinstance(name, str) and name in DATASETS and DATASETS[name].is_stored
