"""Reads single vectors out of a safetensors file: the header and the byte ranges asked for, never the whole file, and no torch.

Format: 8 bytes little-endian length N, N bytes of JSON `{name: {dtype, shape, data_offsets: [begin, end]}}`, then the data.
Source: https://github.com/huggingface/safetensors#format
"""

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_HEADER_BYTES: Final = 100_000_000
_FORMATS: Final = {"F64": ("d", 8), "F32": ("f", 4), "F16": ("e", 2), "BF16": ("H", 2), "I64": ("q", 8), "I32": ("i", 4)}


class TensorFileError(ValueError):
    """The file is not the safetensors file that it should be. Trying again does not help."""


@dataclass(frozen=True)
class TensorFile:
    """An open safetensors file and its header."""

    descriptor: int
    data_start: int
    size: int
    header: Mapping[str, Any]

    @classmethod
    def read(cls, descriptor: int) -> "TensorFile":
        """Read the header of an open file.

        Raises:
            TensorFileError: there is none.
        """
        size = os.fstat(descriptor).st_size
        prefix = os.pread(descriptor, 8, 0)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise TensorFileError(f"header of {length} bytes in a file of {size} bytes")
        try:
            header = json.loads(os.pread(descriptor, length, 8))
        except (ValueError, RecursionError) as error:
            raise TensorFileError("header is no JSON") from error
        if not isinstance(header, dict):
            raise TensorFileError("header is no table of tensors")
        return cls(descriptor, 8 + length, size, header)

    def __contains__(self, name: str) -> bool:
        return name in self.header

    def vector(self, name: str) -> list[float]:
        """Return all values of one tensor, in order.

        Raises:
            TensorFileError: no such tensor, a type that is no number here, or offsets that do not hold together.
        """
        try:
            entry = self.header[name]
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            code, width = _FORMATS[dtype]
            count = math.prod(shape)
            is_sound = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        except (TypeError, KeyError, ValueError) as error:
            raise TensorFileError(f"no readable entry for tensor {name}") from error
        if not is_sound or end - begin != count * width or self.data_start + end > self.size:
            raise TensorFileError(f"offsets of tensor {name} do not fit its shape or the file")
        data = os.pread(self.descriptor, end - begin, self.data_start + begin)
        if len(data) != end - begin:
            raise TensorFileError(f"tensor {name} is cut off")
        return _decode(dtype, code, count, data)


def _decode(dtype: str, code: str, count: int, data: bytes) -> list[float]:
    numbers: Sequence[Any] = struct.unpack(f"<{count}{code}", data)
    if dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        numbers = struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(bits << 16 for bits in numbers)))
    return list(numbers)
