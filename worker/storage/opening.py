"""From the address of a storage to the storage. Owns the addresses and the choice of the implementation.

/path, file:///path         a directory that every node and the controller share
s3://bucket/prefix          Amazon S3, or whatever speaks its language at a profile's endpoint
gs://bucket/prefix          Google Cloud Storage
...?profile=NAME            by which profile (worker.storage.profiles)
"""

from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from worker.storage.local import LocalStorage
from worker.storage.objects import ObjectStorage
from worker.storage.profiles import Profile, StorageConfigError, find_profile, secret_of
from worker.storage.storage import Storage

EXTRAS: Final = {"s3": "s3", "gs": "gcs"}
"""By scheme, the extra of this package that brings what it needs."""
CONNECT_TIMEOUT_S: Final = 10.0
REQUEST_TIMEOUT_S: Final = 60.0
GOOGLE_RETRIES_S = 15.0
"""How long Google's client tries a request again that failed; by itself it would for 15 minutes."""
_OF_GOOGLE: Final = frozenset({"endpoint", "anonymous", "data"})
"""What a profile may say for gs://. Who asks is known by Google's own chain: pyarrow takes no keys there."""


def check_address(address: str) -> str:
    """Return the address of a storage, or raise StorageConfigError where it is none. Reaches for nothing."""
    parts = urlsplit(address)
    unknown = [key for key, _ in parse_qsl(parts.query, keep_blank_values=True) if key != "profile"]
    is_local = parts.scheme in {"", "file"} and parts.netloc in {"", "localhost"} and not parts.query
    is_object = parts.scheme in EXTRAS and parts.netloc and "@" not in parts.netloc and not unknown
    if not is_local and not is_object:
        # Without what stands before an @ or behind a ?: it may be a secret that does not belong there.
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise StorageConfigError(
            f"storage {shown} is not supported: use file:///path of a directory that every node shares, or s3://bucket/prefix or"
            " gs://bucket/prefix, with ?profile=NAME where needed"
        )
    return address


def local_path(address: str) -> Path | None:
    """Return the directory of a local storage, None of an object store."""
    parts = urlsplit(address)
    if parts.scheme in EXTRAS:
        return None
    return Path(unquote(parts.path) if parts.scheme else address).absolute()


def open_storage(address: str) -> Storage:
    """Return the storage at an address. An object store is not asked anything yet.

    Raises:
        StorageConfigError: no address of a storage, no such profile, or pyarrow is missing.
    """
    check_address(address)
    path = local_path(address)
    if path is not None:
        return LocalStorage(path)
    parts = urlsplit(address)
    name = dict(parse_qsl(parts.query)).get("profile", "")
    root = f"{parts.netloc}{unquote(parts.path)}".rstrip("/")
    return ObjectStorage(open_filesystem(parts.scheme, find_profile(name), name), root, address)


def open_filesystem(scheme: str, profile: Profile, name: str) -> Any:
    """Return the pyarrow.fs.FileSystem of an object store, by a profile of this name; it is not asked anything yet.

    Raises:
        StorageConfigError: a secret is not set, the profile says what does not belong to the scheme, or pyarrow is missing.
    """
    try:
        from pyarrow import fs
    except ImportError as error:
        raise StorageConfigError(
            f"storage {scheme}:// needs pyarrow, which is not installed; install the extra: pip install 'syncbn[{EXTRAS[scheme]}]'"
        ) from error
    if scheme == "gs":
        return fs.GcsFileSystem(
            anonymous=profile.anonymous, retry_time_limit=timedelta(seconds=GOOGLE_RETRIES_S), **_google_endpoint(profile, name)
        )
    return fs.S3FileSystem(
        access_key=secret_of(profile.access_key_env, name),
        secret_key=secret_of(profile.secret_key_env, name),
        session_token=secret_of(profile.session_token_env, name),
        anonymous=profile.anonymous,
        region=profile.region or None,
        endpoint_override=profile.endpoint or None,
        tls_ca_file_path=profile.ca_file or None,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        # Small objects in one request, and no look for directories that a bucket does not have.
        allow_delayed_open=True,
    )


def _google_endpoint(profile: Profile, name: str) -> dict[str, str]:
    """Return the arguments of Google's client that say where it asks, and refuse what it would not heed."""
    if unheeded := sorted(profile.model_fields_set - _OF_GOOGLE):
        raise StorageConfigError(
            f"storage profile {name!r} has {', '.join(unheeded)}; gs:// takes {', '.join(sorted(_OF_GOOGLE))} only; remove the rest, and"
            " name the file of the account in GOOGLE_APPLICATION_CREDENTIALS, or give the node an account"
        )
    if not profile.endpoint:
        return {}
    parts = urlsplit(profile.endpoint)
    if parts.scheme not in {"http", "https"}:
        raise StorageConfigError(f"storage profile {name!r} has the endpoint {profile.endpoint}; expected one with http:// or https://")
    return {"scheme": parts.scheme, "endpoint_override": parts.netloc}
