"""The compiled passes as a library of C functions: built once per machine and type of values, loaded, and called.

Owns: the compiler, the cache on disk, and the struct that the functions take. Does not own the passes (`passes.cpp` and what it includes)
or which batches they get (`compiled.py`).

The sources need a C++17 compiler and nothing of torch, so that building takes two to four seconds. The library lies in the directory of
torch's own caches, under a name made of the sources, the compiler and the processor that it resolves `-march=native` to.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

VALUES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "BFloat16"}
"""The types of values that there are passes for, and their names in C++."""
_TYPES = {None: 0, torch.float32: 1, torch.float64: 2, torch.bfloat16: 3}  # of vectors, as `Type` in values.hpp
_ACTIVATIONS = (None, "relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "elu")  # as `Activation` in values.hpp
_SOURCES = tuple(Path(__file__).with_name(name) for name in ("passes.cpp", "sums.hpp", "batch.hpp", "values.hpp"))
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_PATIENCE_S = 120.0
_SAID = 300  # characters of a compiler's complaint that are passed on
_POINTER, _INTEGER, _DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


@final
class BuildError(RuntimeError):
    """There is no compiler, or it fails: said in its words."""


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
        library = ctypes.CDLL(str(_built(VALUES[dtype])))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(str(error)) from error
    library.size_of_batch.restype = _INTEGER
    assert library.size_of_batch() == ctypes.sizeof(Batch)
    for name in ("local_sums", "normalize", "gradient_sums", "input_gradient"):
        getattr(library, name).restype = None
    return library


def _built(values: str) -> Path:
    """Path of the library, which is built if it is not there yet."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise BuildError(f"none of {', '.join(_COMPILERS)} is in the PATH")
    path = _cache() / f"passes-{values}-{_key(compiler)}.so"
    if not path.exists():
        _build(compiler, values, path)
    return path


def _cache() -> Path:
    """Torch's directory of caches; a new one for this process where nothing can be written there."""
    path = Path(torch.hub.get_dir()).parent / "syncbn"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = path.stat()
        is_own = status.st_uid == os.getuid() and not status.st_mode & 0o022  # what somebody else can write must not be loaded
    except OSError:
        is_own = False
    return path if is_own and os.access(path, os.W_OK) else Path(tempfile.mkdtemp(prefix="syncbn-"))


def _key(compiler: str) -> str:
    """What the library depends on: the sources, and all that the compiler would be called with here, the kind of processor included."""
    asked = _run([compiler, *_FLAGS[:3], "-v", "-E", "-x", "c++", os.devnull])
    digest = hashlib.sha256(repr((_FLAGS, asked)).encode())
    for source in _SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def _build(compiler: str, values: str, path: Path) -> None:
    """Build beside the path, and move there: processes that build the same at once do not see each other's halves."""
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        built = Path(directory) / "passes.so"
        command = [compiler, *_FLAGS, f"-DVALUES={values}", str(_SOURCES[0]), "-o", str(built)]
        try:
            _run([*command, "-fopenmp"])
        except BuildError:
            _run([*command, "-fopenmp-simd"])  # no library for threads: one
        built.replace(path)


def _run(command: list[str]) -> str:
    """What a program says on both outputs. Raises BuildError with the end of it where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)  # noqa: S603  a compiler that was found
    if done.returncode:
        raise BuildError(f"{command[0]}: {' '.join((done.stderr or done.stdout).split())[:_SAID]}")
    return done.stdout + done.stderr
