"""Archives of code, good and evil, for the tests of whoever reads them."""

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Mapping

GOOD = {"mine/__init__.py": b"", "mine/models.py": b"WIDTH = 7\n", "README": "gr\u00fc\u00dfe".encode()}

EVIL_NAMES = [
    "../evil.py", "a/../../evil.py", "a/..", "..", "~/../x", "%2e%2e/../x",
    "/etc/passwd", "//server/share", "C:/x.py", "c:x", "a\\..\\b", "\\\\server\\x",
    "a//b", "a/./b", "a/", "", ".", "./", "./../x", "a.", "a ",
    "a\nb", "a\x1b[31m", "a\x7f", "a\x85b", "a\u202eyp.exe", "a\u200bb", "a\udcff", "con:", "a?b", "a*b",
    "x" * 256, "/".join("d" * 40), "/".join(["dir" * 20] * 10),
]  # fmt: skip
"""Names that must not become files. `a/`, the empty name, `.` and `./` are names of directories only."""

COLLISIONS = [
    ("a.py", "a.py"), ("a.py", "A.py"), ("stra\u00dfe", "STRASSE"), ("caf\u00e9", "cafe\u0301"),
    ("a", "a/b"), ("a/b", "a"), ("Dir/x", "dir/y"), ("d/a", "d/./a"),
]  # fmt: skip


def tar(files: Mapping[str, bytes]) -> bytes:
    """Return a tar of plain files, as Python writes it."""
    return tar_of(*((tarfile.TarInfo(name), content) for name, content in files.items()))


def tar_of(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of anything."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, errors="surrogateescape") as archive:
        for entry, content in entries:
            entry.size = len(content) if entry.isreg() else 0
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def special(kind: bytes, name: str = "x", target: str = "/etc/passwd") -> bytes:
    """Return a tar with one entry that is no plain file."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return tar_of((entry, b""))


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    """Return a tar.gz of plain files."""
    return gzip.compress(tar(files), mtime=0)


def zipped(files: Mapping[str, bytes], mode: int = stat.S_IFREG | 0o644, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip, of entries that say they are of a mode."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo("placeholder")
            entry.filename, entry.external_attr, entry.compress_type = name, mode << 16, method
            archive.writestr(entry, content)
    return stream.getvalue()


def zip_twice(first: str, second: str) -> bytes:
    """Return a zip with two entries of any names."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in (first, second):
            entry = zipfile.ZipInfo("placeholder")
            entry.filename = name
            archive.writestr(entry, b"x")
    return stream.getvalue()


def zip_that_lies(size: int) -> bytes:
    """Return a zip whose one file unpacks to more than its directory says."""
    data = bytearray(zipped({"bomb": bytes(size)}))
    central = data.rfind(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<I", 10)
    return bytes(data)
