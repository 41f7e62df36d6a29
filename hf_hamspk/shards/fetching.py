"""Fetching bytes of the files of a folder, local or remote: ranges, retried with growing pauses."""

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
"""Seconds without a byte after which an HTTP request counts as failed."""

HOPELESS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, ImportError)
"""Errors that another request does not cure."""

BUSY = (408, 425, 429)
"""HTTP answers below 500 that mean later, not never: timeout, too early, too many requests."""


@dataclass(frozen=True)
class Retry:
    """How often and how long a request is repeated: pauses double, and each is shortened by a random part.

    Attributes:
        attempts: requests in all, at least 1. The pauses of the default add up to half a minute to a minute.
        first_pause: seconds before the second request.
        longest_pause: seconds.
        jitter: largest part by which a pause is shortened, 0 to 1, so that the processes of a job do not all come back
            at once.
    """

    attempts: int = 8
    first_pause: float = 0.5
    longest_pause: float = 30.0
    jitter: float = 0.5

    def pause(self, attempt: int, generator: random.Random) -> float:
        """Seconds to wait after request number `attempt` (from 1) has failed."""
        longest = min(self.first_pause * 2.0 ** (attempt - 1), self.longest_pause)
        return longest * (1.0 - self.jitter * generator.random())


class RangesError(ValueError):
    """A server sends whole files where parts were asked for: nothing can be streamed from it."""


class Fetcher:
    """The files of a folder.

    It can be copied and pickled; open connections are left out.

    Args:
        folder: a local path or a URL that fsspec reads.
        retry: see `Retry`.
        storage_options: for the fsspec file system, for example `{"token": ...}`.

    Attributes:
        stop: once set, no request is repeated any more.
    """

    def __init__(self, folder: str | os.PathLike[str], retry: Retry, storage_options: Mapping[str, Any] | None = None):
        self.folder, self.retry = os.fspath(folder).rstrip("/"), retry
        self.storage_options = {} if storage_options is None else dict(storage_options)
        self._forget_process()
        self._is_local = isinstance(self._connect(self.folder)[0], LocalFileSystem)

    def _forget_process(self) -> None:
        self._connections: dict[tuple[int, str], tuple[Any, str]] = {}
        # Of the pauses only; the generators of the training must not be touched.
        self._draws = random.Random()
        self.stop = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_connections", "_draws", "stop")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget_process()

    def fetch(self, file: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes `start` to `end - 1` of a file of the folder, or all of it.

        Raises:
            InputError: it could not be had, after all attempts.
            RangesError: the server sends whole files.
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
                    raise InputError(f"cannot be fetched, {attempt} attempts ({_one_line(error)})", file) from error

    def _fetch_once(self, file: str, start: int | None, end: int | None) -> bytes:
        filesystem, path = self._open(file)
        # Files of the Hub would read ahead otherwise.
        options = {"cache_type": "none"} if "hf" in filesystem.protocol else {}
        content = filesystem.cat_file(path, start=start, end=end, **options)
        if start is not None and end is not None and len(content) != end - start:
            counts = f"{len(content)} bytes came, {end - start} were requested"
            if isinstance(filesystem, LocalFileSystem):
                raise ValueError(f"{counts}: the file is shorter than the manifest says")
            if len(content) > end - start:
                raise RangesError(
                    f"{self.folder} cannot be streamed from: its server ignores requests for a part of a file "
                    f"({counts}), as `python -m http.server` does. Serve it by one that honours ranges (nginx, "
                    "Apache, Caddy, S3, the Hub), or copy the folder here."
                )
            raise OSError(f"{counts}: the connection broke off")
        return content

    def _open(self, file: str) -> tuple[Any, str]:
        """File system and path of a file, which a manifest names: not trusted."""
        if "://" in file:
            if not self._is_local:
                raise ValueError(f"a manifest that is not local may not name files elsewhere, as {file}")
            return self._connect(file)
        if os.path.isabs(file) or ".." in file.split("/"):
            raise ValueError(f"the manifest names {file}, which is not inside its folder")
        filesystem, path = self._connect(self.folder)
        return filesystem, f"{path.rstrip('/')}/{file}"

    def _connect(self, root: str) -> tuple[Any, str]:
        """File system and path of a URL; a connection of its own in each process."""
        key = (os.getpid(), root)
        if key not in self._connections:
            options = dict(self.storage_options)
            if root.startswith(("http://", "https://")):
                options.setdefault("client_kwargs", {"timeout": _timeout()})
            self._connections[key] = fsspec.core.url_to_fs(root, **options)
        return self._connections[key]


def _timeout() -> Any:
    """No limit on the whole of a request, one on each silence in it."""
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=READ_TIMEOUT_S, sock_read=READ_TIMEOUT_S)


def _hopeless(error: Exception) -> bool:
    """Whether another request would fail in the same way."""
    status = getattr(error, "status", getattr(getattr(error, "response", None), "status_code", None))
    if isinstance(status, int):
        return 400 <= status < 500 and status not in BUSY
    return isinstance(error, HOPELESS)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
