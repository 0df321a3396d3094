"""What can go wrong with the database itself.

DatabaseError           it cannot be used as asked: the operator's to mend
    DatabaseAwayError   it does not answer now: trying again helps
LeaseLostError          another controller has taken over what the write was about; this one lets go of it
"""


class DatabaseError(RuntimeError):
    """The database cannot be used as asked. The operator's to mend; trying again does not help."""


class DatabaseAwayError(DatabaseError):
    """The database does not answer now. Whether the transaction at hand was stored is not known; asking again with the same key is safe."""


class LeaseLostError(RuntimeError):
    """The lease that a write was made under has run out or has another holder. Nothing was stored; whoever wrote lets go of the job."""
