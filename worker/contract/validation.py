"""From anything a user wrote to a JobSpec, or to a list of problems that each say what, where, what was expected and what to do."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from worker.contract.best import METRICS, known_mode
from worker.contract.catalogue import AUTO, AUTO_NORM, DATASETS, MODELS, NORMS, TASKS, Entry
from worker.contract.data import DataSpec
from worker.contract.frozen import Frozen
from worker.contract.problem import Problem, shortened
from worker.contract.spec import JobSpec, ModelSpec, NormSpec, TaskSpec
from worker.contract.transforms import TRANSFORM_NAMES

# The tags that pydantic puts into the path of a union member; a user never wrote them.
_UNION_TAGS = {"sgd", "adamw", "ema", "swa", "RecalibrateSpec", "WorkerRange", "int", "float", "constrained-int", "constrained-float"}
_DISCRIMINATORS = ("name", "kind")
_PLAIN_EXPECTATIONS = {
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "tuple_type": "a list",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
}


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
        The spec with every default filled in, and the `args` of task, model, norm and data complete.
    Raises:
        SpecError: with every problem found, not only the first.

    >>> parse_spec({"name": "a", "model": {"name": "resnet18"}, "data": {"name": "digits"}, "epoch": 3})
    Traceback (most recent call last):
    ...
    worker.contract.validation.SpecError: epoch is 3; expected a known key; did you mean epochs?
    """
    if not isinstance(raw, Mapping):
        raise SpecError([Problem(loc="", value=shortened(raw), expected="a mapping of keys to values", remedy="see docs/job-spec.md")])
    try:
        spec = JobSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError(_problems(error, JobSpec)) from error
    sections = {
        "task": TASKS.get(spec.task.name),
        "model": MODELS.get(spec.model.name),
        "norm": AUTO if spec.norm.kind == AUTO_NORM else NORMS[spec.norm.kind],
        "data": DATASETS.get(spec.data.name),
    }
    resolved, problems = {}, []
    for name, entry in sections.items():
        section: TaskSpec | ModelSpec | NormSpec | DataSpec = getattr(spec, name)
        # The arguments of user code and of other libraries are theirs to check.
        args, found = (section.args, []) if entry is None else _resolve(f"{name}.args", entry, section.args)
        resolved[name] = section.model_copy(update={"args": args})
        problems += found
    spec = spec.model_copy(update=resolved)
    problems = problems or _misfits(spec, sections)
    if problems:
        raise SpecError(problems)
    return spec


def _misfits(spec: JobSpec, sections: Mapping[str, Entry | None]) -> list[Problem]:
    """Return what does not go with the task; a task of the user's own may go with anything."""
    task, best = spec.task.name, spec.checkpoint.keep_best
    if task not in TASKS:
        return []
    found = []
    for name, table in (("model", MODELS), ("data", DATASETS)):
        entry = sections[name]
        if entry is not None and entry.tasks is not None and task not in entry.tasks:
            fitting = ", ".join(other.name for other in table.values() if other.tasks is None or task in other.tasks)
            found.append(Problem(loc=f"{name}.name", value=entry.name, expected=f"one for {task}: {fitting}", remedy="choose one of these"))
    labels = spec.data.args.get("task", task)
    if labels != task:
        found.append(Problem(loc="data.args.task", value=labels, expected=f"the task, {task}", remedy=f"set data.args.task to {task}"))
    if best is not None and known_mode(best.metric, task) is None:
        known = ", ".join(f"{name}CLASS" if name.endswith("/") else name for name in METRICS[task])
        found.append(Problem(loc="checkpoint.keep_best", value=best.metric, expected=f"a metric of {task}: {known}", remedy="choose one"))
    return found


def _resolve(loc: str, entry: Entry, args: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    try:
        return entry.args.model_validate(args).model_dump(mode="json"), []
    except ValidationError as error:
        return {}, _problems(error, entry.args, prefix=f"{loc}.")


def _problems(error: ValidationError, owner: type[Frozen], prefix: str = "") -> list[Problem]:
    """Return one problem for each place. A union reports one error for every member that did not match; they are told as one."""
    by_loc: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors():
        by_loc.setdefault(_dotted(detail), []).append(detail)
    # A member of a union that matched as far as its keys is what the user meant; the others say nothing.
    meant = {
        loc: details for loc, details in by_loc.items() if len(error.errors()) == 1 or not any(o.startswith(f"{loc}.") for o in by_loc)
    }
    return [_problem((prefix + loc).rstrip("."), details, owner) for loc, details in meant.items()]


def _dotted(detail: ErrorDetails) -> str:
    loc = detail["loc"]
    # A transform's name follows its place in the list; elsewhere the same word is a key.
    tags = {place for place, part in enumerate(loc) if place and isinstance(loc[place - 1], int) and part in TRANSFORM_NAMES}
    parts = [str(part) for place, part in enumerate(loc) if place not in tags]
    if detail["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        parts.append(detail["ctx"]["discriminator"].strip("'"))
    noise = ("literal[", "constrained", "function-")
    return ".".join(part for part in parts if part not in _UNION_TAGS and part != "[key]" and not part.startswith(noise))


def _problem(loc: str, details: Sequence[ErrorDetails], owner: type[Frozen]) -> Problem:
    detail = details[0]
    context = detail.get("ctx", {})
    value = _plain(detail["input"])
    match detail["type"]:
        case "extra_forbidden":
            known = _known_keys(owner, detail["loc"][:-1])
            remedy = _nearest(detail["loc"][-1], known) or f"remove it; known keys: {', '.join(known) or 'none'}"
            return Problem(loc=loc, value=value, expected="a known key", remedy=remedy)
        case "rule":
            # A rule over several fields is given the whole section, which is no news to its author.
            value = None if isinstance(detail["input"], dict) else value
            expected = context["expected"] if value is not None else f"{context['expected']} ({context['problem']})"
            near = _nearest(value, context["expected"].removeprefix("one of ").split(", ")) if expected.startswith("one of ") else None
            return Problem(loc=loc, value=value, expected=expected, remedy=near or context["remedy"])
        case "missing" | "union_tag_not_found":
            return Problem(loc=loc, expected="a value", remedy=f"add {loc}; docs/job-spec.md has an example")
        case "union_tag_invalid":
            known = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
            remedy = _nearest(context["tag"], known) or f"set {loc} to one of them"
            return Problem(loc=loc, value=context["tag"], expected=f"one of {', '.join(known)}", remedy=remedy)
        case "literal_error" if len(details) == 1:
            known = [choice.strip(" '") for choice in context["expected"].replace(" or ", ", ").split(",")]
            return Problem(
                loc=loc, value=value, expected=_expectation(detail), remedy=_nearest(value, known) or f"set {loc} to one of them"
            )
    expected = " or ".join(_expectation(detail) for detail in details)
    return Problem(loc=loc, value=value, expected=expected, remedy=f"set {loc} to {expected}")


def _nearest(word: Any, known: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else None


def _expectation(detail: ErrorDetails) -> str:
    """Say what was expected, from pydantic's 'Input should be X'."""
    plain = _PLAIN_EXPECTATIONS.get(detail["type"])
    if plain is not None:
        return plain
    text = detail["msg"]
    for start in ("Input should be ", "String should ", "Value should "):
        text = text.removeprefix(start)
    return f"a number {text}" if text.startswith(("greater", "less")) else text[:1].lower() + text[1:]


def _known_keys(owner: type[Frozen], path: Sequence[int | str]) -> list[str]:
    """Return the keys that the section at `path` takes."""
    section: Any = owner
    for part in path:
        if isinstance(part, int):
            continue  # a list: whatever it may hold
        if str(part) in _UNION_TAGS | TRANSFORM_NAMES and not hasattr(section, "model_fields"):
            section = next(member for member in _members(section) if part in {member.__name__, _tag(member)})
        else:
            field = section.model_fields[str(part)]
            section = field.annotation
    models = [member for member in _members(section) if hasattr(member, "model_fields")]
    return [name for model in models for name in model.model_fields]


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, of those inside it too; of anything else, itself."""
    if isinstance(annotation, type):
        return (annotation,)
    return tuple(member for inner in get_args(annotation) for member in _members(inner))


def _tag(model: Any) -> Any:
    fields = getattr(model, "model_fields", {})
    return next((get_args(fields[name].annotation)[:1] for name in _DISCRIMINATORS if name in fields), (None,))[0]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list | dict | None) else repr(value)
