"""From anything a user wrote to a JobSpec, or to a list of problems that each say what, where, what was expected and what to do."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from worker.contract.catalogue import DATASETS, MODELS, Entry
from worker.contract.frozen import Frozen
from worker.contract.spec import JobSpec

# The tags that pydantic puts into the path of a union member; a user never wrote them.
_UNION_TAGS = {"sgd", "adamw", "RecalibrateSpec", "int", "float", "constrained-int", "constrained-float"}


class Problem(Frozen):
    """One thing wrong with a document: where (dotted), the value found, what was expected, what to do."""

    loc: str
    value: Any = None
    expected: str
    remedy: str

    def __str__(self) -> str:
        """Return the problem as one sentence."""
        found = "" if self.value is None else f" is {_short(self.value)}"
        return f"{self.loc or 'the spec'}{found}; expected {self.expected}; {self.remedy}"


class SpecError(ValueError):
    """A job spec that cannot be run. User's fault; trying again does not help."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


def parse_spec(raw: Any) -> JobSpec:
    """Validate a decoded YAML or JSON document, defaults and the arguments of model and data included.

    Args:
        raw: what the user wrote, as plain Python values.
    Returns:
        The spec with every default filled in, and `model.args` and `data.args` complete.
    Raises:
        SpecError: with every problem found, not only the first.

    >>> parse_spec({"name": "a", "model": {"name": "resnet18"}, "data": {"name": "digits"}, "epoch": 3})
    Traceback (most recent call last):
    ...
    worker.contract.validation.SpecError: epoch is 3; expected a known key; did you mean epochs?
    """
    if not isinstance(raw, Mapping):
        raise SpecError([Problem(loc="", value=_short(raw), expected="a mapping of keys to values", remedy="see docs/job-spec.md")])
    try:
        spec = JobSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError([_problem(detail) for detail in _without_union_noise(error.errors())]) from error
    model, model_problems = _resolve("model.args", MODELS[spec.model.name], spec.model.args)
    data, data_problems = _resolve("data.args", DATASETS[spec.data.name], spec.data.args)
    if model_problems or data_problems:
        raise SpecError([*model_problems, *data_problems])
    return spec.model_copy(
        update={"model": spec.model.model_copy(update={"args": model}), "data": spec.data.model_copy(update={"args": data})}
    )


def _resolve(loc: str, entry: Entry, args: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    try:
        return entry.args.model_validate(args).model_dump(mode="json"), []
    except ValidationError as error:
        return {}, [_problem(detail, prefix=loc, owner=entry.args) for detail in error.errors()]


def _without_union_noise(details: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Keep one error per path: a union reports one for every member that did not match, the first names the main one."""
    kept: dict[str, ErrorDetails] = {}
    for detail in details:
        kept.setdefault(_dotted(detail["loc"]), detail)
    return list(kept.values())


def _dotted(loc: Sequence[int | str]) -> str:
    parts = [str(part) for part in loc]
    return ".".join(part for part in parts if part not in _UNION_TAGS and not part.startswith(("literal[", "constrained", "function-")))


def _problem(detail: ErrorDetails, prefix: str = "", owner: type[Frozen] = JobSpec) -> Problem:
    loc = ".".join(part for part in (prefix, _dotted(detail["loc"])) if part)
    context = detail.get("ctx", {})
    value = None if detail["type"] in {"missing", "rule"} and isinstance(detail["input"], dict) else _plain(detail["input"])
    if detail["type"] == "extra_forbidden":
        known = _known_keys(owner, detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else f"remove it; known keys: {', '.join(known) or 'none'}"
        return Problem(loc=loc, value=value, expected="a known key", remedy=remedy)
    if detail["type"] == "rule":
        whole = f"{context['expected']} ({context['problem']})"
        return Problem(loc=loc, value=value, expected=whole, remedy=context["remedy"])
    if detail["type"] == "missing":
        return Problem(loc=loc, expected="a value", remedy=f"add {loc}; docs/job-spec.md has an example")
    expected = _expectation(detail["msg"])
    return Problem(loc=loc, value=value, expected=expected, remedy=f"set {loc} to {expected}")


def _expectation(message: str) -> str:
    """Turn pydantic's 'Input should be X' into X."""
    for start in ("Input should be ", "String should ", "Value should "):
        if message.startswith(start):
            return message.removeprefix(start)
    return message[:1].lower() + message[1:]


def _known_keys(owner: type[Frozen], path: Sequence[int | str]) -> list[str]:
    """Return the keys that the section at `path` takes."""
    section: Any = owner
    for part in path:
        if str(part) in _UNION_TAGS:
            section = next(member for member in _members(section) if part in {member.__name__, _tag(member)})
        else:
            field = section.model_fields[str(part)]
            section = field.annotation
    models = [member for member in _members(section) if hasattr(member, "model_fields")]
    return [name for model in models for name in model.model_fields]


def _members(annotation: Any) -> tuple[Any, ...]:
    return tuple(getattr(annotation, "__args__", ())) or (annotation,)


def _tag(model: Any) -> Any:
    field = getattr(model, "model_fields", {}).get("name")
    return field and getattr(field.annotation, "__args__", (None,))[0]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list | dict | None) else repr(value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
