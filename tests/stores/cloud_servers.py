"""Stand-ins on 127.0.0.1 for Google's and Azure's object stores, as far as the driver asks them anything.

No package has a server that the driver can talk to. Tried were: moto (no such service); fake-gcs-server from a wheel
and gcp-storage-emulator, neither of which has the conditional writes of the XML API; amber-cloud, which has no HTTP for
blobs. Azurite is in no wheel. So these are written by what both companies document: the objects are kept in memory,
each with an ETag and a generation, and written on condition of these.
"""

from __future__ import annotations

import json
import re
import threading
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit
from xml.sax.saxutils import escape

_names = count()


class Stored(NamedTuple):
    data: bytes
    generation: int
    at: datetime

    @property
    def headers(self) -> dict[str, str]:
        return {
            "ETag": self.e_tag,
            "Last-Modified": f"{self.at:%a, %d %b %Y %H:%M:%S} GMT",
            "x-goog-generation": str(self.generation),
        }

    @property
    def e_tag(self) -> str:
        return f'"{self.generation:x}"'


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes = b""


class CloudServer(ThreadingHTTPServer, ABC):
    """A running server. `asked` are the requests since it was cleared, as method and path."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.buckets: dict[str, dict[str, Stored]] = {}
        self.changing = threading.Lock()
        self._generations = count(1)
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def bucket(self) -> str:
        """Return the name of a new, empty bucket."""
        name = f"sagaz-{next(_names)}"
        self.buckets[name] = {}
        self.asked.clear()
        return name

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> Answer:
        parts = urlsplit(target)
        bucket, _, key = parts.path.lstrip("/").partition("/")
        bucket, key, query = unquote(bucket), unquote(key), dict(parse_qsl(parts.query, keep_blank_values=True))
        self.asked.append((method, parts.path))
        with self.changing:
            objects = self.buckets.get(bucket)
            if objects is None:
                return self.no_bucket()
            if method == "POST":
                return self.many(objects, headers, body)
            if not key:
                return self.listed(objects, query)
            found = objects.get(key)
            if method == "PUT":
                refused = self.refused(found, headers)
                if refused is None:
                    found = objects[key] = Stored(body, next(self._generations), datetime.now(UTC))
                    return Answer(201, found.headers)
                return refused
            if found is None:
                return Answer(404, {})
            if method == "DELETE":
                del objects[key]
                return Answer(202, {})
            if headers.get("If-None-Match") == found.e_tag:
                return Answer(304, found.headers)
            return Answer(200, found.headers, found.data)

    @abstractmethod
    def no_bucket(self) -> Answer:
        """Answer that there is no such bucket."""

    @abstractmethod
    def refused(self, found: Stored | None, headers: Any) -> Answer | None:
        """Return the answer to a write whose condition does not hold."""

    @abstractmethod
    def listed(self, objects: dict[str, Stored], query: dict[str, str]) -> Answer:
        """Answer with a page of the names."""

    def many(self, objects: dict[str, Stored], headers: Any, body: bytes) -> Answer:
        """Answer a request that is several in one, which not every service knows."""
        return Answer(501, {})


class GoogleServer(CloudServer):
    """Google's XML API: the condition is the generation, 0 for none."""

    def url(self, bucket: str, **options: str) -> str:
        # The driver asks for a token even where it is not to sign, unless the account says that it needs none.
        account = {"gcs_base_url": self.endpoint, "disable_oauth": True, "client_email": "", "private_key": ""}
        key = json.dumps({**account, "private_key_id": ""})
        asked = {"service_account_key": key, "allow_http": "true", **options}
        return f"gs://{bucket}/a/prefix?{urlencode(asked)}"

    def no_bucket(self) -> Answer:
        body = b"<?xml version='1.0'?><Error><Code>NoSuchBucket</Code><Message>There is none.</Message></Error>"
        return Answer(404, {}, body)

    def refused(self, found: Stored | None, headers: Any) -> Answer | None:
        wanted = headers.get("x-goog-if-generation-match")
        if wanted is None or int(wanted) == (0 if found is None else found.generation):
            return None
        return Answer(412, {})

    def listed(self, objects: dict[str, Stored], query: dict[str, str]) -> Answer:
        assert query["list-type"] == "2"
        start = max(query.get("start-after", ""), query.get("continuation-token", ""))
        most = int(query.get("max-keys", 1000))
        keys = sorted(key for key in objects if key.startswith(query.get("prefix", "")) and key > start)
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[key].data)}</Size>"
            f"<ETag>{escape(objects[key].e_tag)}</ETag><LastModified>{objects[key].at:%Y-%m-%dT%H:%M:%S.%fZ}</LastModified>"
            f"</Contents>"
            for key in keys[:most]
        )
        more = f"<NextContinuationToken>{escape(keys[most - 1])}</NextContinuationToken>" if len(keys) > most else ""
        return Answer(200, {}, f"<ListBucketResult>{rows}{more}</ListBucketResult>".encode())


class AzureServer(CloudServer):
    """Azure's REST API: the condition is the ETag, and many are deleted by one request."""

    def url(self, bucket: str, **options: str) -> str:
        asked = {"account_name": "test", "endpoint": self.endpoint, "allow_http": "true", "skip_signature": "true"}
        return f"az://{bucket}/a/prefix?{urlencode({**asked, **options})}"

    def no_bucket(self) -> Answer:
        code = "ContainerNotFound"
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>There is none.</Message></Error>".encode()
        return Answer(404, {"x-ms-error-code": code}, body)

    def refused(self, found: Stored | None, headers: Any) -> Answer | None:
        if headers.get("If-None-Match") == "*" and found is not None:
            return Answer(409, {"x-ms-error-code": "BlobAlreadyExists"})
        wanted = headers.get("If-Match")
        if wanted is not None and (found is None or wanted != found.e_tag):
            return Answer(412, {"x-ms-error-code": "ConditionNotMet"})
        return None

    def listed(self, objects: dict[str, Stored], query: dict[str, str]) -> Answer:
        assert (query["restype"], query["comp"]) == ("container", "list")
        most, start = int(query.get("maxresults", 5000)), query.get("marker", "")
        keys = sorted(key for key in objects if key.startswith(query.get("prefix", "")) and key > start)
        rows = "".join(
            f"<Blob><Name>{escape(key)}</Name><Properties><Content-Length>{len(objects[key].data)}</Content-Length>"
            f"<Last-Modified>{objects[key].headers['Last-Modified']}</Last-Modified><Etag>{escape(objects[key].e_tag)}</Etag>"
            f"<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
            for key in keys[:most]
        )
        more = escape(keys[most - 1]) if len(keys) > most else ""
        page = f"<EnumerationResults><Blobs>{rows}</Blobs><NextMarker>{more}</NextMarker></EnumerationResults>"
        return Answer(200, {}, page.encode())

    def many(self, objects: dict[str, Stored], headers: Any, body: bytes) -> Answer:
        parts = []
        for number, target in enumerate(re.findall(rb"DELETE (\S+) HTTP/1.1", body)):
            key = unquote(urlsplit(target.decode()).path.lstrip("/").partition("/")[2])
            status = "202 Accepted" if objects.pop(key, None) else "404 The specified blob does not exist."
            code = "" if status.startswith("202") else "x-ms-error-code: BlobNotFound\r\n"
            parts.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\nHTTP/1.1 {status}\r\n"
                f"{code}x-ms-version: 2018-11-09\r\n\r\n"
            )
        answer = "".join([*parts, "--batch--\r\n"]).encode()
        return Answer(202, {"Content-Type": "multipart/mixed; boundary=batch"}, answer)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: CloudServer

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.server.answer(self.command, self.path, self.headers, body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD" and answer.status != 304:
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _do  # noqa: N815 - the base class's names

    def log_message(self, *_: Any) -> None:
        pass


@cache
def google() -> GoogleServer:
    """Return this process's server, started by the first call."""
    return GoogleServer()


@cache
def azure() -> AzureServer:
    """Return this process's server, started by the first call."""
    return AzureServer()
