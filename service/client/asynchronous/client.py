"""The routes of the service as methods of one object; answers are the decoded JSON, as docs/api.md describes it."""

from typing import final

from service.client.asynchronous.checkpoints import CheckpointCalls
from service.client.asynchronous.derivations import DerivationCalls
from service.client.asynchronous.operation import OperationCalls


# Inheritance, against the house rule: one object with a method for every route is what a user wants, and more than one file holds.
@final
class AsyncClient(DerivationCalls, CheckpointCalls, OperationCalls):
    """A client, safe to keep open. Use it as a context manager, or close it.

    Args:
        url: of the service. Default: SYNCBN_URL, else the controller that runs on the home.
        token: Default: SYNCBN_TOKEN, else the home's.
        home: state directory of a controller on this machine; goes before the environment. Default: SYNCBN_HOME, else the platform's.
        timeout_s: for each connection, write and read of bytes; a whole download or stream has no limit.
        patience: how often requests that may be repeated are tried again.
    Raises:
        Unreachable: from every method, when nobody answers.
        ServiceError: from every method, when the service refuses.
    """
