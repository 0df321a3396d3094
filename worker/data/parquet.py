"""Samples in the rows of Parquet files, through pyarrow. Owns the columns and the row groups that are kept in memory."""

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from worker.contract.catalogue import ParquetArgs
from worker.data.images import decode
from worker.data.records import files_of
from worker.data.split import Array
from worker.errors import DataError

ENDINGS = (".parquet",)


def build(path: str, args: ParquetArgs) -> "ParquetRows":
    """Read the labels and the places of the row groups.

    Raises:
        DataError: a column is missing, or a label is no class.
    """
    files = tuple(files_of(path, ENDINGS))
    labels: list[npt.NDArray[np.int64]] = []
    groups: list[tuple[int, int]] = []
    starts = [0]
    for number, file in enumerate(files):
        with pq.ParquetFile(file) as opened:
            missing = [name for name in (args.image, args.label) if name not in opened.schema_arrow.names]
            if missing:
                raise DataError(
                    f"{file} has no column {' and no '.join(missing)}; expected {args.image} and {args.label} among"
                    f" {', '.join(opened.schema_arrow.names)}; name them in data.args.image and data.args.label"
                )
            labels.append(_labels(file, opened.read(columns=[args.label], use_threads=False)[args.label]))
            for group in range(opened.num_row_groups):
                groups.append((number, group))
                starts.append(starts[-1] + opened.metadata.row_group(group).num_rows)
    joined = np.concatenate(labels)
    if not len(joined) or joined.min() < 0:
        raise DataError(f"data.path {path} has {len(joined)} rows, with labels from {min(joined, default=0)}; expected some, from 0")
    return ParquetRows(files, tuple(groups), np.array(starts), joined, int(joined.max()) + 1, args)


@dataclass(frozen=True)
class ParquetRows:
    """The row groups of all files, one after the other; those read last stay in memory, up to `cache_mb`."""

    files: tuple[Path, ...]
    groups: tuple[tuple[int, int], ...]
    """Of each row group: the number of its file, and its own in the file."""
    starts: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    num_classes: int
    args: ParquetArgs
    _cache: OrderedDict[int, Any] = field(default_factory=OrderedDict, compare=False)
    _lock: Any = field(default_factory=Lock, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the cache behind: another process has its own."""
        return ParquetRows, (self.files, self.groups, self.starts, self.labels, self.num_classes, self.args)

    @property
    def num_samples(self) -> int:
        """Rows."""
        return len(self.labels)

    def read(self, index: int) -> tuple[Array, Array]:
        """Return the image of a row and its label."""
        number, place = self._locate(index)
        value = self._column(number)[place].as_py()
        label = self.labels[index]
        if self.args.shape is not None:
            return np.asarray(value, dtype=np.float32).reshape(self.args.shape), label
        return decode(value["bytes"] if isinstance(value, dict) else value, self.args.mode), label

    def describe(self, index: int) -> str:
        """Return the file, the row group, and the row in it."""
        number, place = self._locate(index)
        file, group = self.groups[number]
        return f"{self.files[file]}, row {place} of row group {group}"

    def _locate(self, index: int) -> tuple[int, int]:
        number = bisect_right(self.starts, index) - 1
        return number, int(index - self.starts[number])

    def _column(self, number: int) -> Any:
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
            file, group = self.groups[number]
            with pq.ParquetFile(self.files[file]) as opened:
                column = opened.read_row_group(group, columns=[self.args.image], use_threads=False)[self.args.image].combine_chunks()
            self._cache[number] = column
            while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > self.args.cache_mb << 20:
                self._cache.popitem(last=False)
            return column


def _labels(file: Path, column: Any) -> npt.NDArray[np.int64]:
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(
            f"the labels in {file} are {column.type}, {column.null_count} of them null; expected whole numbers; number the classes from 0"
        )
    return np.asarray(column.to_numpy(), dtype=np.int64)
