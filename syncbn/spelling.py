"""What the caller probably meant: the nearest of the known names, as the end of an error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy that ends a message about an unknown name.

    >>> nearest("sync_nb", ["sync_bn", "group_norm"])
    "; did you mean 'sync_bn'?"
    >>> nearest("?", ["sync_bn"])
    '; use one of these'
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else "; use one of these"
