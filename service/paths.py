"""Values at dotted paths of a document, `optimizer.lr`. Pure; judges no spec."""

from typing import Any


class PathError(ValueError):
    """No value can be put there. The user's fault; the message says why, without the path."""


def assign(document: dict[str, Any], path: str, value: Any) -> None:
    """Put a value at a path, in place; sections that are missing are made.

    Raises:
        PathError: a key is empty, or something on the way is no mapping.

    >>> document = {"optimizer": {"name": "sgd"}}
    >>> assign(document, "optimizer.lr", 0.1)
    >>> document
    {'optimizer': {'name': 'sgd', 'lr': 0.1}}
    """
    keys = path.split(".")
    if not all(keys):
        raise PathError("is not KEY.KEY; for example optimizer.lr")
    section = document
    for depth, key in enumerate(keys[:-1], 1):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise PathError(f"{'.'.join(keys[:depth])} is {section!r}; expected a mapping; set it as a whole")
    section[keys[-1]] = value
