"""A service that answers by a script, without a network: for tests of what clients do about it."""

import json

import httpx

from service.client.patience import Patience

QUICK = Patience(tries=3, first_wait_s=0.001, longest_wait_s=0.01)
JOB = {"id": "job_1", "state": "queued"}


class Script(httpx.BaseTransport):
    """Answers each request with the next line of a script and keeps what was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    def handle_request(self, request):
        """Give the next answer."""
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def sse_events(*events):
    """Return events as a stream sends them."""
    return "".join(f"id: {seq}\nevent: {kind}\ndata: {json.dumps({'seq': seq, 'type': kind})}\n\n" for seq, kind in events).encode()
