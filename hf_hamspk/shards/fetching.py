"""Fetch byte ranges of files in a local or remote folder, with retries and increasing pauses between them."""

import os
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..audio_hamspk import InputError

READ_TIMEOUT_S = 60.0
"""Seconds without data after which an HTTP request counts as failed."""

TOTAL_TIMEOUT_S = 600.0
"""Seconds after which one HTTP request counts as failed, even if data still arrives."""

HOPELESS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, ImportError)
"""Errors that would occur again if the request were repeated."""

BUSY = (408, 425, 429)
"""HTTP status codes below 500 after which another attempt can succeed: timeout, too early, too many requests."""


@dataclass(frozen=True)
class Retry:
    """Number of attempts for a request and the pauses between them.

    The pause doubles after each failed attempt, up to `longest_pause`. Each pause is multiplied by a random factor from
    `1 - jitter` to 1, so that the processes of a job do not repeat their requests at the same time.

    Attributes:
        attempts: number of attempts including the first, at least 1. With the default values, the pauses of a request
            that always fails are 30 to 60 seconds long in total.
        first_pause: pause in seconds before the second attempt, before `jitter` is applied.
        longest_pause: longest pause in seconds, before `jitter` is applied.
        jitter: largest fraction by which a pause is shortened, from 0 to 1.
    """

    attempts: int = 8
    first_pause: float = 0.5
    longest_pause: float = 30.0
    jitter: float = 0.5

    def pause(self, attempt: int, generator: random.Random) -> float:
        """Return the number of seconds to wait after failed attempt number `attempt`, counted from 1."""
        longest = min(self.first_pause * 2.0 ** (attempt - 1), self.longest_pause)
        return longest * (1.0 - self.jitter * generator.random())


class RangesError(ValueError):
    """Error for a server that ignores byte ranges and sends complete files, so that nothing can be streamed from it."""


class Fetcher:
    """Reader of byte ranges from the files in a folder.

    A fetcher can be copied and pickled. The copy opens new connections.

    Args:
        folder: local path, or URL that fsspec can read.
        retry: number of attempts and pauses between them, see `Retry`.
        storage_options: options of the fsspec file system, for example `{"token": ...}`.

    Attributes:
        stop: event that stops all retries when it is set.
    """

    def __init__(self, folder: str | os.PathLike[str], retry: Retry, storage_options: Mapping[str, Any] | None = None):
        self.folder, self.retry = os.fspath(folder).rstrip("/"), retry
        self.storage_options = {} if storage_options is None else dict(storage_options)
        self._forget_process()
        self._is_local = isinstance(self._connect(self.folder)[0], LocalFileSystem)

    def _forget_process(self) -> None:
        self._connections: dict[tuple[int, str], tuple[Any, str]] = {}
        # Used only for the pauses, so that the random generators of the training are not changed.
        self._draws = random.Random()
        self.stop = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_connections", "_draws", "stop")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget_process()

    def fetch(self, file: str, start: int | None = None, end: int | None = None) -> bytes:
        """Fetch the bytes `start` to `end - 1` of a file in the folder, or the complete file if both are None.

        Raises:
            InputError: the file cannot be read, or all attempts failed.
            RangesError: the server ignores the range and sends the complete file.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._fetch_once(file, start, end)
            except RangesError:
                raise
            # Every file system has its own errors for a lost connection or a busy server.
            except Exception as error:
                if _hopeless(error):
                    raise InputError(
                        f"cannot be read ({_one_line(error)}); check that {self.folder} is complete", file
                    ) from error
                if attempt >= self.retry.attempts or self.stop.wait(self.retry.pause(attempt, self._draws)):
                    raise InputError(
                        f"cannot be fetched: {attempt} attempts failed ({_one_line(error)}); check the connection", file
                    ) from error

    def _fetch_once(self, file: str, start: int | None, end: int | None) -> bytes:
        filesystem, path = self._open(file)
        # Otherwise the file system of the Hub would read ahead.
        options = {"cache_type": "none"} if "hf" in filesystem.protocol else {}
        content = filesystem.cat_file(path, start=start, end=end, **options)
        if start is not None and end is not None and len(content) != end - start:
            counts = f"expected {end - start} bytes, got {len(content)}"
            if isinstance(filesystem, LocalFileSystem):
                raise ValueError(f"{counts}: the file is shorter than the manifest declares")
            if len(content) > end - start:
                raise RangesError(
                    f"{self.folder} cannot be streamed from: its server ignores requests for a part of a file "
                    f"({counts}), as `python -m http.server` does. Use a server that supports byte ranges (nginx, "
                    "Apache, Caddy, S3, the Hub), or copy the folder to this machine."
                )
            raise OSError(f"{counts}: the connection was closed early")
        return content

    def _open(self, file: str) -> tuple[Any, str]:
        """Return the file system and the path of `file`. The name is checked, because it can be from a manifest."""
        if "://" in file:
            if not self._is_local:
                raise ValueError(f"a remote manifest may only name files in its own folder, but it names {file}")
            return self._connect(file)
        if os.path.isabs(file) or ".." in file.split("/"):
            raise ValueError(f"the manifest names {file}, which is not inside its folder")
        filesystem, path = self._connect(self.folder)
        return filesystem, f"{path.rstrip('/')}/{file}"

    def _connect(self, root: str) -> tuple[Any, str]:
        """Return the fsspec file system of a path or URL, and the path in it. Each process has its own connection."""
        key = (os.getpid(), root)
        if key not in self._connections:
            options = dict(self.storage_options)
            if root.startswith(("http://", "https://")):
                options.setdefault("client_kwargs", {"timeout": _timeout()})
            self._connections[key] = fsspec.core.url_to_fs(root, **options)
        return self._connections[key]


def _timeout() -> Any:
    """Return an HTTP timeout that limits each wait for data, and the total time of a response."""
    import aiohttp

    return aiohttp.ClientTimeout(total=TOTAL_TIMEOUT_S, sock_connect=READ_TIMEOUT_S, sock_read=READ_TIMEOUT_S)


def _hopeless(error: Exception) -> bool:
    """Return True if another attempt would fail with the same error."""
    status = getattr(error, "status", getattr(getattr(error, "response", None), "status_code", None))
    if isinstance(status, int):
        return 400 <= status < 500 and status not in BUSY
    return isinstance(error, HOPELESS)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
