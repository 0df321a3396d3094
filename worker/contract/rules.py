"""Rules that the types of fields cannot express. Owns how they refuse: with what was expected and what to do."""

from pydantic_core import PydanticCustomError


def refuse(problem: str, expected: str, remedy: str) -> PydanticCustomError:
    """Build the error of a rule, with what was expected and what to do."""
    return PydanticCustomError("rule", "{problem}", {"problem": problem, "expected": expected, "remedy": remedy})
