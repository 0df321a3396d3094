"""Writes the types of the client's answers from the OpenAPI document: `python -m tests.support.answers`. A TypedDict for each.

A test holds the file to it, so that what editors and type checkers know of an answer is what the service describes.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.app import create_app
from service.settings import Settings

CLIENT = Path(__file__).parent.parent.parent / "service/client"
HEADER = '''"""What the service answers{about}, as types: the dictionaries that the client returns are of these.

Generated from the OpenAPI document by `make format`: change the shapes in service/api.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict
{imports}
'''
FIELDS_HEADER = '''"""A job as a dictionary whose fields type checkers and editors know, each with its type. At run time a dictionary.

Generated from the OpenAPI document by `make format`: change the shapes in service/api.
"""

from typing import TYPE_CHECKING, Any, Literal, overload

from service.client.answers import Attempt, Progress, State, Transition


class JobFields(dict[str, Any]):
    """What a job is read by: `job["state"]` is a state, `job["progress"]["step"]` a number."""

    if TYPE_CHECKING:
'''
RENAMED = {
    "JobShape": "JobAnswer",
    "LayerShape": "LayerStatistics",
    "RowShape": "ComparisonRow",
    "EntryShape": "CatalogueEntry",
    "CataloguePage": "Catalogue",
    "FileShape": "CheckpointFile",
    "FindingShape": "LayerFinding",
    "LogShape": "LogLine",
}
LEFT_OUT = re.compile(r"(?<!Catalogue)Page$|^DryRunShape$")
"""Pages are read by the client, which yields what is in them."""
OF_CHECKPOINTS = ("CheckpointShape", "Manifest", "StatisticsShape", "TelemetryShape", "PredictionsShape")
"""These, and what they consist of, are a file of their own."""
REFERENCE = "#/components/schemas/"
SCALARS = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}

Schema = dict[str, Any]


def name_of(schema: str) -> str:
    """Return the type's name.

    >>> name_of("EventShape"), name_of("LayerShape"), name_of("Health")
    ('Event', 'LayerStatistics', 'Health')
    """
    return RENAMED.get(schema, schema.removesuffix("Shape"))


def type_of(schema: Schema, schemas: dict[str, Schema]) -> str:
    """Return a schema as a Python type.

    >>> type_of({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {}), type_of({"type": "array", "items": {"type": "string"}}, {})
    ('int | None', 'list[str]')
    """
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(REFERENCE)
        return name_of(name)
    if "anyOf" in schema:
        return " | ".join(type_of(one, schemas) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return f"Literal[{', '.join(map(repr, schema.get('enum') or [schema['const']]))}]"
    kind = schema.get("type")
    if kind == "array":
        inner = {type_of(one, schemas): None for one in schema.get("prefixItems", [schema.get("items", {})])}
        return f"list[{' | '.join(inner)}]"
    if kind == "object":
        rest = schema.get("additionalProperties")
        return f"dict[str, {type_of(rest, schemas) if isinstance(rest, dict) else 'Any'}]"
    return SCALARS.get(kind, "Any")


def wanted(document: Schema) -> list[str]:
    """Return the names of the schemas of answers, and of what they consist of, in the order of the types' names."""
    responses = [response for path in document["paths"].values() for one in path.values() for response in one["responses"].items()]
    return _closure([name for code, response in responses if code.startswith("2") for name in _named(response)], document)


def _closure(names: Sequence[str], document: Schema) -> list[str]:
    left, found = list(names), set()
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += _named(document["components"]["schemas"][name])
    return sorted((name for name in found if not LEFT_OUT.search(name)), key=name_of)


def _named(part: Any) -> list[str]:
    if isinstance(part, list):
        return [name for one in part for name in _named(one)]
    if not isinstance(part, dict):
        return []
    here = [part["$ref"].removeprefix(REFERENCE)] if isinstance(part.get("$ref"), str) else []
    return here + [name for one in part.values() for name in _named(one)]


def generated(document: Schema) -> dict[str, str]:
    """Return what the files are to be, formatted, by their names."""
    schemas = document["components"]["schemas"]
    of_checkpoints = _closure(OF_CHECKPOINTS, document)
    others = [name for name in wanted(document) if name not in of_checkpoints]
    shared = sorted({name_of(name) for one in others for name in _named(schemas[one])} & set(map(name_of, of_checkpoints)))
    return {
        "answers.py": _types(others, schemas, "", f"from service.client.checkpoint_answers import {', '.join(shared)}"),
        "checkpoint_answers.py": _types(of_checkpoints, schemas, " about checkpoints and their statistics", ""),
        "job_fields.py": _formatted(FIELDS_HEADER + _overloads(schemas["JobShape"], schemas)),
    }


def _types(names: Sequence[str], schemas: dict[str, Schema], about: str, imports: str) -> str:
    words = "".join(f"\n{name_of(name)} = {type_of(schemas[name], schemas)}" for name in names if "enum" in schemas[name])
    classes = "".join(_class(name, schemas) for name in names if "properties" in schemas[name])
    return _formatted(HEADER.format(about=about, imports=imports) + words + "\n" + classes)


def _formatted(text: str) -> str:
    for command in (["check", "--quiet", "--select=I,F401", "--fix", "-"], ["format", "-"]):
        ruff = [Path(sys.executable).with_name("ruff"), *command, f"--stdin-filename={CLIENT / 'answers.py'}"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True, timeout=60).stdout
    return text


def _class(name: str, schemas: dict[str, Schema]) -> str:
    schema = schemas[name]
    lines = [f"\n\nclass {name_of(name)}(TypedDict):", f'    """{schema["description"].partition(chr(10))[0]}"""\n']
    for key, one in schema["properties"].items():
        kind = type_of(one, schemas)
        lines.append(f"    {key}: {kind if key in schema.get('required', ()) else f'NotRequired[{kind}]'}")
    return "\n".join(lines) + "\n"


def _overloads(schema: Schema, schemas: dict[str, Schema]) -> str:
    keys: dict[str, list[str]] = {}
    for key, one in schema["properties"].items():
        keys.setdefault(type_of(one, schemas), []).append(key)
    kinds = {f"Literal[{', '.join(map(repr, names))}]": kind for kind, names in keys.items()} | {"str": "Any"}
    implementation = "\n        def __getitem__(self, key: str, /) -> Any: ...\n"
    return (
        "\n".join(f"        @overload\n        def __getitem__(self, key: {key}, /) -> {kind}: ...\n" for key, kind in kinds.items())
        + implementation
    )


def described() -> Schema:
    """Return the OpenAPI document of the service as it is."""
    with tempfile.TemporaryDirectory() as home:
        return create_app(Settings(home=Path(home))).openapi()


if __name__ == "__main__":
    for file, content in generated(described()).items():
        (CLIENT / file).write_text(content)
