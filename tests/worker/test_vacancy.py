"""Tests of worker/vacancy.py: for how long a gang waits for new processes."""

import pytest

from worker.vacancy import Vacancy, given_up

NO_ROOM = "no living node has room for 1 of the new processes"
NOT_GIVEN = "1 of the new processes were given no room within 5 s"
LATE = "2 of the new processes did not come up within 30 s"

# Of two processes: without room, fitting into the free room, waited for; and then: not needed, needed.
CASES = [
    (0, 0, 0.2, "", ""),  # the room of a process that died alone is kept: the new one is starting
    (0, 0, 29.0, "", ""),
    (0, 0, 31.0, LATE, LATE),
    (1, 0, 0.2, "", ""),  # what nodes say may be a little old
    (1, 0, 1.1, NO_ROOM, ""),  # the node is gone, and no other has room
    (1, 1, 1.1, "", ""),  # another has: it is about to be given
    (1, 1, 5.1, NOT_GIVEN, ""),
    (2, 1, 1.1, "no living node has room for 2 of the new processes", ""),
    (2, 2, 4.9, "", ""),
    (1, 0, 29.0, NO_ROOM, ""),  # without them the steps since the last checkpoint are lost: a node may come back
    (1, 0, 31.0, NO_ROOM, LATE),
    (1, 1, 31.0, NOT_GIVEN, LATE),
]


@pytest.mark.parametrize(("without_room", "fitting", "waited_s", "optional", "needed"), CASES)
def test_a_gang_waits_no_longer_than_it_must(without_room, fitting, waited_s, optional, needed):
    """Not at all for what is gone for good, where it can go on without; to the limit where it cannot."""
    vacancy = Vacancy(2, without_room, fitting, waited_s)

    assert given_up(vacancy, is_needed=False) == optional
    assert given_up(vacancy, is_needed=True) == needed
