"""Servers on loopback for shard sets elsewhere: HTTP, and as much of S3 as s3fs asks for; both can
be told to misbehave."""

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Faults:
    """What a server does wrong; every one is a rule over the path that is asked for."""

    errors: Counter = field(default_factory=Counter)
    """Path suffix to how many of the first requests for it are answered with 500."""
    damage: Callable[[str, bytes], bytes] = lambda path, data: data
    """What becomes of the bytes on their way."""
    cut: Counter = field(default_factory=Counter)
    """Path suffix to how many answers end after half of the bytes they announced."""
    has_ranges: bool = True
    has_listings: bool = True
    delay_s: float = 0.0
    """Seconds before every answer with a body."""
    chunk: int = 1 << 20
    """Bytes written at once; a delay comes before each."""


class Server:
    """A folder over HTTP, with a count of the requests for each path.

    Attributes:
        url: Where it is, without a slash at its end.
        faults: What goes wrong; may be changed at any time.
        gets: How often each path was asked for (GET), as (path, range).
    """

    def __init__(self, folder: Path, handler: type["_Handler"], port: int = 0) -> None:
        self.folder = folder
        self.faults = Faults()
        self.gets: Counter[tuple[str, str | None]] = Counter()
        self.lock = threading.Lock()
        self.connections: set[socket.socket] = set()
        self._http = _Quiet(("127.0.0.1", port), handler)
        self._http.daemon_threads = True
        self._http.owner = self  # type: ignore[attr-defined]
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self.connections):  # those that were kept alive end too
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def fetched(self, suffix: str) -> int:
        """How many requests there were for paths that end so."""
        return sum(n for (path, _), n in self.gets.items() if path.endswith(suffix))

    def take(self, rules: Counter, path: str) -> bool:
        with self.lock:
            for suffix, left in rules.items():
                if left > 0 and path.endswith(suffix):
                    rules[suffix] -= 1
                    return True
        return False


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Ignore clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.owner.connections.add(self.connection)

    def finish(self) -> None:
        self.owner.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        pass

    @property
    def owner(self) -> Server:
        return self.server.owner  # type: ignore[attr-defined]

    def local(self, path: str) -> Path | None:
        """The file or folder of a path, never one outside."""
        found = (self.owner.folder / path.strip("/")).resolve()
        return found if found.is_relative_to(self.owner.folder.resolve()) else None

    def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        faults, path = self.owner.faults, unquote(urlsplit(self.path).path)
        if len(data) > 1 and self.owner.take(faults.cut, path):
            data = data[: len(data) // 2]
            self.close_connection = True
        for at in range(0, len(data), faults.chunk):
            if faults.delay_s:
                time.sleep(faults.delay_s)
            try:
                self.wfile.write(data[at : at + faults.chunk])
            except OSError:
                self.close_connection = True
                return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.command == "GET":
            with self.owner.lock:
                self.owner.gets[path, self.headers.get("Range")] += 1
        if self.owner.take(self.owner.faults.errors, path):
            return self.answer(500)
        found = self.local(path)
        if found is None or not found.exists():
            return self.missing(path)
        if found.is_dir():
            return self.listing(found)
        self.file(path, found)

    def missing(self, path: str) -> None:
        self.answer(404)

    def listing(self, folder: Path) -> None:
        if not self.owner.faults.has_listings:
            return self.answer(403)
        names = [p.name + "/" * p.is_dir() for p in sorted(folder.iterdir())]
        links = "".join(f'<a href="{quote(n)}">{escape(n)}</a>' for n in names)
        self.answer(200, f"<html>{links}</html>".encode(), Content_Type="text/html")

    def file(self, path: str, found: Path) -> None:
        faults = self.owner.faults
        data = faults.damage(path, found.read_bytes())
        kind = {
            "Content_Type": "application/octet-stream",
            "ETag": '"0"',
            "Last_Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None or not faults.has_ranges:
            return self.answer(200, data, **kind)
        begin, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
        part = data[begin : end + 1]
        last = begin + len(part) - 1
        self.answer(206, part, Content_Range=f"bytes {begin}-{last}/{len(data)}", **kind)


class _S3Handler(_Handler):
    """Buckets are the folders of the server's folder; signatures are not looked at."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if "list-type" in url.query:
            bucket = unquote(url.path).strip("/")
            return self.objects(bucket, parse_qs(url.query))
        super().do_GET()

    def missing(self, path: str) -> None:
        text = "<Error><Code>NoSuchKey</Code><Message>not there</Message></Error>"
        self.answer(404, text.encode(), Content_Type="application/xml")

    def listing(self, folder: Path) -> None:
        self.missing(str(folder))

    def objects(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        root = self.owner.folder / bucket
        keys = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        keys = [key for key in keys if key.startswith(prefix)]
        folders = set()
        if delimiter:
            rests = {key: key[len(prefix) :] for key in keys}
            folders = {prefix + rest.split("/")[0] + "/" for rest in rests.values() if "/" in rest}
            keys = [key for key in keys if "/" not in rests[key]]
        date = "2026-01-01T00:00:00.000Z"
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{(root / key).stat().st_size}</Size>"
            f"<LastModified>{date}</LastModified><ETag>0</ETag></Contents>"
            for key in keys
        ) + "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            for name in sorted(folders)
        )
        text = (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>"
            f"<KeyCount>{len(keys)}</KeyCount>{entries}</ListBucketResult>"
        )
        self.answer(200, text.encode(), Content_Type="application/xml")


@contextmanager
def serve(folder: Path, kind: str = "http", port: int = 0) -> Iterator[Server]:
    """Serve a folder until the block ends; ``kind`` is ``http`` or ``s3``."""
    server = Server(folder, _S3Handler if kind == "s3" else _Handler, port)
    try:
        yield server
    finally:
        server.stop()


def s3_variables(server: Server) -> dict[str, str]:
    """The environment in which s3fs talks to this server."""
    return {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
