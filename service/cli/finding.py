"""What one check of `syncbn doctor` found."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and what to do about it unless it is ok."""

    check: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""
