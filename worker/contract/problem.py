"""One thing wrong, or unwise, in a document that a user wrote."""

from typing import Any

from worker.contract.frozen import Frozen


class Problem(Frozen):
    """One thing wrong with a document: where (dotted), the value found, what was expected, what to do."""

    loc: str
    value: Any = None
    expected: str
    remedy: str

    def __str__(self) -> str:
        """Return the problem as one sentence."""
        found = "" if self.value is None else f" is {shortened(self.value) or 'empty'}"
        return f"{self.loc or 'the spec'}{found}; expected {self.expected}; {self.remedy}"


def shortened(value: Any) -> str:
    """Return a value as text of at most 80 characters."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
