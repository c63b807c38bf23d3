"""Azure's object storage on loopback: the server Azurite, where it is installed."""

import base64
import contextlib
import datetime
import hashlib
import hmac
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import wait_for

ACCOUNT = "devstoreaccount1"
# The one that Microsoft publishes for it.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of an empty container, to which the environment leads."""
    from pipeline import objects

    program = shutil.which("azurite-blob")
    if program is None:  # a program of npm, which pip cannot bring
        pytest.skip("azurite-blob is not installed; npm install -g azurite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry")
    place = ("--blobHost", "127.0.0.1", "--blobPort", str(port))
    with open(tmp_path / "azurite.log", "wb") as log:
        server = subprocess.Popen([program, *place, *options], stdout=log, stderr=log)
    try:
        wait_for(lambda: _answers(port))
        _make(port, "studio")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{port}/{ACCOUNT}")
        objects.forget()
        yield "az://studio"
    finally:
        objects.forget()
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _make(port: int, name: str) -> None:
    """Make a container, by the one request of this server that obstore has not."""
    now = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    path = f"/{ACCOUNT}/{name}"
    headers = f"x-ms-date:{now}\nx-ms-version:2021-08-06\n"
    text = "PUT" + 12 * "\n" + f"{headers}/{ACCOUNT}{path}\nrestype:container"
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}?restype=container",
        method="PUT",
        data=b"",
        headers={
            "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
            "Content-Type": "",
            "x-ms-date": now,
            "x-ms-version": "2021-08-06",
        },
    )
    urllib.request.urlopen(request, timeout=20).close()
