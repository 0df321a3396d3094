"""What a token may be allowed to do, and the project that everything belongs to where nobody says otherwise. Pure words."""

from enum import StrEnum
from typing import Final

DEFAULT_PROJECT: Final = "default"
PROJECT_PATTERN: Final = r"^[a-z0-9][a-z0-9-]{0,62}$"


class Scope(StrEnum):
    """A permission. None contains another, but `admin` contains all, in every project."""

    READ = "read"
    """See jobs, events, checkpoints, the cluster."""
    SUBMIT = "submit"
    """Submit jobs, and change, end and delete them."""
    CODE = "code"
    """Upload code, and have jobs run it: whoever may do that may do on the nodes what the ranks may."""
    ADMIN = "admin"
    """Everything, tokens included."""
