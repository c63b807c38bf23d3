"""Objects of a store: s3://, gs://, az:// and https://, by the library obstore.

The library repeats requests that fail, with growing waits. What comes through is a missing
object (`FileNotFoundError`, a pair's failure) or trouble of the whole run (`StorageError`: refused
credentials, no such bucket, a store that stays away). Loads obstore only when a store is opened.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from mmap import mmap
from typing import Any, TypeVar

from pipeline import credentials
from pipeline.addresses import SCHEMES, WEB, problem, split_options
from pipeline.side_by_side import interruptible
from pipeline.text import visible

__all__ = [
    "PATIENCE",
    "ChangedError",
    "Head",
    "RefusedError",
    "StorageError",
    "Version",
    "create",
    "delete",
    "fetch",
    "forget",
    "get",
    "head",
    "in_haste",
    "listing",
    "put",
    "replace",
    "tell_waits_to",
]

PATIENCE = 180.0
"""Seconds for which the library repeats a request that fails, before the run ends."""

HASTE = 5.0
"""The same, once a store has stayed away for `PATIENCE`: the run ends, and what it still has to
write must not hold it up again and again."""

FIRST_WAIT = 0.2
"""Seconds from a request that failed to the next try. Each wait after it is longer."""

LATE = 15.0
"""After how many seconds without an answer the user is told that the run waits."""

_PIECE = 32 * 2**20  # bytes of a large object that one request reads
_CHUNK = 2**20  # bytes of it that come at a time

_NO_BUCKET = "NoSuchBucket|ContainerNotFound|specified container does not exist"
_T = TypeVar("_T")


class StorageError(Exception):
    """Trouble with the storage of a run, like a full disk or a refused login. It cannot go on."""


class RefusedError(StorageError):
    """The store refuses these credentials. Those of another machine may be others."""


class _BrokenOffError(StorageError):
    """The answer to a request ended half way."""


class ChangedError(Exception):
    """The object is not what this process last wrote, so it was not replaced."""


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one state of an object from others. Stores go by one of the two."""

    etag: str  # "" where the store gives none
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """What a store says of an object."""

    size: int  # bytes
    version: Version
    modified: float  # seconds since 1970
    attributes: Mapping[str, str]  # what `put` was given; {} from listings

    @property
    def etag(self) -> str:
        """The ETag, "" where the store gives none."""
        return _quoted(self.version.etag)

    @property
    def stat(self) -> str:
        """Text that differs where the bytes differ."""
        return f"{self.size}:{self.etag or round(self.modified * 1e9)}"


def _quoted(etag: str) -> str:
    """Return an ETag as stores give it with an object. Azure's listings leave out the quotes."""
    return etag if not etag or etag.endswith('"') else f'"{etag}"'


@dataclass(frozen=True)
class _Place:
    """A parsed address."""

    scheme: str
    bucket: str  # of a web address: the host and its port
    key: str  # as written: nothing in it is an escape
    options: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.scheme}://{self.bucket}"


def _place(uri: str) -> _Place:
    if reason := problem(uri):
        raise OSError(errno.EINVAL, reason)
    base, options = split_options(uri)
    scheme, _, rest = base.partition("://")
    bucket, _, key = rest.partition("/")
    scheme = scheme.lower()
    if scheme in WEB:  # the library escapes what must be escaped
        key = urllib.parse.unquote(key)
    pairs = urllib.parse.parse_qsl(options[1:])
    return _Place(scheme, bucket, key, tuple(sorted(pairs)))


# --- stores ---

_good: set[tuple[str, str]] = set()  # buckets that are there
_away: set[str] = set()  # stores that did not answer when they were last asked
_hasty = False  # inside `in_haste`


@functools.lru_cache(maxsize=64)
def _store(scheme: str, bucket: str, options: tuple[tuple[str, str], ...], patience: float) -> Any:
    from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

    given = dict(options)
    endpoint = given.get("endpoint_override", "")
    if endpoint and "://" not in endpoint:
        endpoint = f"{given.get('scheme', 'https')}://{endpoint}"
    credentials.check_endpoint("endpoint_override", endpoint)
    client: dict[str, Any] = {
        "allow_http": True,  # only where the address itself is http://
        "connect_timeout": timedelta(seconds=10),
        "timeout": timedelta(seconds=120),  # of a whole request, perhaps of 100 MB
    }
    retries = {
        "max_retries": 1000,  # the time is what ends it
        "retry_timeout": timedelta(seconds=patience),
        "backoff": {
            "init_backoff": timedelta(seconds=FIRST_WAIT),
            "max_backoff": timedelta(seconds=10),
            "base": 3,  # a wait is drawn between the first and three times the one before
        },
    }
    common: dict[str, Any] = {"client_options": client, "retry_config": retries}
    if scheme in WEB:
        return HTTPStore.from_url(f"{scheme}://{bucket}", **common)
    found = credentials.options_of(scheme)
    if endpoint:
        found["base_url" if scheme == "gs" else "endpoint"] = endpoint
    if "region" in given:
        found["region"] = given["region"]
    kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    return kinds[scheme](bucket, **found, **common)


def _open(place: _Place) -> Any:
    if place.scheme not in SCHEMES:
        raise OSError(errno.EINVAL, f"cannot use {place.scheme}://{place.bucket}")
    try:
        patience = HASTE if _hasty or place.name in _away else PATIENCE
        return _store(place.scheme, place.bucket, place.options, patience)
    except credentials.CredentialsError as error:
        raise StorageError(f"{place.name}: {error}") from error
    except ImportError as error:
        raise StorageError(f"{place.name} needs the library obstore: {error}") from error
    except Exception as error:
        reason = _first_line(error)
        raise StorageError(
            f"{place.name} cannot be opened: {reason}; {credentials.remedy(place.scheme)}"
        ) from error


@contextlib.contextmanager
def in_haste() -> Iterator[None]:
    """Wait only `HASTE` for stores that do not answer inside the block."""
    global _hasty
    _hasty, before = True, _hasty
    try:
        yield
    finally:
        _hasty = before


def forget() -> None:
    """Open stores anew when they are next asked, as with other credentials."""
    _store.cache_clear()
    _good.clear()
    _away.clear()


def _ask(place: _Place, request: Callable[[Any], _T]) -> _T:
    """Make a request, again and again while its answer ends half way, which the library does not
    always repeat. Raises what `_ask_once` raises."""
    for wait in (0.2, 0.5, 1, 2, 5, 10, 20):
        try:
            return _ask_once(place, request)
        except _BrokenOffError:
            time.sleep(wait)
    return _ask_once(place, request)


def _ask_once(place: _Place, request: Callable[[Any], _T]) -> _T:
    """Make a request. Raises `FileNotFoundError`, `FileExistsError`, `ChangedError`, `OSError` for
    a web address that gives nothing, and `StorageError`."""
    store = _open(place)
    from obstore import exceptions

    try:
        answer = interruptible(lambda: request(store), LATE, lambda: _late(place))
        _away.discard(place.name)
        return answer
    except FileNotFoundError as error:
        if re.search(_NO_BUCKET, str(error)) or not _has_bucket(place):
            raise _no_bucket(place) from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place.key) from error
    except exceptions.AlreadyExistsError as error:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), place.key) from error
    except exceptions.PreconditionError as error:
        raise ChangedError(place.key) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise _refused(place, error) from error
    except exceptions.NotSupportedError as error:
        raise StorageError(f"{place.name} cannot do that: {_first_line(error)}") from error
    except ValueError as error:  # a key that the library cannot name
        raise OSError(errno.EINVAL, f"such a name cannot be used: {_first_line(error)}") from error
    except (exceptions.BaseError, OSError) as error:
        raise _trouble(place, error) from error


_listeners: list[Callable[[str], None]] = []


def tell_waits_to(say: Callable[[str], None]) -> None:
    """From now on, say in one line when a store lets this process's main thread wait."""
    _listeners[:] = [say]


def _late(place: _Place) -> None:
    minutes = f"{PATIENCE / 60:.0f} minutes"
    for say in _listeners:
        say(f"{place.name} has not answered for {LATE:.0f} s; waiting for it, {minutes} at most")


def _trouble(place: _Place, error: Exception) -> Exception:
    """Return what an error of the library means."""
    text = str(error)
    if re.search(_NO_BUCKET, text):
        return _no_bucket(place)
    if re.search(r"Expired|InvalidToken|TokenRefreshRequired|invalid_grant|code: 40[13]", text):
        return _refused(place, error)
    if re.search(r"PermanentRedirect|redirect without|AuthorizationHeaderMalformed", text):
        return StorageError(f"{place.name} is in another region; set AWS_REGION to it")
    if "NotImplemented" in text or "code: 501" in text:
        return StorageError(
            f"{place.name} cannot do what is asked of it ({_first_line(error)}); results need a "
            "store with conditional writes, or a folder"
        )
    if "body error" in text:
        return _BrokenOffError(f"{place.name} breaks off its answers; run again when it does not")
    passing = re.search(r"status code: 5|error sending|timed out|[Tt]imeout|connect", text)
    if place.scheme in WEB and not passing:
        return OSError(errno.EIO, _first_line(error))
    _away.add(place.name)
    return StorageError(
        f"{place.name} does not answer as it should: {_first_line(error)}; run again when it does"
    )


def _refused(place: _Place, error: Exception) -> Exception:
    if "RequestTimeTooSkewed" in str(error):
        return StorageError(f"{place.name} refuses requests: the clock here is wrong; set it")
    match = re.search(r"<Code>(\w+)</Code>", str(error))
    code = f" ({match[1]})" if match else ""
    if place.scheme in WEB:
        return PermissionError(errno.EACCES, f"{place.bucket} refuses it; copy the file")
    expired = "Expired" in str(error)
    what = "the credentials have expired" if expired else "access is refused"
    how = "log in again" if expired else "allow it for these credentials"
    return RefusedError(f"{place.name}: {what}{code}; {how}, or {credentials.remedy(place.scheme)}")


def _no_bucket(place: _Place) -> StorageError:
    return StorageError(
        f"there is no bucket {place.bucket!r} at {place.scheme}://; make it, or correct the name "
        "or the endpoint"
    )


def _first_line(error: Exception) -> str:
    """Return what an error of the library says, on one line, without its debugging part."""
    text = str(error).partition("Debug source")[0]
    message = re.search(r"<Message>(.*?)</Message>", text, re.DOTALL)
    status = re.search(r"status code: (\d+ [\w ]+)", text)
    if status:
        return visible(f"{status[1].strip()}{': ' + message[1] if message else ''}", 200)
    return visible(" ".join(text.split()), 300)


def _has_bucket(place: _Place) -> bool:
    """Return whether a bucket is there, which a missing object does not tell. Asked once."""
    if place.scheme in WEB or (place.scheme, place.bucket) in _good:
        return True
    try:
        next(iter(_open(place).list(chunk_size=1)), None)
    except Exception as error:  # a bucket that may not be listed is there
        if re.search(rf"{_NO_BUCKET}|404 Not Found", str(error)):
            return False
    _good.add((place.scheme, place.bucket))
    return True


# --- requests ---


def get(uri: str, most: int) -> tuple[bytes, Head]:
    """Return an object's bytes and head. Raises `OSError` beyond `most` bytes."""
    place = _place(uri)

    def request(store: Any) -> tuple[bytes, Head]:
        answer = store.get(place.key)
        if answer.meta["size"] > most:
            size, limit = answer.meta["size"] / 2**30, most / 2**30
            raise _TooLarge(f"it has {size:.1f} GB; the limit is {limit:.0f} GB")
        return bytes(answer.bytes()), _head(answer.meta, answer.attributes)

    try:
        return _ask(place, request)
    except _TooLarge as error:
        raise OSError(errno.EFBIG, str(error), uri) from None


def fetch(uri: str, head: Head, write: Callable[[int, bytes], object]) -> None:
    """Read an object that is still as `head` says, of any size: `write` gets each piece with its
    place. What failed on the way comes again. Raises `ChangedError` if it is not the same."""
    place = _place(uri)
    for first in range(0, head.size, _PIECE):
        last = min(first + _PIECE, head.size)

        def request(store: Any, first: int = first, last: int = last) -> None:
            same = {"if_match": head.etag} if head.etag else {}
            answer = store.get(place.key, options={"range": (first, last), **same})
            for chunk in answer.stream(min_chunk_size=_CHUNK):
                write(first, bytes(chunk))
                first += len(chunk)
            if first != last:
                raise _BrokenOffError(f"{place.name} gives less than it has of {place.key}")

        _ask(place, request)


class _TooLarge(Exception):
    """An object that is not read because of its size."""


def head(uri: str) -> Head:
    """Return what the store says of an object."""
    place = _place(uri)

    def request(store: Any) -> Head:
        answer = store.get(place.key, options={"head": True})
        return _head(answer.meta, answer.attributes)

    return _ask(place, request)


def put(uri: str, data: bytes, attributes: Mapping[str, str] | None = None) -> str:
    """Write an object in one request, whole or not at all; return its ETag."""
    place = _place(uri)
    return _quoted(_put(place, data, attributes, "overwrite").etag)


def create(uri: str, data: bytes | mmap) -> Version:
    """Write an object unless there is one; return its version.

    Raises `FileExistsError` if there is one with other bytes. The same bytes are those of this
    request, whose answer was lost before it was repeated.
    """
    place = _place(uri)
    try:
        return _put(place, data, None, "create")
    except FileExistsError:
        there, found = get(uri, len(data) + 2**20)
        if there != memoryview(data):
            raise
        return found.version


def replace(uri: str, data: bytes, version: Version) -> Version:
    """Write an object that still is this version; return its new version.

    Raises `ChangedError` if somebody else has written it.
    """
    place = _place(uri)
    try:
        known = {"e_tag": version.etag, "version": version.version}
        return _put(place, data, None, {name: text for name, text in known.items() if text})
    except (ChangedError, FileNotFoundError) as error:
        with contextlib.suppress(FileNotFoundError):
            there, found = get(uri, len(data) + 2**20)
            if there == data:
                return found.version
        raise ChangedError(place.key) from error


def _put(
    place: _Place, data: bytes | mmap, attributes: Mapping[str, str] | None, mode: object
) -> Version:
    if place.scheme in WEB:
        raise StorageError(f"{place.name} can only be read; choose a folder or a bucket")

    def request(store: Any) -> Version:
        options: dict[str, Any] = {"attributes": dict(attributes)} if attributes else {}
        # Never in parts: one request is one object, and a condition holds for all of it.
        answer = store.put(place.key, data, mode=mode, use_multipart=False, **options)
        return Version(answer["e_tag"] or "", answer["version"])

    return _ask(place, request)


def delete(uris: Sequence[str]) -> None:
    """Remove objects of one bucket. Missing ones are no error."""
    if uris:
        places = [_place(uri) for uri in uris]
        with contextlib.suppress(FileNotFoundError):
            _ask(places[0], lambda store: store.delete([place.key for place in places]))


def listing(uri: str, after: str = "") -> Iterator[tuple[str, Head]]:
    """Yield (name below the prefix, head) of all objects below a prefix, in the store's order.

    A request gives a thousand. With `after` the names that sort behind it.
    """
    place = _place(uri)
    prefix = place.key.rstrip("/")
    start = len(prefix) + 1 if prefix else 0
    pages: Iterator[Any] | None = None

    def next_page(store: Any) -> Any:
        nonlocal pages
        if pages is None:
            options = {"offset": f"{prefix}/{after}".lstrip("/")} if after else {}
            pages = iter(store.list(prefix, chunk_size=1000, **options))
        try:
            return next(pages, None)
        except Exception:
            pages = None  # if it is asked again, it goes on after the last name that came
            raise

    while page := _ask(place, next_page):
        for meta in page:
            name = meta["path"][start:]
            if name > after:  # Azurite, for one, gives all names
                after = name
                yield name, _head(meta, {})


def _head(meta: Mapping[str, Any], attributes: Mapping[str, str]) -> Head:
    own = {name: text for name, text in attributes.items() if name != "Content-Type"}
    version = Version(meta["e_tag"] or "", meta["version"])
    return Head(meta["size"], version, meta["last_modified"].timestamp(), own)
