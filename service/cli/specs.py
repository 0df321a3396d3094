"""From a SPEC on the command line to plain values: YAML or JSON, from a file or stdin, `--set a.b=c` on top. Judges nothing."""

import json
import re
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from service.cli.exits import UsageError
from service.paths import PathError, assign


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: 1e-3 is a number, 2026-11-20 is text, and a key given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# PyYAML follows YAML 1.1, where a float needs a dot and a signed exponent.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag not in {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"}]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = re.compile(
    r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_spec(source: str, assignments: Sequence[str] = ()) -> dict[str, Any]:
    """Return the document named by a path, or read from stdin for `-`, with `a.b=c` assignments applied.

    Raises:
        UsageError: it cannot be read, is no YAML or JSON, is no mapping, or an assignment does not fit.
    """
    document = parse(_text(source), source)
    if not isinstance(document, dict):
        raise UsageError(f"{source} holds {type(document).__name__}; expected a mapping of keys to values, as in docs/job-spec.md")
    for assignment in assignments:
        path, value = _read_assignment(assignment)
        try:
            assign(document, path, value)
        except PathError as error:
            raise UsageError(f"--set {assignment}: {error}") from error
    _require_json(document, source)
    return document


def read_changes(assignments: Sequence[str]) -> dict[str, Any]:
    """Return the values of `a.b=c` assignments by their paths.

    Raises:
        UsageError: an assignment cannot be read.

    >>> read_changes(["optimizer.lr=1e-2", "norm.kind=group_norm"])
    {'optimizer.lr': 0.01, 'norm.kind': 'group_norm'}
    """
    changes = dict(map(_read_assignment, assignments))
    _require_json(changes, "--set")
    return changes


def parse(text: str, source: str) -> Any:
    """Decode YAML, of which JSON is a part.

    >>> parse("lr: 1e-3", "here"), parse("compile: off", "here")
    ({'lr': 0.001}, {'compile': False})
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{source} is neither YAML nor JSON: {_where(error)}") from error


def _text(source: str) -> str:
    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not UTF-8 text (byte {error.start}); expected a job spec in YAML or JSON") from error
    except OSError as error:
        raise UsageError(f"cannot read the spec {source}: {error.strerror}; give a file, or - for stdin") from error


def _where(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem or error.context} at line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return " ".join(str(error).split())


def _require_json(value: Any, source: str) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{source} holds a value that JSON has no word for ({error}); use text, finite numbers, lists and mappings"
        ) from error


def _read_assignment(assignment: str) -> tuple[str, Any]:
    path, found, text = assignment.partition("=")
    if not found or not all(path.split(".")):
        raise UsageError(f"--set {assignment!r} is not KEY.KEY=VALUE; for example --set optimizer.lr=0.05")
    return path, parse(text, f"--set {path}") if text else ""
