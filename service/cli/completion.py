"""What the shell may complete: ids and names of jobs as the service has them, fields of a spec and their values. Silent where it cannot.

The scripts that call it are Typer's: `syncbn --install-completion`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import typer

from service.client import Client, ClientError
from service.client.patience import Patience
from service.states import State
from worker.contract import DATASETS, MODELS, NORMS, TASKS, JobSpec

TIMEOUT_S: Final = 1.0
"""Nobody waits longer for a completion."""
_NAMED: Final[Mapping[str, Mapping[str, Any]]] = {"task": TASKS, "model.name": MODELS, "data.name": DATASETS, "norm.kind": NORMS}
"""Fields whose values are names of a catalogue."""
_WORD: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


def job_ids(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the newest jobs whose id begins so, and once something else is typed the names that begin so; each with what it is."""
    options = ctx.find_root().params
    try:
        with Client(options.get("url"), home=options.get("home"), timeout_s=TIMEOUT_S, patience=Patience(tries=1)) as client:
            jobs = list(client.jobs(limit=100))
    except (ClientError, OSError):
        return []
    found = [(job.id, f"{job['name']}, {job['state']}") for job in jobs if job.id.startswith(incomplete)]
    names = [str(job["name"]) for job in jobs]
    if incomplete:
        # A name that several jobs have says nothing, and a shell would take one with a space for two words.
        found += [(name, "") for name in names if name.startswith(incomplete) and names.count(name) == 1 and _WORD.match(name)]
    return found


def states(incomplete: str) -> list[str]:
    """Return the states that begin so."""
    return [state.value for state in State if state.value.startswith(incomplete)]


def assignments(incomplete: str) -> list[str]:
    """Return what `--set` may be given: fields with their `=`, and behind one its values where they can be listed.

    >>> assignments("optimizer.nest"), assignments("channels_last=t")
    (['optimizer.nesterov='], ['channels_last=true'])
    """
    field, has_value, _ = incomplete.partition("=")
    schema = JobSpec.model_json_schema()
    fields = list(_fields(schema, schema, ""))
    if has_value:
        offered = [value for name, found in fields if name == field for value in _values(found)] + list(_NAMED.get(field, ()))
        offered = [f"{field}={value}" for value in offered]
    else:
        offered = [f"{name}=" for name, _ in fields]
    return sorted(one for one in set(offered) if one.startswith(incomplete))


def norm_kinds(incomplete: str) -> list[str]:
    """Return lists of norm kinds, separated by commas, with the last one completed."""
    done, comma, last = incomplete.rpartition(",")
    return [f"{done}{comma}{kind}" for kind in NORMS if kind.startswith(last) and kind not in done.split(",")]


def _values(schema: Mapping[str, Any]) -> list[str]:
    if schema.get("type") == "boolean":
        return ["true", "false"]
    return [str(value) for value in schema.get("enum", [schema["const"]] if "const" in schema else [])]


def _fields(schema: Mapping[str, Any], root: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the dotted name of every field and the schema of each form that its value may have; of a section its fields."""
    for name, given in schema.get("properties", {}).items():
        for form in _forms(given, root):
            if "properties" in form:
                yield from _fields(form, root, f"{prefix}{name}.")
            elif form.get("type") != "null":
                yield f"{prefix}{name}", form


def _forms(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the forms that a schema leaves the choice of."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    choices = schema.get("anyOf") or schema.get("oneOf")
    if not choices:
        yield schema
        return
    for choice in choices:
        yield from _forms(choice, root)
