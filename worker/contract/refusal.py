"""How a rule that field types cannot express says no. Owns the form; `worker.contract.validation` makes a problem of it."""

from pydantic_core import PydanticCustomError


def refuse(problem: str, expected: str, remedy: str) -> PydanticCustomError:
    """Build the error of a broken rule, with what was expected and what to do."""
    return PydanticCustomError("rule", "{problem}", {"problem": problem, "expected": expected, "remedy": remedy})
