"""Rules that the types of fields cannot express. Owns how they refuse: with what was expected and what to do."""

import re
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

MAX_PATH_CHARS = 4096
OBJECT_SCHEMES = ("s3://", "gs://")


def refuse(problem: str, expected: str, remedy: str) -> PydanticCustomError:
    """Build the error of a rule, with what was expected and what to do."""
    return PydanticCustomError("rule", "{problem}", {"problem": problem, "expected": expected, "remedy": remedy})


def stored_path(path: str) -> str:
    """Return a path of data if it is absolute, or a URI of an object store, and names what it says: no `..`, no control character.

    Whether it exists, and whether it lies where this worker may read, only the worker knows.
    """
    expected = "an absolute path that every worker sees, or s3:// or gs:// with a bucket"
    if "://" in path:
        return _object_uri(path, expected)
    if not path.startswith("/") or len(path) > MAX_PATH_CHARS or re.search(r"[\x00-\x1f\x7f]", path):
        raise refuse("is no absolute path", expected, "write it like /data/photos")
    if ".." in path.split("/"):
        raise refuse("climbs up by ..", expected, "write the path without ..")
    return path


def is_object_uri(path: str) -> bool:
    """Return whether a path of data is the URI of objects in a store.

    >>> is_object_uri("s3://lake/photos"), is_object_uri("/data/photos")
    (True, False)
    """
    return path.startswith(OBJECT_SCHEMES)


def _object_uri(uri: str, expected: str) -> str:
    if not is_object_uri(uri):
        raise refuse("is of an unknown store", expected, "write it like s3://bucket/photos, or mount the data on every node")
    # Credentials, queries and escapes mean different things to different readers, and empty or climbing parts none in a bucket.
    place = uri.partition("://")[2].rstrip("/")
    if len(uri) > MAX_PATH_CHARS or re.search(r"[@?#%\\\x00-\x1f\x7f]", uri) or {"", ".", ".."} & set(place.split("/")):
        raise refuse("is no plain address of objects", expected, "write it like s3://bucket/photos; a profile goes into data.profile")
    return uri


StoredPath = Annotated[str, AfterValidator(stored_path)]
