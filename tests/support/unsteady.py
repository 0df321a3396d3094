"""A service with one checkpoint that misbehaves as it is told: for tests of downloads."""

import hashlib
import json
import random
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MANIFEST = {"step": 7, "files": {"model.safetensors": {"size": len(CONTENT), "sha256": SHA256}}}


class Service:
    """Serves one checkpoint with one file, as its settings say; keeps the Range of every request for the file."""

    def __init__(self):
        self.content = CONTENT
        self.manifest = MANIFEST
        self.etag = SHA256
        self.drop_after = []  # per request: bytes after which the connection breaks
        self.lies_about_length = False
        self.ignores_ranges = False
        self.content_range = None
        self.ranges = []

    def answer(self, handler):
        """Answer one GET."""
        if not handler.path.endswith("/files/model.safetensors"):
            body = json.dumps(self.manifest).encode()
            return self._send(handler, 200, body, {})
        asked = handler.headers.get("Range")
        self.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and not self.ignores_ranges else 0
        if start and handler.headers["If-Range"] != f'"{self.etag}"':
            start = 0
        if start >= len(self.content):
            return self._send(handler, 416, b"{}", {})
        whole = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        headers = {"ETag": f'"{self.etag}"', **({"Content-Range": self.content_range or whole} if start else {})}
        return self._send(handler, 206 if start else 200, self.content[start:], headers)

    def _send(self, handler, status, body, headers):
        drop = self.drop_after.pop(0) if self.drop_after and status in {200, 206} and headers else None
        handler.send_response(status)
        sent = body if drop is None else body[:drop]
        handler.send_header("Content-Length", str(len(sent) if self.lies_about_length else len(body)))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(sent)
        handler.close_connection = True


@contextmanager
def serving():
    """Run such a service on a real port."""
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            service.answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
