"""Live streams that outlive their connection: reconnect after the last event seen, until the `end` event."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar, cast

import httpx

from service.client.asynchronous import blocking
from service.client.asynchronous.transport import Transport
from service.client.errors import Failing, Unreachable
from service.client.following import OUTAGE_S, Following
from service.client.patience import SILENCE_S
from service.client.sse import Decoder

Answer = TypeVar("Answer")
_TIMEOUT = httpx.Timeout(10.0, read=SILENCE_S)


async def follow(
    kind: type[Answer],
    transport: Transport,
    path: str,
    *,
    params: Mapping[str, Any] | None = None,
    after: str | None = None,
    following: Following | None = None,
) -> AsyncIterator[Answer]:
    """Yield every event of a stream once, in order, the `end` event last, across restarts of the controller.

    Args:
        kind: what the events are, for who reads the types; they are not checked.
        after: the id of the last event already seen.
        following: Default: one that gives up after a minute without the service.
    """
    del kind
    seen = following or Following(path, after, OUTAGE_S)
    while True:
        try:
            async with transport.stream(path, params=params, headers=seen.headers, timeout=_TIMEOUT, tries=1) as response:
                if response.status_code == httpx.codes.NO_CONTENT:  # the end event was the last one seen
                    return
                decoder = Decoder()
                async for chunk in response.aiter_bytes():
                    for message in decoder.feed(chunk):
                        yield cast("Answer", seen.see(message))
                        if message.event == "end":
                            return
            cause = "the stream ended without an end event"
        except (Unreachable, Failing, httpx.TransportError) as error:
            cause = str(error) or type(error).__name__
        seen.lose(cause)
        await blocking.sleep(transport.patience.wait_s(seen.failures))
