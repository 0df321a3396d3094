"""Tests of worker/meeting.py. How a meeting ends early is in test_ranks.py."""

import time

import psutil
import pytest

from worker.errors import GangStartError, PeerLostError
from worker.meeting import connect_store, host_store, interface_of


def _listening(port):
    return [found.laddr.ip for found in psutil.Process().net_connections("tcp") if found.status == "LISTEN" and found.laddr.port == port]


def test_the_store_listens_on_one_interface_only():
    """Nobody on another network can reach the store."""
    store = host_store("127.0.0.1")

    assert _listening(store.port) == ["127.0.0.1"]
    other = connect_store("127.0.0.1", store.port)
    store.set("key", "value")
    assert other.get("key") == b"value"


def test_a_store_whose_rank_is_gone_is_a_lost_peer_at_once():
    """Its host refuses the connection: nothing to wait for, and a new meeting helps. The message names the address."""
    started = time.monotonic()

    with pytest.raises(PeerLostError, match=r"the rank that served the store of the gang at 127\.0\.0\.1:1 is gone"):
        connect_store("127.0.0.1", 1)
    assert time.monotonic() - started < 5


def test_the_interface_is_the_one_with_the_address():
    """Whatever the host name resolves to."""
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family.name == "AF_INET" and not entry.address.startswith("127."):
                assert interface_of(entry.address) == name
    assert interface_of("127.0.0.1") == interface_of("127.0.0.2")


def test_an_address_of_another_host_is_refused():
    """The message names what there is."""
    with pytest.raises(GangStartError, match=r"no network interface of this host carries 203\.0\.113\.9; expected one of .*127\.0\.0\.1"):
        interface_of("203.0.113.9")
