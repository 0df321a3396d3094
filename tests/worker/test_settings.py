"""Tests of worker/settings.py."""

import os
import re

import pytest

from worker.settings import WorkerSettings, export_interface, read_settings


def test_defaults_and_values(monkeypatch):
    """Unset or empty means the default."""
    monkeypatch.setenv("SYNCBN_MEET_TIMEOUT_S", "7.5")
    monkeypatch.setenv("SYNCBN_COLLECTIVE_TIMEOUT_S", "")

    assert read_settings() == WorkerSettings(meet_timeout_s=7.5)


@pytest.mark.parametrize("raw", ["soon", "0", "-1", "inf", "nan"])
def test_a_bad_value_is_named(monkeypatch, raw):
    """The message has the variable, the value and what was expected."""
    monkeypatch.setenv("SYNCBN_MEET_TIMEOUT_S", raw)

    with pytest.raises(ValueError, match=f"SYNCBN_MEET_TIMEOUT_S is '{raw}'; expected a number of seconds above 0"):
        read_settings()


def test_the_interface_reaches_both_libraries(monkeypatch):
    """Gloo and NCCL each read a variable of their own."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "x")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "x")

    export_interface("eth7")

    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"] == "eth7"


def test_data_roots_are_a_list_of_absolute_paths(monkeypatch):
    """None set means no restriction; what is no list is named, and not read as none."""
    monkeypatch.setenv("SYNCBN_DATA_ROOTS", '["/data", "/scratch/photos"]')
    assert read_settings().data_roots == ("/data", "/scratch/photos")

    for raw in ("/data", '["data"]', "{}"):
        monkeypatch.setenv("SYNCBN_DATA_ROOTS", raw)
        with pytest.raises(ValueError, match=f"SYNCBN_DATA_ROOTS is '{re.escape(raw)}'; expected a JSON list of absolute paths and URIs"):
            read_settings()
