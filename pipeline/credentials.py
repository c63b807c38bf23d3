"""How a store of object storage is reached: its address, region and credentials, as other tools
for the same store find them. Standard library only, except where a profile needs boto3.
"""

from __future__ import annotations

import configparser
import os
import re
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

__all__ = ["CredentialsError", "check_endpoint", "options_of", "remedy"]

_INSTANCE = "169.254.169.254"
"""Where the metadata service of a cloud's machines answers, on all three clouds."""

_LIBRARY_FINDS: Mapping[str, tuple[str, ...]] = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_SKIP_SIGNATURE",
    ),
    "gs": (
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_SKIP_SIGNATURE",
    ),
    "az": (
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_TOKEN",
        "AZURE_CLIENT_ID",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_USE_AZURE_CLI",
        "AZURE_SKIP_SIGNATURE",
        "IDENTITY_ENDPOINT",
    ),
}
"""Variables with which the library finds credentials by itself."""

_GCLOUD = ".config/gcloud/application_default_credentials.json"
"""Where `gcloud auth application-default login` leaves them, below the home folder."""

_REMEDIES = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}

_ENDPOINTS: Mapping[str, tuple[str, ...]] = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Variables from which the library takes the address of a store."""

_BY_BOTO3 = ("sso_session", "sso_start_url", "role_arn", "credential_process", "login_session")
"""Entries of a profile without keys of its own that boto3 knows how to turn into keys."""


class CredentialsError(Exception):
    """There are no credentials where the settings say that there are, or the address of the store
    is not one. The text has the remedy."""


def remedy(scheme: str) -> str:
    """Return how to give credentials for a kind of store."""
    return _REMEDIES.get(scheme, "allow reading there")


def options_of(scheme: str) -> dict[str, Any]:
    """Return the options with which obstore opens a store of this kind, beside those that it takes
    from the environment by itself.

    Credentials come from the environment, from a profile (S3) or the login of gcloud (GCS), or
    from the role of the machine. Where there are none, requests are not signed, which public
    buckets allow. Raises `CredentialsError`.
    """
    for name in _ENDPOINTS[scheme]:
        check_endpoint(name, os.environ.get(name, ""))
    if scheme == "s3":
        return _s3()
    known = any(os.environ.get(name) for name in _LIBRARY_FINDS[scheme])
    if scheme == "gs":
        known = known or os.path.exists(_home(_GCLOUD))
    return {} if known or _is_instance() else {"skip_signature": True}


def check_endpoint(name: str, text: str) -> None:
    """Raise `CredentialsError` for a setting that is not the address of a server, with which the
    library would break down instead of raising. An empty one is not checked."""
    try:
        parts = urlsplit(text)
        right = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:  # a port that is no number, a bracket that is not closed
        right = False
    if text and not (right and re.fullmatch(r"[!-~]+", text)):
        shown = re.sub(r"^([^/]*//)?[^/]*@", r"\1…@", text)
        raise CredentialsError(f"{name} is {shown!r}; write it like http://localhost:9000")


def _s3() -> dict[str, Any]:
    options: dict[str, Any] = {}
    profile = _profile()
    if not _any_of("AWS_REGION", "AWS_DEFAULT_REGION"):
        options["region"] = profile.get("region", "us-east-1")
    if not _any_of(*_ENDPOINTS["s3"]):
        check_endpoint("endpoint_url of the profile", profile.get("endpoint_url", ""))
        options |= {"endpoint": profile["endpoint_url"]} if "endpoint_url" in profile else {}
    if _any_of(*_LIBRARY_FINDS["s3"]):
        return options
    if "aws_access_key_id" in profile:
        names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        return options | {name: profile[name] for name in names if name in profile}
    if any(name in profile for name in _BY_BOTO3):
        return options | {"credential_provider": _boto3()}
    return options if _is_instance() else options | {"skip_signature": True}


def _profile() -> dict[str, str]:
    """Return the entries of the chosen AWS profile, {} if there is none."""
    chosen = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or ""
    name = chosen or "default"
    entries: dict[str, str] = {}
    files = (
        (os.environ.get("AWS_CONFIG_FILE") or _home(".aws/config"), f"profile {name}"),
        (os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or _home(".aws/credentials"), name),
    )
    for file, section in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(os.path.expanduser(file), encoding="utf-8")
        except (configparser.Error, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CredentialsError(f"{os.path.basename(file)} cannot be read: {reason}") from error
        for present in {section, name} & set(parser.sections()):
            entries |= parser.items(present)
    if chosen and not entries and not os.environ.get("AWS_ACCESS_KEY_ID"):
        raise CredentialsError(
            f"there is no profile {chosen!r}, which AWS_PROFILE names; "
            "write it with: aws configure --profile NAME"
        )
    return entries


def _boto3() -> object:
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise CredentialsError(
            "the profile gets its keys by a login or a role, which needs boto3; "
            "install it with: pip install boto3"
        ) from error
    try:
        return Boto3CredentialProvider()
    except Exception as error:
        raise CredentialsError(f"the profile gives no credentials: {error}") from error


def _is_instance() -> bool:
    """Return whether a cloud's metadata service answers here, which may know a role."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return False
    try:
        socket.create_connection((_INSTANCE, 80), timeout=1).close()
    except OSError:
        return False
    return True


def _any_of(*names: str) -> bool:
    return any(os.environ.get(name) for name in names)


def _home(path: str) -> str:
    return os.path.join(os.path.expanduser("~"), path)
