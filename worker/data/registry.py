"""From the data section of a spec to a data set. Owns the tables; their names are those of the catalogue.

Readers are imported when they are needed: Pillow and pyarrow stay out of jobs, and loader processes, that do not use them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from worker.contract.catalogue import DATASETS
from worker.contract.data import DataSpec, SplitSpec
from worker.data import digits, pipeline, synthetic
from worker.data.division import held_out
from worker.data.generated import Transformed
from worker.data.mirror import mirrored
from worker.data.records import Numbered, Records
from worker.data.split import Splits
from worker.data.stored import StoredSplit
from worker.errors import DataError, blame

BUILDERS: dict[str, Callable[[Any, int], Splits]] = {
    "digits": digits.build,
    "synthetic": synthetic.build,
}


def _arrays(path: str, args: Any) -> Records:
    from worker.data import arrays

    return arrays.build(path, args)


def _imagefolder(path: str, args: Any) -> Records:
    from worker.data import imagefolder

    return imagefolder.build(path, args)


def _parquet(path: str, args: Any) -> Records:
    from worker.data import parquet

    return parquet.build(path, args)


def _webdataset(path: str, args: Any) -> Records:
    from worker.data import webdataset

    return webdataset.build(path, args)


READERS: dict[str, Callable[[str, Any], Records]] = {
    "arrays": _arrays,
    "imagefolder": _imagefolder,
    "parquet": _parquet,
    "webdataset": _webdataset,
}


def build_data(spec: DataSpec, seed: int) -> Splits:
    """Return the splits of a data set, with the transforms of the spec.

    Raises:
        DataError: it cannot be read, or lies where this worker may not read.
    """
    with blame(DataError):
        args = DATASETS[spec.name].args.model_validate(spec.args)
        training, evaluation = (pipeline.build(spec.transforms, seed, is_training=is_training) for is_training in (True, False))
        if spec.path is None:
            splits = BUILDERS[spec.name](args, seed)
            # Without transforms as they are: what is generated in batches is not taken apart.
            train = Transformed(splits.train, training) if training.steps else splits.train
            return Splits(train, Transformed(splits.test, evaluation) if evaluation.steps else splits.test)

        def read(path: str) -> Records:
            # The classes of a folder are its directories; the other formats lie in one.
            return READERS[spec.name](mirrored(path, spec.profile or "", is_deep=spec.name == "imagefolder"), args)

        records, split = read(spec.path), spec.split or SplitSpec()
        if isinstance(split.validation, str):
            other = _like(records, read(split.validation), spec.path, split.validation)
            numbers, other_numbers = np.arange(records.num_samples), np.arange(other.num_samples)
        else:
            labels = np.zeros(records.num_samples, np.int64) if records.labels is None else records.labels
            is_held_out = held_out(labels, split.validation, split.seed)
            other, numbers, other_numbers = records, np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
        if not len(numbers) or not len(other_numbers):
            raise DataError(f"data.path {spec.path} has {records.num_samples} samples; expected at least two of some class; use more data")
        return Splits(StoredSplit(records, numbers, training), StoredSplit(other, other_numbers, evaluation))


def _like(train: Records, validation: Records, path: str, other_path: str) -> Records:
    """Return the validation data with the classes numbered as in training: where both have names, by these."""
    if validation.num_classes > train.num_classes:
        raise DataError(
            f"data.split.validation {other_path} has {validation.num_classes} classes; expected at most the {train.num_classes} of {path};"
            " train on all classes that are validated"
        )
    if isinstance(train, Numbered) and isinstance(validation, Numbered):
        strange = sorted(set(validation.class_names) - set(train.class_names))
        if strange:
            raise DataError(
                f"data.split.validation {other_path} has the classes {', '.join(strange[:3])}; expected those of {path};"
                " train on all classes that are validated"
            )
        return validation.numbered_as(train.class_names)
    return validation
