"""Images over http and https, kept in state_dir/imagecache.

A copy's mtime is the server's Last-Modified, its atime when it was last asked for. What is written and not
yet complete has another name, in another directory of the same file system. Transfers: libcurl by PycURL.
"""

from __future__ import annotations

import email.utils
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

import vac
from vac.config.values import without_password
from vac.logs import OnChange

if TYPE_CHECKING:
    import pycurl

GRID_CERTIFICATES = Path("/etc/grid-security/certificates")
SYSTEM_CERTIFICATES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/ca-bundle.pem"),
)
"""Where distributions keep the CAs they trust: a PycURL from a wheel doesn't know the host's."""
_LONGEST_NAME = 255
_TIMED_OUT_STATUS = 408
_TOO_MANY_STATUS = 429
_DAY_SECONDS = 86400

_log = logging.getLogger(__name__)


class DownloadFailed(OSError):
    """Why there is no image, for people and without passwords.

    passing: the server can't serve now, which says nothing against the copy that there is.
    """

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


@dataclass(frozen=True)
class Limits:
    """What a download may take. There is no limit on its time as long as it gets on."""

    largest_bytes: int = 50 * 1024**3
    slowest_bytes_per_second: int = 1000
    slow_seconds: int = 60
    """How long it may be slower than that, from the beginning."""
    connect_seconds: int = 30
    redirects: int = 10


class ImageCache:
    """Copies of images by URL. All methods may be called from any thread.

    directory holds the copies, unfinished what is being downloaded; both are on one file system.
    ca_file: the CAs that are trusted beside GRID_CERTIFICATES; None: the system's.
    """

    def __init__(
        self, directory: Path, unfinished: Path, limits: Limits | None = None, ca_file: Path | None = None
    ) -> None:
        self._directory = directory
        self._unfinished = unfinished
        self._limits = limits or Limits()
        self._ca_file = ca_file
        self._lock = threading.Lock()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._changes = OnChange(_log)

    def path(self, url: str) -> Path:
        """Where the copy of this URL is, or would be."""
        name = quote(without_password(url), safe="", errors="surrogateescape")
        if len(name) > _LONGEST_NAME:
            digest = hashlib.sha256(name.encode()).hexdigest()
            name = f"{name[: _LONGEST_NAME - len(digest) - 1]}-{digest}"
        return self._directory / name

    def fetch(self, url: str) -> Path:
        """The path of a copy, as new as the server's; an older one while the server can't be asked.

        Blocks as long as the download takes. Raises DownloadFailed, and OSError if it can't be written.
        """
        path = self.path(url)
        with self._lock:
            lock = self._locks[path.name]
        with lock:
            try:
                modified_time = self._bring_up_to_date(url, path)
            except DownloadFailed as error:
                if not error.passing or not path.exists():
                    raise
                text = f"image {without_password(url)}: the copy in the cache is used: {error}"
                self._changes.say(url, text, logging.WARNING)
                modified_time = path.stat().st_mtime
            else:
                self._changes.clear(url)
            os.utime(path, (time.time(), modified_time))
        return path

    def expire(self, used_urls: Iterable[str], now: float, days: float) -> None:
        """Remove the copies that no used URL has and that nobody has asked for in so many days.

        Waits for no download. now is in Unix seconds.
        """
        used = {self.path(url).name for url in used_urls}
        for path in sorted(self._directory.iterdir()):
            try:
                if path.name not in used and now - path.stat().st_atime > days * _DAY_SECONDS:
                    path.unlink(missing_ok=True)
                    _log.info("image %s: removed from the cache, unused for %g days", path.name, days)
            except OSError as error:
                self._changes.say(path, f"{path} can't be removed: {error.strerror}", logging.WARNING)

    def _bring_up_to_date(self, url: str, path: Path) -> float:
        """Download the image unless the copy is as new; gives the copy's Last-Modified, in Unix seconds."""
        known_time = path.stat().st_mtime if path.exists() else None
        descriptor, temporary = tempfile.mkstemp(dir=self._unfinished, prefix="image-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                answer = _Answer(file, self._limits.largest_bytes)
                _get(url, answer, known_time, self._limits, self._ca_file)
                if answer.status == 304 and known_time is not None:
                    return known_time
                modified_time = answer.modified_time
                file.flush()
                os.fchmod(descriptor, 0o644)  # hypervisors don't read it as root
                os.utime(temporary, (time.time(), modified_time))
                os.fsync(descriptor)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return modified_time


@dataclass
class _Answer:
    """What a server answers: the header of its last answer, and the body as far as it is wanted."""

    file: BinaryIO
    largest_bytes: int
    status: int = 0
    last_modified: str = ""
    refusal: OSError | None = None
    _size: int = field(default=0, init=False)

    @property
    def modified_time(self) -> float:
        """Its Last-Modified in Unix seconds."""
        try:
            return email.utils.parsedate_to_datetime(self.last_modified).timestamp()
        except (TypeError, ValueError, OverflowError) as error:
            raise DownloadFailed(
                "the server gives no Last-Modified date, without which an image can't be kept up to date"
            ) from error

    def header(self, line: bytes) -> None:
        """One line of a header. The headers of redirects come before that of the image."""
        text = line.decode("latin-1").strip()
        if text.startswith("HTTP/"):
            self.last_modified = ""
            return
        name, _, value = text.partition(":")
        if name.lower() == "last-modified":
            self.last_modified = value.strip()

    def body(self, piece: bytes) -> int:
        """The next piece of the image. Gives how many bytes were taken: 0 ends the transfer."""
        try:
            if not self._size:
                _ = self.modified_time
            self._size += len(piece)
            if self._size > self.largest_bytes:
                raise DownloadFailed(f"larger than {self.largest_bytes} bytes")
            return self.file.write(piece)
        except OSError as error:
            self.refusal = error
            return 0


def _get(url: str, answer: _Answer, known_time: float | None, limits: Limits, ca_file: Path | None) -> None:
    """One GET into the answer, which afterwards has status 200, or 304 if a known_time was given."""
    try:
        import pycurl
    except ImportError as error:
        raise DownloadFailed(f"{error}; install python3-pycurl") from error
    curl = pycurl.Curl()
    try:
        _set_up(pycurl, curl, limits, ca_file)
        headers = [f"User-Agent: Vac {vac.__version__}"]
        if known_time is not None:
            headers.append(f"If-Modified-Since: {email.utils.formatdate(known_time, usegmt=True)}")
        curl.setopt(pycurl.URL, url.encode("utf-8", "surrogateescape"))
        curl.setopt(pycurl.HTTPHEADER, headers)
        curl.setopt(pycurl.HEADERFUNCTION, answer.header)
        curl.setopt(pycurl.WRITEFUNCTION, answer.body)
        curl.perform()
        answer.status = curl.getinfo(pycurl.RESPONSE_CODE)
    except pycurl.error as error:
        if answer.refusal is not None:
            raise answer.refusal from error
        raise _explained(pycurl, error.args[0], curl.getinfo(pycurl.RESPONSE_CODE), limits) from error
    finally:
        curl.close()
    expected = (200,) if known_time is None else (200, 304)
    if answer.status not in expected:
        raise DownloadFailed(f"the server answers with status {answer.status}, which is no image")


def _set_up(api: Any, curl: pycurl.Curl, limits: Limits, ca_file: Path | None) -> None:
    web = api.PROTO_HTTP | api.PROTO_HTTPS
    trusted = ca_file or next(filter(Path.exists, SYSTEM_CERTIFICATES), None)
    options = {
        api.NOSIGNAL: 1,
        api.PROTOCOLS: web,
        api.REDIR_PROTOCOLS: web,
        api.FOLLOWLOCATION: 1,
        api.MAXREDIRS: limits.redirects,
        api.FAILONERROR: 1,
        api.MAXFILESIZE_LARGE: limits.largest_bytes,
        api.LOW_SPEED_LIMIT: limits.slowest_bytes_per_second,
        api.LOW_SPEED_TIME: limits.slow_seconds,
        api.CONNECTTIMEOUT: limits.connect_seconds,
        api.SSL_VERIFYPEER: 1,
        api.SSL_VERIFYHOST: 2,
    }
    if trusted is not None:
        options[api.CAINFO] = str(trusted)
    if GRID_CERTIFICATES.is_dir():
        options[api.CAPATH] = str(GRID_CERTIFICATES)
    for option, value in options.items():
        curl.setopt(option, value)


def _explained(api: Any, code: int, status: int, limits: Limits) -> DownloadFailed:
    """The one reason for a transfer's failure. libcurl's own texts may quote URLs, and are not used."""
    if code == api.E_HTTP_RETURNED_ERROR:
        passing = status >= 500 or status in (_TIMED_OUT_STATUS, _TOO_MANY_STATUS)
        return DownloadFailed(f"the server answers with status {status}", passing=passing)
    refused = {
        api.E_UNSUPPORTED_PROTOCOL: "the URL, or where it redirects to, is neither http nor https",
        api.E_TOO_MANY_REDIRECTS: f"redirected more than {limits.redirects} times",
        api.E_FILESIZE_EXCEEDED: f"larger than {limits.largest_bytes} bytes",
        api.E_URL_MALFORMAT: "not a URL",
    }
    if code in refused:
        return DownloadFailed(refused[code])
    slow = f"{limits.slow_seconds} s at less than {limits.slowest_bytes_per_second} bytes/s"
    reasons = {
        api.E_COULDNT_RESOLVE_HOST: "there is no such host, or the name service can't tell",
        api.E_COULDNT_RESOLVE_PROXY: "the proxy's name isn't known",
        api.E_COULDNT_CONNECT: "the server can't be connected to",
        api.E_PEER_FAILED_VERIFICATION: "the server's certificate isn't to be trusted for this host",
        api.E_SSL_CONNECT_ERROR: "no TLS connection to the server comes about",
        api.E_SSL_CACERT_BADFILE: "the file of trusted CAs can't be read",
        api.E_OPERATION_TIMEDOUT: f"too slow: {slow}",
        api.E_PARTIAL_FILE: "the server has cut the transfer off",
        api.E_RECV_ERROR: "the connection to the server broke",
        api.E_GOT_NOTHING: "the server has closed the connection without an answer",
    }
    return DownloadFailed(reasons.get(code, f"the transfer failed with libcurl's error {code}"), passing=True)
