"""Tests of worker/course.py that are of no other file: how a group parts."""

from unittest.mock import patch

import pytest

from tests.support.jobs import run_job, run_one_rank, small_spec
from worker import course
from worker.progress import EventBuffer

pytestmark = pytest.mark.ranks


def test_a_job_ends_where_nobody_listens_any_more(pool, tmp_path):
    """A controller that has gone away is waited for, but not for good: it finds the last words when it comes back."""
    runs = run_job(pool, small_spec(2), tmp_path, program=_forsaken_rank)

    assert [run.outcome for run in runs] == ["succeeded"] * 2, runs[0].failure
    assert runs[0].series("val/loss")


def _forsaken_rank(rank, world_size, *given):
    """A rank that somebody listened to once."""
    init = EventBuffer.__init__

    def heard_once(buffer):
        init(buffer)
        buffer.drain(0, 0)

    with patch.object(EventBuffer, "__init__", heard_once), patch.object(course, "HEARD_S", 0.3):
        return run_one_rank(rank, world_size, *given)
