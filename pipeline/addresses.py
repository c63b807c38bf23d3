"""Addresses of object storage and the web, as they are written: s3://bucket/key?region=eu-west-1.

Standard library only. `objects` reads and writes what is there.
"""

from __future__ import annotations

import re

from pipeline import credentials
from pipeline.text import visible

__all__ = ["SCHEMES", "WEB", "problem", "shown", "split_options"]

WEB = ("https", "http")

SCHEMES = ("s3", "gs", "az", *WEB)
"""The kinds of addresses that are read. Only the first three can be written."""

_OPTIONS = ("endpoint_override", "region", "scheme")
_QUERY = re.compile(r"[\w.-]+=[^&/]*(&[\w.-]+=[^&/]*)*")


def split_options(uri: str) -> tuple[str, str]:
    """Return an address without its options, and the options with the ? before them, or ""."""
    base, mark, query = uri.rpartition("?")
    return (base, mark + query) if mark and _QUERY.fullmatch(query) else (uri, "")


def problem(uri: str) -> str:
    """Return what is wrong with an address as it is written, or "". Secrets are not repeated."""
    base, options = split_options(uri)
    scheme, _, rest = base.partition("://")
    scheme, bucket = scheme.lower(), rest.partition("/")[0]
    if _has_secret(scheme, bucket):
        return (
            f"the {scheme}:// address has a key or password before the @, which would end up in "
            f"the results; remove it and {credentials.remedy(scheme)}"
        )
    if not bucket:
        return f'"{visible(uri, 60)}" names no {"host" if scheme in WEB else "bucket"}'
    if "//" in rest:
        return f'"{visible(base, 60)}" has an empty name between two /; take it out'
    if any(part in (".", "..") for part in rest.split("/")) or not rest.isprintable():
        return (
            f'"{visible(base, 60)}" has a ., a .. or a control character in it, which names on '
            "object storage cannot; name it otherwise"
        )
    names = [part.partition("=")[0] for part in options[1:].split("&") if part]
    if scheme in WEB and names:
        return (
            f"the address at {bucket} has options after a ?, which may be secret and are not "
            "sent; name a plain address, or copy the file"
        )
    for name in names:
        if name not in _OPTIONS:
            return (
                f"{scheme}://{bucket}: there is no option {visible(name, 40)}; there are "
                f"{', '.join(_OPTIONS)}. To log in, {credentials.remedy(scheme)}"
            )
    return ""


def _has_secret(scheme: str, bucket: str) -> bool:
    """Return whether an address has a login where its bucket or host should be.

    A secret may have a / in it, so that the @ is not in this part any more.
    """
    login, mark, port = bucket.rpartition(":")
    is_port = scheme in WEB and (port.isdigit() or login.startswith("["))
    return "@" in bucket or bool(mark and not is_port)


def shown(uri: str) -> str:
    """Return an address for a message, without the login that it may have."""
    scheme, _, rest = uri.partition("://")
    if not _has_secret(scheme.lower(), rest.partition("/")[0]):
        return uri
    _, mark, behind = rest.rpartition("@")
    return f"{scheme}://…{mark}{behind if mark else ''}"
