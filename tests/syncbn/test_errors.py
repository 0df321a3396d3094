"""The tree of errors is the one in the docstring."""

from __future__ import annotations

import inspect

import syncbn
from syncbn import errors


def test_every_class_is_in_the_tree_and_public() -> None:
    """Each class is drawn in the docstring, derives from the root, and is re-exported."""
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]
    assert len(classes) == 12
    for cls in classes:
        assert cls.__name__ in (errors.__doc__ or "")
        assert issubclass(cls, errors.SyncBNError)
        assert getattr(syncbn, cls.__name__) is cls


def test_the_face_is_complete_and_sorted() -> None:
    """Every public name is listed once, in order, and exists."""
    assert list(syncbn.__all__) == sorted(set(syncbn.__all__))
    assert all(hasattr(syncbn, name) for name in syncbn.__all__)
