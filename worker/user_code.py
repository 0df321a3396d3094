"""Names of the form code:MODULE:ATTRIBUTE: found, looked up and called. Owns what is said when one of these fails; not the path.

The module is imported from sys.path, onto which the job's code bundle was put before.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from worker.contract.names import CODE_PREFIX
from worker.errors import TaskError, blame


def resolve(name: str) -> Callable[..., Any]:
    """Return the function or class that a name of the form code:MODULE:ATTRIBUTE stands for.

    Raises:
        TaskError: the module is not there, raises while it is imported, or has no such attribute, or the attribute cannot be called.
    """
    module_name, _, attribute = name.removeprefix(CODE_PREFIX).partition(":")
    try:
        with blame(TaskError):
            found: Any = importlib.import_module(module_name)
    except TaskError as error:
        if not _is_missing(error.__cause__, module_name):
            raise
        raise TaskError(
            f"{name}: there is no module {module_name}; expected it in the job's code bundle or installed on every node; check its name"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = ", ".join(known for known in vars(found) if not known.startswith("_")) or "nothing"
            raise TaskError(f"{name}: {module_name} has no {part}; expected one of what it defines: {public}; check the name")
        found = getattr(found, part)
    if not callable(found):
        raise TaskError(f"{name} is {type(found).__name__} and cannot be called; expected a function or a class; name one")
    called: Callable[..., Any] = found
    return called


def call(name: str, args: Mapping[str, Any], offered: Mapping[str, Any]) -> Any:
    """Call what a name stands for with the spec's `args`, and with those of `offered` that it takes.

    Raises:
        TaskError: it does not take the arguments, or raises.
    """
    function = resolve(name)
    with blame(TaskError):
        parameters = inspect.signature(function).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        given = {**{key: value for key, value in offered.items() if takes_all or key in parameters}, **args}
        try:
            inspect.signature(function).bind(**given)
        except TypeError as error:
            raise TaskError(
                f"{name}{inspect.signature(function)} cannot be called with {', '.join(given) or 'no arguments'}: {error}; expected it to"
                f" take its args of the spec, and any of {', '.join(offered)}; change the function or the args"
            ) from error
        return function(**given)


def _is_missing(error: BaseException | None, module_name: str) -> bool:
    """Return whether an import failed because the module itself, or a package of it, is not there; not something that it imports."""
    return isinstance(error, ModuleNotFoundError) and error.name is not None and f"{module_name}.".startswith(f"{error.name}.")
