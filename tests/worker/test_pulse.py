"""Tests of worker/pulse.py."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.pulse import Pulse

FILES = {
    "/lib/torch/distributed/x.py": True,
    "/repo/syncbn/collectives.py": True,
    "/repo/worker/data/loader.py": True,
    "/lib/torch/_inductor/codecache.py": True,
    "/home/me/model.py": False,
}
WAIT = "def wait(entered, go_on):\n    entered.set()\n    go_on.wait()\n"


def test_a_step_has_a_reading_once_another_was_completed():
    """How long it takes is known by then; between steps there is none."""
    now = [0.0]
    pulse = Pulse(lambda: now[0])
    with pulse.step(0):
        assert pulse.reading() is None
        now[0] = 2.0
    assert pulse.reading() is None
    with pulse.step(1):
        now[0] = 7.0
        with ThreadPoolExecutor(1) as elsewhere:
            reading = elsewhere.submit(pulse.reading).result()
    assert (reading["step"], reading["idle_s"], reading["usual_s"], reading["is_waiting"]) == (1, 5.0, 2.0, False)


def test_a_step_that_failed_says_nothing_of_how_long_steps_take():
    """Its end was an accident."""
    pulse = Pulse()
    with pytest.raises(RuntimeError), pulse.step(0):
        raise RuntimeError
    with pulse.step(0):
        assert pulse.reading() is None


@pytest.mark.parametrize(("file", "is_waiting"), FILES.items())
def test_who_waits_for_others_is_told_from_who_does_something_else(file, is_waiting):
    """By the file that the training thread is in, seen from another thread; what has a limit of its own counts as waiting."""
    scope = {}
    exec(compile(WAIT, file, "exec"), scope)
    pulse, entered, go_on = Pulse(), threading.Event(), threading.Event()

    def train():
        with pulse.step(0):
            pass
        with pulse.step(1):
            scope["wait"](entered, go_on)

    thread = threading.Thread(target=train)
    thread.start()
    assert entered.wait(10)
    reading = pulse.reading()
    go_on.set()
    thread.join(10)
    assert (reading["is_waiting"], reading["where"].partition(":")[0]) == (is_waiting, "/".join(file.rsplit("/", 2)[-2:]))
