"""The compiled passes as a library of C functions, one for each type of values: loaded, and what they are called with.

Owns: the struct that the functions take. Does not own the passes (`passes.cpp` and what it includes), how they are built (`syncbn.native`)
or which batches they get (`compiled.py`).
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from syncbn.native import BuildError, built

VALUES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "BFloat16"}
"""The types of values that there are passes for, and their names in C++."""
_TYPES = {None: 0, torch.float32: 1, torch.float64: 2, torch.bfloat16: 3}  # of vectors, as `Type` in values.hpp
_ACTIVATIONS = (None, "relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "elu")  # as `Activation` in values.hpp
_SOURCES = tuple(Path(__file__).with_name(name) for name in ("passes.cpp", "sums.hpp", "batch.hpp", "values.hpp"))
_POINTER, _INTEGER, _DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


@final
class Batch(ctypes.Structure):
    """What a pass reads and writes: the fields of `Batch` in batch.hpp. Those of no use to a pass stay 0."""

    _fields_ = (
        *((name, _POINTER) for name in ("x", "dy", "residual", "mask", "y", "dx", "dresidual")),
        *((name, _INTEGER) for name in ("N", "C", "S", "is_planes", "activation", "num_threads")),
        *((name, _POINTER) for name in ("total", "weight", "bias", "running_mean", "running_var", "dweight", "dbias")),
        *((name, _INTEGER) for name in ("weight_type", "bias_type", "running_type", "gradient_type", "is_unbiased")),
        ("eps", _DOUBLE),
        ("momentum", _DOUBLE),
        *((name, _POINTER) for name in ("mean", "invstd", "rounded", "summed", "n")),
    )


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's values are."""
    return None if tensor is None else tensor.data_ptr()


def type_of(vector: Tensor | None) -> int:
    """The number of a vector's type; 0 for none. Raises KeyError for a type that the passes do not read."""
    return _TYPES[None if vector is None else vector.dtype]


def is_readable(vector: Tensor | None) -> bool:
    """Whether the passes can read a vector."""
    return vector is None or (vector.dtype in _TYPES and vector.is_contiguous() and vector.device.type == "cpu")


def number_of(activation: str | None) -> int:
    """The number of an activation."""
    return _ACTIVATIONS.index(activation)


@lru_cache(maxsize=len(VALUES))
def library_for(dtype: torch.dtype) -> Any:
    """The functions local_sums, normalize, gradient_sums and input_gradient for a type of values, each called with a `Batch` by reference.

    Raises:
        BuildError: it cannot be built or loaded.
    """
    try:
        library = ctypes.CDLL(str(passes_of(VALUES[dtype])))
    except OSError as error:
        raise BuildError(str(error)) from error
    library.size_of_batch.restype = _INTEGER
    assert library.size_of_batch() == ctypes.sizeof(Batch)
    for name in ("local_sums", "normalize", "gradient_sums", "input_gradient"):
        getattr(library, name).restype = None
    return library


def passes_of(values: str) -> Path:
    """Path of the passes over values of a C++ type. Raises BuildError."""
    # Where there is no library for threads, one has to do.
    return built(f"passes-{values}", _SOURCES, [(f"-DVALUES={values}", threads) for threads in ("-fopenmp", "-fopenmp-simd")])
