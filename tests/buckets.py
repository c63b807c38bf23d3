"""Object storage on loopback: moto's server, and before it a proxy that counts requests and can
fail in the ways of a real store."""

import contextlib
import html
import http.client
import http.server
import logging
import re
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import helpers
import pytest
from forks import Done, cli
from helpers import TINY, index_rows, pictures, write_csv
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

HERE = ("--in-process",)
SECRET = "wJalrXUtnFEMIKEYbPxRfiCYsecret"


@dataclass(frozen=True)
class Request:
    """A request as the proxy sees it."""

    method: str
    key: str  # without the bucket
    query: dict[str, str]
    headers: dict[str, str]

    @property
    def kind(self) -> str:
        """LIST, or the method."""
        return "LIST" if "list-type" in self.query else self.method


@dataclass(frozen=True)
class Answer:
    """An answer of the proxy's own."""

    status: int
    code: str = ""  # of S3's errors

    @property
    def body(self) -> bytes:
        return f"<Error><Code>{self.code}</Code><Message>{self.code}</Message></Error>".encode()


RESET = "reset"  # the connection ends before the store gets the request
LOST = "lost"  # the store gets it, and the connection ends before the answer
HALF_PUT = "half put"  # the connection ends in the middle of the request's body
HALF_GET = "half get"  # the connection ends in the middle of the answer's body
UNCONDITIONAL = "unconditional"  # the store ignores If-Match and If-None-Match

Fault = Answer | str | float | None
"""What happens to a request: an answer, one of the words above, a delay in seconds, or nothing."""


@dataclass
class Bucket:
    """A bucket behind the proxy. `fault` decides about each request; `requests` has them all."""

    name: str
    port: int
    server_port: int
    fault: Callable[[Request], Fault] = lambda request: None
    requests: list[Request] = field(default_factory=list)
    page: int = 1000  # names in each answer to a listing

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def counted(self) -> Counter[str]:
        """How many requests of each kind there were."""
        return Counter(request.kind for request in self.requests)

    def direct(self, method: str, path: str, data: bytes | None = None, **headers: str) -> bytes:
        """A request past the proxy, by the owner of the bucket."""
        address = f"http://127.0.0.1:{self.server_port}/{urllib.parse.quote(path, safe='/?=&')}"
        request = urllib.request.Request(address, data=data, method=method)
        request.add_header("Content-Type", "application/octet-stream")
        owner = "AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/s3/aws4_request"
        request.add_header("Authorization", f"{owner}, SignedHeaders=host, Signature=0")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return bytes(answer.read())

    def put(self, key: str, data: bytes, **headers: str) -> None:
        self.direct("PUT", f"{self.name}/{key}", data, **headers)

    def put_at_once(self, key: str, data: bytes) -> None:
        """Put one of very many objects, without a request."""
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(self.name, key, data)

    def get(self, key: str) -> bytes:
        return self.direct("GET", f"{self.name}/{key}")

    def delete(self, key: str) -> None:
        self.direct("DELETE", f"{self.name}/{key}")

    def listed(self) -> list[str]:
        text = self.direct("GET", f"{self.name}?list-type=2&max-keys=100000").decode()
        return [html.unescape(key) for key in re.findall("<Key>(.*?)</Key>", text)]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        super().__init__(("127.0.0.1", bucket.port), _Handler)
        bucket.port = self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _cut(self) -> None:
        """End the connection at once, as a store does that falls over."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _handle(self) -> None:
        bucket = self.server.bucket
        path, _, query = self.path.partition("?")
        options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        key = urllib.parse.unquote(path).removeprefix(f"/{bucket.name}").lstrip("/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, key, options, headers)
        bucket.requests.append(request)
        fault = bucket.fault(request)
        length = int(headers.get("content-length", 0))
        if fault == HALF_PUT:
            self.rfile.read(length // 2)
            return self._cut()
        body = self.rfile.read(length)
        if fault == RESET:
            return self._cut()
        if isinstance(fault, Answer):
            return self._send(fault.status, {}, fault.body)
        if isinstance(fault, float):
            time.sleep(fault)
        if request.kind == "LIST" and bucket.page != 1000:
            self.path += f"&max-keys={bucket.page}"
        if fault == UNCONDITIONAL:
            del self.headers["if-match"], self.headers["if-none-match"]
        server = http.client.HTTPConnection("127.0.0.1", bucket.server_port, timeout=60)
        try:
            server.request(self.command, self.path, body or None, dict(self.headers.items()))
            answer = server.getresponse()
            data = answer.read()
        finally:
            server.close()
        if fault == LOST:
            return self._cut()
        self._send(answer.status, dict(answer.getheaders()), data, half=fault == HALF_GET)
        return None

    def _send(self, status: int, headers: dict[str, str], data: bytes, half: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            own = ("transfer-encoding", "connection", "server", "date")
            if name.lower() not in (*own, "content-length"):
                self.send_header(name, value)
        length = len(data)
        if self.command == "HEAD":
            length = int({k.lower(): v for k, v in headers.items()}.get("content-length", 0))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self.wfile.flush()
            self._cut()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _handle


@contextlib.contextmanager
def proxy(bucket: Bucket) -> Iterator[_Server]:
    """The proxy at the bucket's port, or at a free one if that is 0."""
    server = _Server(bucket)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def store(name: str = "studio") -> Iterator[Bucket]:
    """A fresh server with one bucket, and the proxy before it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    bucket = Bucket(name, 0, server.get_host_and_port()[1])
    try:
        bucket.direct("POST", "moto-api/reset")
        bucket.direct("PUT", name)
        with proxy(bucket):
            yield bucket
    finally:
        server.stop()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket, to which the environment leads."""
    from pipeline import objects

    with store() as made:
        for name, value in made.env.items():
            monkeypatch.setenv(name, value)
        objects.forget()
        yield made
        objects.forget()


@dataclass
class Studio:
    """A bucket with photographs c0.jpg … and a manifest at in/, whose OUT is out/."""

    bucket: Bucket
    folder: Path  # on this machine

    @property
    def out(self) -> str:
        return f"{self.bucket.uri}/out"

    @property
    def manifest(self) -> str:
        return f"{self.bucket.uri}/in/m.csv"

    def fill(self, pairs: int, **columns: str) -> None:
        local = self.folder / "in"
        local.mkdir(exist_ok=True)
        pictures(local, pairs)
        write_csv(
            local / "m.csv",
            [{"id": f"p{n}", "content": f"c{n}.jpg", **columns} for n in range(pairs)],
        )
        for file in local.iterdir():
            self.bucket.put(f"in/{file.name}", file.read_bytes())

    def run(self, *options: object, **env: str) -> Done:
        self.bucket.requests.clear()
        return cli(self.manifest, "--out", self.out, *TINY, *HERE, *options, **env)

    def run_on_ray(self, *options: object, **env: Any) -> subprocess.CompletedProcess[str]:
        self.bucket.requests.clear()
        return helpers.cli(self.manifest, "--out", self.out, *TINY, *options, **env)

    def puts(self) -> Counter[str]:
        """How often each picture was put in the last run."""
        return Counter(
            r.key for r in self.bucket.requests if r.method == "PUT" and "/images/" in r.key
        )

    def fetched_pictures(self) -> list[str]:
        return [r.key for r in self.bucket.requests if r.method == "GET" and "/images/" in r.key]

    def check_whole(self, pairs: int) -> None:
        """Every pair has its picture and its row, and nothing else is left."""
        rows = index_rows(self.out)
        assert rows.keys() == {f"p{n}" for n in range(pairs)}
        for row in rows.values():
            assert row["status"] == "ok"
            assert len(self.bucket.get(f"out/{row['output']}")) == row["output_bytes"]
        others = [
            key.removeprefix("out/")
            for key in self.bucket.listed()
            if key.startswith("out/") and not key.startswith(("out/images/", "out/index/"))
        ]
        kept = ("_state/log/", "_state/weights/")  # the latter for a cluster
        assert {key for key in others if not key.startswith(kept)} == {"_state/run.json"}


@pytest.fixture
def studio(bucket: Bucket, tmp_path: Path) -> Studio:
    return Studio(bucket, tmp_path)
