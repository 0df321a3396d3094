"""The references of the site as Markdown, made of the code they describe: the models of the spec, the OpenAPI document, the public names.

Owns how a JSON schema is told in words. Knows nothing of MkDocs but how mkdocstrings is asked for a name.
"""

import ast
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from service.app import create_app
from service.settings import Settings
from worker.contract import JobSpec

Schema = Mapping[str, Any]
ROOT: Final = Path(__file__).parent.parent
_LIMITS: Final = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "pattern": "matches `{}`",
}


def of_spec() -> str:
    """Return the page of every key of a job spec."""
    schema = JobSpec.model_json_schema()
    models = schema.pop("$defs")
    head = [
        "# Every key of a spec",
        "What the service accepts, from the models that check it. [The job spec](../job-spec.md) is the guide.",
    ]
    return _page([*head, *_section("JobSpec", schema), *_sections(models, {"JsonValue"})])


def of_routes() -> str:
    """Return the page of every route of the REST API."""
    with tempfile.TemporaryDirectory() as home:
        document = create_app(Settings(home=Path(home))).openapi()
    head = [
        "# Every route",
        "From the OpenAPI document, which a running service has at `/openapi.json`. [The REST API](../api.md) is the guide.",
    ]
    routes = [(path, method, operation) for path, methods in document["paths"].items() for method, operation in methods.items()]
    told = [part for path, method, operation in routes for part in _route(path, method, operation)]
    spec = {"JsonValue", "JobSpec"} | set(JobSpec.model_json_schema()["$defs"])
    return _page([*head, *told, "## Bodies", *_sections(document["components"]["schemas"], spec)])


def of_package(name: str) -> str:
    """Return the page of every public name of a package, which mkdocstrings fills from the docstrings."""
    source = (ROOT / name.replace(".", "/") / "__init__.py").read_text()
    tree = ast.parse(source)
    [names] = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and _is_all(node)]
    first, *_ = (ast.get_docstring(tree) or "").split("\n\n")
    return _page([f"# {name}", first, *(f"::: {name}.{public}" for public in sorted(names))])


def _is_all(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join(parts) + "\n"


def _sections(models: Mapping[str, Schema], left_out: set[str]) -> list[str]:
    return [part for name in sorted(models.keys() - left_out) for part in _section(name, models[name])]


def _section(name: str, model: Schema) -> list[str]:
    """Tell a model: its heading, what it is, and a row for each key."""
    required = model.get("required", [])
    keys = model.get("properties", {})
    rows = [(f"`{key}`", _told(value), _default(value, key in required), value.get("description", "")) for key, value in keys.items()]
    table = [_table(("key", "is", "default", ""), rows)] if rows else [_told(model)]
    return [f"### {name}", model.get("description", "").strip(), *table]


def _default(value: Schema, is_required: bool) -> str:
    if "default" in value:
        return f"`{json.dumps(value['default'])}`"
    return "required" if is_required else ""


def _route(path: str, method: str, operation: Schema) -> list[str]:
    scopes = [scope for scheme in operation.get("security", []) for scope in next(iter(scheme.values()))]
    needs = f"Needs a token with the scope `{'`, `'.join(scopes)}`." if scopes else ""
    rows = [
        (f"`{one['name']}`", one["in"], _told(one["schema"]), _default(one["schema"], one["required"]), one.get("description", ""))
        for one in operation.get("parameters", [])
    ]
    asked = [_table(("parameter", "in", "is", "default", ""), rows)] if rows else []
    body = [f"Body: {_bodies(operation['requestBody'])}."] if "requestBody" in operation else []
    answers = [(status, _bodies(answer), answer["description"]) for status, answer in sorted(operation["responses"].items())]
    told = [operation.get("description", ""), needs, *asked, *body, _table(("status", "body", ""), answers)]
    return [f"## {method.upper()} {path}", *filter(None, told)]


def _bodies(carrier: Schema) -> str:
    return ", ".join(f"{_told(one.get('schema', {}))} as `{media_type}`" for media_type, one in carrier.get("content", {}).items())


def _told(schema: Schema) -> str:
    """Tell a schema in one line, models as links to their sections: "integer >= 1 or null"."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return "any" if name == "JsonValue" else f"[{name}]({_place(name)}#{name.lower()})"
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{json.dumps(one)}`" for one in schema.get("enum", [schema.get("const")]))
    for kind in ("anyOf", "oneOf"):
        if kind in schema:
            return " or ".join(map(_told, schema[kind]))
    limits = [text.format(schema[limit]) for limit, text in _LIMITS.items() if limit in schema and "prefixItems" not in schema]
    return " ".join([_type(schema), ", ".join(limits)]).strip().replace("|", "\\|")


def _type(schema: Schema) -> str:
    if "prefixItems" in schema:
        return f"[{', '.join(map(_told, schema['prefixItems']))}]"
    if "items" in schema:
        return f"list of {_told(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), Mapping):
        return f"names to {_told(schema['additionalProperties'])}"
    return str(schema.get("format") or schema.get("type") or "any")


def _place(name: str) -> str:
    """Return the page that has a model: those of the spec are on one, the others on the page of the routes."""
    return "job-spec.md" if name in {"JobSpec", *JobSpec.model_json_schema()["$defs"]} else "rest.md"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    rows = list(rows)
    if not any(row[-1] for row in rows):  # nothing to say beyond the rest
        head, rows = head[:-1], [row[:-1] for row in rows]
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(' '.join(cell.split()) for cell in line)} |" for line in lines)
