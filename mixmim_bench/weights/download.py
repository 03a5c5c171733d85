"""Download files: interrupted downloads resume, and a file is renamed only after its hash is verified.

A partial file is stored next to the final path as `NAME.part`. A process that requests a file while another
process downloads it waits for that process.
"""

import hashlib
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from mixmim_bench.errors import BenchError
from mixmim_bench.progress import Advance

Bar = Callable[[str, int], AbstractContextManager[Advance]]  # name, total bytes

OFFLINE = "MIXMIM_BENCH_OFFLINE"  # set to any value: never download
ANSWER_S = 5.0  # timeout for checking that a server responds
TIMEOUT_S = 20.0  # without receiving a byte
ATTEMPTS = 4  # in a row without progress
PAUSE_S = 1.0  # before another attempt, doubled each time
CHUNK = 1 << 20


class DownloadError(BenchError):
    """A file could not be downloaded; `offline` if the server was never reached."""

    def __init__(self, message: str, offline: bool = False) -> None:
        super().__init__(message)
        self.offline = offline


def fetch(url: str, path: Path, sha256: str, bar: Bar) -> None:
    """Download a file to `path` unless it exists.

    Args:
        url: the address.
        path: the final path.
        sha256: the digest of the file, or a prefix of it.
        bar: creates the progress bar.

    Raises:
        DownloadError: within seconds if there is no network, after a few attempts if the server stalls, and
            immediately if it does not have the file.
        BenchError: the hash does not match, or the disk is full.
    """
    if offline():
        raise DownloadError(f"{url} was not downloaded: ${OFFLINE} is set", offline=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"cannot create {path.parent}: {error.strerror}") from error
    part = path.with_name(f"{path.name}.part")
    with FileLock(path.with_name(f"{path.name}.lock")):
        if path.is_file():
            return
        _check_space(path.parent, url)
        for resumes in (part.exists(), False):  # an existing partial file may be of another version
            _fetch_all(url, part, bar)
            actual = file_sha256(part)
            if actual.startswith(sha256):
                part.replace(path)
                return
            part.unlink()
            if not resumes:
                break
        raise BenchError(
            f"{url} returned an unexpected file: its SHA-256 starts with {actual[:8]}, not {sha256}"
        )


def offline() -> bool:
    """Whether the user has disabled downloads."""
    return bool(os.environ.get(OFFLINE))


def answers(url: str) -> bool:
    """Whether the server of a URL responds within seconds."""
    if offline():
        return False
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=ANSWER_S).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, HTTPException):
        return False
    return True


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_space(folder: Path, url: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < 1 << 30:
        raise BenchError(f"{folder} has only {free >> 20} MB free, too little to download {url}")


def _fetch_all(url: str, part: Path, bar: Bar) -> None:
    """Complete the partial file, reconnecting as often as needed."""
    failures, pause = 0, PAUSE_S
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _fetch_some(url, part, bar):
                return
            reason = "the connection was closed"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise DownloadError(f"{url}: the server returned {error.code} {error.reason}") from error
            reason = f"the server returned {error.code} {error.reason}"
        except (OSError, HTTPException) as error:
            cause = getattr(error, "reason", error)
            if before == 0 and not _timed_out(cause):
                raise DownloadError(f"{url} cannot be reached: {cause}", offline=True) from error
            reason = str(cause) or type(cause).__name__
        grown = (part.stat().st_size if part.exists() else 0) > before
        failures, pause = (0, PAUSE_S) if grown else (failures + 1, pause * 2)
        if failures >= ATTEMPTS:
            raise DownloadError(f"{url}: {reason}, {failures} times in a row; rerun to resume")
        time.sleep(pause)


def _timed_out(cause: object) -> bool:
    return isinstance(cause, TimeoutError | ConnectionResetError) or "timed out" in str(cause)


def _fetch_some(url: str, part: Path, bar: Bar) -> bool:
    """Append the data of one connection; return whether the file is complete."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing left to send; the hash is checked later
            return True
        raise
    with response:
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        total = int(length) + (have if resumed else 0) if length else 0
        with part.open("ab" if resumed else "wb") as file, bar(part.stem, total) as advance:
            advance(have if resumed else 0)
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                advance(len(chunk))
    return not total or part.stat().st_size >= total
