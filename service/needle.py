"""What a log is searched for: text as it stands, in capitals or not. Pure.

No regular expressions: there are short ones that need a year for one line.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Final

# Letters of which the small one is two letters, one of ASCII, or another one at the end of a word. So that one letter stays one, and only
# those of ASCII are found by those of ASCII, wherever it is searched.
_OWN: Final = {"\u0130": "\ufffe", "\u212a": "\uffff", "\u03a3": "\u03c3"}


def folded(text: str) -> str:
    """Return a text in small letters, as long as it was.

    >>> folded("NaN in \u00c4RGER")
    'nan in ärger'
    """
    for letter, other in _OWN.items():
        text = text.replace(letter, other)
    return text.lower()


def is_alike(letter: str) -> bool:
    """Return whether every database takes a letter for the same: it is one of ASCII, or no other folds to it, nor it to another."""
    return letter <= "\x7f" or (letter.lower() == letter == letter.upper() and letter not in _OWN.values())


@dataclass(frozen=True)
class Needle:
    """A text that lines are to contain, in capitals or not."""

    text: str

    def is_in(self, line: str) -> bool:
        """Return whether a line contains it.

        >>> Needle("Loss is nan").is_in("step 3: loss is NaN")
        True
        """
        return self._folded in folded(line)

    @property
    def core(self) -> str:
        """The longest stretch of it that every database compares alike: of ASCII, and of what has no capitals.

        Every line with the text in it has this in it, where capitals of ASCII count as small letters.
        """
        stretches = ("".join(letters) for are_alike, letters in groupby(self.text, is_alike) if are_alike)
        return max(stretches, key=len, default="")

    @cached_property
    def _folded(self) -> str:
        return folded(self.text)
