"""Processes that start in no time: forked from a server that has imported what they need.

Servers of our own, beside the one of `multiprocessing`: that one is shared by all tests of a session, and imports what the first of them
asked for. Owns nothing but the servers.
"""

import threading
from collections.abc import Callable
from multiprocessing import forkserver, get_context
from typing import Any
from unittest import mock

_STARTING = threading.Lock()


class Nursery:
    """A server that imports modules once, and forks processes that have them. It starts with the first of these, and ends with this one."""

    def __init__(self, *modules: str) -> None:
        self._server = forkserver.ForkServer()
        # With pytest, as every child imports the main module of its parent.
        self._server.set_forkserver_preload(["pytest", *modules])

    def fork(self, target: Callable[..., Any], *arguments: Any) -> Any:
        """Start a process that calls `target`, which ends with this one; return it."""
        process = get_context("forkserver").Process(target=target, args=arguments, daemon=True)
        with _STARTING, mock.patch.object(forkserver, "connect_to_new_process", self._server.connect_to_new_process):
            process.start()
        return process


fork = Nursery("psycopg", "tests.support.scripted_rank", "tests.support.mortal_controller").fork
"""Fork a process that has imported controllers and ranks, but not torch."""
