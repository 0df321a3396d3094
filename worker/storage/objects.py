"""Checkpoints in an object store, through pyarrow.fs. Owns the keys, and the rule that says which of several manifests counts.

jobs/{job_id}/checkpoints/step-00000120/00000002-9f3c21ab/model.safetensors ...    the files of one writer, of fence 2
jobs/{job_id}/checkpoints/step-00000120/manifest-00000002-9f3c21ab.json            its manifest, written last
jobs/{job_id}/pins/step-00000120     .gangs/...                                    as in a local directory

There is no rename, and pyarrow offers no conditional write, so nothing can be "created only if absent". Instead no two writers share a
key: each puts its fence and a random word into its own. An object is not there before all of it is, so a manifest names only what is whole.
Of several manifests of one step all readers choose alike: the highest fence, and of equals the first word. So a writer of an earlier
attempt, however late it comes, changes nothing that a later one has published (docs/decisions/0007-object-stores.md).
"""

import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from worker.contract.bundle import code_name
from worker.contract.manifest import MANIFEST_NAME, Manifest, checkpoint_name, checkpoints_directory, pins_directory, step_of
from worker.storage.storage import StorageUnreachableError

CHUNK_BYTES: Final = 8 << 20
_MANIFEST_KEY: Final = re.compile(r"manifest-([0-9]{8,20})-([0-9a-f]{8})\.json")
_FILES_KEY: Final = re.compile(r"[0-9]{8,20}-[0-9a-f]{8}")


@dataclass(frozen=True)
class ObjectFile:
    """An open object; every read is one ranged request."""

    handle: Any
    size: int
    address: str
    """Of its storage."""

    def identity(self) -> None:
        """See OpenFile. What was opened may have been replaced since."""

    def fileno(self) -> None:
        """See OpenFile."""

    def read(self, start: int, length: int) -> bytes:
        """See OpenFile."""
        with _reaching(self.address):
            return bytes(self.handle.read_at(length, start))

    def close(self) -> None:
        """See OpenFile."""
        self.handle.close()


@dataclass(frozen=True)
class ObjectStorage:
    """A prefix in a bucket. See Storage for what the methods promise."""

    filesystem: Any = field(repr=False)
    """A pyarrow.fs.FileSystem."""
    root: str
    """bucket/prefix, without slashes around it."""
    address: str

    def published(self, job_id: str) -> dict[int, Manifest]:
        """See Storage."""
        found = {}
        for step, keys in sorted(self._manifests(job_id).items()):
            with suppress(FileNotFoundError, ValueError):
                manifest = Manifest.model_validate_json(self._read(keys[0]))
                if (manifest.job_id, manifest.step) == (job_id, step):
                    found[step] = manifest
        return found

    def steps(self, job_id: str) -> set[int]:
        """See Storage."""
        return set(self._manifests(job_id))

    def jobs(self) -> list[str]:
        """See Storage."""
        key = f"{self.root}/jobs"
        found = self._list(key, is_recursive=self._is_google)
        return sorted({info.path.removeprefix(f"{key}/").partition("/")[0] for info in found})

    @contextmanager
    def staging(self, draft: Manifest) -> Iterator[Path]:
        """See Storage. Lies in this machine's directory for temporary files."""
        directory = Path(tempfile.mkdtemp(prefix=f"syncbn-{checkpoint_name(draft.step)}-"))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def publish(self, staged: Path, manifest: Manifest) -> Manifest:
        """See Storage."""
        mine = manifest.model_copy(update={"writer": secrets.token_hex(4)})
        try:
            for name, entry in mine.files.items():
                self._upload(staged / name, self._file_key(mine, name), entry.size)
            self._write(self._manifest_key(mine), mine.model_dump_json(indent=1).encode())
        except BaseException:
            self._discard(mine)
            raise
        seen = self._winner(mine)
        if seen != mine:
            self._discard(mine)
        return seen

    def open(self, manifest: Manifest, name: str) -> ObjectFile:
        """See Storage."""
        key = self._manifest_key(manifest) if name == MANIFEST_NAME else self._file_key(manifest, name)
        with _reaching(self.address):
            handle = self.filesystem.open_input_file(key)
            return ObjectFile(handle, handle.size(), self.address)

    def remove(self, job_id: str, step: int, *, unless_pinned: bool) -> bool:
        """See Storage. The manifests go first, and a pin is looked for afterwards: whoever pins looks for the checkpoint afterwards."""
        keys = self._manifests(job_id).get(step, [])
        contents = {key: self._read(key) for key in keys}
        for key in keys:
            self._remove(key)
        if contents and unless_pinned and step in self.pins(job_id):
            for key, content in contents.items():
                self._write(key, content)
            return False
        self._remove_tree(self._step_key(job_id, step))
        return bool(contents)

    def sweep(self, job_id: str) -> None:
        """See Storage. Keeps, of every step, the manifest that counts and its files."""
        kept = {keys[0] for keys in self._manifests(job_id).values()}
        kept_files = {key.replace("/manifest-", "/").removesuffix(".json") for key in kept}
        for info in self._list(self._checkpoints(job_id), is_recursive=True):
            parent, _, name = info.path.rpartition("/")
            is_stray_file = _FILES_KEY.fullmatch(parent.rpartition("/")[2]) and parent not in kept_files
            is_stray_manifest = _MANIFEST_KEY.fullmatch(name) and info.path not in kept
            if info.is_file and (is_stray_file or is_stray_manifest):
                self._remove(info.path)

    def delete(self, job_id: str) -> None:
        """See Storage."""
        self._remove_tree(f"{self.root}/{checkpoints_directory(job_id).parent}")

    def pins(self, job_id: str) -> set[int]:
        """See Storage."""
        names = (info.base_name for info in self._list(f"{self.root}/{pins_directory(job_id)}", is_recursive=False))
        return {step for name in names if (step := step_of(name)) is not None}

    def pin(self, job_id: str, step: int) -> None:
        """See Storage."""
        self._write(self._pin_key(job_id, step), b"")

    def unpin(self, job_id: str, step: int) -> None:
        """See Storage."""
        self._remove(self._pin_key(job_id, step))

    def put_code(self, sha256: str, archive: bytes) -> None:
        """See Storage. Writing the same twice at once changes nothing."""
        key = f"{self.root}/{code_name(sha256)}"
        if not self.is_marked(code_name(sha256)):
            self._write(key, archive)

    def read_code(self, sha256: str) -> bytes:
        """See Storage."""
        return self._read(f"{self.root}/{code_name(sha256)}")

    def remove_code(self, sha256: str) -> None:
        """See Storage."""
        self._remove(f"{self.root}/{code_name(sha256)}")

    def mark(self, name: str) -> None:
        """See Storage."""
        self._write(f"{self.root}/{name}", b"")

    def is_marked(self, name: str) -> bool:
        """See Storage."""
        with _reaching(self.address):
            return bool(self.filesystem.get_file_info(f"{self.root}/{name}").is_file)

    def unmark(self, name: str) -> None:
        """See Storage."""
        self._remove(f"{self.root}/{name}")

    def _winner(self, mine: Manifest) -> Manifest:
        seen = Manifest.model_validate_json(self._read(self._manifests(mine.job_id)[mine.step][0]))
        return mine if seen.writer == mine.writer else seen

    def _manifests(self, job_id: str) -> dict[int, list[str]]:
        """Return the keys of all manifests by step, the one that counts first."""
        found: dict[int, list[tuple[int, str, str]]] = {}
        for info in self._list(self._checkpoints(job_id), is_recursive=True):
            directory, _, name = info.path.rpartition("/")
            match, step = _MANIFEST_KEY.fullmatch(name), step_of(directory.rpartition("/")[2])
            if match is not None and step is not None:
                found.setdefault(step, []).append((-int(match[1]), match[2], info.path))
        return {step: [path for *_, path in sorted(entries)] for step, entries in found.items()}

    def _upload(self, path: Path, key: str, size: int) -> None:
        with _reaching(self.address):
            with path.open("rb") as source, self.filesystem.open_output_stream(key) as target:
                while chunk := source.read(CHUNK_BYTES):
                    target.write(chunk)
            arrived = self.filesystem.get_file_info(key).size
        if arrived != size:
            raise OSError(f"{key} has {arrived} bytes in the store; expected {size}")

    def _discard(self, manifest: Manifest) -> None:
        """Delete a writer's own objects. What cannot be deleted now is swept by the next writer."""
        with suppress(OSError):
            self._remove(self._manifest_key(manifest))
            self._remove_tree(self._files_key(manifest))

    def _list(self, key: str, *, is_recursive: bool) -> Iterable[Any]:
        from pyarrow import fs

        with _reaching(self.address):
            found: Iterable[Any] = self.filesystem.get_file_info(fs.FileSelector(key, recursive=is_recursive, allow_not_found=True))
        return found

    def _read(self, key: str) -> bytes:
        with _reaching(self.address), self.filesystem.open_input_stream(key) as source:
            return bytes(source.read())

    def _write(self, key: str, content: bytes) -> None:
        with _reaching(self.address), self.filesystem.open_output_stream(key) as target:
            target.write(content)

    def _remove(self, key: str) -> None:
        with suppress(FileNotFoundError), _reaching(self.address):
            self.filesystem.delete_file(key)

    def _remove_tree(self, key: str) -> None:
        with suppress(FileNotFoundError), _reaching(self.address):
            if self._is_google:
                self.filesystem.delete_dir_contents(key, missing_dir_ok=True)
            else:
                self.filesystem.delete_dir(key)

    @property
    def _is_google(self) -> bool:
        """Whether the client has no directories but those that somebody has made: it lists no others, and deletes none."""
        return bool(self.filesystem.type_name == "gcs")

    def _checkpoints(self, job_id: str) -> str:
        return f"{self.root}/{checkpoints_directory(job_id)}"

    def _step_key(self, job_id: str, step: int) -> str:
        return f"{self._checkpoints(job_id)}/{checkpoint_name(step)}"

    def _pin_key(self, job_id: str, step: int) -> str:
        return f"{self.root}/{pins_directory(job_id)}/{checkpoint_name(step)}"

    def _files_key(self, manifest: Manifest) -> str:
        return f"{self._step_key(manifest.job_id, manifest.step)}/{manifest.fence:08d}-{manifest.writer}"

    def _file_key(self, manifest: Manifest, name: str) -> str:
        return f"{self._files_key(manifest)}/{name}"

    def _manifest_key(self, manifest: Manifest) -> str:
        return f"{self._step_key(manifest.job_id, manifest.step)}/manifest-{manifest.fence:08d}-{manifest.writer}.json"


@contextmanager
def _reaching(address: str) -> Iterator[None]:
    """Map what pyarrow raises: what is not there stays FileNotFoundError, everything else is a storage that was not reached."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageUnreachableError(f"the object store of {address} did not answer as expected: {error}") from error
