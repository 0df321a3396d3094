"""Rules that the types of fields cannot express. Owns how they refuse: with what was expected and what to do."""

import re
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

MAX_PATH_CHARS = 4096


def refuse(problem: str, expected: str, remedy: str) -> PydanticCustomError:
    """Build the error of a rule, with what was expected and what to do."""
    return PydanticCustomError("rule", "{problem}", {"problem": problem, "expected": expected, "remedy": remedy})


def stored_path(path: str) -> str:
    """Return a path of data if it is absolute and names what it says: no `..`, no control character, no URI.

    Whether it exists, and whether it lies where this worker may read, only the worker knows.
    """
    expected = "an absolute path that every worker sees"
    if "://" in path:
        raise refuse("storage URIs are not read in this version", expected, "mount the bucket on every node and give the path there")
    if not path.startswith("/") or len(path) > MAX_PATH_CHARS or re.search(r"[\x00-\x1f\x7f]", path):
        raise refuse("is no absolute path", expected, "write it like /data/photos")
    if ".." in path.split("/"):
        raise refuse("climbs up by ..", expected, "write the path without ..")
    return path


StoredPath = Annotated[str, AfterValidator(stored_path)]
