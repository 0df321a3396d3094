"""What uploaded code may be: its limits, its names, and the one archive format in which it is stored and read.

Checked twice with the same rules: by the controller before anything is stored, by every rank before anything is written. Holds whole
bundles in memory, which the limits allow; writes no file. Archives are hostile until checked: whatever is not a plain file with a plain
name is refused, not skipped and not mended.
"""

import io
import re
import tarfile
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final

MAX_FILES: Final = 5_000
MAX_UNPACKED_BYTES: Final = 64 * 2**20
MAX_NAME_BYTES: Final = 512
MAX_DEPTH: Final = 32
ARCHIVE_OVERHEAD_BYTES: Final = 2**20 + MAX_FILES * 4 * tarfile.BLOCKSIZE
"""Most that a tar of such files has beyond their contents: headers and padding."""
_MAX_HEADER_BYTES: Final = 4096
_EXTENDED: Final = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
# Control characters, what Windows takes for a path, a drive or a stream, and characters that make one name look like another.
_FORBIDDEN: Final = re.compile(r'[\x00-\x1f\x7f-\x9f\\:*?"<>|\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]')


class BundleError(ValueError):
    """An archive that is not taken. The user's to mend; the message says what is wrong with which file."""


class _Entry(tarfile.TarInfo):
    """An entry whose extended headers are small: tarfile reads them whole and searches them with expressions that can take long."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and not 0 <= self.size <= _MAX_HEADER_BYTES:
            raise BundleError(f"an extended header has {self.size} bytes; expected at most {_MAX_HEADER_BYTES}; make the archive anew")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise BundleError(f"{shown(self.name)} is a sparse file; expected plain files; make the archive without --sparse")
        entry: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # documented in tarfile.py as the method to override
        return entry


def code_name(sha256: str) -> str:
    """Return the name of an archive of code under the root of a storage."""
    return f"code/{sha256}.tar"


def read_tar(data: bytes) -> dict[str, bytes]:
    """Return the files of an uncompressed tar archive by name. Directories are passed over; they follow from the names.

    Raises:
        BundleError: it is no tar, or holds anything that no bundle may hold.
    """
    names = Names()
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", tarinfo=_Entry, errors="surrogateescape") as archive:
            for entry in archive:
                if entry.isdir():
                    names.directory(entry.name)
                    continue
                if entry.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or entry.issparse():
                    raise BundleError(
                        f"{shown(entry.name)} is a link, a device or the like; expected plain files; put the file itself there"
                    )
                name = names.file(entry.name, entry.size)
                content = archive.extractfile(entry)
                files[name] = b"" if content is None else content.read()
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise error if isinstance(error, BundleError) else BundleError(f"the archive is no whole tar ({error}); make it anew") from error
    return files


def write_tar(files: Mapping[str, bytes]) -> bytes:
    """Return the archive of files: the same bytes for the same names and contents, whoever packed them, when and where.

    >>> sorted(read_tar(write_tar({"a.py": b"x = 1", "b/c.py": b""}))), write_tar({"a": b"", "b": b""}) == write_tar({"b": b"", "a": b""})
    (['a.py', 'b/c.py'], True)
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


class Names:
    """The names of a bundle while it is read: each is plain, none is another's, none leads out."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}
        self._size_bytes = 0

    def file(self, raw: str, size: int) -> str:
        """Take a file in; return its name.

        Raises:
            BundleError: the name is not plain or not the only one of its kind, or the bundle becomes too large.
        """
        name = _plain(raw)
        key = _key(name)
        if key in self._files or key in self._folders:
            other = self._files.get(key) or self._folders[key]
            raise BundleError(f"{shown(name)} and {shown(other)} are one name to some file systems; expected different ones; rename one")
        self._files[key] = name
        self._add_folders(_parents(name))
        self._size_bytes += size
        if len(self._files) > MAX_FILES or not 0 <= size <= self._size_bytes <= MAX_UNPACKED_BYTES:
            raise BundleError(
                f"the archive has more than {MAX_FILES} files or {MAX_UNPACKED_BYTES} bytes; expected code; leave data and caches out"
            )
        return name

    def directory(self, raw: str) -> None:
        """Take a directory in, as `file` does; `.` is the bundle itself."""
        name = raw.rstrip("/")
        if name not in {"", "."} or raw.startswith("/"):
            plain = _plain(name)
            self._add_folders([*_parents(plain), plain])
        if len(self._folders) > MAX_FILES:
            raise BundleError(f"the archive has more than {MAX_FILES} directories; expected code; leave data and caches out")

    def _add_folders(self, folders: Iterable[str]) -> None:
        for folder in folders:
            key = _key(folder)
            if key in self._files or self._folders.setdefault(key, folder) != folder:
                other = self._files.get(key) or self._folders[key]
                raise BundleError(
                    f"{shown(folder)} and {shown(other)} are one name to some file systems; expected different ones; rename one"
                )


def shown(name: str) -> str:
    """Return a name for a message: short, and with nothing in it that drives a terminal."""
    return ascii(name if len(name) <= 120 else name[:117] + "...")


def _plain(raw: str) -> str:
    name = raw.removeprefix("./")
    parts = name.split("/")
    is_plain = (
        not _FORBIDDEN.search(name)
        and len(name.encode()) <= MAX_NAME_BYTES
        and len(parts) <= MAX_DEPTH
        and not any(part in {"", ".", ".."} or part.endswith((" ", ".")) or len(part.encode()) > 255 for part in parts)
    )
    if not is_plain:
        expected = "a relative path of plain names, without .., control characters and backslashes"
        raise BundleError(f"the name {shown(raw)} is not taken; expected {expected}; rename the file")
    return name


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _key(name: str) -> str:
    """Return what a file system that folds case and composes accents makes of a name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
