"""What is released: a wheel that has every file it needs and asks for torch alone, and a source archive that builds the same wheel."""

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("syncbn", "worker", "service")


def _build(what: str, source: Path, target: Path) -> Path:
    """Build with the tools that are here, without an environment of their own: that would fetch torch."""
    program = f"from setuptools import build_meta; print(build_meta.build_{what}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=source, timeout=120)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built out of the source archive of what git has."""
    directory = tmp_path_factory.mktemp("release")
    files = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (directory / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / "tree" / name).write_bytes((ROOT / name).read_bytes())
    archive = _build("sdist", directory / "tree", directory)
    with tarfile.open(archive) as tar:
        tar.extractall(directory / "unpacked")  # made a moment ago, by ourselves
    [source] = (directory / "unpacked").iterdir()
    return zipfile.ZipFile(_build("wheel", source, directory))


def test_the_wheel_has_every_file_of_the_packages(wheel):
    """Pages, migrations, examples and type markers are not left behind."""
    here = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    expected = {name for name in here if "__pycache__" not in name}
    packed = {name for name in wheel.namelist() if name.split("/")[0] in PACKAGES}

    assert packed == expected


def test_the_library_alone_asks_for_torch_alone(wheel):
    """`pip install syncbn` brings torch and nothing else; the rest comes with extras."""
    [name] = [name for name in wheel.namelist() if name.endswith("METADATA")]
    metadata = Parser().parsestr(wheel.read(name).decode())
    plain = [requirement for requirement in metadata.get_all("Requires-Dist") if "extra ==" not in requirement]

    assert [requirement.split(">")[0] for requirement in plain] == ["torch"]
    assert {"worker", "service", "postgres"} <= set(metadata.get_all("Provides-Extra"))


def test_the_wheel_works_where_nothing_else_of_ours_is(wheel, tmp_path):
    """Unpacked into an empty place: the layer trains, and the command says what it can do."""
    wheel.extractall(tmp_path)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import syncbn, torch; assert syncbn.__file__.startswith(sys.argv[1]);"
        "model = syncbn.convert_sync_batchnorm(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)));"
        "model(torch.randn(2, 3, 8, 8)).sum().backward(); print(int(model[1].num_batches_tracked))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path)

    assert done.stdout == "1\n", done.stderr
