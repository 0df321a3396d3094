"""Tests of service/embedded.py with a real Ray."""

import os
import signal
import stat
from pathlib import Path

import pytest

from service import embedded
from service.doorway import open_door
from service.processes import marked
from tests.support.serving import until

pytestmark = pytest.mark.ray


def test_an_embedded_ray_is_found_again_replaced_when_broken_and_stopped_whole(tmp_path):
    """One Ray for one home, whatever is killed; after stop nothing is left, not even files."""
    try:
        first = embedded.ensure(tmp_path)
        assert embedded.ensure(tmp_path) == first
        assert stat.S_IMODE(Path(first.token_path).stat().st_mode) == 0o600
        # Asked without a token, it does not answer: a controller that is given its address goes on.
        assert open_door(first.address) is None

        head = next(process for process in marked(embedded.MARKER, first.session) if process.name() == "gcs_server")
        os.kill(head.pid, signal.SIGKILL)
        until(lambda: not embedded.is_alive(tmp_path), 10, "the head to be gone")
        second = embedded.ensure(tmp_path)
        assert second.session != first.session
        assert not list(marked(embedded.MARKER, first.session))
    finally:
        embedded.stop(tmp_path)

    assert not list(marked(embedded.MARKER, second.session))
    assert not Path(second.directory).exists()
    embedded.stop(tmp_path)
