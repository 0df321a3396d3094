"""Live streams that outlive their connection: reconnect after the last event seen, until the `end` event.

Owns what was seen and when to give up; parsing is sse's, opening is the transport's.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import httpx

from service.client.errors import ClientError, Failing, Unreachable
from service.client.sse import Message, messages
from service.client.transport import Transport

SILENCE_S = 60.0
"""A stream that says nothing for so long, not even a heartbeat, is dead."""


def follow(
    transport: Transport,
    path: str,
    *,
    params: Mapping[str, Any] | None = None,
    after: str | None = None,
    outage_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[dict[str, Any]]:
    """Yield every event of a stream once, in order, the `end` event last, across restarts of the controller.

    Args:
        after: the id of the last event already seen.
        outage_s: how long the service may be away, in one piece, before Unreachable is raised.
    """
    last_id, failures, silent_since = after, 0, clock()
    while True:
        try:
            with _connection(transport, path, params, last_id) as response:
                if response.status_code == httpx.codes.NO_CONTENT:  # the end event was the last one seen
                    return
                for message in messages(response.iter_bytes()):
                    failures, silent_since, last_id = 0, clock(), message.id or last_id
                    yield _decoded(message)
                    if message.event == "end":
                        return
            cause = "the stream ended without an end event"
        except (Unreachable, Failing, httpx.TransportError) as error:
            cause = str(error) or type(error).__name__
        failures += 1
        if clock() - silent_since > outage_s:
            raise Unreachable(path, f"the stream was lost for {outage_s:g} s: {cause}")
        time.sleep(transport.patience.wait_s(failures))


def _connection(
    transport: Transport, path: str, params: Mapping[str, Any] | None, last_id: str | None
) -> AbstractContextManager[httpx.Response]:
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store", **({"Last-Event-ID": last_id} if last_id else {})}
    return transport.stream(path, params=params, headers=headers, timeout=httpx.Timeout(10.0, read=SILENCE_S), tries=1)


def _decoded(message: Message) -> dict[str, Any]:
    try:
        event = json.loads(message.data)
    except json.JSONDecodeError as error:
        raise ClientError(
            f"the service sent an event that is not JSON: {message.data[:80]!r}; are client and service of one version?"
        ) from error
    return event if isinstance(event, dict) else {"type": message.event, "data": event}
