"""May this token ask for this job? Looks at what a spec refers to: code, other jobs, places where data lies. Knows no HTTP.

That a spec holds together is `worker.contract`'s to say; that a checkpoint is there, `service.jobs`'.
"""

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any, Final

from service.auth import require
from service.errors import InvalidError
from service.scopes import Scope
from service.store.records import Token
from service.store.store import Store
from worker.contract import JobSpec, Problem

_PATH_KEYS: Final = ("path", "uri", "url", "root", "directory")


async def admit(store: Store, spec: JobSpec, owner: Token, roots: Sequence[str]) -> None:
    """Let a spec pass only where its owner may have it run.

    Args:
        store: where bundles and jobs are.
        spec: what is asked for.
        owner: who asks.
        roots: directories and URI prefixes below which data may lie; none: anywhere for an admin, nowhere for others.
    Raises:
        ForbiddenError: it runs code of the user's, and the token lacks the scope `code`.
        InvalidError: code or a job that is not there for this project, or a path that is not below a root.
    """
    if runs_user_code(spec):
        require(owner, Scope.CODE, "the spec names code of its own")
    problems = [*await _foreign_references(store, spec, owner)]
    if roots or not owner.is_admin:
        problems += foreign_paths(spec, roots)
    if problems:
        raise InvalidError.of(problems, code="invalid_spec")


def runs_user_code(spec: JobSpec) -> bool:
    """Return whether a rank would import what is not part of the service."""
    names = (spec.task.name, spec.model.name, spec.data.name)
    return spec.code is not None or any(name.startswith("code:") for name in names)


async def _foreign_references(store: Store, spec: JobSpec, owner: Token) -> list[Problem]:
    problems = []
    if spec.code is not None:
        bundle = await store.bundles.get(spec.code)
        if bundle is None or not owner.sees(bundle.project):
            remedy = "upload it with POST /v1/code or `syncbn submit --code DIR`"
            problems.append(Problem(loc="code", value=spec.code, expected="code that this project has uploaded", remedy=remedy))
    if spec.initialize_from is not None:
        source = await store.jobs.get(spec.initialize_from.partition("/")[0])
        if source is not None and not owner.sees(source.project):
            # As for a job that is not there.
            remedy = f"see the checkpoints of {source.id}"
            expected = "a checkpoint that is there"
            problems.append(Problem(loc="initialize_from", value=spec.initialize_from, expected=expected, remedy=remedy))
    return problems


def foreign_paths(spec: JobSpec, roots: Sequence[str]) -> list[Problem]:
    """Return a problem for each value of task, model or data that is a place outside of the roots.

    A place is what begins with / or ~, has ://, or stands under a key like `path`. Links below a root are not looked at: the nodes see
    the files, the controller need not.
    """
    expected = f"a path below {' or '.join(roots)}" if roots else "no path: this service has no data roots"
    remedy = "use such a path, or ask the operator to add yours to SYNCBN_DATA_ROOTS"
    return [
        Problem(loc=loc, value=text, expected=expected, remedy=remedy)
        for section, values in (("task", spec.task), ("model", spec.model), ("data", spec.data))
        for loc, text in _places(section, values.model_dump(mode="json"), is_place=False)
        if not is_below(text, roots)
    ]


def is_below(place: str, roots: Sequence[str]) -> bool:
    """Return whether a path or URI is a root or lies below one, as it is written and with nothing in it that could lead elsewhere.

    >>> [is_below(place, ["/data", "s3://lake/vision"]) for place in ("/data/a", "s3://lake/vision/b", "file:///data", "/data/../etc")]
    [True, True, True, False]
    >>> [is_below(place, ["/data"]) for place in ("/database", "data/a", "//data", "/data/%2e%2e/etc", "/data/a?b", "/data/a::s3://x")]
    [False, False, False, False, False, False]
    """
    plain = place.removeprefix("file://")
    scheme, separator, path = plain.partition("://")
    if not separator:
        scheme, path = "", plain
    # Percent signs, queries, fragments and chained URLs mean different things to different readers.
    if any(part in plain for part in ("%", "?", "#", "::", "\\", "\0")) or posixpath.normpath(path) != path.rstrip("/"):
        return False
    whole = f"{scheme}://{path}" if scheme else path
    return any(whole.rstrip("/") == root or whole.startswith(f"{root}/") for root in (root.rstrip("/") for root in roots))


def _places(loc: str, value: Any, *, is_place: bool) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(f"{loc}.{key}", inner, is_place=is_place or str(key).lower().endswith(_PATH_KEYS))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _places(f"{loc}.{index}", inner, is_place=is_place)
    elif isinstance(value, str) and (is_place or value.startswith(("/", "~")) or "://" in value):
        yield loc, value
