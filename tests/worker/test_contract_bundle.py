"""Tests of worker/contract/bundle.py: what uploaded code may be, and what is refused."""

import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.archives import COLLISIONS, EVIL_NAMES, GOOD, special, tar, tar_of
from worker.contract.bundle import MAX_FILES, MAX_UNPACKED_BYTES, BundleError, Names, read_tar, write_tar

DIRECTORIES_ONLY = ("a/", "", ".", "./")


def test_what_is_written_is_read_and_depends_on_nothing_else():
    """The order of packing, times and owners leave no trace; names beyond ASCII stay."""
    files = GOOD | {"x" * 200 + "/caf\u00e9.py": b"1"}

    assert read_tar(write_tar(files)) == files
    assert write_tar(dict(reversed(files.items()))) == write_tar(files)


def test_a_tar_as_people_make_it_is_read():
    """With a leading ./, with directories, in GNU's format with a long name."""
    folder = tarfile.TarInfo("./mine")
    folder.type = tarfile.DIRTYPE
    root = tarfile.TarInfo("./")
    root.type = tarfile.DIRTYPE
    long = "mine/" + "n" * 150 + ".py"
    data = tar_of(
        (root, b""), (folder, b""), (tarfile.TarInfo("./mine/a.py"), b"1"), (tarfile.TarInfo(long), b"2"), form=tarfile.GNU_FORMAT
    )

    assert read_tar(data) == {"mine/a.py": b"1", long: b"2"}


@pytest.mark.parametrize("name", [name for name in EVIL_NAMES if name not in DIRECTORIES_ONLY])
def test_a_name_that_could_lead_elsewhere_is_refused(name):
    """As a file in an archive, and as a file or a directory in itself."""
    with pytest.raises(BundleError):
        Names().file(name, 0)
    with pytest.raises(BundleError):
        Names().directory(name)
    with pytest.raises(BundleError):
        read_tar(tar({name: b"x"}))


@pytest.mark.parametrize("name", DIRECTORIES_ONLY)
def test_a_directory_is_no_file(name):
    """A name that ends in a slash, or is none."""
    with pytest.raises(BundleError):
        Names().file(name, 0)


def test_a_message_about_a_name_cannot_drive_a_terminal():
    """It is ASCII, and short."""
    with pytest.raises(BundleError) as caught:
        Names().file("\x1b[2J\n" * 500, 0)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("first", "second"), COLLISIONS)
def test_two_names_that_are_one_to_some_file_system_are_refused(first, second):
    """Twice the same, by case, by composition of accents, or a file where a directory is."""
    with pytest.raises(BundleError):
        read_tar(tar_of((tarfile.TarInfo(first), b"1"), (tarfile.TarInfo(second), b"2")))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Z"],
)
def test_whatever_is_no_plain_file_is_refused(kind):
    """Links, devices, pipes, and kinds that nobody knows."""
    with pytest.raises(BundleError):
        read_tar(special(kind))


def test_the_limits_are_kept():
    """So many files and so many bytes, and one more of either is one too many."""
    assert len(read_tar(tar({f"f{number}": b"" for number in range(MAX_FILES)}))) == MAX_FILES
    with pytest.raises(BundleError, match=str(MAX_FILES)):
        read_tar(tar({f"f{number}": b"" for number in range(MAX_FILES + 1)}))
    names = Names()
    names.file("a", MAX_UNPACKED_BYTES)
    with pytest.raises(BundleError, match=str(MAX_UNPACKED_BYTES)):
        names.file("b", 1)
    with pytest.raises(BundleError, match="directories"):
        [Names.directory(names, f"d{number}") for number in range(MAX_FILES + 1)]


def test_a_huge_extended_header_is_refused_before_it_is_searched():
    """Tarfile would read it whole, and look through it with an expression that takes the square of its length."""
    entry = tarfile.TarInfo("a")
    entry.pax_headers = {"comment": "1" * 10_000}

    with pytest.raises(BundleError, match="extended header"):
        read_tar(tar_of((entry, b"")))


def test_a_sparse_file_by_its_extended_header_is_refused():
    """Another way to say sparse, which plain readers take for a plain file."""
    entry = tarfile.TarInfo("a")
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "../b", "GNU.sparse.realsize": "9"}

    with pytest.raises(BundleError):
        read_tar(tar_of((entry, b"1\n0\n9\n")))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_tar_is_refused_or_read_and_nothing_else(data):
    """Cut off or changed anywhere: an error with words, or files with plain names."""
    good = write_tar(GOOD)
    content = bytearray(good[: data.draw(st.integers(0, len(good)), "cut")])
    for _ in range(data.draw(st.integers(0, 4), "changes")):
        if content:
            content[data.draw(st.integers(0, min(len(content), 2000) - 1), "at")] = data.draw(st.integers(0, 255), "to")
    _only_plain(bytes(content))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=12) | st.sampled_from(["..", "a/..", "A", "a", "a/b", "/"]), st.binary(max_size=3)), max_size=4))
def test_any_names_are_refused_or_plain(entries):
    """Whatever a tar can say."""
    infos = [(tarfile.TarInfo(name), content) for name, content in entries if "\0" not in name]
    try:
        content = tar_of(*infos)
    except (ValueError, UnicodeError):
        return
    _only_plain(content)


def _only_plain(content):
    try:
        files = read_tar(content)
    except BundleError:
        return
    for name in files:
        parts = name.split("/")
        assert not name.startswith("/")
        assert not {"", ".", ".."} & set(parts)
    assert len({name.casefold() for name in files}) == len(files)
