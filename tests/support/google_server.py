"""A server that speaks as much of Google Cloud Storage's JSON API as its clients use for objects.

Owns the buckets, in memory, and what the documents say of each request (https://cloud.google.com/storage/docs/json_api/v1). Started with
the name of a bucket; prints its port, and ends with its standard input. Checks no credentials, keeps no versions of objects.
"""

import base64
import hashlib
import itertools
import json
import re
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email import policy
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

PAGE_SIZE = 1000
"""Entries of a listing, unless a client asks for fewer."""


@dataclass(frozen=True)
class _Object:
    bucket: str
    name: str
    content: bytes
    generation: int
    at: str

    def resource(self) -> dict[str, Any]:
        """What the API says of an object."""
        return {
            "kind": "storage#object", "id": f"{self.bucket}/{self.name}/{self.generation}", "bucket": self.bucket, "name": self.name,
            "generation": str(self.generation), "metageneration": "1", "size": str(len(self.content)), "etag": f"E{self.generation}",
            "md5Hash": base64.b64encode(hashlib.md5(self.content).digest()).decode(), "contentType": "application/octet-stream",
            "storageClass": "STANDARD", "timeCreated": self.at, "updated": self.at,
        }  # fmt: skip


class _Refusal(Exception):  # noqa: N818  not a fault of the server
    def __init__(self, status: int) -> None:
        self.status = status


class _Store:
    """The buckets."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, _Object]] = {}
        self.uploads: dict[str, tuple[str, str, bytearray]] = {}
        self._generations = itertools.count(1)

    def bucket(self, name: str) -> dict[str, _Object]:
        if name not in self.buckets:
            raise _Refusal(404)
        return self.buckets[name]

    def get(self, bucket: str, name: str) -> _Object:
        if (found := self.bucket(bucket).get(name)) is None:
            raise _Refusal(404)
        return found

    def put(self, bucket: str, name: str, content: bytes) -> dict[str, Any]:
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        made = self.bucket(bucket)[name] = _Object(bucket, name, content, next(self._generations), at)
        return made.resource()

    def list(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        """Return one page of the objects under a prefix; what lies behind a delimiter counts as one entry."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        entries: dict[str, _Object | None] = {}
        for name, found in sorted(self.bucket(bucket).items()):
            if name.startswith(prefix):
                head, is_behind, _ = name.removeprefix(prefix).partition(delimiter) if delimiter else (name, "", "")
                entries[prefix + head + delimiter if is_behind else name] = None if is_behind else found
        after = [name for name in sorted(entries) if name > query.get("pageToken", "")]
        page = after[: min(PAGE_SIZE, int(query.get("maxResults", PAGE_SIZE)))]
        more = {"nextPageToken": page[-1]} if len(page) < len(after) else {}
        items = [found.resource() for name in page if (found := entries[name]) is not None]
        return {"kind": "storage#objects", "items": items, "prefixes": [name for name in page if entries[name] is None], **more}


class _Handler(BaseHTTPRequestHandler):
    """One request after the other of one client."""

    protocol_version = "HTTP/1.1"
    # Head and body of an answer are two writes.
    disable_nagle_algorithm = True
    store: ClassVar[_Store] = _Store()
    lock: ClassVar[threading.Lock] = threading.Lock()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        body = self._body()
        try:
            for method, pattern, answer in _ROUTES:
                if self.command == method and (found := re.fullmatch(pattern, parts.path)):
                    with self.lock:
                        answered = answer(self, query, body, *map(unquote, found.groups()))
                    return self._answer(*answered)
            raise _Refusal(501)
        except _Refusal as refusal:
            words = json.dumps({"error": {"code": refusal.status, "message": f"{self.command} {self.path}"}})
            self._answer(refusal.status, words.encode())

    do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815  the names that the server looks for

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def bucket(self, _query: dict[str, str], _body: bytes, bucket: str) -> tuple[int, bytes]:
        self.store.bucket(bucket)
        return _document({"kind": "storage#bucket", "id": bucket, "name": bucket, "metageneration": "1"})

    def list(self, query: dict[str, str], _body: bytes, bucket: str) -> tuple[int, bytes]:
        return _document(self.store.list(bucket, query))

    def delete(self, _query: dict[str, str], _body: bytes, bucket: str, name: str) -> tuple[int]:
        self.store.get(bucket, name)
        del self.store.bucket(bucket)[name]
        return (204,)

    def get(self, query: dict[str, str], _body: bytes, bucket: str, name: str) -> Any:
        found = self.store.get(bucket, name)
        if query.get("alt") != "media":
            return _document(found.resource())
        content, size, generation = found.content, len(found.content), {"X-Goog-Generation": str(found.generation)}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, content, generation
        start = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
        if start >= size:
            raise _Refusal(416)
        end = min(size, int(asked[2]) + 1) if asked[1] and asked[2] else size
        return 206, content[start:end], generation | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}

    def insert(self, query: dict[str, str], body: bytes, bucket: str) -> Any:
        name = query.get("name", "")
        if query["uploadType"] == "media":
            return _document(self.store.put(bucket, name, body))
        if query["uploadType"] == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            resource, media = BytesParser(policy=policy.HTTP).parsebytes(head + body).iter_parts()
            return _document(self.store.put(bucket, name or json.loads(resource.get_content())["name"], media.get_payload(decode=True)))
        self.store.bucket(bucket)
        upload = f"{len(self.store.uploads)}"
        self.store.uploads[upload] = (bucket, name or json.loads(body)["name"], bytearray())
        where = f"http://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload}"
        return 200, b"", {"Location": where}

    def go_on(self, query: dict[str, str], body: bytes, _bucket: str) -> Any:
        """Take one part of an upload, or say how far it is."""
        upload = query["upload_id"]
        if upload not in self.store.uploads:
            raise _Refusal(404)
        bucket, name, content = self.store.uploads[upload]
        asked = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers["Content-Range"])
        if asked is None or (asked[1] and int(asked[1]) != len(content)):
            raise _Refusal(400)
        content += body
        if asked[3] == str(len(content)):
            return _document(self.store.put(bucket, name, bytes(content)))
        return 308, b"", {"Range": f"bytes=0-{len(content) - 1}"} if content else {}


def _document(found: dict[str, Any]) -> tuple[int, bytes]:
    return 200, json.dumps(found).encode()


_B, _O = "/storage/v1/b/([^/]+)", "/o/([^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", _B, _Handler.bucket),
    ("GET", f"{_B}/o", _Handler.list),
    ("GET", f"{_B}{_O}", _Handler.get),
    ("DELETE", f"{_B}{_O}", _Handler.delete),
    ("POST", f"/upload{_B}/o", _Handler.insert),
    ("PUT", f"/upload{_B}/o", _Handler.go_on),
]


def main() -> None:
    """Serve the bucket of the first argument until the standard input ends."""
    _Handler.store.buckets[sys.argv[1]] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
