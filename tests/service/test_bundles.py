"""Tests of service/bundles.py: what is read, what is refused, what is stored."""

import gzip
import io
import stat
import tarfile
import tracemalloc
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundles import TAR_GZ, ZIP, read_archive, store_bundle
from service.errors import InvalidError
from tests.support.archives import COLLISIONS, EVIL_NAMES, GOOD, special, tar_gz, tar_of, zip_that_lies, zip_twice, zipped
from worker.contract.bundle import MAX_FILES, MAX_UNPACKED_BYTES, BundleError, code_name, read_tar
from worker.storage.local import LocalStorage


@pytest.mark.parametrize(("data", "media_type"), [(tar_gz(GOOD), TAR_GZ), (zipped(GOOD), ZIP), (zipped(GOOD, mode=0), ZIP)])
def test_both_formats_are_read(data, media_type):
    """Zip files from systems without modes too."""
    assert read_archive(data, media_type) == GOOD


def test_a_zip_as_people_make_it_is_read(tmp_path):
    """With entries for the directories."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.mkdir("mine")
        archive.writestr("mine/a.py", "1")
    assert read_archive(stream.getvalue(), ZIP) == {"mine/a.py": b"1"}


@pytest.mark.parametrize("name", [name for name in EVIL_NAMES if not name.endswith("/") and "\udcff" not in name])
def test_a_zip_with_an_evil_name_is_refused(name):
    """Traversal, absolute, of another system, invisible."""
    with pytest.raises(BundleError):
        read_archive(zipped({name: b"x"}), ZIP)


def test_a_zip_with_a_name_behind_a_nul_is_refused():
    """Zipfile shows what is before the NUL, and others take the rest."""
    data = zipped({"good.pyXevil": b"x"}).replace(b"good.pyXevil", b"good.py\x00evil")
    with pytest.raises(BundleError, match="name"):
        read_archive(data, ZIP)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("first", "second"), COLLISIONS)
def test_a_zip_with_two_names_that_are_one_is_refused(first, second):
    """The second would replace the first."""
    with pytest.raises(BundleError):
        read_archive(zip_twice(first, second), ZIP)


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR])
def test_a_zip_with_something_else_than_files_is_refused(mode):
    """A link is a small file with a mode, to a zip."""
    with pytest.raises(BundleError, match="plain file"):
        read_archive(zipped({"x": b"/etc/passwd"}, mode=mode | 0o777), ZIP)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_to_pack_are_refused(method):
    """Whose readers cannot be bounded as well."""
    with pytest.raises(BundleError, match="deflate"):
        read_archive(zipped({"x": b"1"}, method=method), ZIP)


def _bombs():
    over = MAX_UNPACKED_BYTES + 1
    yield "one large file in a zip", zipped({"bomb": bytes(over)}), ZIP
    yield "a zip that lies about a size", zip_that_lies(over), ZIP
    yield "a zip of many entries", zipped({f"f{number}": b"" for number in range(MAX_FILES + 1)}, method=zipfile.ZIP_STORED), ZIP
    yield "a list without files", b"PK\x01\x02" * 300_000, ZIP
    yield "a large file in a tar.gz", tar_gz({"bomb": bytes(over)}), TAR_GZ
    yield "a gzip that never ends", gzip.compress(bytes(2 * MAX_UNPACKED_BYTES), 1), TAR_GZ
    header = tarfile.TarInfo("a")
    header.pax_headers = {"comment": "x" * MAX_UNPACKED_BYTES}
    yield "a large extended header", gzip.compress(tar_of((header, b""))), TAR_GZ


def test_a_bomb_is_refused_without_being_unpacked():
    """Peak memory stays at about the limit for one bundle, whatever the archive says."""
    for what, data, media_type in _bombs():
        assert len(data) < 16 * 2**20, what
        tracemalloc.start()
        try:
            with pytest.raises(BundleError):
                read_archive(data, media_type)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 3.5 * MAX_UNPACKED_BYTES, (what, peak)


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (b"", ZIP), (b"", TAR_GZ), (b"PK", ZIP), (tar_gz(GOOD), ZIP), (zipped(GOOD), TAR_GZ), (tar_gz(GOOD)[:-9], TAR_GZ),
        (zipped(GOOD)[:-9], ZIP), (tar_gz({}), TAR_GZ), (zipped({}), ZIP), (gzip.compress(b"no tar", mtime=0), TAR_GZ),
        (gzip.compress(special(tarfile.SYMTYPE), mtime=0), TAR_GZ),
    ],
)  # fmt: skip
def test_what_is_no_archive_or_holds_nothing_is_refused(data, media_type):
    """Also one that is cut off, or of the other format."""
    with pytest.raises(BundleError):
        read_archive(data, media_type)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_refused_or_read(data):
    """Nothing but our own error comes out."""
    good, media_type = data.draw(st.sampled_from([(tar_gz(GOOD), TAR_GZ), (zipped(GOOD), ZIP)]))
    content = bytearray(good[: data.draw(st.integers(0, len(good)), "cut")])
    for _ in range(data.draw(st.integers(0, 4), "changes")):
        if content:
            content[data.draw(st.integers(0, len(content) - 1), "at")] = data.draw(st.integers(0, 255), "to")
    try:
        files = read_archive(bytes(content), media_type)
    except BundleError:
        return
    assert not any(name.startswith("/") or ".." in name.split("/") for name in files)


def test_the_same_files_are_stored_once(with_store, tmp_path):
    """By any format and any order; each project has a name of its own for them."""

    async def scenario(store):
        first, is_new = await store_bundle(store, LocalStorage(tmp_path), tar_gz(GOOD), TAR_GZ, "a")
        again, is_new_again = await store_bundle(store, LocalStorage(tmp_path), zipped(dict(reversed(GOOD.items()))), ZIP, "a")
        other, is_new_elsewhere = await store_bundle(store, LocalStorage(tmp_path), tar_gz(GOOD), TAR_GZ, "b")
        assert (is_new, is_new_again, is_new_elsewhere) == (True, False, True)
        assert again == await store.bundles.get(first.id)
        assert (again.id, again.created_at) == (first.id, first.created_at)
        assert again.uploaded_at > first.uploaded_at
        assert other.id != first.id
        assert first.num_files == len(GOOD)
        [path] = (tmp_path / "code").iterdir()
        assert tmp_path / code_name(first.sha256) == path
        assert other.sha256 == first.sha256
        assert read_tar(path.read_bytes()) == GOOD
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    with_store(scenario)


def test_what_is_refused_leaves_nothing(with_store, tmp_path):
    """Neither a file nor a row."""

    async def scenario(store):
        with pytest.raises(InvalidError, match=r"evil"):
            await store_bundle(store, LocalStorage(tmp_path), zipped({"../evil": b""}), ZIP, "a")
        assert not list(tmp_path.glob("code*"))

    with_store(scenario)
