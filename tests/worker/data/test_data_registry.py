"""Tests of worker/data/registry.py."""

import pytest

from worker.contract import DATASETS
from worker.contract.spec import DataSpec
from worker.data.registry import BUILDERS, build_data
from worker.errors import DataError


def test_every_name_of_the_catalogue_can_be_built():
    """What the controller accepts, a rank can build; nothing else is there."""
    assert BUILDERS.keys() == DATASETS.keys()
    for name in DATASETS:
        assert build_data(DataSpec(name=name), 0).train.num_samples > 0


def test_data_that_cannot_be_read_is_the_datas_fault(monkeypatch):
    """The message says which file and line raised."""

    def unreadable(args, seed):
        raise OSError("No such file")

    monkeypatch.setitem(BUILDERS, "digits", unreadable)
    with pytest.raises(DataError, match="in unreadable: OSError: No such file"):
        build_data(DataSpec(name="digits"), 0)
