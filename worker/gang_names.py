"""What the actors and placement groups of a gang are called on the cluster, where whoever comes after a dead controller finds them."""

import re

NAMESPACE = "syncbn"
# Of an actor, or without the generation of a placement group.
_NAME = re.compile(r"(job_\w+)/(\d+)/(\d+)(?:/\d+)?")


def actor_name(job_id: str, attempt: int, place: int, generation: int) -> str:
    """Return the name of the process that is made for a place in a generation."""
    return f"{job_id}/{attempt}/{place}/{generation}"


def group_name(job_id: str, attempt: int, place: int) -> str:
    """Return the name of the placement group that is a place's room."""
    return f"{job_id}/{attempt}/{place}"


def is_of(name: str, job_id: str, attempt: int) -> bool:
    """Return whether an actor or a placement group belongs to an attempt."""
    return name.startswith(f"{job_id}/{attempt}/")


def place_in(name: str) -> int:
    """Return the place that an actor or a placement group is of."""
    return int(name.split("/")[2])


def attempt_in(name: str) -> tuple[str, int] | None:
    """Return the job and the attempt that a name is of; None where it is none of ours.

    >>> attempt_in("job_1/2/0/3"), attempt_in("job_1/2/0"), attempt_in("other")
    (('job_1', 2), ('job_1', 2), None)
    """
    found = _NAME.fullmatch(name)
    return None if found is None else (found[1], int(found[2]))
