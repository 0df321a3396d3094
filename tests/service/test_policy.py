"""Tests of service/policy.py."""

import pytest

from service.policy import PolicyError, PolicyFile
from service.quotas import Policy

GOOD = """
preempt = true

[[quotas]]
label = "team"
gpus = 16

[[quotas]]
label = "team"
value = "vision"
running_jobs = 4
queued_jobs = 100
"""


def test_without_a_file_there_are_no_limits(tmp_path):
    """Nothing has to be written to begin."""
    assert PolicyFile(tmp_path / "policy.toml").current() == Policy()


def test_the_file_is_read_again_when_it_has_changed(tmp_path):
    """Limits change without a restart, and go with the file."""
    path = tmp_path / "policy.toml"
    policy = PolicyFile(path)
    path.write_text(GOOD)
    assert policy.current().preempt
    assert [(quota.value, quota.gpus, quota.queued_jobs) for quota in policy.current().quotas] == [(None, 16, None), ("vision", None, 100)]
    path.unlink()
    assert policy.current() == Policy()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("preempt = 1", "preempt is 1"),
        ("[[quotas]]\nlabel='a'\ngpu=1", r"quotas\.0\.gpu is 1"),
        ("preempt", "Expected '='"),
        ("\xff", ""),
        ("[[quotas]]\nworkers=1", "name a label"),
        ("[retention]\njobs_days=-1", r"retention\.jobs_days is -1"),
    ],
)
def test_a_wrong_file_is_refused_at_the_start_and_later_leaves_what_was(tmp_path, text, said):
    """A slip of the pen lifts no limit."""
    path = tmp_path / "policy.toml"
    path.write_text(GOOD)
    policy = PolicyFile(path)
    path.write_bytes(text.encode("latin-1"))

    with pytest.raises(PolicyError, match=f"policy.toml cannot be used: .*{said}.*mend the file"):
        PolicyFile(path)
    assert policy.current().preempt
