"""Tests of worker/pulse.py."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch import nn

from worker.pulse import NAMED_AFTER_S, Pulse

# Whether a thread there may wait for others, whether it surely does, and whether it is excused.
FILES = {
    "/lib/torch/distributed/x.py": (True, True, False),
    "/repo/syncbn/collectives.py": (True, True, False),
    "/lib/torch/autograd/graph.py": (True, False, False),
    "/repo/worker/data/loader.py": (True, False, True),
    "/lib/torch/_inductor/codecache.py": (True, False, True),
    "/repo/syncbn/loops/library.py": (True, False, True),
    "/home/me/model.py": (False, False, False),
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


def _reading_in(call):
    """Return what is read while a thread is in the midst of a step, waiting in `call(entered, go_on)`."""
    now, entered, go_on = [0.0], threading.Event(), threading.Event()
    pulse = Pulse(lambda: now[0])

    def train():
        with pulse.step(0):
            pass
        with pulse.step(1):
            call(entered, go_on)

    thread = threading.Thread(target=train)
    thread.start()
    assert entered.wait(30)
    now[0] = 2 * NAMED_AFTER_S
    reading = pulse.reading()
    go_on.set()
    thread.join(30)
    return reading


def _waiting_in(file):
    scope = {}
    exec(compile(WAIT, file, "exec"), scope)
    return scope["wait"]


@pytest.mark.parametrize(("file", "expected"), FILES.items())
def test_who_waits_for_others_is_told_from_who_does_something_else(file, expected):
    """By the file that the training thread is in, seen from another thread."""
    reading = _reading_in(_waiting_in(file))

    assert (reading["is_waiting"], reading["is_in_collective"], reading["is_excused"]) == expected
    assert reading["where"].partition(":")[0] == "/".join(file.rsplit("/", 2)[-2:])
    assert reading["layer"] == ""


def test_a_layer_that_waits_for_others_is_named_as_the_model_names_it():
    """Its collective goes through torch's dispatcher, which says nothing of whether a rank waits."""
    through_torch = {}
    exec(compile("def redispatch(entered, go_on):\n    go_on.wait()\n", "/lib/torch/_ops.py", "exec"), through_torch)
    exec(
        compile("def reduce(entered, go_on):\n    entered.set()\n    redispatch(entered, go_on)\n", "/repo/syncbn/collectives.py", "exec"),
        through_torch,
    )

    class Layer(nn.Module):
        def forward(self, entered, go_on):
            through_torch["reduce"](entered, go_on)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks = nn.Identity(), nn.ModuleList([nn.Identity(), Layer()])

        def forward(self, entered, go_on):
            self.blocks[1](entered, go_on)

    reading = _reading_in(Model())

    assert (reading["is_in_collective"], reading["layer"]) == (True, "blocks.1")
