"""Reads single tensors out of a safetensors file: the header and the byte ranges asked for, never the whole file, and no torch.

Owns also the file of the running statistics alone, so that whoever writes a checkpoint takes the digest of what is sent of it later.

Format: 8 bytes little-endian length N, N bytes of JSON `{name: {dtype, shape, data_offsets: [begin, end]}}`, then the data.
Source: https://github.com/huggingface/safetensors#format
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from worker.storage.storage import OpenFile

MAX_HEADER_BYTES: Final = 100_000_000
STATISTICS: Final = ("running_mean", "running_var", "num_batches_tracked")
READS_AT_ONCE: Final = 8
"""Ranges are asked for in parallel: in an object store each is a request of its own."""
_FORMATS: Final = {"F64": ("d", 8), "F32": ("f", 4), "F16": ("e", 2), "BF16": ("H", 2), "I64": ("q", 8), "I32": ("i", 4)}


class TensorFileError(ValueError):
    """The file is not the safetensors file that it should be. Trying again does not help."""


@dataclass(frozen=True)
class TensorFile:
    """An open safetensors file and its header."""

    file: OpenFile
    data_start: int
    header: Mapping[str, Any]

    @classmethod
    def read(cls, file: OpenFile) -> "TensorFile":
        """Read the header of an open file.

        Raises:
            TensorFileError: there is none.
        """
        prefix = file.read(0, 8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, file.size - 8):
            raise TensorFileError(f"header of {length} bytes in a file of {file.size} bytes")
        try:
            header = json.loads(file.read(8, length))
        except (ValueError, RecursionError) as error:
            raise TensorFileError("header is no JSON") from error
        if not isinstance(header, dict):
            raise TensorFileError("header is no table of tensors")
        return cls(file, 8 + length, header)

    def __contains__(self, name: str) -> bool:
        return name in self.header

    def raw(self, name: str) -> bytes:
        """Return the bytes of one tensor.

        Raises:
            TensorFileError: no such tensor, a type that is no number here, or offsets that do not hold together.
        """
        try:
            entry = self.header[name]
            shape, (begin, end) = entry["shape"], entry["data_offsets"]
            width = _FORMATS[entry["dtype"]][1]
            count = math.prod(shape)
            is_sound = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        except (TypeError, KeyError, ValueError) as error:
            raise TensorFileError(f"no readable entry for tensor {name}") from error
        if not is_sound or end - begin != count * width or self.data_start + end > self.file.size:
            raise TensorFileError(f"offsets of tensor {name} do not fit its shape or the file")
        data = self.file.read(self.data_start + begin, end - begin)
        if len(data) != end - begin:
            raise TensorFileError(f"tensor {name} is cut off")
        return data

    def vector(self, name: str) -> list[float]:
        """Return all values of one tensor, in order. Raises as `raw` does."""
        data = self.raw(name)
        return _decode(self.header[name]["dtype"], data)


@dataclass(frozen=True)
class Bytes:
    """A file that is in memory already."""

    content: bytes

    @property
    def size(self) -> int:
        """See OpenFile."""
        return len(self.content)

    def identity(self) -> None:
        """See OpenFile. Verifying it again costs nothing."""

    def fileno(self) -> None:
        """See OpenFile."""

    def read(self, start: int, length: int) -> bytes:
        """See OpenFile."""
        return self.content[start : start + length]

    def close(self) -> None:
        """See OpenFile."""


def statistics_of(file: TensorFile, layers: Iterable[str]) -> bytes:
    """Return a safetensors file of the running statistics alone, under their own names.

    Args:
        file: the model; of it only the header and the ranges of these tensors are read.
        layers: the names of the layers that have running statistics.
    Raises:
        TensorFileError: as `TensorFile.raw`.
    """
    names = sorted(name for layer in layers for key in STATISTICS if (name := tensor_name(layer, key)) in file)
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        parts = list(pool.map(file.raw, names))
    header, position = {}, 0
    for name, part in zip(names, parts, strict=True):
        header[name] = {key: file.header[name][key] for key in ("dtype", "shape")} | {"data_offsets": [position, position + len(part)]}
        position += len(part)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    # The data begins at a multiple of 8, as the format's own library has it.
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + b"".join(parts)


def tensor_name(layer: str, key: str) -> str:
    """Return the name of a layer's tensor; the model itself, where it is a layer, has the empty name.

    >>> tensor_name("stem.norm", "running_var"), tensor_name("", "running_var")
    ('stem.norm.running_var', 'running_var')
    """
    return f"{layer}.{key}" if layer else key


def _decode(dtype: str, data: bytes) -> list[float]:
    code, width = _FORMATS[dtype]
    count = len(data) // width
    numbers: Sequence[Any] = struct.unpack(f"<{count}{code}", data)
    if dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        numbers = struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(bits << 16 for bits in numbers)))
    return list(numbers)
