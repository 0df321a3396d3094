"""C++ sources of this package as libraries of C functions: built once per machine, and kept on disk.

Owns: the compiler, its flags, and the cache. Does not own the sources (`loops/passes.cpp`, `shared_memory/rounds.cpp`).

The sources need a C++17 compiler and nothing of torch, so that building takes seconds. A library lies in the directory of torch's own
caches, under a name made of the sources, the compiler and the processor that it resolves `-march=native` to.
Tests: tests/syncbn/test_compiled.py.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import final

import torch

_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_PATIENCE_S = 120.0
_SAID = 300  # characters of a compiler's complaint that are passed on


@final
class BuildError(RuntimeError):
    """There is no compiler, or it fails: said in its words."""


def built(name: str, sources: Sequence[Path], flags: Sequence[Sequence[str]] = ((),)) -> Path:
    """Path of a library, which is built if it is not there yet.

    Args:
        name: what the file's name begins with; different for different flags.
        sources: the file to compile, and after it those that it includes.
        flags: further flags; each sequence is tried where the one before failed.
    Raises:
        BuildError: there is no compiler, or it fails with all flags.
    """
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise BuildError(f"none of {', '.join(_COMPILERS)} is in the PATH")
    try:
        path = _cache() / f"{name}-{_key(compiler, sources)}.so"
        if not path.exists():
            _build(compiler, sources[0], flags, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(str(error)) from error
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


def _key(compiler: str, sources: Sequence[Path]) -> str:
    """What the library depends on: the sources, and all that the compiler would be called with here, the kind of processor included."""
    digest = hashlib.sha256(repr((_FLAGS, _resolved(compiler))).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


@lru_cache(maxsize=1)
def _resolved(compiler: str) -> str:
    """What a compiler says of itself and of the processor."""
    return _run([compiler, *_FLAGS[:3], "-v", "-E", "-x", "c++", os.devnull])


def _build(compiler: str, source: Path, flags: Sequence[Sequence[str]], path: Path) -> None:
    """Build beside the path, and move there: processes that build the same at once do not see each other's halves."""
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        library = Path(directory) / "library.so"
        for number, more in enumerate(flags, 1):
            try:
                _run([compiler, *_FLAGS, str(source), "-o", str(library), *more])
                break
            except BuildError:
                if number == len(flags):
                    raise
        library.replace(path)


def _run(command: list[str]) -> str:
    """What a program says on both outputs. Raises BuildError with the end of it where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)  # noqa: S603  a compiler that was found
    if done.returncode:
        raise BuildError(f"{command[0]}: {' '.join((done.stderr or done.stdout).split())[:_SAID]}")
    return done.stdout + done.stderr
