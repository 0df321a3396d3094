"""Processes that start in no time: forked from a server that has imported controllers and ranks, but not torch.

A server of its own, beside the one of `multiprocessing`: that one is shared by all tests of a session, and imports what the first of them
asked for. Owns nothing but the server.
"""

import threading
from collections.abc import Callable
from multiprocessing import forkserver, get_context
from typing import Any
from unittest import mock

_SERVER = forkserver.ForkServer()
# With pytest, as every child imports the main module of its parent.
_SERVER.set_forkserver_preload(["pytest", "psycopg", "tests.support.scripted_rank", "tests.support.mortal_controller"])
_STARTING = threading.Lock()


def fork(target: Callable[..., Any], *arguments: Any) -> Any:
    """Start a process that calls `target`, which ends with this one; return it."""
    process = get_context("forkserver").Process(target=target, args=arguments, daemon=True)
    with _STARTING, mock.patch.object(forkserver, "connect_to_new_process", _SERVER.connect_to_new_process):
        process.start()
    return process
