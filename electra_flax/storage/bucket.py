"""Google Cloud Storage: a gs:// folder as a set of files.

Google's client repeats what fails in passing (503s, resets, time-outs) with growing pauses for two minutes, and checks
the CRC32C of what it downloads. Imported only where a gs:// path is given.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from electra_flax.errors import RunError, Unavailable, UserError, reason
from electra_flax.runtime.interruption import metadata_host

log = logging.getLogger("electra_flax")

T = TypeVar("T")

SCHEME = "gs://"
_SECONDS = 30.0  # that a request may be silent
_PAUSES = (1.0, 4.0, 15.0)  # seconds
_REFUSED = ("Forbidden", "PERMISSION_DENIED", "NOT_FOUND", "UNAUTHENTICATED")  # by gcsfs, by TensorStore
_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "Timeout", "timed out", "ConnectionError", "Connection reset",
         "Connection refused", "Connection aborted", "Cannot connect", "ClientConnector", "ClientOSError",
         "ServerDisconnected", "TransportError", "RetryError", "CURL error", "Service Unavailable", "Bad Gateway",
         "HTTP response code: 5", "gaierror", "Name or service not known")  # fmt: skip
_PASSING = (408, 429)  # of the answers that refuse, those that mean: later


def is_remote(path: str | Path) -> bool:
    return str(path).startswith(SCHEME)


def until_done(path: object, action: Callable[[], T]) -> T:
    """Return what `action` gives; where `path` is in a bucket, it is tried again after pauses.

    Raises what a user can mend and what ends a run at once, and the last of all other errors.
    """
    for pause in _PAUSES if is_remote(str(path)) else ():
        try:
            return action()
        except (UserError, RunError):
            raise
        except Exception as error:  # gcsfs, TensorStore and Orbax raise whatever they meet
            log.warning("%s: %s; trying again in %.0f s", path, reason(error), pause)
            time.sleep(pause)
    return action()


def patiently(path: object, action: Callable[[], T]) -> T:
    """Return what `action` gives, tried again as `until_done` does; what a bucket raises in the end is problem_of it.

    For what gcsfs does: it repeats a request that fails, but a deletion, for one, that succeeded unheard is then
    refused, because there is nothing left to delete.
    """
    try:
        return until_done(path, action)
    except (UserError, RunError):
        raise
    except Exception as error:
        if is_remote(str(path)):
            raise problem_of(path, "cannot be used", error) from None
        raise


def is_away(problem: str) -> bool:
    """Return whether `reason` tells of a bucket out of reach, as against something that is not there or damaged."""
    return any(word in problem for word in _AWAY)


def problem_of(path: object, what: str, error: Exception) -> UserError:
    """Return Unavailable where a bucket is away for now, UserError where this account may not, or nothing is there."""
    code = getattr(error, "code", None)
    is_refused = (
        isinstance(error, FileNotFoundError | PermissionError)
        or (isinstance(code, int) and 400 <= code < 500 and code not in _PASSING)
        or any(word in str(error) for word in _REFUSED)
    )
    # A VM gets its credentials from a server that may be away; elsewhere they have expired.
    without_login = type(error).__name__ in ("DefaultCredentialsError", "RefreshError") and metadata_host() is None
    if is_refused or without_login:
        return UserError(
            f"{path}: {what} ({reason(error)}): check the name of the bucket, the permissions of this account, and the "
            "network"
        )
    return Unavailable(f"{path}: {what} for now ({reason(error)}); try the same command again")


class RemoteFolder:
    """The objects below gs://BUCKET/PREFIX/, by their names within it."""

    def __init__(self, url: str) -> None:
        """Open the folder.

        Raises UserError where `url` names no bucket, there is no client, or there are no credentials.
        """
        self.url = SCHEME + url.removeprefix(SCHEME).rstrip("/")
        bucket, _, prefix = self.url.removeprefix(SCHEME).partition("/")
        if not bucket:
            raise UserError(f"{url}: expected gs://BUCKET/FOLDER")
        for module in ("google.cloud.storage", "gcsfs"):
            if not _is_installed(module):
                raise UserError(f"{url}: gs:// needs {module}: pip install 'electra-flax[gcs]', or name a local folder")
        os.environ.setdefault("EPATH_USE_TF", "false")  # Orbax's paths: by gcsfs, also where TensorFlow is installed
        if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):  # TensorStore has a name of its own for it
            os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator)
        import fsspec.config
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import storage

        # gcsfs remembers a folder's content for good, whatever other processes write there.
        fsspec.config.conf["gs"] = {"use_listings_cache": False}
        try:
            self.bucket = storage.Client().bucket(bucket)
        except ValueError as error:
            raise UserError(f"{url}: {error}") from None
        except (GoogleAuthError, OSError) as error:
            if metadata_host() is not None:  # which gives this machine its credentials
                raise Unavailable(f"{url}: no Google credentials for now ({reason(error)})") from None
            raise UserError(
                f"{url}: no Google credentials here ({reason(error)}): gcloud auth application-default login, or run "
                "on a VM with a service account"
            ) from None
        self.prefix = f"{prefix}/" if prefix else ""

    def blob(self, name: str) -> Any:
        return self.bucket.blob(self.prefix + name)

    def files(self) -> dict[str, Any]:
        """Return {name: google.cloud.storage.Blob, with size and generation}.

        Raises UserError where the folder cannot be listed.
        """
        found = self.try_to("be read", lambda: list(self.bucket.list_blobs(prefix=self.prefix, timeout=_SECONDS)))
        return {blob.name.removeprefix(self.prefix): blob for blob in found if not blob.name.endswith("/")}

    def download(self, blob: Any, path: Path) -> None:
        """Download whole or not at all: under another name until its CRC32C was checked. Raises UserError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        self.try_to("be read", lambda: blob.download_to_filename(str(partial), timeout=_SECONDS))
        partial.rename(path)

    def upload(self, path: Path, name: str) -> None:
        """Upload a file. Raises UserError."""
        self.try_to("be written", lambda: self.blob(name).upload_from_filename(str(path), timeout=_SECONDS))

    def try_to(self, what: str, action: Callable[[], T]) -> T:
        """Return what the bucket answers to `action`; raise UserError where it does not."""
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from requests import RequestException

        try:
            return action()
        except (GoogleAPIError, GoogleAuthError, RequestException, ConnectionError) as error:
            raise problem_of(self.url, f"cannot {what}", error) from None


def move(url: str, target: str) -> None:
    """Move all objects below one gs:// folder to another one of the same bucket. Raises UserError."""
    source, destination = RemoteFolder(url), RemoteFolder(target)
    for name, blob in source.files().items():

        def move_one(name: str = name, blob: Any = blob) -> None:
            source.bucket.copy_blob(blob, source.bucket, destination.prefix + name, timeout=_SECONDS)
            blob.delete(timeout=_SECONDS)

        source.try_to("be moved", move_one)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is absent
        return False
