"""How long new processes of a gang are waited for before it goes without them. Pure: what was seen goes in, an answer in words comes out.

A room is kept for a process that died, so without one is only who was on a node that is gone, or who is new.
"""

from dataclasses import dataclass

START_S = 30.0
"""How long new processes may take to come up, and, where the gang cannot go on without them, to find room."""
ROOM_S = 5.0
"""How long room that seems to be there may take to be given, where the gang can go on without: asking costs it a standstill."""
SURE_S = 1.0
"""How long what the nodes say of free room may be behind the truth: a node that is gone, or a job that has just ended."""


@dataclass(frozen=True)
class Vacancy:
    """What was seen of the processes that a gang waits for."""

    num_missing: int
    """Processes that have not come up."""
    num_without_room: int
    """Those of them that no living node keeps room for."""
    num_fitting: int
    """How many such processes the free room of the living nodes would take."""
    waited_s: float


def given_up(vacancy: Vacancy, *, is_needed: bool) -> str:
    """Return why the processes are waited for no longer; nothing while they are.

    Args:
        vacancy: what was seen.
        is_needed: the gang cannot go on without them, so that giving up costs the steps since the last checkpoint.
    """
    homeless, waited_s = vacancy.num_without_room, vacancy.waited_s
    if homeless and not is_needed:
        if vacancy.num_fitting < homeless and waited_s >= SURE_S:
            return f"no living node has room for {homeless} of the new processes"
        if waited_s > ROOM_S:
            return f"{homeless} of the new processes were given no room within {ROOM_S:.0f} s"
    if waited_s > START_S:
        return f"{vacancy.num_missing} of the new processes did not come up within {START_S:.0f} s"
    return ""
