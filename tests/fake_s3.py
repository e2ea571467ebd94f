"""A server that speaks as much of the S3 protocol as reading and writing objects needs; the objects are in memory."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Stored(NamedTuple):
    data: bytes
    changed: datetime


class Handler(BaseHTTPRequestHandler):
    """One request; keys are `bucket/name`."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        path, query = self._asked()
        if "list-type" in query:
            return self._list(path.rstrip("/"), query)
        found = self.server.objects.get(path)
        if found is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        start, end = 0, len(found.data)
        status = 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            status, start, end = 206, int(wanted[1]), min(end, int(wanted[2]) + 1 if wanted[2] else end)
        headers = self._described(found)
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(found.data)}"
        self._answer(status, found.data[start:end], headers)

    def do_HEAD(self) -> None:
        found = self.server.objects.get(self._asked()[0])
        if found is None:
            return self._answer(404)
        self._answer(200, headers=self._described(found), size=len(found.data))

    def do_PUT(self) -> None:
        path, query = self._asked()
        body = self._body()
        if "uploadId" in query:
            self.server.uploads.setdefault(query["uploadId"][0], {})[int(query["partNumber"][0])] = body
        else:
            self.server.put(path, body)
        self._answer(200, headers={"ETag": f'"{md5(body).hexdigest()}"'})

    def do_POST(self) -> None:
        path, query = self._asked()
        body = self._body()
        if "uploads" in query:
            name = f"upload-{len(self.server.uploads)}-{threading.get_ident()}"
            self.server.uploads[name] = {}
            return self._answer(
                200,
                f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>".encode(),
            )
        if "uploadId" in query:
            pieces = self.server.uploads.pop(query["uploadId"][0])
            self.server.put(path, b"".join(pieces[number] for number in sorted(pieces)))
            return self._answer(200, b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")
        for key in re.findall(r"<Key>([^<]*)</Key>", body.decode()):
            self.server.objects.pop(f"{path.rstrip('/')}/{key}", None)
        self._answer(200, b"<DeleteResult></DeleteResult>")

    def do_DELETE(self) -> None:
        self.server.objects.pop(self._asked()[0], None)
        self._answer(204)

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        entries, folders = [], set()
        for path, found in sorted(self.server.objects.items()):
            key = path.removeprefix(f"{bucket}/")
            if key == path or not key.startswith(prefix):
                continue
            if delimiter and delimiter in key[len(prefix) :]:
                folders.add(prefix + key[len(prefix) :].split(delimiter)[0] + delimiter)
            else:
                entries.append(
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(found.data)}</Size>"
                    f"<LastModified>{found.changed:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
                )
        entries += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)]
        listed = (
            f"<ListBucketResult><Name>{bucket}</Name><KeyCount>{len(entries)}</KeyCount>"
            f"<IsTruncated>false</IsTruncated>{''.join(entries)}</ListBucketResult>"
        )
        self._answer(200, listed.encode(), {"Content-Type": "application/xml"})

    def _asked(self) -> tuple[str, dict[str, list[str]]]:
        self.server.asked.append(f"{self.command} {self.path}")
        parts = urlsplit(self.path)
        return unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while length := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(pieces)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return unchunked(body) if "aws-chunked" in (self.headers.get("Content-Encoding") or "") else body

    def _described(self, found: Stored) -> dict[str, str]:
        return {
            "ETag": f'"{md5(found.data).hexdigest()}"',
            "Last-Modified": format_datetime(found.changed, usegmt=True),
        }

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, size: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Accept-Ranges": "bytes", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


def unchunked(body: bytes) -> bytes:
    """The content of a body that was sent in signed or checked pieces."""
    data, rest = b"", body
    while rest:
        head, _, rest = rest.partition(b"\r\n")
        length = int(head.split(b";")[0], 16)
        if not length:
            break
        data, rest = data + rest[:length], rest[length + 2 :]
    return data


class Server(ThreadingHTTPServer):
    """All buckets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.asked: list[str] = []

    def put(self, path: str, data: bytes) -> None:
        """Store an object under `bucket/name`."""
        self.objects[path] = Stored(data, datetime.now(UTC))

    @property
    def environment(self) -> dict[str, str]:
        """What makes the S3 client of pyarrow use this server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_port}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def serving() -> Iterator[Server]:
    """The server, listening on a port of its own."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
