"""The rules of ARCHITECTURE.md as tests, each with a test that it can fail."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("syncbn", "worker", "service")
# One file (or folder) per outside world: what may import it.
OUTSIDE_WORLDS = {
    "torch.distributed": {"syncbn/collectives.py", "worker/meeting.py", "worker/ranks.py"},
    "ray": {"worker/gang.py", "worker/gang_members.py", "worker/rooms.py", "worker/rank_actor.py", "service/cluster.py"},
    "sqlalchemy": {"service/store/"},
    "alembic": {"service/store/"},
    "opentelemetry": {"service/tracing.py"},
}
ENVIRONMENT = {"worker/settings.py", "service/settings.py"}
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 50


def _sources(root: Path) -> list[Path]:
    # A migration is written once and never edited, so its length harms nobody.
    found = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    return sorted(path for path in found if "versions" not in path.parts)


def _imported(tree: ast.AST) -> set[str]:
    """Return every module name that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def outside_violations(root: Path) -> list[str]:
    """Return imports of an outside world from a file that does not own it."""
    found = []
    for path in _sources(root):
        name = path.relative_to(root).as_posix()
        imported = _imported(ast.parse(path.read_text()))
        for world, owners in OUTSIDE_WORLDS.items():
            owned = any(name == owner or (owner.endswith("/") and name.startswith(owner)) for owner in owners)
            if not owned and any(module == world or module.startswith(f"{world}.") for module in imported):
                found.append(f"{name} imports {world}")
    return found


def environment_violations(root: Path) -> list[str]:
    """Return uses of os.environ or os.getenv outside the two settings files."""
    found = []
    for path in _sources(root):
        name = path.relative_to(root).as_posix()
        attributes = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        if name not in ENVIRONMENT and attributes & {"environ", "getenv", "putenv"} and "psutil" not in path.read_text():
            found.append(name)
    return found


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function, its docstring not counted."""
    documented = function.body[0] if ast.get_docstring(function) is not None else None
    docstring = documented.end_lineno - documented.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


def tail(root: Path) -> list[str]:
    """Return files and functions that no longer fit in the head, and modules that do not say what they own."""
    found = []
    for path in _sources(root):
        name, source = path.relative_to(root).as_posix(), path.read_text()
        tree = ast.parse(source)
        if source.count("\n") > MAX_FILE_LINES:
            found.append(f"{name}: {source.count(chr(10))} lines")
        if source.strip() and ast.get_docstring(tree) is None:
            found.append(f"{name}: no docstring")
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        long = [node.name for node in functions if _body_lines(node) > MAX_FUNCTION_LINES]
        found += [f"{name}: function {function} is too long" for function in long]
    return found


@pytest.mark.parametrize("rule", [outside_violations, environment_violations, tail])
def test_the_rule_holds(rule):
    """The house is as ARCHITECTURE.md says."""
    assert rule(ROOT) == []


@pytest.mark.parametrize(
    ("rule", "planted"),
    [
        (outside_violations, "def f():\n    import torch.distributed as dist\n"),
        (outside_violations, "from torch import distributed\n"),
        (outside_violations, "import ray\n"),
        (environment_violations, "import os\nX = os.environ['A']\n"),
        (tail, "X = 1\n" * 400),
    ],
)
def test_the_rule_can_fail(rule, planted, tmp_path):
    """A planted violation is found."""
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "planted.py").write_text(planted)

    assert rule(tmp_path)


def _loaded(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted(name.partition('.')[0] for name in sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split())


@pytest.mark.parametrize("module", ["service.app", "service.controller", "service.cli.main", "worker.gang", "worker.contract"])
def test_the_controller_never_loads_torch(module):
    """The controller process stays small, and cannot unpickle a model."""
    assert not {"torch", "syncbn"} & _loaded(f"import {module}")


def test_a_loaded_torch_would_be_seen():
    """The test above can fail."""
    assert "torch" in _loaded("import syncbn")


def _broken_contracts(tmp_path: Path, planted: dict[str, str]) -> str:
    """Run the import contracts on a copy of the source with files planted in it; return what they print if one is broken, else ''."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, source in planted.items():
        (tmp_path / name).write_text(source)
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120, env=environment)
    return done.stdout if done.returncode else ""


@pytest.mark.parametrize(
    ("planted", "contract"),
    [
        ({}, ""),
        ({"service/planted.py": "import worker.training"}, "service sees of worker only the contract, the gang and the storage BROKEN"),
        ({"syncbn/planted.py": "import service.states"}, "service -> worker -> syncbn, never back BROKEN"),
        ({"worker/one.py": "import worker.two", "worker/two.py": "import worker.one"}, "no cycles BROKEN"),
    ],
)
def test_the_import_contracts_hold_and_can_fail(planted, contract, tmp_path):
    """The arrows of ARCHITECTURE.md: kept as they are, broken by a planted import."""
    broken = _broken_contracts(tmp_path, planted)

    assert contract in broken
    assert bool(broken) == bool(contract)
