"""Arrays of .npz and .safetensors files, mapped into memory where the file allows it. Owns the two layouts; reads no pickle.

Mapped: .safetensors, and .npz that `numpy.savez` wrote. What `numpy.savez_compressed` wrote is unpacked into memory.
"""

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from worker.data.split import Array

ENDINGS = (".npz", ".safetensors")
MAX_HEADER_BYTES = 100_000_000
"""Of a .safetensors file, by its specification."""
_DTYPES = {"U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
# Of a member of a zip file: its lengths of name and extra field, which may differ from those in the directory at the end.
_ZIP_MEMBER = struct.Struct("<26xHH")


def open_arrays(file: Path) -> dict[str, Array]:
    """Return the arrays of a file by name.

    Raises:
        ValueError: the file is not what its ending says, or holds Python objects.
        OSError: it cannot be read.
    """
    return _npz(file) if file.suffix == ".npz" else _safetensors(file)


def _npz(file: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            return {info.filename.removesuffix(".npy"): _member(file, archive, info) for info in members}
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file} is no .npz file: {error}") from error


def _member(file: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    with archive.open(info) as stream:
        version = npy.read_magic(stream)
        shape, is_fortran, dtype = npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} in {file} holds Python objects; expected numbers; save arrays of numbers")
        header_bytes = stream.tell()
        if info.compress_type != zipfile.ZIP_STORED or 0 in shape:
            return np.frombuffer(stream.read(), dtype).reshape(shape, order="F" if is_fortran else "C")
    with file.open("rb") as raw:
        raw.seek(info.header_offset)
        name_bytes, extra_bytes = _ZIP_MEMBER.unpack(raw.read(_ZIP_MEMBER.size))
    offset = info.header_offset + _ZIP_MEMBER.size + name_bytes + extra_bytes + header_bytes
    return np.memmap(file, dtype, "r", offset, shape, "F" if is_fortran else "C")


def _safetensors(file: Path) -> dict[str, Array]:
    with file.open("rb") as raw:
        size = int.from_bytes(raw.read(8), "little")
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"{file} is no .safetensors file: a header of {size} bytes")
        header = json.loads(raw.read(size))
    return {name: _tensor(file, 8 + size, entry) for name, entry in header.items() if name != "__metadata__" and entry["dtype"] in _DTYPES}


def _tensor(file: Path, start: int, entry: dict[str, Any]) -> Array:
    shape, dtype = tuple(entry["shape"]), np.dtype(_DTYPES[entry["dtype"]])
    return np.memmap(file, dtype, "r", start + entry["data_offsets"][0], shape) if 0 not in shape else np.empty(shape, dtype)
