"""From one spec, a field and its values to the specs of a comparison, all valid or none. Pure."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Final

from service.errors import InvalidError
from service.paths import PathError, assign
from worker.contract import JobSpec, Problem, SpecError, parse_spec

LABEL: Final = "comparison"
"""The label by which the jobs of a comparison are found in lists."""
MAX_NAME: Final = 128


def variants(document: Mapping[str, Any], field: str, values: Sequence[Any], comparison_id: str) -> list[JobSpec]:
    """Return one spec for each value: alike but for the field, the name, which has the value after it, and a label.

    Where kinds of norm are compared, `norm.args` are those of the kind that the document names; the others have their defaults.

    Raises:
        InvalidError: with every problem of every variant. `loc` is `values.N:LOC` for one of the N-th variant (from 0), `spec.LOC` for
            one that all have in common.
    """
    found: list[JobSpec] = []
    problems: list[list[Problem]] = []
    for value in values:
        try:
            found.append(parse_spec(_changed(document, field, value, comparison_id)))
            problems.append([])
        except SpecError as error:
            problems.append(list(error.problems))
        except PathError as error:
            raise InvalidError.of(
                [Problem(loc="field", value=f"{field}: {error}", expected="a dotted path into a job spec", remedy="use one like norm.kind")]
            ) from error
    if any(problems):
        raise InvalidError.of(_told(problems), code="invalid_spec")
    return found


def shown(value: Any) -> str:
    """Return a value as a person would write it.

    >>> shown("sync_bn"), shown(0.1), shown({"name": "adamw"})
    ('sync_bn', '0.1', '{"name": "adamw"}')
    """
    return value if isinstance(value, str) else json.dumps(value)


def _changed(document: Mapping[str, Any], field: str, value: Any, comparison_id: str) -> dict[str, Any]:
    changed = deepcopy(dict(document))
    if isinstance(name := changed.get("name"), str):
        changed["name"] = f"{name} {shown(value)}"[:MAX_NAME]
    norm = changed.get("norm")
    if field == "norm.kind" and isinstance(norm, dict) and norm.get("kind") != value:
        norm.pop("args", None)  # they are those of the kind that the spec names
    assign(changed, field, value)
    labels = changed.setdefault("labels", {})
    if isinstance(labels, dict):
        labels[LABEL] = comparison_id
    return changed


def _told(problems: Sequence[Sequence[Problem]]) -> list[Problem]:
    """Say what all variants have in common once, and the rest of each variant by its number."""
    common = [one for one in problems[0] if all(one in others for others in problems)]
    own = [(number, one) for number, some in enumerate(problems) for one in some if one not in common]
    return [
        *(one.model_copy(update={"loc": f"spec.{one.loc}".rstrip(".")}) for one in common),
        *(one.model_copy(update={"loc": f"values.{number}:{one.loc}"}) for number, one in own),
    ]
