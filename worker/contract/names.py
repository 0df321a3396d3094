"""Names that the service cannot look up: user code, and models of other libraries. Owns their spelling; the worker resolves them."""

import re

CODE_PREFIX = "code:"
LIBRARIES = ("torchvision", "timm", "transformers")

_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]*"
_CODE = re.compile(rf"code:{_IDENTIFIER}(\.{_IDENTIFIER})*:{_IDENTIFIER}(\.{_IDENTIFIER})*")
_LIBRARY = re.compile(rf"({'|'.join(LIBRARIES)}):[A-Za-z0-9][A-Za-z0-9_./-]*")


def is_code(name: str) -> bool:
    """Return whether a name has the form code:MODULE:ATTRIBUTE.

    >>> is_code("code:mypackage.models:build"), is_code("code:build")
    (True, False)
    """
    return _CODE.fullmatch(name) is not None


def is_of_library(name: str) -> bool:
    """Return whether a name has the form LIBRARY:MODEL.

    >>> is_of_library("torchvision:resnet50"), is_of_library("keras:resnet50")
    (True, False)
    """
    return _LIBRARY.fullmatch(name) is not None
